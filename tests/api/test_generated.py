"""The live gateway against docs/openapi.json, with generated requests: no fault, and no answer but those documented."""

from __future__ import annotations

from typing import Final

import pytest

from tests.api.generated import Known, send
from tests.support.openapi import operations
from tests.support.stack import RunningStack
from tests.support.whole import WHOLE

_USER: Final = "generated"
# Right and wrong values of every field, at their bounds and by kind, come from coverage; random ones from the others.
_PHASES: Final = ("examples", "coverage", "fuzzing", "stateful") if WHOLE else ("examples", "coverage")
_EXAMPLES: Final = 60 if WHOLE else 1


@pytest.mark.slow
@pytest.mark.timeout(1200 if WHOLE else 90)
async def test_generated_requests_are_answered_as_documented(stack: RunningStack) -> None:
    found = send(stack, _USER, await _known(stack), examples=_EXAMPLES, phases=_PHASES)
    assert not found.failures, "\n\n".join(found.failures[:8])
    print("requests:", dict(found.phases))
    assert set(+found.phases) >= set(_PHASES)
    assert found.statuses.keys() == {name for name, _ in operations()}
    for name, counts in found.statuses.items():
        # No server answered nothing, and not all that was sent was wrong.
        assert not counts[0], name
        assert sum(counts.values()) >= 5, name
    good = {name for name, counts in found.statuses.items() if any(200 <= status < 300 for status in counts)}
    # Sockets need an upgrade, the right events never end, and AG-UI's right requests are tried elsewhere.
    assert {name for name, _ in operations()} - good <= {
        "GET /ws",
        "GET /ws/{user_id}",
        "GET /api/events",
        "POST /ag-ui",
        "POST /ag-ui/{agent}",
    }
    await _nothing_goes_on(stack)


async def _known(stack: RunningStack) -> Known:
    """What the requests find there."""
    async with stack.http(_USER) as http:
        wrote = await http.execute("Write it down", pipeline=["writing"])
        talked = await http.execute("Say lines", pipeline=["quick"])
        asks = await http.execute("Ask me", pipeline=["asking"])
        question = await http.waiting_for(asks["run_id"])
        assert question is not None
    return Known(
        run_id=wrote["run_id"],
        artifact=wrote["artifacts"][0]["name"],
        thread_id=talked["thread_id"],
        waiting=asks["run_id"],
        input_id=question.input_id,
        answer="quick",
    )


async def _nothing_goes_on(stack: RunningStack) -> None:
    """What was begun is ended: agents that ask wait for long."""
    async with stack.http(_USER) as http:
        page = await http.get("/api/runs?status=QUEUED,RUNNING,WAITING,FINISHING&page_size=200")
        for run in page["runs"]:
            _ = await http.cancel(run["run_id"])
