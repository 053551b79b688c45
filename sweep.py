"""Train the points of a grid or a search, each in its own process: `python sweep.py sweep=<name> [key=value …]`."""

import sys


def main() -> None:
    from chronomoe.sweep.command import main

    main(sys.argv[1:])


if __name__ == "__main__":
    from chronomoe.entry import guarded

    guarded(main)
