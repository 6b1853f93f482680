"""Becomes a service of the version that a file names at this moment: ``python -P launch.py FILE MODULE``.

Read at each start, so that a restart is an upgrade (or a step back) once the file has been changed. A program of its
own, because a process that runs must not find another version's modules under its feet. Not to be imported.
"""

import os
import sys
from pathlib import Path


def main() -> None:
    """Put the version's folder before everything that is installed, and become the service."""
    folder, module = Path(sys.argv[1]).read_text(encoding="utf-8").strip(), sys.argv[2]
    os.environ["PYTHONPATH"] = folder
    os.execv(sys.executable, [sys.executable, "-P", "-m", module])


if __name__ == "__main__":
    main()
