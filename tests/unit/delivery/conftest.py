"""A scripted hop, a stream to it and a producer on it."""

from collections.abc import AsyncIterator

import pytest

from servicekit.delivery import Producer, ProducerOptions, ProducerStream, StreamOptions
from tests.unit.delivery.scripted import Hop, run_context

QUICK = StreamOptions(first_delay_s=0.001, max_delay_s=0.01, close_grace_s=0.05)
QUICK_PRODUCER = ProducerOptions(settle_s=0.001, first_delay_s=0.001, max_delay_s=0.01)


@pytest.fixture
def hop() -> Hop:
    return Hop()


@pytest.fixture
async def stream(hop: Hop) -> AsyncIterator[ProducerStream]:
    async with ProducerStream(hop.open, options=QUICK) as stream:
        yield stream


@pytest.fixture
async def producer(stream: ProducerStream) -> AsyncIterator[Producer]:
    producer = Producer(stream, "p1", run_context(), fence=7, attempt=1, options=QUICK_PRODUCER)
    yield producer
    await producer.aclose()
