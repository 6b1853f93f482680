"""A TCP proxy whose network breaks on request: it stands on an edge between two processes, and its ``mode`` says how.

    async with TcpProxy(lambda: ("127.0.0.1", 6379)) as proxy:
        ...                                             # somebody connects to proxy.address
        await proxy.set(Mode.hold(UP))                  # what its client sends arrives no more
        await proxy.set(PASS)                           # and now it does

Modes hold for connections that are open and for those to come, from the call on. What a mode withholds stays in order
and whole; only ``blackhole`` and ``half_open`` lose bytes, and connections that lost some are reset when they end.
``ProxyThread`` runs several in a thread of its own, for tests that block. Nothing here knows what is spoken through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["BOTH", "DOWN", "PASS", "UP", "Direction", "Mode", "ProxyThread", "TcpProxy"]

Address = tuple[str, int]

_CHUNK: Final = 64 * 1024
_DIAL_S: Final = 5.0
_ABORTIVE: Final = struct.pack("ii", 1, 0)


class Direction(enum.Flag):
    """UP is from the client that dialled to the server; DOWN is back."""

    UP = enum.auto()
    DOWN = enum.auto()


UP: Final = Direction.UP
DOWN: Final = Direction.DOWN
BOTH: Final = UP | DOWN


class _Kind(enum.Enum):
    PASS = "pass"
    DELAY = "delay"
    HOLD = "hold"
    BLACKHOLE = "blackhole"
    HALF_OPEN = "half-open"
    RESET = "reset"
    REFUSE = "refuse"
    CUT = "cut"
    SIEVE = "sieve"


@dataclass(frozen=True, slots=True)
class Mode:
    """How the edge behaves; made by the functions below."""

    kind: _Kind
    seconds: float = 0.0
    direction: Direction = BOTH
    count: int = 0
    mark: bytes = b""

    @classmethod
    def delay(cls, seconds: float) -> Mode:
        """Each chunk is so many seconds on its way, in both directions."""
        return cls(_Kind.DELAY, seconds=seconds)

    @classmethod
    def hold(cls, direction: Direction = BOTH) -> Mode:
        """Nothing passes in these directions until the mode ends; then all of it does. One of them is a one-way net."""
        return cls(_Kind.HOLD, direction=direction)

    @classmethod
    def blackhole(cls) -> Mode:
        """Connections are accepted and all that is sent is swallowed, both ways; nobody is told anything."""
        return cls(_Kind.BLACKHOLE)

    @classmethod
    def half_open(cls) -> Mode:
        """Bytes pass, but the end of one side is not told to the other, whose bytes are swallowed from then on."""
        return cls(_Kind.HALF_OPEN)

    @classmethod
    def reset(cls) -> Mode:
        """Every connection is reset, and so is each new one as soon as it has been accepted."""
        return cls(_Kind.RESET)

    @classmethod
    def refuse(cls) -> Mode:
        """New connections are refused; those that are open go on."""
        return cls(_Kind.REFUSE)

    @classmethod
    def cut(cls, after: int, direction: Direction = DOWN) -> Mode:
        """Once: after exactly so many more bytes in this direction, of all connections, they are all reset."""
        return cls(_Kind.CUT, direction=direction, count=after)

    @classmethod
    def sieve(cls, mark: bytes, direction: Direction = DOWN) -> Mode:
        """Whatever arrives together with this mark is swallowed, and the rest passes; nobody is told anything.

        Only for what is spoken in messages that are sent one by one: the bytes that follow must still make sense.
        """
        return cls(_Kind.SIEVE, direction=direction, mark=mark)

    def __str__(self) -> str:
        which = {UP: " up", DOWN: " down"}.get(self.direction, "")
        size = (
            f" {self.seconds:g} s" if self.seconds else f" after {self.count} bytes" if self.kind is _Kind.CUT else ""
        )
        return f"{self.kind.value}{which}{size}"


PASS: Final = Mode(_Kind.PASS)


class TcpProxy:
    """One listening address in front of one target.

    Args:
        target: Where connections lead, asked for each; None while nobody knows (the connection is reset then).
        host: Where it listens; the port is any free one.
        port: The port, when it must be a certain one.
        marks: Bytes whose comings are counted, in ``seen``.
    """

    def __init__(
        self,
        target: Callable[[], Address | None],
        host: str = "127.0.0.1",
        port: int = 0,
        marks: Sequence[bytes] = (),
    ) -> None:
        self._target = target
        self._host = host
        self._port = port
        self._mode = PASS
        self._left = 0
        self._changed = asyncio.Event()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._links: set[_Link] = set()
        self.accepted = 0
        self.cuts = 0
        self.sieved = 0
        self.seen = dict.fromkeys(marks, 0)
        self.passed = {UP: 0, DOWN: 0}

    @property
    def address(self) -> str:
        """``host:port`` to dial; the same for the proxy's whole life."""
        return f"{self._host}:{self._port}"

    @property
    def mode(self) -> Mode:
        """How the edge behaves now; a ``cut`` that has happened is ``PASS`` again."""
        return self._mode

    @property
    def links(self) -> int:
        """Connections that are open, as far as the proxy is concerned."""
        return len(self._links)

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Reset everything and stop listening. Idempotent."""
        await self._deafen()
        await self.drop()

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((self._host, self._port))
        listener.listen(128)
        self._port = listener.getsockname()[1]
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener), name=f"proxy on {self.address}")

    async def _deafen(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._accepting = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def set(self, mode: Mode) -> None:
        """Behave so from now on. Returns once it is in effect."""
        old, self._mode, self._left = self._mode, mode, mode.count
        self._changed.set()
        self._changed = asyncio.Event()
        # Bytes are missing in these: no later byte may arrive.
        await self._end([link for link in self._links if link.spoilt])
        if mode.kind is _Kind.RESET:
            await self.drop()
        if mode.kind is _Kind.REFUSE:
            await self._deafen()
        elif old.kind is _Kind.REFUSE:
            self._listen()

    async def drop(self) -> None:
        """Reset the connections that are open now, whatever the mode."""
        await self._end(list(self._links))

    async def _end(self, links: Iterable[_Link]) -> None:
        tasks = [link.cancel() for link in links]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self.accepted += 1
            if self._mode.kind is _Kind.RESET:
                _reset(client)
                continue
            _Link(self, client)

    # For links.

    async def rule(self, link: _Link, direction: Direction, data: bytes) -> bytes:
        """What of the data is to go on, once it may."""
        while True:
            mode, changed = self._mode, self._changed
            if mode.kind is _Kind.DELAY:
                await asyncio.sleep(mode.seconds)
                # What took its time already is not held up twice; a fault that has begun meanwhile holds it.
                if self._mode.kind in {_Kind.PASS, _Kind.DELAY}:
                    return data
            elif mode.kind is _Kind.HOLD and direction & mode.direction:
                await changed.wait()
            elif mode.kind is _Kind.BLACKHOLE:
                link.spoilt = True
                return b""
            elif mode.kind is _Kind.CUT and direction & mode.direction:
                return self._up_to_the_cut(data)
            elif mode.kind is _Kind.SIEVE and direction & mode.direction and mode.mark in data:
                self.sieved += 1
                return b""
            else:
                return data

    def _up_to_the_cut(self, data: bytes) -> bytes:
        taken = data[: self._left]
        self._left -= len(taken)
        return taken

    def sent(self, direction: Direction, data: bytes) -> bool:
        """This went on; whether it was the last before the cut."""
        self.passed[direction] += len(data)
        for mark in self.seen:
            self.seen[mark] += data.count(mark)
        if self._mode.kind is not _Kind.CUT or not direction & self._mode.direction or self._left:
            return False
        self.cuts += 1
        self._mode = PASS
        return True

    def cut_all(self) -> None:
        """Reset every connection, without waiting for it."""
        for link in self._links:
            _ = link.cancel()

    def changed(self) -> asyncio.Event:
        """Set at the next change of the mode."""
        return self._changed

    def dial(self) -> Address | None:
        """The target at this moment."""
        return self._target()

    def enter(self, link: _Link) -> None:
        """It lives."""
        self._links.add(link)

    def leave(self, link: _Link) -> None:
        """It is over."""
        self._links.discard(link)


class _Link:
    """One connection through a proxy: the client's socket, the server's, and a task that has a pump for each way."""

    def __init__(self, proxy: TcpProxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server: socket.socket | None = None
        self.spoilt = False
        proxy.enter(self)
        self._task = asyncio.create_task(self._run(), name=f"connection through {proxy.address}")

    def cancel(self) -> asyncio.Task[None]:
        """Reset both sides; the task that does so."""
        self._task.cancel()
        return self._task

    async def _run(self) -> None:
        orderly = False
        try:
            self._client.setblocking(False)
            if await self._connect():
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(self._pump(UP))
                    pumps.create_task(self._pump(DOWN))
                orderly = True
        except* _Cut:
            self._proxy.cut_all()
        except* OSError:
            pass
        finally:
            for end in (self._client, self._server):
                if end is not None and orderly:
                    end.close()
                elif end is not None:
                    _reset(end)
            self._proxy.leave(self)

    async def _connect(self) -> bool:
        while self._proxy.mode.kind is _Kind.BLACKHOLE:
            # As if the first packet had been lost; whoever dialled finds out by itself.
            await self._proxy.changed().wait()
        address = self._proxy.dial()
        if address is None:
            return False
        server = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        server.setblocking(False)
        self._server = server
        for end in (self._client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(_DIAL_S):
            await asyncio.get_running_loop().sock_connect(server, address)
        return True

    async def _pump(self, direction: Direction) -> None:
        assert self._server is not None
        loop, proxy = asyncio.get_running_loop(), self._proxy
        source, sink = (self._client, self._server) if direction is UP else (self._server, self._client)
        try:
            while data := await loop.sock_recv(source, _CHUNK):
                going = await proxy.rule(self, direction, data)
                if going and not self.spoilt:
                    await loop.sock_sendall(sink, going)
                if proxy.sent(direction, going):
                    raise _Cut
        except OSError:
            if proxy.mode.kind is not _Kind.HALF_OPEN:
                raise
        if proxy.mode.kind in {_Kind.HALF_OPEN, _Kind.BLACKHOLE}:
            # The other side is not told; what it says goes nowhere. `set` ends it.
            self.spoilt = True
            await loop.create_future()
        # An end is as much in order as bytes are: a way that is held up ends when they have gone on.
        await proxy.rule(self, direction, b"")
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class _Cut(Exception):  # noqa: N818 -- an outcome
    """The last byte before the cut has gone."""


def _reset(end: socket.socket) -> None:
    """Close with RST instead of FIN."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTIVE)
    end.close()


