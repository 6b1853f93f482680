"""Becomes an MCP server's program, as one that is killed when the service that started it ends.

Run as ``python -I -S client_mcp_exec.py <parent's pid> <program> [argument …]``; imports nothing of the project. Not
done between fork and exec in the service itself: code that runs there, beside other threads, may wait for ever.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Replace this process; returns only when that fails."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.stderr.write("cannot ask to end with the service\n")
        return 126
    if os.getppid() != parent:
        return 125
    # Python ignores it, and what is ignored stays so in the program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(program, sys.argv[2:])  # noqa: S606  (no shell: that is wanted)
    except OSError as error:
        sys.stderr.write(f"cannot start {program}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main())
