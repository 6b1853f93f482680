"""The soak: many users' random runs, answers, cancels and strategies, while processes are killed at random.

    python -m tests.chaos.soak [--minutes 2] [--seed 1] [--users 200]

What each user received is what the log has committed, once and in order; nobody may see another's canary, in frames,
rows, files or logs; every run ends; and what the processes hold comes back to where it was. It stops by itself and says
what it counted. Not the test, which is a short one (``test_soak``).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.chaos.canaries import Canaries, scan_databases, scan_files, scan_log
from tests.chaos.recovery import AGENTS, wait_whole
from tests.chaos.soak_user import SoakUser
from tests.chaos.soak_wanderer import Wanderer
from tests.faults.oracle import Verdict
from tests.support.processes import Holdings, below, holdings, kill_all, worker_pids, zygote_pid
from tests.support.stack import RunningStack, running_stack

_KILL_EVERY_S: Final = (1.0, 4.0)
# Every so many users, one has a second reader that changes between socket and Server-Sent Events.
_WANDERERS: Final = 5
_MAX_KILLS: Final = 500
_ENDS_WITHIN_S: Final = 150.0
_CALM_S: Final = 20.0
# A restarted process holds a little more or less than the one before it, and caches fill.
_MORE_DESCRIPTORS: Final = 60
_MORE_PROCESSES: Final = 2
_MORE_MEMORY: Final = 1.5
_VICTIMS: Final = (
    *("worker",) * 6,
    "zygote",
    *("agent_instance",) * 2,
    *("execution",) * 2,
    "emitter",
    "bridge",
    "gateway",
)


@dataclass(frozen=True)
class Plan:
    """How long, how many, and by which seed."""

    seed: int
    seconds: float
    users: int

    @property
    def again(self) -> str:
        """The command that repeats it."""
        return f"python -m tests.chaos.soak --minutes {self.seconds / 60:g} --users {self.users} --seed {self.seed}"


@dataclass
class Report:
    """What was counted, and every problem."""

    plan: Plan
    counts: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)
    problems: list[str] = field(default_factory=list)
    before: Holdings | None = None
    after: Holdings | None = None

    def text(self) -> str:
        """For people."""
        lines = [f"  {name:<40} {number:>8}" for name, number in sorted(self.counts.items())]
        lines += [f"  {'told by ' + name:<40} {number:>8}" for name, number in sorted(self.verdict.notices.items())]
        lines += [f"  held at the beginning: {self.before}", f"  held at the end:       {self.after}"]
        if self.problems:
            lines += [f"PROBLEMS ({len(self.problems)}); again: {self.plan.again}", *self.problems[:40]]
        lines += [f"{name:<20} {number:>8}" for name, number in self.verdict.counts().items()]
        return "\n".join([f"soak of {self.plan.seconds:g} s, {self.plan.users} users, seed {self.plan.seed}", *lines])


async def soak(stack: RunningStack, plan: Plan, temporary: Path) -> Report:
    """Run it against a stack that has the chaos agents and keeps its workers' folders below ``temporary``."""
    report = Report(plan)
    canaries = Canaries(f"{plan.seed} {secrets.token_hex(8)}".encode())
    await wait_whole(stack)
    await _warm_up(stack, plan, canaries)
    report.before = await _calm(stack)
    stop = asyncio.Event()
    users = [SoakUser(stack, number, plan.seed, canaries, report.counts) for number in range(plan.users)]
    tasks = [asyncio.create_task(user.live(stop), name=user.name) for user in users]
    wanderers = [Wanderer(stack, user.name, plan.seed) for user in users[::_WANDERERS]]
    wandering = [asyncio.create_task(each.live(), name=f"wanderer of {each.user}") for each in wanderers]
    killing = asyncio.create_task(_kill_now_and_then(stack, plan, report.counts), name="kills")
    try:
        _, _ = await asyncio.wait(tasks, timeout=plan.seconds, return_when=asyncio.FIRST_EXCEPTION)
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
        await wait_whole(stack)
        stop.set()
        _, late = await asyncio.wait(tasks, timeout=_ENDS_WITHIN_S)
        report.problems += [f"{task.get_name()} did not come to an end" for task in late]
    finally:
        for task in (killing, *tasks):
            task.cancel()
        if sys.exc_info()[0] is not None:
            for task in wandering:
                task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    report.problems += [
        f"{task.get_name()}: {type(error).__name__}: {error}"
        for task, error in zip(tasks, ended, strict=True)
        if isinstance(error, Exception)
    ]
    for user in users:
        report.problems += user.problems
        report.problems += [f"{user.name}: {run_id} has no terminal event" for run_id in user.unended]
        report.verdict += await user.verdict()
    for wanderer, task, user in zip(wanderers, wandering, users[::_WANDERERS], strict=True):
        report.verdict.add_wrong(await wanderer.end(task, await user.log()))
        report.counts["events read by wanderers"] += len(wanderer.received.events)
        report.counts.update({f"stays of wanderers: {name}": count for name, count in wanderer.stays.items()})
    report.problems += report.verdict.problems
    if not report.verdict.committed:
        report.problems.append("nothing was committed, so the soak has shown nothing")
    report.after = await _calm(stack, report.before)
    _judge(stack, report, canaries, temporary)
    return report


