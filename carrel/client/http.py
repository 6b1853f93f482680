"""The gateway's REST addresses for clients of ours: JSON in, JSON out, errors of the tree, artifacts to disk.

Methods for runs and what they leave behind; ``get`` and ``post`` for all else that docs/protocol.md lists.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
import orjson

from carrel.client.asking import execute_fields
from carrel.client.backoff import Backoff
from carrel.client.models import Artifact, Event, Position, Question
from carrel.client.notices import Notice
from carrel.client.reading import Reader
from carrel.client.sse import last_event_id, read_stream
from carrel.error_base import from_dict
from carrel.errors import CarrelError, CorruptStoreError, ProtocolError, UnavailableError

__all__ = ["GatewayHttp", "file_name"]

_PIECE: Final = 256 * 1024
_TIMEOUT_S: Final = 30.0
# The longest that a gateway of any settings should let a request wait for its run.
_WAIT_S: Final = 3600.0
_AWAY: Final = frozenset({502, 503, 504})
_ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"})


class GatewayHttp:
    """One user's calls. ``token`` is the user's or a service's."""

    def __init__(self, url: str, token: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str) -> dict[str, Any]:
        """``GET`` an object.

        Raises:
            CarrelError: What the gateway answered, or that it cannot be reached.
        """
        return await self._json("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """``POST`` an object and get one.

        Raises:
            CarrelError: What the gateway answered, or that it cannot be reached.
        """
        return await self._json("POST", path, dict(body or {}))

    async def logout(self, *, everywhere: bool = False) -> int:
        """End the token's login: it is worth nothing from here on, at every gateway within 5 s. Runs go on.

        Args:
            everywhere: End all of the user's logins of before now instead, and what they have begun.

        Returns:
            How many runs were cancelled.

        Raises:
            TokenError: It was signed out before, or is no token.
            LimitExceededError: Too many of the user's logins are signed out: only ``everywhere`` helps.
            CarrelError: It could not be done; the login is as good as before.
        """
        answer = await self.post("/api/logout", {"everywhere": everywhere})
        return int(answer["cancelled_runs"])

    async def run(self, run_id: str) -> dict[str, Any]:
        """A run as REST shows it."""
        return await self.get(f"/api/runs/{quote(run_id, safe='')}")

    async def execute(  # noqa: PLR0913 -- one for each field of the request
        self,
        message: str,
        *,
        params: Mapping[str, Any] | None = None,
        pipeline: Sequence[str] = (),
        thread_id: str = "",
        strategy: str = "",
        client_ref: str = "",
        bound: bool = False,
        wait_s: float | None = None,
    ) -> dict[str, Any]:
        """Ask for a run; as REST shows it at its end, when it waits for a person, or when the time is up.

        Args:
            message: What is wanted.
            params: Parameters for the agents.
            pipeline: One agent, or several, which are put in order; empty for the deployment's default.
            thread_id: The conversation; a new one when empty.
            strategy: What to do about a run that the thread has already: reject, enqueue, interrupt or rollback.
            client_ref: Names the request: within 24 h the same one gives the same run.
            bound: The run ends with this call, a cancelled one too: it is waited for until it has ended.
            wait_s: How long to wait, 0 for not at all; None for as long as the gateway lets a request wait.

        Raises:
            CarrelError: It was refused, or the gateway cannot be reached.
        """
        body = execute_fields(
            message,
            params=dict(params or {}),
            pipeline=list(pipeline),
            thread_id=thread_id,
            strategy=strategy,
            client_ref=client_ref,
            bound=bound,
        )
        headers = {} if wait_s is None else {"Prefer": f"wait={math.ceil(wait_s)}" if wait_s > 0 else "respond-async"}
        assert self._timeout.total is not None
        longest_s = self._timeout.total + (_WAIT_S if wait_s is None else wait_s)
        return await self._json("POST", "/api/agents/execute", body, headers=headers, timeout_s=longest_s)

    async def waiting_for(self, run_id: str) -> Question | None:
        """The question that a run waits on; None when it does not wait."""
        asked = (await self.run(run_id)).get("waiting_for")
        return Question.from_json(asked) if isinstance(asked, Mapping) else None

    async def provide_input(self, run_id: str, input_id: str, value: object) -> dict[str, Any]:
        """Answer a run's question; the run then. The same answer may be given twice.

        Raises:
            NotWaitingError: The run does not wait for it (any more).
            InvalidInputError: The answer does not fit the question's schema.
            CarrelError: There is no such run, or the gateway cannot be reached.
        """
        return await self.post(f"/api/runs/{quote(run_id, safe='')}/input", {"input_id": input_id, "value": value})

    async def cancel(self, run_id: str, reason: str = "") -> dict[str, Any]:
        """Ask for a run's end; the run then.

        Raises:
            CarrelError: There is no such run, or the gateway cannot be reached.
        """
        return await self.post(f"/api/runs/{quote(run_id, safe='')}/cancel", {"reason": reason} if reason else {})

    async def artifacts(self, run_id: str) -> list[Artifact]:
        """References to a run's artifacts."""
        answer = await self.get(f"/api/runs/{quote(run_id, safe='')}/artifacts")
        return [
            Artifact(item["name"], item["media_type"], item["size"], item["sha256"], run_id)
            for item in answer["artifacts"]
        ]

    async def save(self, artifact: Artifact, folder: Path) -> Path:
        """Write an artifact into the folder, which is made when missing; the file's path.

        Raises:
            CorruptStoreError: What arrived is not what the reference says.
            CarrelError: What the gateway answered, or that it cannot be reached.
        """
        data = await self.artifact_data(artifact)
        path = folder / file_name(artifact.name)

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        await asyncio.to_thread(write)
        return path

    async def artifact_data(self, artifact: Artifact) -> bytes:
        """An artifact's bytes, compared with its hash."""
        path = f"/api/runs/{quote(artifact.run_id, safe='')}/artifacts/{quote(artifact.name, safe='')}"
        try:
            async with self._client().get(self._url + path) as response:
                await _raise_for(response)
                data = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(error) from None
        if len(data) != artifact.size or (artifact.sha256 and hashlib.sha256(data).hexdigest() != artifact.sha256):
            raise CorruptStoreError(f"the artifact {artifact.name} arrived damaged", advice="read it again")
        return data

    async def run_events(
        self, run_id: str, *, resume: Position | None = None, backoff: Backoff | None = None
    ) -> AsyncIterator[Event | Notice]:
        """One run's events as Server-Sent Events, from its first, or after ``resume``, to its last.

        Lost connections are made again from where they were lost, and nothing is given twice. Ends without a terminal
        event only when the log has lost it: ``run`` then says how the run ended.

        Args:
            run_id: The run.
            resume: A position in the user's log, from any transport.
            backoff: How often and how fast to come back.

        Raises:
            UnknownRunError: There is no such run.
            CarrelError: It was refused, or could not be opened again.
        """
        path = f"/api/runs/{quote(run_id, safe='')}/events"

        async def over() -> bool:
            return str((await self.run(run_id)).get("status")) in _ENDED

        reader = Reader(resume, filtered=True, explained=False)
        async for item in self._stream(path, {}, reader, backoff, over):
            yield item

    async def events(
        self, *, thread_id: str = "", resume: Position | None = None, backoff: Backoff | None = None
    ) -> AsyncIterator[Event | Notice]:
        """All of the user's events as Server-Sent Events, or a thread's, from now on or after ``resume``; never ends.

        Args:
            thread_id: Only this thread's.
            resume: A position in the user's log, from any transport; ``Position()`` for everything that is kept.
            backoff: How often and how fast to come back.

        Raises:
            CarrelError: It was refused, or could not be opened again.
        """

        async def over() -> bool:
            return False

        reader = Reader(resume, filtered=bool(thread_id))
        query = {"thread_id": thread_id} if thread_id else {}
        async for item in self._stream("/api/events", query, reader, backoff, over):
            yield item

    async def _stream(
        self, path: str, query: Mapping[str, str], reader: Reader, backoff: Backoff | None, over: Any
    ) -> AsyncIterator[Event | Notice]:
        first = last_event_id(reader.position) if reader.resume() else ""

        @asynccontextmanager
        async def opened(asked: str) -> AsyncIterator[aiohttp.ClientResponse]:
            place = asked or first
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": place} if place else {})}
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout.total)
            async with self._client().get(self._url + path, params=query, headers=headers, timeout=timeout) as response:
                await _raise_for(response)
                if response.status != 204 and response.content_type != "text/event-stream":
                    raise ProtocolError(f"{self._url} answered no stream of events; is it a gateway?")
                yield response

        ends = path.startswith("/api/runs/")
        async for item in read_stream(opened, reader, backoff or Backoff(), over, ends=ends):
            yield item

    async def _json(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        timeout = self._timeout if timeout_s is None else aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._client().request(
                method, self._url + path, json=body, headers=headers, timeout=timeout
            ) as response:
                await _raise_for(response)
                answer = orjson.loads(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(error) from None
        except ValueError:
            raise ProtocolError(f"{self._url} answered something that is not JSON; is it a gateway?") from None
        if not isinstance(answer, dict):
            raise ProtocolError(f"{self._url} answered JSON of another kind; is it a gateway?")
        return answer

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers, timeout=self._timeout, trust_env=False, json_serialize=_dumps
            )
        return self._session

    def _away(self, error: Exception) -> UnavailableError:
        said = str(error) or type(error).__name__
        return UnavailableError(
            f"the gateway at {self._url} cannot be reached: {said}",
            advice="start it with `carrel up`, or name another with --url",
        )


def file_name(name: str) -> str:
    """An artifact's name as that of a file in one folder: an agent chose it, so nothing of it leads elsewhere."""
    safe = "".join(c if c.isalnum() or c in "._- " else "_" for c in name).strip(" ")
    return safe if safe.strip(".") else "artifact" + safe.replace(".", "_")


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()


async def _raise_for(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    try:
        body = orjson.loads(await response.read())["error"]
        error = from_dict(body)
    except (ValueError, KeyError, TypeError, AttributeError):
        # A proxy before the gateway says those for it, while there is none.
        kind = UnavailableError if response.status in _AWAY else CarrelError
        error = kind(f"HTTP status {response.status}", advice="is this the address of a gateway?")
    raise error
