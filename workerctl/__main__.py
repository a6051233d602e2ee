"""The command `workerctl`."""

import sys

from workerctl.app import main_with


def main() -> None:
    """Run the command."""
    sys.exit(main_with(sys.argv[1:]))


if __name__ == "__main__":
    main()
