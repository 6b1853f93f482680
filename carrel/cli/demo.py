"""``carrel demo``: the stack, and two users whose agents do real work at the same time, each step checked.

The users are ordinary WebSocket clients of the gateway; nothing here looks behind it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from carrel.cli.checks import Check, check_events
from carrel.cli.output import EXIT_FAILED, EXIT_OK, Printer
from carrel.cli.render import describe
from carrel.cli.signals import on_signals
from carrel.cli.stack import Stack, StackOptions
from carrel.cli.tokens import development_token
from carrel.cli.up import command_line, ended, stack_until_stopped
from carrel.client import Event, SocketClient
from carrel.client.http import GatewayHttp
from carrel.errors import CarrelError, DeadlineError, NotFoundError

__all__ = ["run_demo"]

_RUN_S: Final = 120.0
_SETTLES_S: Final = 10.0
_REAL_TRACE: Final = "azure_llm_trace_2023_code.csv"
# Where a checkout has it beside itself.
_PLACES: Final = ("data", "../shared/data", "../data")


@dataclass(slots=True)
class _Guest:
    """One user of the demonstration and what they saw."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""
    thread_id: str = ""
    events: list[Event] = field(default_factory=list)
    status: str = ""
    asked_at: float = 0.0
    first_ms: float = 0.0
    ended_at: float = 0.0
    files: list[Path] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def took_s(self) -> float:
        """From the request to the last event."""
        return self.ended_at - self.asked_at


async def run_demo(options: StackOptions, *, once: bool) -> int:
    """Start the stack, let both users run, say what was seen; 0 only if every check holds.

    Raises:
        StartupError: The stack can't start.
        CarrelError: A user's run could not be followed to its end.
    """
    printer = Printer(width=6)
    options, guests = _plan(options)
    logs: list[str] = []
    with on_signals() as stop:
        printer.say("Starting the five processes: gateway, execution, agent_instance, emitter, bridge …")
        quiet = _Quiet(logs)
        async with stack_until_stopped(options, quiet, stop) as stack:
            if stack.moved:
                printer.say(f"Port {options.port} is taken, so the gateway listens on another one.")
            printer.say(f"Ready after {stack.ready_s:.1f} s at {stack.url}\n")
            _introduce(printer, guests)
            work = asyncio.create_task(_all(stack, guests, printer), name="the users' runs")
            stop.on_request = work.cancel
            try:
                await work
            except CarrelError:
                _explain(printer, logs)
                raise
            stop.on_request = stop.requested.is_set
            good = _report(printer, guests)
            if not good:
                _explain(printer, logs)
            if not once:
                hint = command_line(stack, 'run "Optimize"')
                printer.say(f"\nThe stack stays up at {stack.url}: open it in a browser. Stop with Ctrl-C.")
                printer.say(f"Try in another terminal:  {hint}")
                await ended(stack, stop)
    return EXIT_OK if good else EXIT_FAILED


def _plan(options: StackOptions) -> tuple[StackOptions, list[_Guest]]:
    """Alice reads the packaged sample; bob the real trace, where it is found."""
    folder = options.environment.get("LLM_COSTS_DATA_DIR", "")
    places = [Path(folder)] if folder else [Path(place) for place in _PLACES]
    found = next((place for place in places if (place / _REAL_TRACE).is_file()), None)
    alice, bob = _Guest("alice"), _Guest("bob")
    if found is not None:
        bob.params = {"trace": _REAL_TRACE}
        options = replace(options, environment={**options.environment, "LLM_COSTS_DATA_DIR": str(found.resolve())})
    return options, [alice, bob]


def _introduce(printer: Printer, guests: Sequence[_Guest]) -> None:
    for guest in guests:
        trace = guest.params.get("trace", "the packaged synthetic sample")
        printer.line(guest.name, f'asks: "Write a report"   (trace: {trace})')
    printer.say()


async def _all(stack: Stack, guests: Sequence[_Guest], printer: Printer) -> None:
    # Both are connected before either asks, so that each would see what is the other's.
    connected = asyncio.Barrier(len(guests))
    tasks = [asyncio.create_task(_visit(stack, g, printer, connected), name=g.name) for g in guests]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for guest, other in zip(guests, reversed(guests), strict=True):
        await _intrude(stack, guest, other)
        together = guest.asked_at < other.ended_at and other.asked_at < guest.ended_at
        guest.checks.append(Check("ran at the same time as the other", "" if together else "one after the other"))


