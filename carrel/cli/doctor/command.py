"""The examination as a whole: gets in, takes two users, makes the checks one after the other, cleans up, reports."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carrel import __version__
from carrel.cli.doctor.access import Access, find_access
from carrel.cli.doctor.checks_setup import backward_compatibility, factories_configured, what_is_missing
from carrel.cli.doctor.checks_streams import resource_cleanup, websocket_isolation
from carrel.cli.doctor.checks_users import concurrent_execution, user_isolation
from carrel.cli.doctor.report import Check, Report, SkipCheck
from carrel.cli.doctor.services import Services
from carrel.cli.doctor.settings import DoctorSettings
from carrel.cli.doctor.users import Pair, claimed_pair
from carrel.cli.doctor.world import World
from carrel.cli.output import EXIT_USAGE, Printer
from carrel.errors import CarrelError, TicketError
from servicekit.settings import load_settings

__all__ = ["CHECKS", "Wishes", "doctor", "examine"]

Make = Callable[[World, Check], Awaitable[None]]
CHECKS: Final[Mapping[str, Make]] = {
    "factories_configured": factories_configured,
    "user_isolation": user_isolation,
    "concurrent_execution": concurrent_execution,
    "websocket_isolation": websocket_isolation,
    "resource_cleanup": resource_cleanup,
    "backward_compatibility": backward_compatibility,
}
# What the whole may take beyond its checks: finding users, and cleaning up.
_CLEAN_S: Final = 30.0
_FIRST: Final = "factories_configured failed: mend that first"
_PUBLISH: Final = (
    "bring tickets.jwks.json with this key to every service (`carrel keys show DIR` lists what it has); it is taken up"
    " within seconds. See docs/operations/secure.md, keys of tickets"
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says."""

    checks: Sequence[str] = ()
    url: str = ""
    token_files: Sequence[Path] = ()
    state: Path = Path(".carrel")
    timeout_s: float | None = None
    strict: bool = False
    as_json: bool = False
    verbose: bool = False


async def doctor(wishes: Wishes) -> int:
    """Examine and print; the exit code: 0 all well, 1 something is wrong, 2 it could not be examined."""
    printer = Printer()
    try:
        settings = load_settings(DoctorSettings, "doctor")
        access = find_access(settings, wishes.url, wishes.token_files, wishes.state)
        with _ended_by(signal.SIGTERM):
            report = await examine(access, wishes, wishes.timeout_s or settings.timeout)
    except CarrelError as error:
        if wishes.as_json:
            printer.say(json.dumps({"schema": "carrel.doctor/1", "status": "error", "error": error.to_dict()}))
        printer.error(error)
        return EXIT_USAGE
    if wishes.as_json:
        printer.say(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        report.show(printer, verbose=wishes.verbose)
    return report.exit_code


async def examine(access: Access, wishes: Wishes, timeout_s: float) -> Report:
    """Make the checks and clean up, whatever happens meanwhile.

    Raises:
        CarrelError: The gateway cannot be reached, refuses the login, or no test users are free.
    """
    began = time.perf_counter()
    report = Report(__version__, access.urls, strict=wishes.strict)
    names = wishes.checks or tuple(CHECKS)
    async with Services(access.addresses, access.operator, access.tls) as services, AsyncExitStack() as stack:
        try:
            claim = claimed_pair(access.urls, access.ids, access.headers, timeout_s + _CLEAN_S)
            pair = await stack.enter_async_context(claim)
        except CarrelError as error:
            await _without_users(access, services, report, names, error)
        else:
            report.users = [user.user_id for user in pair.both]
            world = World(access.urls, __version__, pair, services, access.max_engines, access.operator_headers)
            try:
                await _all(world, report, names, began + timeout_s)
            finally:
                await _cleaned(pair)
            report.leftovers, report.cleaned, report.not_cleaned = pair.leftovers, pair.cleaned, pair.not_cleaned
    report.duration_s = time.perf_counter() - began
    return report


async def _without_users(
    access: Access, services: Services, report: Report, names: Sequence[str], error: CarrelError
) -> None:
    """No test users could be had: say what is wrong with the deployment, if that is why.

    Raises:
        CarrelError: Nothing is missing, or a gateway cannot be reached: ``error``.
    """
    began = time.perf_counter()
    check = Check("factories_configured")
    try:
        await what_is_missing(access.urls, services, check)
    except CarrelError:
        raise error from None
    if isinstance(error, TicketError) and (key := error.details.get("kid")):
        # The gateway took the login: what it asked the services with is what they do not know.
        check.fail(f"the services know the key {key} that the gateway signs with", error.message, _PUBLISH)
    elif check.status == "fail":
        check.fail("the test users can be looked at", f"{error.code}: {error.message}", error.advice)
    else:
        raise error
    check.duration_s = time.perf_counter() - began
    report.checks.append(check)
    for name in (name for name in CHECKS if name in names and name != check.name):
        skipped = Check(name)
        skipped.skip("the check", _FIRST)
        report.checks.append(skipped)


async def _all(world: World, report: Report, names: Sequence[str], until: float) -> None:
    missing = ""
    for name in (name for name in CHECKS if name in names):
        check = Check(name)
        report.checks.append(check)
        if missing:
            check.skip("the check", missing)
            continue
        await _one(world, check, CHECKS[name], until)
        if name == "factories_configured" and check.status == "fail":
            # The others would fail for want of what is missing, and hide it.
            missing = _FIRST


async def _one(world: World, check: Check, make: Make, until: float) -> None:
    began = time.perf_counter()
    left = until - began
    try:
        async with asyncio.timeout(max(left, 0.001)):
            await make(world, check)
    except SkipCheck as skipped:
        check.skip("the rest of the check", str(skipped))
    except TimeoutError:
        advice = "give more time with --timeout, or look for what holds the deployment up"
        check.fail("the check ends in time", f"not within the {max(left, 0):.0f} s that were left", advice)
    except CarrelError as error:
        check.fail("the check can be made to its end", f"{error.code}: {error.message}", error.advice or "see the logs")
    except (LookupError, TypeError, ValueError) as error:
        # An answer of another shape than any release's: that is a finding, too.
        problem = f"{type(error).__name__}: {error}"
        check.fail("the answers have the shape that they should", problem, "is this a gateway of Carrel's?")
    finally:
        check.duration_s = time.perf_counter() - began


async def _cleaned(pair: Pair) -> None:
    """Clean up to the end, even if this command is told to end meanwhile; once more told, it ends."""
    cleaning = asyncio.ensure_future(_bounded(pair))
    try:
        await asyncio.shield(cleaning)
    except asyncio.CancelledError:
        await cleaning
        raise


async def _bounded(pair: Pair) -> None:
    try:
        async with asyncio.timeout(_CLEAN_S):
            await pair.clean()
    except TimeoutError:
        pair.not_cleaned.append(f"threads of {pair.a.user_id} and {pair.b.user_id} (no time was left)")


@contextmanager
def _ended_by(number: signal.Signals) -> Iterator[None]:
    """A signal cancels this task, as Ctrl-C does, so that what was begun is cleaned up."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(number)