class ProxyThread:
    """Several proxies by name, in a thread of their own: they go on while the test's own loop waits for a process.

    Args:
        targets: What each leads to.
        marks: As ``TcpProxy``, of all of them.
    """

    def __init__(self, targets: Mapping[str, Callable[[], Address | None]], marks: Sequence[bytes] = ()) -> None:
        self._targets = dict(targets)
        self._marks = marks
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self.proxies: dict[str, TcpProxy] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def address(self, name: str) -> str:
        """Where to dial it."""
        return self.proxies[name].address

    def set(self, name: str, mode: Mode) -> None:
        """Let one behave so."""
        self._do(self.proxies[name].set(mode))

    def drop(self, name: str) -> None:
        """Reset what is open through one."""
        self._do(self.proxies[name].drop())

    def heal(self) -> None:
        """Let all of them pass."""
        for proxy in self.proxies.values():
            if proxy.mode is not PASS:
                self._do(proxy.set(PASS))

    @contextlib.contextmanager
    def during(self, name: str, mode: Mode) -> Iterator[None]:
        """Let one behave so for the length of the block."""
        self.set(name, mode)
        try:
            yield
        finally:
            self.set(name, PASS)

    async def _open(self) -> None:
        for name, target in self._targets.items():
            self.proxies[name] = await TcpProxy(target, marks=self._marks).__aenter__()

    async def _close(self) -> None:
        for proxy in self.proxies.values():
            await proxy.aclose()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
