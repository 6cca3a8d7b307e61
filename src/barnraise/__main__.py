"""``python -m barnraise`` and the ``barnraise`` command: hands the words over to the command line."""

import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    from barnraise.cli import main as command_line

    sys.exit(command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
