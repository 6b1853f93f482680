"""Runs over REST: start one and wait for it or not, look at them, cancel, answer, read artifacts."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import quote

from aiohttp import hdrs, web

from carrel.errors import CarrelError, InvalidRequestError, ProtocolError
from carrel.ids import check_id, check_minted_id
from carrel.v1 import agent_instance_pb2, execution_pb2
from gateway.fields import Rule, check_fields
from gateway.login import Login
from gateway.parts import Parts
from gateway.requests import answer_of, execute_request
from gateway.rest.http import int_query, json_body, json_response
from gateway.run_json import artifact_json, run_json, timing_json
from gateway.runs import TERMINAL, UNENDED
from servicekit.telemetry.names import of_run
from servicekit.telemetry.tracing import current_span

__all__ = ["RunHandlers"]

_STATES: Final = {name.removeprefix("RUN_STATE_"): value for name, value in execution_pb2.RunState.items() if value}
_MEDIA_TYPE: Final = re.compile(
    r"[a-zA-Z0-9!#$&^_.+-]{1,64}/[a-zA-Z0-9!#$&^_.+-]{1,64}(?:; ?charset=[a-zA-Z0-9-]{1,32})?"
)
_PREFERENCE: Final = re.compile(r"\s*(respond-async|wait=(\d{1,6}))\s*")
_CANCEL_RULES: Final = {"reason": Rule(str, longest=512)}
_INPUT_RULES: Final = {"input_id": Rule(str, required=True, longest=128, least=1), "value": Rule(object)}


class RunHandlers:
    """Args:
    parts: What they work with.
    wait_s: How long a request may wait for its run; after that it is answered as if it had not asked to wait.
    """

    def __init__(self, parts: Parts, wait_s: float) -> None:
        self._parts = parts
        self._wait_s = wait_s

    async def execute(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``POST /api/agents/execute``"""
        wait_s, applied = _preferences(request.headers.getall("Prefer", []), self._wait_s)
        key = request.headers.get("Idempotency-Key", "")
        thread_id = request.headers.get("thread-id", "")
        body = await json_body(request)
        if key and isinstance(body, dict) and body.get("client_ref", key) != key:
            raise InvalidRequestError(
                "client_ref and Idempotency-Key are different",
                advice="send one of them",
                fields={"client_ref": "differs"},
            )
        asked = execute_request(body, "the request", thread_id=thread_id, client_ref=key)
        if asked.bound and wait_s <= 0:
            raise InvalidRequestError(
                "a bound run ends with the request that asked for it, and this one does not wait",
                advice="leave out `bound`, or the preference not to wait",
                fields={"bound": "excludes respond-async"},
            )
        run, _ = await self._parts.runs.execute(login, asked, audit={"source": "rest"})
        if (span := current_span()).recording:
            span.set(of_run(login.user_id, run.run_id))
        if wait_s > 0:
            run = await self._end_of(login, run, wait_s, bound=asked.bound)
        if asked.bound and run.state not in TERMINAL:
            run = await self._parts.runs.cancel(login, run.run_id, "the request that it was bound to has been answered")
        return _executed(run, applied)

    async def _end_of(self, login: Login, run: execution_pb2.Run, wait_s: float, *, bound: bool) -> execution_pb2.Run:
        """The run at its end, or as it is when the time is up or this gateway shuts down.

        A client that goes away ends this call, and so the stream that keeps a bound run alive.
        """
        waiting = asyncio.ensure_future(self._parts.runs.ended(login, run.run_id, wait_s, keeps_alive=bound))
        leaving = asyncio.ensure_future(self._parts.connections.drain_begun.wait())
        try:
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return (waiting.result() or run) if waiting.done() else run
        finally:
            waiting.cancel()
            leaving.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)

    async def list(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``GET /api/runs`` and its alias ``/api/agents/status``"""
        asked = request.query
        page = await self._parts.runs.list(
            login,
            thread_id=check_minted_id(asked["thread_id"], "thread_id") if "thread_id" in asked else "",
            states=_states(asked.get("status", "")),
            page_size=int_query(asked, "page_size", 200),
            page_token=asked.get("page_token", ""),
        )
        return json_response(
            {"runs": [run_json(run) for run in page.runs], "next_page_token": page.next_page_token or None}
        )

    async def get(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``GET /api/runs/{run_id}`` and its alias ``/api/agents/status/{run_id}``"""
        run = await self._parts.runs.get(login, _run_id(request))
        return json_response({**run_json(run), **timing_json(run)})

    async def cancel(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``POST /api/runs/{run_id}/cancel``; a body is optional."""
        fields: dict[str, Any] = {}
        if request.can_read_body:
            fields = check_fields(await json_body(request), _CANCEL_RULES, "the request")
        run = await self._parts.runs.cancel(login, _run_id(request), fields.get("reason", ""))
        return json_response(run_json(run), 202 if run.state in UNENDED else 200)

    async def provide_input(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``POST /api/runs/{run_id}/input``"""
        body = await json_body(request)
        fields = check_fields(body, _INPUT_RULES, "the request")
        run = await self._parts.runs.provide_input(login, answer_of(fields, body, request.match_info["run_id"]))
        return json_response(run_json(run), 202)

    async def artifacts(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``GET /api/runs/{run_id}/artifacts``"""
        run = await self._parts.runs.get(login, _run_id(request))
        return json_response({"artifacts": [artifact_json(artifact, run.run_id) for artifact in run.artifacts]})

    async def artifact(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``GET /api/runs/{run_id}/artifacts/{name}``"""
        name = request.match_info["name"]
        pieces = self._parts.runs.artifact(login, _run_id(request), name)
        async with aclosing(pieces):
            first = await anext(pieces, None)
            if first is None or first.WhichOneof("item") != "artifact":
                raise ProtocolError("an artifact's stream begins with its reference")
            response = _download(first.artifact)
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD:
                try:
                    async for piece in pieces:
                        await response.write(piece.data)
                except CarrelError:
                    # The status is sent: a cut connection is the only way left to say that this is not all.
                    if request.transport is not None:
                        request.transport.abort()
                    raise
            await response.write_eof()
        return response


def _executed(run: execution_pb2.Run, applied: str) -> web.Response:
    whole = run_json(run)
    ended = run.state not in UNENDED
    names = ("run_id", "thread_id", "agent_name", "status", "result", "execution_time", "client_ref", "artifacts")
    body = {name: whole[name] for name in names}
    for optional in ("error", "waiting_for"):
        if whole[optional] is not None:
            body[optional] = whole[optional]
    headers: dict[str, str] = {hdrs.LOCATION: f"/api/runs/{quote(run.run_id, safe='')}"}
    if applied:
        headers["Preference-Applied"] = applied
    return json_response(body, 200 if ended else 202, headers)


def _download(artifact: agent_instance_pb2.Artifact) -> web.StreamResponse:
    # Agents wrote it: a browser is to save it, and if it shows it all the same, to run nothing in it.
    media_type = artifact.media_type if _MEDIA_TYPE.fullmatch(artifact.media_type) else "application/octet-stream"
    response = web.StreamResponse(
        headers={
            hdrs.CONTENT_TYPE: media_type,
            hdrs.CONTENT_DISPOSITION: content_disposition(artifact.name),
            "Content-Security-Policy": "sandbox; default-src 'none'",
            hdrs.CACHE_CONTROL: "private, no-store",
        }
    )
    if artifact.sha256.isalnum():
        response.headers[hdrs.ETAG] = f'"{artifact.sha256}"'
    response.content_length = artifact.size
    return response


def content_disposition(name: str) -> str:
    """``attachment`` with the last part of the name, in plain ASCII and in full as RFC 8187 has it."""
    base = re.sub(r"[\x00-\x1f\x7f]", "", name.replace("\\", "/").rpartition("/")[2]).lstrip(".") or "artifact"
    plain = re.sub(r"[^A-Za-z0-9 ._()+-]", "_", base)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(base, safe='')}"


def _run_id(request: web.Request) -> str:
    return check_id(request.match_info["run_id"], "run_id")


def _states(text: str) -> list[execution_pb2.RunState.ValueType]:
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in _STATES]
    if unknown:
        raise InvalidRequestError(
            "status names an unknown state",
            advice=f"states are {', '.join(_STATES)}",
            fields={"status": "is unknown"},
        )
    return [_STATES[name] for name in names]


def _preferences(headers: list[str], wait_s: float) -> tuple[float, str]:
    """Seconds to wait, and what to say of it (RFC 7240). Preferences that mean nothing here are passed over."""
    applied: list[str] = []
    for part in ",".join(headers).split(","):
        match = _PREFERENCE.fullmatch(part.lower())
        if match is None:
            continue
        applied.append(match.group(1))
        wait_s = min(wait_s, float(match.group(2) or 0))
    return wait_s, ", ".join(applied)
