"""The life of a process: four phases to readiness, then service, then an ordered end within a known time.

``run_service`` is what every ``__main__`` calls. A start that fails prints one block: the phase, what was needed, what
happened, what to do; and ends with code 78 (configuration) or 1. Building a service's objects is its ``app``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, Protocol, TypeVar

from carrel.errors import CarrelError, StartupError
from servicekit import logs
from servicekit.contracts import PHASES, Phase
from servicekit.settings import SharedSettings, load_settings
from servicekit.tasks import TaskOwner, failure_handler
from servicekit.telemetry.process import LOOP_LAG
from servicekit.telemetry.runtime import TELEMETRY_OFF, Runtime
from servicekit.telemetry.setup import end_s, telemetry
from servicekit.watchdog import watch_loop

__all__ = ["App", "Phase", "Running", "Starter", "run_service"]

EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 78  # EX_CONFIG of sysexits.h
_LAST_RESORT_S: Final = 2.0
# Requests leave few cycles behind, so the young generation may be larger than the interpreter's 700.
_GC_YOUNG: Final = 2_000
_GC_MIDDLE: Final = 20
_GC_OLD: Final = 50
_PYTHONS: Final = ((3, 11), (3, 13))

S = TypeVar("S", bound=SharedSettings)
_log = logs.get_logger("servicekit.lifecycle")


class Running(Protocol):
    """What an app gives: something that listens. ``RpcServer`` is one, and so is the gateway."""

    @property
    def address(self) -> str:
        """What clients dial, with the actual port; known after ``start``."""

    async def start(self) -> int:
        """Listen and serve; the actual port. Idempotent."""

    async def drain(self) -> None:
        """Refuse new work, end what is open. Idempotent."""

    def hasten(self) -> None:
        """End a drain now."""


App = Callable[[S, "Starter"], AbstractAsyncContextManager[Running]]


class Starter:
    """Leads a start through its phases and turns whatever fails into a ``StartupError`` that says what to do.

    async with start.phase(Phase.INTEGRATION, needs="the bridge at 127.0.0.1:50054", advice="start it first"):
        await wait_ready(channel, "the bridge")

    ``telemetry`` is what the service's parts tell of themselves with; it does nothing when it is off.
    """

    def __init__(self, service: str, telemetry: Runtime = TELEMETRY_OFF) -> None:
        self.service = service
        self.telemetry = telemetry
        self.began = time.monotonic()
        # The settings have been read by now.
        self._phase = Phase.CONFIGURATION

    @asynccontextmanager
    async def phase(self, phase: Phase, *, needs: str = "", advice: str = "") -> AsyncIterator[None]:
        """Do a part of a phase. Phases may have several parts, and never go back.

        Raises:
            StartupError: Whatever was raised inside, with the phase, the need and the advice.
        """
        if phase.value < self._phase.value:
            raise RuntimeError(f"{phase.name} comes before {self._phase.name}, which has begun")
        self._phase = phase
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            raise self.failure(error, needs, advice) from error
        _log.debug("phase part done", phase=phase.name, needs=needs, seconds=round(time.monotonic() - began, 3))

    def failure(self, error: Exception, needs: str = "", advice: str = "") -> StartupError:
        """What went wrong in the present phase, as the error that ends the start."""
        contract = PHASES[self._phase]
        if isinstance(error, StartupError) and error.phase:
            return error
        message, own_advice = _told_by(error)
        return StartupError(
            message,
            advice=advice or own_advice or contract.advice,
            phase=self._phase.name,
            what=needs or "; ".join(contract.needs),
        )


def run_service(name: str, settings_cls: type[S], app: App[S]) -> int:
    """Run a service from start to end and return its exit code. Must be called from the main thread.

    Args:
        name: The service, as in its settings' prefix, in lower case ("agent_instance").
        settings_cls: Its settings.
        app: Builds its objects and gives what listens; leaving it closes them in reverse.
    """
    try:
        _check_platform()
        settings = load_settings(settings_cls, name)
        logs.configure(name, settings.log_level, settings.log_format)
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Life(name, settings, app).live())
    except StartupError as error:
        print(failure_block(name, error), file=sys.stderr, flush=True)  # noqa: T201 -- for the person who starts it
        return EXIT_CONFIGURATION if error.phase == Phase.CONFIGURATION.name else EXIT_FAILED


def failure_block(name: str, error: StartupError) -> str:
    """The text that a failed start prints."""
    rows = [("phase", error.phase), ("needed", error.what), ("happened", error.message), ("to do", error.advice)]
    body = "\n".join(f"  {label:<9}{text}".replace("\n", "\n" + " " * 11) for label, text in rows if text)
    return f"{name} could not start\n{body}"


class _Life:
    """One run of a service: signals, readiness, the reason for its end."""

    def __init__(self, name: str, settings: S, app: App[S]) -> None:
        self._name = name
        self._settings = settings
        self._open_app: Callable[[Starter], AbstractAsyncContextManager[Running]] = lambda start: app(settings, start)
        self._stop = asyncio.Event()
        self._failed = False
        self._running: Running | None = None
        self._main: asyncio.Task[None] | None = None
        self._longest_end_s = settings.drain_seconds + settings.close_seconds + end_s(settings.telemetry)

    async def live(self) -> int:
        """Start, serve until a signal or a failure, end in order; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, signal.Signals(number).name)
        failure_handler.set(self._on_failure)
        self._main = asyncio.create_task(self._serve(), name=f"{self._name} service")
        try:
            await self._main
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
            _log.warning("stopped before it was ready or cut off at its end")
        except StartupError:
            raise
        except Exception as error:  # noqa: BLE001 -- the process ends here; what a store's close raised is for the log
            _log.error("the end went wrong", error=error)
            self._failed = True
        return EXIT_FAILED if self._failed else 0

    async def _serve(self) -> None:
        start = Starter(self._name)
        async with contextlib.AsyncExitStack() as stack:
            try:
                # Around everything, so that the end of the app is still seen. Not every service listens somewhere.
                listen = str(getattr(self._settings, "listen", ""))
                start.telemetry = await stack.enter_async_context(
                    telemetry(self._settings.telemetry, self._name, listen=listen)
                )
                running = await stack.enter_async_context(self._open_app(start))
            except Exception as error:
                raise start.failure(error) from error
            async with start.phase(Phase.READINESS):
                _settle_memory()
                await running.start()
            self._running = running
            # From here on: a start may block its loop, since nobody is served yet.
            _ = (await stack.enter_async_context(TaskOwner())).start(watch_loop(lag=LOOP_LAG), "watch over the loop")
            self._tell_ready(running.address, time.monotonic() - start.began)
            await self._stop.wait()
            asyncio.get_running_loop().call_later(self._longest_end_s, self._cut_off)
            await running.drain()
        _log.info("stopped")

    def _tell_ready(self, address: str, seconds: float) -> None:
        settings = self._settings
        if settings.ready_file is not None:
            _write_file(settings.ready_file, address)
        if settings.ready_fd is not None:
            with contextlib.suppress(OSError), os.fdopen(settings.ready_fd, "w") as pipe:
                pipe.write(address + "\n")
        _log.info("ready", address=address, seconds=round(seconds, 3), pid=os.getpid())

    def _on_signal(self, name: str) -> None:
        if not self._stop.is_set():
            _log.info("stopping", signal=name)
            self._stop.set()
            if self._running is None and self._main is not None:
                self._main.cancel()
        elif self._running is not None:
            _log.warning("stopping now", signal=name)
            self._running.hasten()

    def _on_failure(self, task: str, error: BaseException) -> None:
        self._failed = True
        if not self._stop.is_set():
            _log.info("stopping", failed_task=task, error_type=type(error).__name__)
            self._stop.set()
            if self._running is None and self._main is not None:
                self._main.cancel()

    def _cut_off(self) -> None:
        self._failed = True
        _log.warning("the end takes too long", after_s=self._longest_end_s)
        if self._main is not None:
            self._main.cancel()
        # What ignores a cancellation too must not keep the process from its successor.
        asyncio.get_running_loop().call_later(_LAST_RESORT_S, os._exit, EXIT_FAILED)


def _settle_memory() -> None:
    """Take what the start has made out of the garbage collector's sight: a full collection would stop everybody.

    Measured: 13 to 30 ms for each full collection of a service just started, most of it imported modules.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_YOUNG, _GC_MIDDLE, _GC_OLD)


def _check_platform() -> None:
    if not _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1] or not sys.platform.startswith("linux"):
        contract = PHASES[Phase.INITIALIZATION]
        raise StartupError(
            f"this is Python {sys.version_info[0]}.{sys.version_info[1]} on {sys.platform}",
            advice=contract.advice,
            phase=Phase.INITIALIZATION.name,
            what=contract.needs[0],
        )


def _told_by(error: Exception) -> tuple[str, str]:
    if isinstance(error, CarrelError):
        return error.message, error.advice
    if isinstance(error, OSError) and error.strerror:
        return (f"{error.strerror}: {error.filename}" if error.filename else error.strerror), ""
    return f"{type(error).__name__}: {error}", ""


def _write_file(path: Path, address: str) -> None:
    # In one step, so that who polls for the file never reads half of it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(address + "\n", encoding="utf-8")
    temporary.replace(path)
