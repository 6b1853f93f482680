"""The clock for upper bounds: it counts what a process waited for, and not that it was stopped."""

import signal
import subprocess
import sys
import time

from tests.support.awake import Awake

STOPPED_S = 1.5

WAITS = """
import sys
from tests.support.awake import Awake
with Awake() as took:
    print("begun", flush=True)
    sys.stdin.readline()
print(took.seconds)
"""


def test_what_is_waited_for_counts() -> None:
    began = time.monotonic()
    with Awake() as took:
        time.sleep(0.3)
        inside = took.seconds
    assert 0.05 < inside <= took.seconds <= time.monotonic() - began
    after = took.seconds
    time.sleep(0.03)
    assert took.seconds == after


def test_a_process_that_stands_still_does_not_count() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        child.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_S)
        child.send_signal(signal.SIGCONT)
        told, _ = child.communicate("go on\n")
    assert float(told) < STOPPED_S - 0.5
