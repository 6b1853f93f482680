"""What generated requests have found wrong with answers of the gateway, each shown by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.support.openapi import operations
from tests.unit.gateway.harness import gateway, token

# They look at their query themselves; what the pages of these are called says nothing.
_OPEN_QUERY: Final = ("/console", "/docs", "/ws", "/healthz", "/readyz")
_IDS: Final = {
    "run_id": "run-1",
    "thread_id": "thread-1",
    "name": "n",
    "user_id": "alice",
    "path": "about.json",
    "agent": "data",
}


def _login() -> dict[str, str]:
    """Made when it is used: one of when the tests were collected has ended by then."""
    return {"Authorization": f"Bearer {token()}"}


async def test_a_method_that_an_address_does_not_take_is_answered_with_those_that_it_does(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for method, path, allowed in (
            ("DELETE", "/api/runs", "GET"),
            ("GET", "/api/agents/execute", "POST"),
            ("PUT", "/docs/openapi.json", "GET"),
        ):
            async with g.http.request(method, g.url + path, headers=_login()) as response:
                assert (response.status, response.headers["Allow"]) == (405, allowed)
                assert (await response.json())["error"]["advice"] == f"it takes {allowed}"


async def test_unknown_parameters_are_refused_by_every_route_with_a_login(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for name, _ in operations():
            method, _, path = name.partition(" ")
            if path == "/" or path.startswith(_OPEN_QUERY):
                continue
            url = f"{g.url}{path.format_map(_IDS)}?no_such=1"
            async with g.http.request(method, url, headers=_login(), json={}) as response:
                assert response.status == 400, name
                fields = (await response.json())["error"]["details"]["fields"]
                assert fields == {"no_such": "is not known here, or comes twice"}, name


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/runs?thread_id=", "thread_id"),
        ("/api/runs?page_size=", "page_size"),
        ("/api/events?thread_id=", "thread_id"),
        ("/api/events?from=", "from"),
    ],
)
async def test_a_parameter_without_a_value_is_not_taken_for_none(tmp_path: Path, path: str, field: str) -> None:
    async with gateway(tmp_path) as g, g.http.get(g.url + path, headers=_login()) as response:
        assert response.status == 400
        assert set((await response.json())["error"]["details"]["fields"]) == {field}


async def test_a_wrong_position_in_the_address_is_told_though_the_header_counts(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        headers = _login() | {"Last-Event-ID": ":0:"}
        async with g.http.get(f"{g.url}/api/events?last_event_id=nonsense", headers=headers) as response:
            assert response.status == 400
            assert "last_event_id" in (await response.json())["error"]["details"]["fields"]
