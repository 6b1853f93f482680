"""Becomes another program that ends when its parent does: ``python -I -S child.py PARENT-PID COMMAND …``.

A program of its own, because the flag has to be set between fork and exec, and Python code there is not safe in a
process that has threads. It keeps to the standard library and takes some 15 ms. Not to be imported.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the flag, look whether the parent died before it was set, and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    # It fires when the thread that forked ends: the supervisor's loop, which forks, runs in its main thread.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(f"the parent {parent} has ended")
    os.execv(command[0], command)  # noqa: S606 -- no shell is what is wanted


if __name__ == "__main__":
    main()
