"""``python -m carrel.cli``: the same as ``carrel``."""

from carrel.cli import main

if __name__ == "__main__":
    main()
