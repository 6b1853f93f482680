"""``carrel run``: one message from the request to the saved artifacts."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carrel.cli.answering import RunQuestions
from carrel.cli.invocation import own_command
from carrel.cli.keyboard import find_keyboard
from carrel.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_WAITING
from carrel.cli.questions import question_text
from carrel.cli.reconnect import reconnect_backoff
from carrel.cli.render import clean
from carrel.cli.saving import fetch_artifacts
from carrel.cli.show import Show
from carrel.cli.signals import Stop, on_signals
from carrel.cli.target import Target
from carrel.cli.timing import Timing, fetch_timing, timing_table
from carrel.client import Event, SocketClient
from carrel.client.http import GatewayHttp
from carrel.client.models import Artifact, Question
from carrel.errors import CarrelError

__all__ = ["Wish", "how_to_answer", "run_message", "show_lost_end"]

_CANCEL_S: Final = 20.0
# Of the options: what need not be typed.
_DEFAULT_USER: Final = "alice"
_DEFAULT_STATE: Final = ".carrel"
# What an agent printed, which execution keeps with its run.
_OUTPUT: Final = re.compile(r"output-\d+-\d+-.*\.txt")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be run, and where its artifacts go."""

    message: str
    params: Mapping[str, Any]
    agent: str = ""
    pipeline: tuple[str, ...] = ()
    thread: str = ""
    save: Path | None = None
    strategy: str = ""
    bound: bool = False
    timing: bool = False


async def run_message(wish: Wish, target: Target, *, as_json: bool) -> int:
    """Run it and show it; the exit code.

    Raises:
        CarrelError: The gateway refused it or cannot be reached.
    """
    show = Show(as_json=as_json)
    with on_signals() as stop:
        async with (
            GatewayHttp(target.url, target.token) as http,
            SocketClient(target.url, target.token, backoff=reconnect_backoff(), on_state=show.connection) as socket,
        ):
            began = time.monotonic()
            accepted = await socket.execute(
                wish.message,
                params=wish.params,
                pipeline=wish.pipeline or ((wish.agent,) if wish.agent else ()),
                thread_id=wish.thread,
                strategy=wish.strategy,
                bound=wish.bound,
            )
            with show:
                end = await _answered(socket, http, _Run(accepted.run_id, wish.bound, target), show, stop)
            wall_s = time.monotonic() - began
        if isinstance(end, Question):
            return EXIT_WAITING
        if end is None:
            show.note("the run was left running")
            return EXIT_INTERRUPTED
        succeeded = end == "SUCCEEDED"
        async with GatewayHttp(target.url, target.token) as http:
            folder = wish.save or target.state / "saved" / accepted.run_id
            saved = await fetch_artifacts(http, accepted.run_id, folder, stop.requested)
            if wish.timing:
                _show_timing(accepted.run_id, await fetch_timing(http, accepted.run_id, wall_s), show)
        _show_saved(accepted.run_id, folder, saved, show, failed=not succeeded)
    if stop.requested.is_set():
        return EXIT_INTERRUPTED
    return EXIT_OK if succeeded else EXIT_FAILED


def how_to_answer(target: Target, run_id: str, question: Question, show: Show) -> None:
    """Say what a run waits for, and the command that answers it."""
    if show.as_json:
        body = {name: getattr(question, name) for name in ("input_id", "prompt", "schema", "tool_name", "arguments")}
        body["expires_at"] = question.expires_at.isoformat() if question.expires_at else None
        show.json({"type": "waiting", "run_id": run_id, "waiting_for": body})
        return
    value = "yes|no" if question.approval else "VALUE"
    command = [own_command(), "answer", shlex.quote(run_id), shlex.quote(question.input_id), value]
    if target.user != _DEFAULT_USER:
        command += ["--user", shlex.quote(target.user)]
    if str(target.state) != _DEFAULT_STATE:
        command += ["--state", shlex.quote(str(target.state))]
    show.text(f"{question_text(question)}\nanswer with:  {' '.join(command)}")


