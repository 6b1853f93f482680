"""The gateway's REST addresses for clients of ours: JSON in, JSON out, errors of the tree, artifacts to disk.

Only what the command line and ``GatewayTickets`` need; docs/protocol.md lists every route.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
import orjson

from carrel.client.models import Artifact
from carrel.error_base import from_dict
from carrel.errors import CarrelError, CorruptStoreError, ProtocolError, UnavailableError

__all__ = ["GatewayHttp", "file_name"]

_PIECE: Final = 256 * 1024
_TIMEOUT_S: Final = 30.0


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

    async def run(self, run_id: str) -> dict[str, Any]:
        """A run as REST shows it."""
        return await self.get(f"/api/runs/{quote(run_id, safe='')}")

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

    async def _json(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            async with self._client().request(method, self._url + path, json=body) as response:
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
        error = CarrelError(f"HTTP status {response.status}", advice="is this the address of a gateway?")
    raise error
