"""The command `workerctl`."""

import os
import sys

from workerctl.app import main_with


def main() -> None:
    """Run the command."""
    # A standard descriptor that was closed is filled, or a connection would take its place and get what is printed.
    # What is written there fails as it did, with EBADF.
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.exit(main_with(sys.argv[1:]))


if __name__ == "__main__":
    main()
