"""One connection to Redis on which commands follow each other without waiting; answers come back in the same order.

Parses with hiredis and knows nothing of the log. It is used once: when it is lost, everything that waits on it
fails, and whoever owns it opens the next one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, cast

import hiredis

from servicekit.logs import get_logger
from services.bridge.store_redis_errors import refused, unavailable

__all__ = ["Address", "Argument", "ConnectOptions", "RedisConnection", "ReplyError", "Taker", "pack"]

ReplyError = hiredis.ReplyError
Address: TypeAlias = tuple[str, int]
Argument: TypeAlias = "str | bytes | int"
# Told an answer, or what went wrong: an exception as a value. It must not raise: that would be logged, and no more.
Taker: TypeAlias = Callable[[Any], None]

_DOUBT_S: Final = 0.2
_log = get_logger("services.bridge")
# Its stub takes commands of one word only.
_pack: Final[Callable[[Any], bytes]] = hiredis.pack_command


def pack(*command: Argument) -> bytes:
    """A command as it goes over the wire."""
    return _pack(command)


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How connections are made.

    Args:
        username: ACL user; empty for the default one.
        password: Empty for none.
        db: Number of the database.
        tls: Encryption; None for none.
        timeout_s: When nothing is heard for so long while an answer is awaited, the connection is lost; so long may it
            take to be made.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = None
    timeout_s: float = 3.0


class RedisConnection(asyncio.Protocol):
    """Open it with ``RedisConnection.open``.

    Args:
        address: Where it leads, for messages.
        timeout_s: The longest silence while an answer is awaited.
        pushed: Told what comes unasked (Pub/Sub); then no answers are awaited.
    """

    def __init__(self, address: Address, timeout_s: float, pushed: Taker | None = None) -> None:
        self.address = address
        self.on_lost: Callable[[], None] = lambda: None
        self._timeout_s = timeout_s
        self._pushed = pushed
        self._reader = hiredis.Reader(notEnoughData=...)
        self._waiting: deque[tuple[Taker, float]] = deque()
        self._transport: asyncio.WriteTransport | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._doubted = False
        self._error: Exception | None = None
        self.heard_at = self._loop.time()

    @classmethod
    async def open(cls, address: Address, options: ConnectOptions, pushed: Taker | None = None) -> RedisConnection:
        """Connect and log in.

        Raises:
            StoreUnavailableError: It cannot be reached or refuses us.
        """
        loop = asyncio.get_running_loop()
        host, port = address
        connection = cls(address, options.timeout_s, None)
        try:
            async with asyncio.timeout(options.timeout_s):
                await loop.create_connection(lambda: connection, host, port, ssl=options.tls)
                if options.password:
                    login = (options.username, options.password) if options.username else (options.password,)
                    await connection.ask("AUTH", *login)
                if options.db:
                    await connection.ask("SELECT", options.db)
        except (OSError, TimeoutError) as error:
            connection.abort()
            raise unavailable(f"{host}:{port} {_reason(error)}", _advice(error)) from error
        except BaseException:
            connection.abort()
            raise
        connection._pushed = pushed
        return connection

    @property
    def usable(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and self._error is None

    async def ask(self, *command: Argument) -> Any:
        """One command's answer.

        Raises:
            StoreUnavailableError: An error reply, or no answer.
        """
        future: asyncio.Future[Any] = self._loop.create_future()

        def take(answer: Any) -> None:
            if not future.done():
                future.set_result(answer)

        self.send([_pack(command)], [take])
        answer = await future
        if isinstance(answer, Exception):
            raise refused(answer) from answer
        return answer

    def send(self, packed: Sequence[bytes], takers: Sequence[Taker]) -> None:
        """Send packed commands; each taker is told its command's answer, in order, or the loss of the connection.

        Raises:
            StoreUnavailableError: Nothing was sent.
        """
        if self._transport is None or self._error is not None:
            raise refused(self._error or unavailable("not connected"))
        now = self._loop.time()
        self._waiting.extend((taker, now) for taker in takers)
        self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))
        if self._timer is None and takers:
            self._timer = self._loop.call_later(self._timeout_s, self._check)

    def tell(self, *command: Argument) -> None:
        """Send a command whose answer comes as a push (Pub/Sub)."""
        if self._transport is not None and self._error is None:
            self._transport.write(_pack(command))

    def abort(self, error: Exception | None = None) -> None:
        """Lose the connection now."""
        self._fail(error or unavailable("the connection was closed"))
        if self._transport is not None:
            self._transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        # uvloop's are asyncio's by their methods only.
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Answers, in order."""
        self.heard_at = self._loop.time()
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        try:
            while (answer := reader.gets()) is not ...:
                if self._pushed is not None:
                    self._tell(self._pushed, answer)
                elif waiting:
                    self._tell(waiting.popleft()[0], answer)
        except hiredis.ProtocolError:
            self.abort(unavailable(f"{self.address[0]}:{self.address[1]} does not speak Redis's protocol"))

    def connection_lost(self, error: Exception | None) -> None:
        """The end."""
        self._fail(unavailable("the connection was lost"))

    def _fail(self, error: Exception) -> None:
        if self._error is not None:
            return
        self._error = error
        self.on_lost()
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            self._tell(self._waiting.popleft()[0], error)

    def _tell(self, taker: Taker, answer: Any) -> None:
        try:
            taker(answer)
        except Exception as error:  # noqa: BLE001 -- the connection is everybody's
            _log.error("an answer of Redis could not be used", error=error)

    def _check(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        silent = self._loop.time() - max(self.heard_at, self._waiting[0][1])
        if silent < self._timeout_s:
            self._doubted = False
            self._timer = self._loop.call_later(self._timeout_s - silent, self._check)
        elif not self._doubted:
            # If this process itself stood still, the answer may be here and unread.
            self._doubted = True
            self._timer = self._loop.call_later(_DOUBT_S, self._check)
        else:
            self.abort(unavailable(f"{self.address[0]}:{self.address[1]} does not answer"))


def _reason(error: OSError | TimeoutError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "does not speak TLS with us"
    return "does not answer" if isinstance(error, TimeoutError) else "cannot be reached"


def _advice(error: OSError | TimeoutError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "set CARREL_BRIDGE_LOG__CA_FILE to who signs it, and name the host as the certificate does"
    return "see that Redis runs, and that CARREL_BRIDGE_LOG__URL is right"
