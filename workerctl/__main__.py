"""The command `workerctl`."""

import os
import sys


def main() -> None:
    """Run the command."""
    # A standard descriptor that was closed is filled, or a connection would take its place and get what is printed.
    # What is written there fails as it did, with EBADF.
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    try:
        from workerctl.app import main_with  # which takes a while, and Ctrl-C may come before it can be heard there

        code = main_with(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