async def _visit(stack: Stack, guest: _Guest, printer: Printer, connected: asyncio.Barrier) -> None:
    token = development_token(stack.state.login_secret, guest.name)
    async with SocketClient(stack.url, token) as socket:
        await connected.wait()
        guest.asked_at = time.perf_counter()
        listening = asyncio.create_task(_listen(socket, guest, printer), name=f"events of {guest.name}")
        try:
            accepted = await socket.execute("Write a report", params=guest.params)
            guest.run_id, guest.thread_id = accepted.run_id, accepted.thread_id
            await _until_over(guest, listening)
            # Both go on listening until both are done: an event of the other's that went astray would be here by then.
            await connected.wait()
            await socket.ping()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    async with GatewayHttp(stack.url, token) as http:
        guest.status = await _settled(http, guest.run_id)
        folder = stack.options.state_dir / "demo" / guest.name
        guest.files = [await http.save(artifact, folder) for artifact in await http.artifacts(guest.run_id)]
    guest.checks = [
        *check_events(guest.events, guest.name, guest.run_id, guest.thread_id),
        Check("the run's status is final", "" if guest.status == "SUCCEEDED" else f"it is {guest.status}"),
        Check("a report and two or more charts", _missing(guest.files)),
    ]


async def _listen(socket: SocketClient, guest: _Guest, printer: Printer) -> None:
    async for event in socket.events():
        now = time.perf_counter()
        if not guest.events:
            guest.first_ms = (now - guest.asked_at) * 1000
        guest.events.append(event)
        line = describe(event)
        text = printer.paint(line.text, line.style) if line.style else line.text
        printer.line(guest.name, f"{event.offset:>3}  {now - guest.asked_at:5.2f} s  {text}")
        if event.terminal and not guest.over.is_set():
            guest.ended_at = now
            guest.over.set()


async def _until_over(guest: _Guest, listening: asyncio.Task[None]) -> None:
    over = asyncio.create_task(guest.over.wait(), name=f"end of {guest.name}")
    try:
        await asyncio.wait([over, listening], timeout=_RUN_S, return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            listening.result()
        if not guest.over.is_set():
            raise DeadlineError(f"{guest.name}'s run did not end within {_RUN_S:g} s")
    finally:
        over.cancel()


async def _settled(http: GatewayHttp, run_id: str) -> str:
    """The run's status once it is final: that follows right after the terminal event is in the log."""
    deadline = time.monotonic() + _SETTLES_S
    while True:
        status = str((await http.run(run_id))["status"])
        if status not in {"RUNNING", "FINISHING"} or time.monotonic() > deadline:
            return status
        await asyncio.sleep(0.01)


async def _intrude(stack: Stack, guest: _Guest, other: _Guest) -> None:
    """Ask for the other one's run: it must name nothing."""
    async with GatewayHttp(stack.url, development_token(stack.state.login_secret, guest.name)) as http:
        try:
            await http.run(other.run_id)
            problem = f"{guest.name} can see {other.name}'s run"
        except NotFoundError:
            problem = ""
    guest.checks.append(Check("the other one's run cannot be seen", problem))


def _missing(files: Sequence[Path]) -> str:
    charts = [path for path in files if path.suffix == ".svg" and path.stat().st_size > 0]
    reports = [path for path in files if path.suffix == ".md" and path.stat().st_size > 0]
    return "" if reports and len(charts) >= 2 else f"there are {len(reports)} reports and {len(charts)} charts"


def _report(printer: Printer, guests: Sequence[_Guest]) -> bool:
    for guest in guests:
        printer.say()
        offsets = f"{guest.events[0].offset} to {guest.events[-1].offset}"
        printer.line(guest.name, printer.paint(f"{len(guest.events)} events, offsets {offsets}", "1"))
        kinds = " → ".join(event.event_type for event in guest.events)
        printer.line(guest.name, f"in order: {kinds}")
        for check in guest.checks:
            mark = printer.paint("✓", "32") if check.holds else printer.paint("✗", "1;31")
            printer.line(guest.name, f"{mark} {check.name}" + (f": {check.problem}" if check.problem else ""))
        printer.line(guest.name, f"first event after {guest.first_ms:.1f} ms, end after {guest.took_s:.2f} s")
        report = next((path for path in guest.files if path.suffix == ".md"), None)
        charts = ", ".join(path.name for path in guest.files if path != report)
        printer.line(guest.name, f"report: {report}   (with {charts})")
    failed = [check for guest in guests for check in guest.checks if not check.holds]
    verdict = "All checks hold." if not failed else f"{len(failed)} checks do not hold."
    printer.say("\n" + printer.paint(verdict, "1;32" if not failed else "1;31"))
    return not failed


class _Quiet(Printer):
    """Keeps the processes' logs, to be shown when something goes wrong; what the supervisor says of them is shown."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__()
        self._kept = kept

    def line(self, name: str, text: str) -> None:
        self._kept.append(f"{name:<14} │ {text}")
        del self._kept[:-500]


def _explain(printer: Printer, logs: Sequence[str]) -> None:
    printer.say("\nWhat the processes said last:")
    for line in logs[-60:]:
        printer.say(f"  {line}")