async def _warm_up(stack: RunningStack, plan: Plan, canaries: Canaries) -> None:
    """A few runs of a user's who is not counted, so that what is loaded on first use has been."""
    stop, user = asyncio.Event(), SoakUser(stack, 1_000_000, plan.seed, canaries, Counter())
    living = asyncio.create_task(user.live(stop))
    await asyncio.wait({living}, timeout=2.0)
    stop.set()
    await living


async def _kill_now_and_then(stack: RunningStack, plan: Plan, counts: Counter[str]) -> None:
    chooser = random.Random(f"{plan.seed} kills")
    for _ in range(_MAX_KILLS):
        await asyncio.sleep(chooser.uniform(*_KILL_EVERY_S))
        victim = chooser.choice(_VICTIMS)
        pid = stack.pid("agent_instance")
        if victim == "worker":
            workers = [] if pid is None else worker_pids(pid)
            killed = kill_all(chooser.sample(workers, min(2, len(workers))))
        elif victim == "zygote":
            zygote = None if pid is None else zygote_pid(pid)
            killed = 0 if zygote is None else kill_all([zygote])
        else:
            there = stack.pid(victim)
            killed = 0 if there is None else kill_all([there], signal.SIGKILL)
        counts[f"killed: {victim}"] += killed


async def _calm(stack: RunningStack, target: Holdings | None = None) -> Holdings:
    """What the stack holds once that has stopped changing (or has come down to ``target``)."""
    deadline = time.monotonic() + _CALM_S
    last = _held(stack)
    while time.monotonic() < deadline:
        await asyncio.sleep(0.5)
        now = _held(stack)
        still = (now.processes, now.descriptors) == (last.processes, last.descriptors)
        if still and (target is None or not _beyond(target, now)):
            return now
        last = now
    return last


def _held(stack: RunningStack) -> Holdings:
    return holdings(below(stack.process.pid))


def _beyond(before: Holdings, after: Holdings) -> list[str]:
    found = []
    if after.processes > before.processes + _MORE_PROCESSES:
        found.append(f"{after.processes} processes, {before.processes} before")
    if after.descriptors > before.descriptors + _MORE_DESCRIPTORS:
        found.append(f"{after.descriptors} open descriptors, {before.descriptors} before")
    if after.memory_mb > before.memory_mb * _MORE_MEMORY:
        found.append(f"{after.memory_mb:.0f} MiB, {before.memory_mb:.0f} before")
    return found


def _judge(stack: RunningStack, report: Report, canaries: Canaries, temporary: Path) -> None:
    assert report.before is not None
    assert report.after is not None
    report.problems += [f"left behind: {what}" for what in _beyond(report.before, report.after)]
    report.problems += canaries.foreign
    report.counts["things with a canary seen"] = canaries.seen
    report.counts["canaries"] = len(canaries.owners)
    report.counts["rows with a canary"], wrong = scan_databases(canaries, stack.state.root)
    report.problems += wrong
    report.counts["files with a canary"], wrong = scan_files(canaries, stack.state.root)
    report.problems += wrong
    left, wrong = scan_files(canaries, temporary)
    report.problems += wrong
    if left:
        report.problems.append(f"{left} files with canaries were left in workers' folders")
    report.problems += scan_log(canaries, stack.log_path)
    for name in ("things with a canary seen", "rows with a canary"):
        if not report.counts[name]:
            report.problems.append(f"{name}: none, so the soak has shown nothing")


def settings(temporary: Path) -> dict[str, str]:
    """What the stack of a soak is started with: folders of its own, and few enough workers that they are waited for."""
    return {
        "CARREL_AGENT_INSTANCE_WORKERS__TEMP_DIR": str(temporary),
        "CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER": "0",
        # All of them come from one address, each with a socket and calls beside it, and some are there twice.
        "CARREL_GATEWAY_LIMITS__PER_ADDRESS": "2000",
        "CARREL_LOG_LEVEL": "info",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 when there was a problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--keep", action="store_true", help="keep the processes' log even when all is well")
    arguments = parser.parse_args(argv)
    plan = Plan(arguments.seed, arguments.minutes * 60, arguments.users)
    print(f"again: {plan.again}", flush=True)
    with tempfile.TemporaryDirectory(prefix="carrel-soak-") as name:
        folder, temporary = Path(name), Path(name) / "workers"
        temporary.mkdir()
        with running_stack(folder, agents=[str(AGENTS)], environment=settings(temporary)) as stack:
            report = asyncio.run(soak(stack, plan, temporary))
            if report.problems or arguments.keep:
                kept = Path(tempfile.gettempdir()) / f"carrel-soak-{plan.seed}.log"
                shutil.copy(stack.log_path, kept)
                print(f"the processes' log: {kept}")
    print(report.text())
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
