"""The client under test as a process behind the line protocol, and what it has told so far."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from conformance.client.frames import TOKEN, Frame
from conformance.client.gateway import Script, ScriptedGateway, serving
from conformance.report import BreachError, SkipError, expect

__all__ = ["Client", "Stage"]

# A start is not what is timed; on a busy machine it takes its time.
_HELLO_S = 60.0
_CLOSE_S = 5.0
_MAX_LINE = 1 << 20
_KINDS = frozenset({"event", "reset", "gap", "error", "accepted", "refused"})


class Client:
    """A process that is a client."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._changed = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None
        self.name = ""
        self.features: frozenset[str] = frozenset()
        self.told: list[tuple[str, Frame]] = []
        self.broken = ""

    async def begin(self) -> None:
        """Read what it says of itself, and from then on everything."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_HELLO_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise BreachError(f"it did not say what it is within {_HELLO_S:g} s") from None
        try:
            hello = json.loads(line)
            self.name, self.features = str(hello["client"]), frozenset(hello["features"])
        except (ValueError, KeyError, TypeError):
            raise BreachError(f"the first line is {line[:80]!r}, and not what the client is") from None
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            async with self._changed:
                try:
                    ((kind, body),) = json.loads(line).items()
                    if kind not in _KINDS:
                        raise ValueError
                    self.told.append((kind, body))
                except (ValueError, AttributeError):
                    self.broken = f"it printed {line[:120]!r}"
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()

    async def tell(self, do: str, **fields: Any) -> None:
        """Tell it to do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        with suppress(ConnectionError):
            await self._process.stdin.drain()

    async def until(self, holds: Callable[[], object], what: str, within_s: float = 15.0) -> None:
        """Wait until what it has told fits.

        Raises:
            BreachError: It does not, in time; ``what`` says what was waited for.
        """
        try:
            async with asyncio.timeout(within_s), self._changed:
                await self._changed.wait_for(lambda: self.broken or holds())
        except TimeoutError:
            raise BreachError(f"{what} did not come within {within_s:g} s; it told {self.summary()}") from None
        expect(not self.broken, self.broken)

    @property
    def events(self) -> list[Frame]:
        """The events that it has delivered."""
        return [body for kind, body in self.told if kind == "event"]

    def of(self, kind: str) -> list[Frame]:
        """What it has told of one kind."""
        return [body for told, body in self.told if told == kind]

    def summary(self) -> str:
        """The last of what it has told, for a failure."""
        parts = [f"{kind} {body.get('offset', body)}" for kind, body in self.told[-12:]]
        return f"{len(self.told)} things, at last: " + ", ".join(parts)

    async def close(self) -> None:
        """Tell it to end.

        Raises:
            BreachError: It does not, or not with 0.
        """
        await self.tell("close")
        try:
            async with asyncio.timeout(_CLOSE_S):
                code = await self._process.wait()
        except TimeoutError:
            raise BreachError(f"it did not end within {_CLOSE_S:g} s") from None
        expect(code == 0, f"it ended with exit code {code}")

    async def aclose(self) -> None:
        """Be rid of it."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)


class Stage:
    """Starts the client under test and a gateway for each scenario."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    @asynccontextmanager
    async def play(
        self,
        script: Script,
        *,
        resume: Frame | str | None = "oldest",
        needs: Sequence[str] = (),
        token: str = TOKEN,
        thread_id: str = "",
    ) -> AsyncIterator[tuple[Client, ScriptedGateway]]:
        """A client that has been told to connect to a gateway with this script. At its end it must close.

        Raises:
            SkipError: It lacks a feature.
        """
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_MAX_LINE
        )
        client = Client(process)
        try:
            await client.begin()
            lacks = set(needs) - client.features
            if lacks:
                raise SkipError(f"the client has no {', '.join(sorted(lacks))}")
            async with serving(script) as gateway:
                options = {"resume": resume, "thread_id": thread_id, "first_wait_ms": 20, "longest_wait_ms": 200}
                await client.tell("connect", url=gateway.url, token=token, **options)
                yield client, gateway
                await client.close()
                expect(not gateway.wrong, f"it sent what it must not: {gateway.wrong[:3]}")
        finally:
            await client.aclose()
