"""REST end to end in one process: runs, artifacts, threads, tickets, errors, CORS; and every route without a token."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import pytest

from carrel.errors import StoreUnavailableError, ThreadBusyError
from gateway.rest.routes import CONSOLE_PATHS, DOCS_PATHS, OPEN_PATHS
from servicekit.identity.principals import RunPrincipal, ServicePrincipal, SessionPrincipal
from tests.conftest import Eventually
from tests.support.identity import identity
from tests.unit.gateway.harness import SECRET, Gateway, gateway, token

EXECUTE = "/api/agents/execute"
Answer = tuple[int, Any, dict[str, str]]


async def _ask(g: Gateway, method: str, path: str, *, user: str = "alice", **options: Any) -> Answer:
    bearer = options.pop("bearer", None) or token(user)
    headers = {"Authorization": f"Bearer {bearer}"} | options.pop("headers", {})
    async with g.http.request(method, g.url + path, headers=headers, **options) as response:
        body = await response.json() if response.content_type == "application/json" else await response.read()
        return response.status, body, dict(response.headers)


async def _started(g: Gateway, user: str = "alice", **body: Any) -> str:
    headers = {"Prefer": "respond-async"}
    status, run, _ = await _ask(g, "POST", EXECUTE, user=user, json={"message": "m"} | body, headers=headers)
    assert status == 202
    return str(run["run_id"])


async def test_every_route_but_the_open_ones_refuses_a_request_without_a_token(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        seen = set()
        for route in g.server.routes():
            info = route.resource.canonical if route.resource else ""
            seen.add(info)
            if info in OPEN_PATHS | CONSOLE_PATHS | DOCS_PATHS:
                continue
            path = (
                info.replace("{run_id}", "run-1")
                .replace("{thread_id}", "thread-1")
                .replace("{name}", "n")
                .replace("{agent}", "echo")
            )
            for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Bearer {token(ttl_s=-9)}"}):
                async with g.http.request(route.method, g.url + path, headers=headers) as response:
                    assert response.status == 401, (route.method, path)
                    assert response.headers["WWW-Authenticate"].startswith("Bearer"), path
                    if route.method != "HEAD":
                        assert (await response.json())["error"]["code"] in {"TOKEN", "TOKEN_EXPIRED"}
        assert len(seen) >= 20
        for path in ("/", "/healthz", "/readyz"):
            async with g.http.get(g.url + path) as response:
                assert response.status == 200


async def test_execute_waits_for_the_end_and_answers_as_the_documents_say(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with gateway(tmp_path) as g:
        asking = asyncio.create_task(_ask(g, "POST", EXECUTE, json={"message": "hello", "agent_name": "data"}))
        await eventually(lambda: g.execution.runs)
        ((user, run_id),) = g.execution.runs
        g.execution.finish(user, run_id)
        status, body, headers = await asking
    assert status == 200
    assert {"run_id", "thread_id", "agent_name", "status", "result", "execution_time"} <= set(body)
    assert (body["status"], body["result"], body["agent_name"]) == ("SUCCEEDED", {"answer": 42}, "data")
    assert body["execution_time"] >= 0
    assert "error" not in body
    assert headers["Location"] == f"/api/runs/{run_id}"
    assert headers["Cache-Control"] == "no-store"


async def test_respond_async_and_wait_answer_202_with_a_location(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for prefer in ("respond-async", "wait=0", "respond-async, wait=10"):
            status, body, headers = await _ask(
                g, "POST", EXECUTE, json={"message": "m"}, headers={"Prefer": prefer, "thread-id": "thread-9"}
            )
            assert (status, body["status"], body["thread_id"]) == (202, "RUNNING", "thread-9")
            assert headers["Preference-Applied"] == prefer
            assert headers["Location"] == f"/api/runs/{body['run_id']}"


async def test_a_waiting_request_outlives_a_restart_of_execution_and_is_freed_by_a_drain(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with gateway(tmp_path) as g:
        asking = asyncio.create_task(_ask(g, "POST", EXECUTE, json={"message": "m"}))
        await eventually(lambda: g.execution.watchers == 1)
        g.execution.break_watches()
        await eventually(lambda: g.execution.watchers == 1 and g.execution.broken == 1)
        await g.server.drain()
        status, body, _ = await asking
    assert (status, body["status"]) == (202, "RUNNING")


async def test_a_client_that_leaves_ends_its_watch(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        asking = asyncio.create_task(_ask(g, "POST", EXECUTE, json={"message": "m"}))
        await eventually(lambda: g.execution.watchers == 1)
        asking.cancel()
        await eventually(lambda: g.execution.watchers == 0)


async def test_the_idempotency_key_is_the_client_ref(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        first = await _started(g, client_ref="key-1")
        headers = {"Idempotency-Key": "key-1", "Prefer": "respond-async"}
        status, body, _ = await _ask(g, "POST", EXECUTE, json={"message": "m"}, headers=headers)
        assert (status, body["run_id"]) == (202, first)
        status, body, _ = await _ask(g, "POST", EXECUTE, json={"message": "another"}, headers=headers)
        assert (status, body["error"]["code"]) == (409, "IDEMPOTENCY_CONFLICT")
        status, body, _ = await _ask(g, "POST", EXECUTE, json={"message": "m", "client_ref": "k2"}, headers=headers)
        assert (status, body["error"]["code"]) == (400, "INVALID_REQUEST")


async def test_refusals_of_execution_keep_their_status_and_advice(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        g.execution.error = ThreadBusyError("busy")
        status, body, _ = await _ask(g, "POST", EXECUTE, json={"message": "m"})
        assert (status, body["error"]["code"], body["error"]["retryable"]) == (409, "THREAD_BUSY", True)
        g.execution.error = StoreUnavailableError("the store is away", retry_after_s=7)
        status, body, headers = await _ask(g, "POST", EXECUTE, json={"message": "m"})
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "STORE_UNAVAILABLE", "7")


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"data": b"{}", "headers": {"Content-Type": "text/plain"}}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ({"data": b""}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ({"data": b"", "headers": {"Content-Type": "application/json"}}, 400, "INVALID_REQUEST"),
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400, "INVALID_REQUEST"),
        ({"data": b"\xff{}", "headers": {"Content-Type": "application/json"}}, 400, "INVALID_REQUEST"),
        ({"json": []}, 400, "INVALID_REQUEST"),
        ({"json": {}}, 400, "INVALID_REQUEST"),
        ({"json": {"message": 5}}, 400, "INVALID_REQUEST"),
        ({"json": {"message": "m", "mesage": "m"}}, 400, "INVALID_REQUEST"),
        ({"json": {"message": "m", "thread_id": "temp"}}, 400, "INVALID_ID"),
        ({"json": {"message": "m" * 262_145}}, 400, "INVALID_REQUEST"),
        ({"data": "over a mebibyte"}, 413, "TOO_LARGE"),
    ],
)
async def test_wrong_bodies(tmp_path: Path, options: dict[str, Any], status: int, code: str) -> None:
    if options.get("data") == "over a mebibyte":
        large = io.BytesIO(b'{"message": "m", "params": {"pad": "%b"}}' % (b"x" * (1 << 20)))
        options = {"data": large, "headers": {"Content-Type": "application/json"}}
    async with gateway(tmp_path) as g:
        got, body, _ = await _ask(g, "POST", EXECUTE, **options)
        assert (got, body["error"]["code"]) == (status, code)
        assert not g.execution.requests


async def test_a_chunked_body_over_the_bound_is_refused_too(tmp_path: Path) -> None:
    async def pieces() -> Any:
        for _ in range(40):
            yield b"x" * 65_536

    async with gateway(tmp_path) as g:
        headers = {"Content-Type": "application/json"}
        status, body, _ = await _ask(g, "POST", EXECUTE, data=pieces(), headers=headers)
        assert (status, body["error"]["code"]) == (413, "TOO_LARGE")


async def test_runs_are_listed_in_pages_and_found_by_status(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        ids = [await _started(g) for _ in range(3)]
        g.execution.finish("alice", ids[0], "FAILED")
        _, page, _ = await _ask(g, "GET", "/api/runs?page_size=2")
        assert len(page["runs"]) == 2
        _, rest, _ = await _ask(g, "GET", f"/api/runs?page_size=2&page_token={page['next_page_token']}")
        assert len(rest["runs"]) == 1
        assert rest["next_page_token"] is None
        _, failed, _ = await _ask(g, "GET", "/api/agents/status?status=failed,timed_out")
        assert [run["run_id"] for run in failed["runs"]] == [ids[0]]
        _, one, _ = await _ask(g, "GET", f"/api/agents/status/{ids[1]}")
        assert (one["status"], one["result"], one["stages"]) == ("RUNNING", None, [])
        for wrong in ("page_size=0", "page_size=201", "page_size=x", "status=MAYBE", "limit=3", "thread_id=null"):
            status, _, _ = await _ask(g, "GET", f"/api/runs?{wrong}")
            assert status == 400, wrong


async def test_another_users_run_does_not_exist(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        run_id = await _started(g, "alice")
        for method, path in (
            ("GET", f"/api/runs/{run_id}"),
            ("GET", f"/api/runs/{run_id}/artifacts"),
            ("GET", f"/api/runs/{run_id}/artifacts/report.md"),
            ("POST", f"/api/runs/{run_id}/cancel"),
        ):
            status, body, _ = await _ask(g, method, path, user="bob")
            assert status == 404, path
            assert body["error"]["code"] in {"UNKNOWN_RUN", "UNKNOWN_ARTIFACT"}
        assert g.execution.runs["alice", run_id].state == 2


async def test_cancel_and_input(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        run_id = await _started(g)
        status, body, _ = await _ask(g, "POST", f"/api/runs/{run_id}/input", json={"input_id": "q", "value": None})
        assert (status, body["error"]["code"]) == (409, "NOT_WAITING")
        status, body, _ = await _ask(g, "POST", f"/api/runs/{run_id}/cancel", json={"reason": "no longer needed"})
        assert (status, body["status"]) == (200, "CANCELLED")


async def test_an_artifact_comes_as_a_download_that_a_browser_runs_nothing_of(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        run_id, data = await _started(g), bytes(range(256)) * 1000
        g.execution.artifacts["alice", run_id, "load.svg"] = ("image/svg+xml", data)
        g.execution.artifacts["alice", run_id, '..\\ü"\r\nx.md'] = ("text/html\r\nX: y", b"<b>")
        status, body, headers = await _ask(g, "GET", f"/api/runs/{run_id}/artifacts/load.svg")
        assert (status, body) == (200, data)
        assert headers["Content-Type"] == "image/svg+xml"
        assert headers["Content-Disposition"].startswith('attachment; filename="load.svg"')
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in headers["Content-Security-Policy"]
        path = f"/api/runs/{run_id}/artifacts/..%5C%C3%BC%22%0D%0Ax.md"
        from yarl import URL

        async with g.http.get(
            URL(g.url + path, encoded=True), headers={"Authorization": f"Bearer {token()}"}
        ) as response:
            assert await response.read() == b"<b>"
            assert response.headers["Content-Type"] == "application/octet-stream"
            assert response.headers["Content-Disposition"] == (
                "attachment; filename=\"__x.md\"; filename*=UTF-8''%C3%BC%22x.md"
            )


async def test_threads_and_agents(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        await _started(g, thread_id="thread-5")
        _, listed, _ = await _ask(g, "GET", "/api/threads")
        assert [thread["thread_id"] for thread in listed["threads"]] == ["thread-5"]
        _, messages, _ = await _ask(g, "GET", "/api/threads/thread-5/messages?page_size=10")
        assert messages["messages"][0] == {"role": "user", "text": "hello", "run_id": "run-1", "created_at": None}
        status, _, _ = await _ask(g, "DELETE", "/api/threads/thread-5", user="bob")
        assert status == 404
        status, _, _ = await _ask(g, "DELETE", "/api/threads/thread-5")
        assert status == 204
        _, agents, _ = await _ask(g, "GET", "/api/agents")
        assert agents["agents"][0]["name"] == "data"
        assert agents["digest"] == "d1"


async def test_a_users_token_gets_tickets_for_that_user_only(tmp_path: Path) -> None:
    verify = identity().verifier().verify_ticket
    async with gateway(tmp_path) as g:
        bearer = token("alice", scope="trace:read report:write")
        status, body, _ = await _ask(g, "POST", "/api/tickets", bearer=bearer, json={"permissions": ["trace:read"]})
        session = verify(body["ticket"])
        assert status == 200
        assert isinstance(session, SessionPrincipal)
        assert (session.user_id, set(session.permissions)) == ("alice", {"trace:read"})
        assert session.expires_at <= body["expires_at"] + 1
        _, body, _ = await _ask(g, "POST", "/api/tickets", bearer=bearer, json={"scope": "run"})
        run = verify(body["ticket"])
        assert isinstance(run, RunPrincipal)
        assert (run.run_id, run.thread_id, run.request_id) == (body["run_id"], body["thread_id"], body["request_id"])
        mine = await _started(g, "alice")
        _, body, _ = await _ask(g, "POST", "/api/tickets", bearer=bearer, json={"scope": "run", "run_id": mine})
        again = verify(body["ticket"])
        assert isinstance(again, RunPrincipal)
        assert again.request_id == g.execution.runs["alice", mine].request_id
        for wrong, code in (
            ({"scope": "run", "run_id": await _started(g, "bob")}, 404),
            ({"user_id": "bob"}, 403),
            ({"scope": "service"}, 403),
            ({"permissions": ["operator:read"]}, 403),
            ({"scope": "admin"}, 400),
            ({"run_id": mine}, 400),
            ({"scope": "run", "run_id": mine, "thread_id": "thread-other"}, 400),
        ):
            status, _, _ = await _ask(g, "POST", "/api/tickets", bearer=bearer, json=wrong)
            assert status == code, wrong


async def test_a_service_that_may_act_gets_tickets_for_users_and_for_itself(tmp_path: Path) -> None:
    verify = identity().verifier().verify_ticket
    async with gateway(tmp_path) as g:
        bearer = token("billing", permissions=["act_as", "operator:read", "trace:read"])
        _, body, _ = await _ask(g, "POST", "/api/tickets", bearer=bearer, json={"user_id": "bob"})
        bob = verify(body["ticket"])
        assert isinstance(bob, SessionPrincipal)
        assert (bob.user_id, set(bob.permissions)) == ("bob", {"trace:read"})
        _, body, _ = await _ask(g, "POST", "/api/tickets", bearer=bearer, json={"scope": "service"})
        service = verify(body["ticket"])
        assert isinstance(service, ServicePrincipal)
        assert (service.service, set(service.permissions)) == ("billing", {"operator:read", "trace:read"})
        wrong = {"user_id": "bob", "permissions": ["operator:read"]}
        status, _, _ = await _ask(g, "POST", "/api/tickets", bearer=bearer, json=wrong)
        assert status == 403


async def test_an_operators_own_token_gets_a_short_service_ticket_for_what_operators_may(tmp_path: Path) -> None:
    verify = identity().verifier().verify_ticket
    async with gateway(tmp_path) as g:
        bearer = token("olga", permissions=["operator:read", "operator:revoke", "trace:read"])
        asked = {"scope": "service", "lifetime_s": 3600}
        _, body, _ = await _ask(g, "POST", "/api/tickets", bearer=bearer, json=asked)
        ticket = verify(body["ticket"])
        assert isinstance(ticket, ServicePrincipal)
        assert (ticket.service, set(ticket.permissions)) == ("olga", {"operator:read", "operator:revoke"})
        assert ticket.expires_at <= time.time() + 901
        for wrong in ({"permissions": ["trace:read"]}, {"permissions": ["operator:write"]}, {"user_id": "bob"}):
            status, body, _ = await _ask(g, "POST", "/api/tickets", bearer=bearer, json={"scope": "service", **wrong})
            assert status in {400, 403}, wrong
        status, _, _ = await _ask(g, "POST", "/api/tickets", bearer=bearer, json={"user_id": "bob"})
        assert status == 403, "an operator acts for nobody"


async def test_unknown_routes_and_methods_answer_in_json(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        status, body, _ = await _ask(g, "GET", "/api/nothing")
        assert (status, body["error"]["code"]) == (404, "NO_SUCH_ROUTE")
        status, body, _ = await _ask(g, "DELETE", "/api/agents")
        assert (status, body["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")
        assert "GET" in body["error"]["advice"]


async def test_a_fault_of_ours_is_500_with_an_id_and_says_nothing_else(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        g.execution.error = RuntimeError(SECRET)
        status, body, headers = await _ask(g, "POST", EXECUTE, json={"message": "m"})
        assert (status, body["error"]["code"]) == (500, "INTERNAL")
        assert SECRET not in str(body)
        assert headers["Server"] == "carrel"


async def test_pages_of_allowed_origins_may_ask_and_others_may_not(tmp_path: Path) -> None:
    async with gateway(tmp_path, allowed_origins=("https://app.example.org",)) as g:
        asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for origin, status in (("https://app.example.org", 204), ("https://evil.net", 403)):
            async with g.http.options(g.url + EXECUTE, headers={"Origin": origin} | asking) as response:
                assert response.status == status
                assert response.headers.get("Access-Control-Allow-Origin") == (origin if status == 204 else None)
        status, _, headers = await _ask(g, "GET", "/api/runs", headers={"Origin": "https://app.example.org"})
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://app.example.org")
        status, body, _ = await _ask(g, "GET", "/api/runs", headers={"Origin": "https://evil.net"})
        assert (status, body["error"]["code"]) == (403, "ORIGIN")
