"""The proxy that breaks networks: each mode does what it says, to open connections and to new ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.tcp_proxy import DOWN, PASS, UP, Mode, ProxyThread, TcpProxy

SOON = 5.0


class Echo:
    """A server that sends back what it gets, and knows how its connections ended."""

    def __init__(self) -> None:
        self.got = b""
        self.ended = 0
        self.reset = 0
        self.address = ("127.0.0.1", 0)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while data := await reader.read(65536):
                self.got += data
                writer.write(data)
            self.ended += 1
        except ConnectionError:
            self.reset += 1
        finally:
            writer.close()
            self._writers.discard(writer)

    def close_connections(self) -> None:
        for writer in self._writers:
            writer.close()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.close_connections()
        await self._server.wait_closed()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    server = Echo()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(lambda: echo.address) as standing:
        yield standing


class Client:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hear(self, size: int, within: float = SOON) -> bytes:
        async with asyncio.timeout(within):
            return await self.reader.readexactly(size)

    async def hears_nothing(self, for_s: float = 0.1) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(for_s):
                await self.reader.read(1)
                return False
        return True

    async def is_reset(self) -> bool:
        try:
            async with asyncio.timeout(SOON):
                while await self.reader.read(65536):
                    pass
        except ConnectionResetError:
            return True
        return False


@contextlib.asynccontextmanager
async def connected(proxy: TcpProxy) -> AsyncIterator[Client]:
    host, _, port = proxy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_bytes_pass_whole_and_in_order_and_an_end_is_told(
    echo: Echo, proxy: TcpProxy, eventually: Eventually
) -> None:
    data = bytes(range(256)) * 2000
    async with connected(proxy) as client:
        await client.say(data)
        assert await client.hear(len(data)) == data
        client.writer.write_eof()
        assert await client.reader.read() == b""
    await eventually(lambda: echo.ended == 1 and not proxy.links)
    assert (proxy.accepted, proxy.passed[UP], proxy.passed[DOWN]) == (1, len(data), len(data))


async def test_delay_holds_each_way_up_by_so_long(proxy: TcpProxy) -> None:
    async with connected(proxy) as client:
        await proxy.set(Mode.delay(0.1))
        began = time.monotonic()
        await client.say(b"hello")
        assert await client.hear(5) == b"hello"
        assert time.monotonic() - began >= 0.2
        await proxy.set(PASS)
        with Awake() as took:
            await client.say(b"again")
            assert await client.hear(5) == b"again"
        assert took.seconds < 0.1


@pytest.mark.parametrize("way", [UP, DOWN])
async def test_one_way_holds_back_the_other_and_gives_it_all_when_it_ends(
    echo: Echo, proxy: TcpProxy, eventually: Eventually, way: object
) -> None:
    async with connected(proxy) as client:
        await client.say(b"1")
        await client.hear(1)
        await proxy.set(Mode.hold(UP if way is UP else DOWN))
        await client.say(b"23")
        assert await client.hears_nothing()
        assert echo.got == (b"1" if way is UP else b"123")
        await proxy.set(PASS)
        assert await client.hear(2) == b"23"
        await eventually(lambda: echo.got == b"123")


async def test_an_end_does_not_overtake_the_bytes_that_are_held_back(
    echo: Echo, proxy: TcpProxy, eventually: Eventually
) -> None:
    async with connected(proxy) as client:
        await proxy.set(Mode.hold())
        await client.say(b"last words")
        client.writer.write_eof()
        await asyncio.sleep(0.05)
        assert (echo.got, echo.ended) == (b"", 0)
        await proxy.set(PASS)
        await eventually(lambda: (echo.got, echo.ended) == (b"last words", 1))


async def test_a_blackhole_swallows_and_its_connections_are_reset_when_it_ends(echo: Echo, proxy: TcpProxy) -> None:
    async with connected(proxy) as client:
        await proxy.set(Mode.blackhole())
        await client.say(b"lost")
        assert await client.hears_nothing()
        async with connected(proxy) as other:  # accepted, and led nowhere
            await other.say(b"lost too")
            assert await other.hears_nothing()
            await proxy.set(PASS)
            assert await client.is_reset()
            # Nothing of it was taken yet, so this one may live: its bytes are all there.
            assert await other.hear(8) == b"lost too"
    assert echo.got == b"lost too"


async def test_half_open_leaves_the_other_side_in_the_belief_that_somebody_listens(echo: Echo, proxy: TcpProxy) -> None:
    async with connected(proxy) as client:
        await client.say(b"1")
        await client.hear(1)
        await proxy.set(Mode.half_open())
        echo.close_connections()
        assert await client.hears_nothing()
        await client.say(b"anybody?")
        assert await client.hears_nothing()
        assert echo.got == b"1"
        await proxy.set(PASS)
        assert await client.is_reset()


async def test_reset_ends_what_is_open_and_what_comes(echo: Echo, proxy: TcpProxy, eventually: Eventually) -> None:
    async with connected(proxy) as client:
        await client.say(b"1")
        await client.hear(1)
        await proxy.set(Mode.reset())
        assert await client.is_reset()
        await eventually(lambda: echo.reset == 1)
    async with connected(proxy) as other:
        assert await other.is_reset()
    await proxy.set(PASS)
    async with connected(proxy) as third:
        await third.say(b"3")
        assert await third.hear(1) == b"3"


async def test_refuse_turns_new_ones_away_and_leaves_open_ones_alone(proxy: TcpProxy) -> None:
    async with connected(proxy) as client:
        await client.say(b"1")
        await client.hear(1)
        await proxy.set(Mode.refuse())
        with pytest.raises(ConnectionRefusedError):
            async with connected(proxy):
                pass
        await client.say(b"2")
        assert await client.hear(1) == b"2"
        await proxy.set(PASS)
        async with connected(proxy) as other:
            await other.say(b"3")
            assert await other.hear(1) == b"3"


async def test_a_cut_lets_exactly_so_many_bytes_by_once(echo: Echo, proxy: TcpProxy, eventually: Eventually) -> None:
    async with connected(proxy) as client, connected(proxy) as bystander:
        await bystander.say(b"b")
        await bystander.hear(1)
        await proxy.set(Mode.cut(3, DOWN))
        await client.say(b"abcdef")
        assert await client.reader.read(10) == b"abc"
        assert await client.is_reset()
        assert await bystander.is_reset()
    assert echo.got == b"babcdef"
    await eventually(lambda: not proxy.links)
    assert (proxy.cuts, proxy.mode) == (1, PASS)
    async with connected(proxy) as again:
        await again.say(b"abcdef")
        assert await again.hear(6) == b"abcdef"


async def test_a_target_that_nobody_knows_or_that_refuses_is_a_reset(free_port: object) -> None:
    async with TcpProxy(lambda: None) as nowhere, connected(nowhere) as client:
        assert await client.is_reset()
    closed = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    address = closed.sockets[0].getsockname()
    closed.close()
    await closed.wait_closed()
    async with TcpProxy(lambda: address) as refused, connected(refused) as client:
        assert await client.is_reset()


async def test_a_thread_of_proxies_works_while_the_tests_loop_does_not(echo: Echo) -> None:
    with ProxyThread({"edge": lambda: echo.address}) as proxies:
        host, _, port = proxies.address("edge").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        client = Client(reader, writer)
        await client.say(b"1")
        assert await client.hear(1) == b"1"
        with proxies.during("edge", Mode.reset()):
            assert await client.is_reset()
        writer.close()


def test_modes_say_what_they_are() -> None:
    told = [PASS, Mode.delay(0.05), Mode.hold(UP), Mode.hold(), Mode.half_open(), Mode.cut(10)]
    assert [str(mode) for mode in told] == [
        "pass",
        "delay 0.05 s",
        "hold up",
        "hold",
        "half-open",
        "cut down after 10 bytes",
    ]


async def test_what_comes_with_a_mark_is_swallowed_and_the_rest_goes_on(proxy: TcpProxy) -> None:
    async with connected(proxy) as client:
        await proxy.set(Mode.sieve(b"hint"))
        await client.say(b"a hint for you")
        assert await client.hears_nothing()
        await client.say(b"pong")
        assert await client.hear(4) == b"pong"
        assert proxy.sieved == 1
        await proxy.set(PASS)
        await client.say(b"hint")
        assert await client.hear(4) == b"hint"


async def test_marks_are_counted_as_they_go_on(echo: Echo) -> None:
    async with TcpProxy(lambda: echo.address, marks=[b"max_age"]) as proxy, connected(proxy) as client:
        await client.say(b"..max_age..max_age")
        assert await client.hear(18)
        assert proxy.seen == {b"max_age": 4}