@dataclass(frozen=True, slots=True)
class _Run:
    run_id: str
    bound: bool
    target: Target


async def _answered(
    socket: SocketClient, http: GatewayHttp, run: _Run, show: Show, stop: Stop
) -> str | Question | None:
    """Follow the run to its last status, and answer its questions at the keyboard; the question if nobody is there."""
    left: asyncio.Future[Question] = asyncio.get_running_loop().create_future()

    def leave(question: Question) -> None:
        how_to_answer(run.target, run.run_id, question, show)
        # A bound run ends with this command, which therefore stays until somebody has answered elsewhere.
        if not run.bound and not left.done():
            left.set_result(question)

    questions = RunQuestions(http, run.run_id, None if show.as_json else find_keyboard(), show, leave)
    following = asyncio.create_task(_to_the_end(socket, run.run_id, show, questions), name="follow the run")
    try:
        return await _follow(socket, run.run_id, following, left, show, stop)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await questions.aclose()
        left.cancel()


async def _follow(
    socket: SocketClient,
    run_id: str,
    following: asyncio.Task[str],
    left: asyncio.Future[Question],
    show: Show,
    stop: Stop,
) -> str | Question | None:
    """Wait for the run's last status. A signal cancels the run; a second one, or silence after it, leaves it."""
    asked = asyncio.create_task(stop.requested.wait(), name="wait for a signal")
    hastened = asyncio.create_task(stop.hasten.wait(), name="wait for another signal")
    try:
        reasons: set[asyncio.Future[Any]] = {following, asked, left}
        await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
        if left.done() and not following.done() and not asked.done():
            return left.result()
        if not following.done():
            show.note("cancelling the run")
            with contextlib.suppress(CarrelError):
                await socket.cancel(run_id, "interrupted in the terminal")
            await asyncio.wait([following, hastened], timeout=_CANCEL_S, return_when=asyncio.FIRST_COMPLETED)
        return following.result() if following.done() else None
    finally:
        for task in (asked, hastened):
            task.cancel()
        await asyncio.gather(asked, hastened, return_exceptions=True)


async def _to_the_end(socket: SocketClient, run_id: str, show: Show, questions: RunQuestions) -> str:
    async for item in socket.run_items(run_id):
        show.item(item)
        if isinstance(item, Event):
            questions.take(item)
            if item.terminal:
                return str(item.data.get("status"))
    return show_lost_end(socket, run_id, show)


def show_lost_end(socket: SocketClient, run_id: str, show: Show, status: str = "") -> str:
    """Say how a run ended whose last event is not in the log any more; its status."""
    told = socket.run_status(run_id)
    status = told.status if told is not None else status
    if not show.as_json:
        show.text(f"… the run has ended ({clean(status)}); its last events are not in the event log any more")
    return status


def _show_timing(run_id: str, timing: Timing | None, show: Show) -> None:
    if show.as_json:
        show.json({"type": "timing", "run_id": run_id, **(timing.to_json() if timing is not None else {})})
    elif timing is None:
        show.text("where the time went is not known: the process that ran it has been restarted, or another one told")
    else:
        show.text("\n".join(("where the time went:", *timing_table(timing))))


def _show_saved(run_id: str, folder: Path, saved: Sequence[tuple[Artifact, Path]], show: Show, *, failed: bool) -> None:
    paths = [path for _, path in saved]
    if show.as_json:
        show.json({"type": "saved", "run_id": run_id, "paths": [str(path) for path in paths]})
        return
    outputs = {path for artifact, path in saved if _OUTPUT.fullmatch(artifact.name)}
    report = next((path for path in paths if path.suffix == ".md"), None)
    if report is not None:
        show.text(f"report: {report}")
    if others := [path for path in paths if path != report and path not in outputs]:
        show.text(f"saved:  {folder}/  " + ", ".join(path.name for path in others))
    if outputs and failed:
        show.text("what the agents printed:  " + ", ".join(str(path) for path in paths if path in outputs))
