"""Artifacts on their way up: names, sizes, answers."""

from __future__ import annotations

from typing import Any

import pytest

from carrel import Agent, AgentContext, Request
from carrel.errors import CarrelError, InvalidRequestError, ProtocolError, QuotaError, TooLargeError
from services.agent_instance.domain.artifacts import ArtifactDesk, artifact_url, check_artifact
from services.agent_instance.models import ChunkUp, StoredArtifact
from tests.unit.agent_instance.support import Bench


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", ".", "..", "x\n", "\x00", "é" * 128, 5])
def test_names_that_are_no_file_names_are_refused(name: object) -> None:
    with pytest.raises(InvalidRequestError, match="name"):
        check_artifact(name, "text/plain")


@pytest.mark.parametrize("name", ["a", "load.svg", "Bericht März.md", "x" * 255])
def test_good_names_pass(name: str) -> None:
    check_artifact(name, "image/svg+xml; charset=utf-8")


@pytest.mark.parametrize("media_type", ["", "text", "text/", "/plain", "text/pl ain", "text/plain\n", None])
def test_media_types_are_checked(media_type: object) -> None:
    with pytest.raises(InvalidRequestError, match="media_type"):
        check_artifact("a", media_type)


def test_urls_are_quoted() -> None:
    assert artifact_url("run-1", "a b?.md") == "/api/runs/run-1/artifacts/a%20b%3F.md"


class Putter(Agent):
    name = "putter"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            ref = await ctx.artifacts.put(
                request.params.get("name", "a.txt"), "x" * request.params["size"], "text/plain"
            )
        except CarrelError as error:
            return {"error": error.code}
        return ref.to_dict()


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, 3_000_000])
async def test_an_artifact_goes_up_in_pieces_and_its_reference_comes_back(size: int) -> None:
    stage = await Bench(Putter).run("putter", params={"size": size})
    assert stage.result["size"] == size
    assert stage.result["url"] == f"/api/runs/{stage.caller.run_id}/artifacts/a.txt"
    assert stage.uplink.stored["a.txt"] == b"x" * size
    assert stage.uplink.desk.open_uploads == 0


async def test_what_execution_refuses_reaches_the_agent() -> None:
    stage = await Bench(Putter).stage("putter", params={"size": 600_000})
    stage.uplink.refuse = QuotaError("the user's space is used up")
    await stage.run()
    assert stage.result == {"error": "QUOTA"}


async def test_storage_that_never_answers_is_given_up() -> None:
    stage = await Bench(Putter).stage("putter", params={"size": 1})
    stage.uplink.silent = True
    stage.uplink.desk._timeout_s = 0.05
    await stage.run()
    assert stage.result == {"error": "STORE_UNAVAILABLE"}
    assert stage.uplink.desk.open_uploads == 0


async def test_a_desk_bounds_size_pieces_and_uploads() -> None:
    sent: list[ChunkUp] = []

    async def send(chunk: ChunkUp) -> None:
        sent.append(chunk)

    desk = ArtifactDesk(send, max_bytes=10, timeout_s=0.05)
    with pytest.raises(TooLargeError):
        desk.begin("a", "text/plain", size=11)
    upload = desk.begin("a", "text/plain")
    await desk.piece(upload, b"x" * 10, last=False)
    with pytest.raises(TooLargeError):
        await desk.piece(upload, b"x", last=True)
    with pytest.raises(ProtocolError):
        await desk.piece("up-99", b"", last=True)
    for _ in range(6):
        desk.begin("a", "text/plain")
    with pytest.raises(CarrelError, match="too many artifacts"):
        desk.begin("a", "text/plain")
    assert len(sent) == 1


async def test_an_answer_that_comes_too_late_or_twice_is_ignored() -> None:
    async def send(chunk: ChunkUp) -> None:
        stored = StoredArtifact(chunk.name, "text/plain", 1, "", "u")
        desk.answered(chunk.upload_id, stored)
        desk.answered(chunk.upload_id, QuotaError("no"))

    desk = ArtifactDesk(send)
    assert (await desk.put("a", "text/plain", b"x")).size == 1
    desk.answered("up-1", QuotaError("no"))


async def test_bytes_that_were_stored_differently_are_an_error() -> None:
    async def send(chunk: ChunkUp) -> None:
        desk.answered(chunk.upload_id, StoredArtifact("a", "text/plain", 1, "0" * 64, "u"))

    desk = ArtifactDesk(send)
    with pytest.raises(CarrelError, match="other bytes"):
        await desk.put("a", "text/plain", b"x")
