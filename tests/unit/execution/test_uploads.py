"""Artifacts on their way in, and the folder that they end up in."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from carrel.errors import CorruptStoreError, InvalidRequestError, QuotaError, StoreUnavailableError
from services.execution.domain.ports import ArtifactChunk, ArtifactStored
from services.execution.domain.uploads import ArtifactLimits, Uploads, check_artifact_name
from services.execution.models import ArtifactRecord, RunRef, UserKey
from services.execution.store_artifacts import LocalArtifactFolder

ALICE = UserKey("alice")
REF = RunRef(ALICE, "run-1", 1)


class Rows:
    """The part of the run store that artifacts need."""

    def __init__(self) -> None:
        self.rows: dict[str, ArtifactRecord] = {}
        self.alive = True

    async def get_artifact(self, user: UserKey, run_id: str, name: str) -> ArtifactRecord | None:
        return self.rows.get(name)

    async def get_run(self, user: UserKey, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(artifacts=tuple(self.rows.values()))

    async def save_artifact(self, ref: RunRef, artifact: ArtifactRecord, quota: int, per_run: int) -> bool:
        if artifact.size > quota or len(self.rows.keys() - {artifact.name}) >= per_run:
            raise QuotaError("full")
        if self.alive:
            self.rows[artifact.name] = artifact
        return self.alive


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def make(rows: Rows, tmp_path: Path) -> Callable[..., Uploads]:
    def build(max_bytes: int = 10, quota: int = 100, per_run: int = 9) -> Uploads:
        folder = LocalArtifactFolder(tmp_path)
        return Uploads(cast(Any, rows), folder, REF, ArtifactLimits(max_bytes, quota, per_run=per_run), lambda: 1)

    return build


def chunk(data: bytes, *, upload: str = "u", name: str = "", last: bool = False) -> ArtifactChunk:
    return ArtifactChunk(upload, name, "text/plain" if name else "", data, last)


def code(answer: ArtifactStored | None) -> str:
    assert answer is not None
    assert answer.error is not None
    return str(answer.error["code"])


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_chunks_become_one_artifact(make: Callable[..., Uploads], rows: Rows, tmp_path: Path) -> None:
    uploads = make()
    assert await uploads.take(chunk(b"abc", name="a.txt")) is None
    assert await uploads.take(chunk(b"x", upload="other", name="b.txt", last=True)) is not None
    answer = await uploads.take(chunk(b"def", last=True))
    assert answer is not None
    assert answer.artifact == rows.rows["a.txt"]
    assert await LocalArtifactFolder(tmp_path).read(ALICE, "run-1", answer.artifact.sha256) == b"abcdef"


async def test_too_large_is_answered_once_and_its_rest_ignored(
    make: Callable[..., Uploads], rows: Rows, tmp_path: Path
) -> None:
    uploads = make()
    await uploads.take(chunk(b"x" * 10, name="a.txt"))
    assert code(await uploads.take(chunk(b"x"))) == "TOO_LARGE"
    assert await uploads.take(chunk(b"x")) is None
    assert await uploads.take(chunk(b"x", last=True)) is None
    assert rows.rows == {}
    assert files(tmp_path) == []


async def test_quota_and_ended_run_leave_no_file(make: Callable[..., Uploads], rows: Rows, tmp_path: Path) -> None:
    assert code(await make(quota=1).take(chunk(b"xx", name="a.txt", last=True))) == "QUOTA"
    assert code(await make(per_run=0).take(chunk(b"xx", name="a.txt", last=True))) == "QUOTA"
    rows.alive = False
    assert code(await make().take(chunk(b"xx", name="a.txt", last=True))) == "RUN_ENDED"
    assert files(tmp_path) == []


async def test_refused_artifact_does_not_take_an_equal_ones_bytes_with_it(
    make: Callable[..., Uploads], rows: Rows, tmp_path: Path
) -> None:
    assert await make().take(chunk(b"same", name="a.txt", last=True)) is not None
    assert code(await make(quota=1).take(chunk(b"same", name="b.txt", last=True))) == "QUOTA"
    assert len(files(tmp_path)) == 1


async def test_replaced_artifacts_bytes_go_unless_another_has_them(
    make: Callable[..., Uploads], rows: Rows, tmp_path: Path
) -> None:
    uploads = make()
    for name, data in (("a.txt", b"one"), ("b.txt", b"one"), ("a.txt", b"two")):
        await uploads.take(chunk(data, name=name, last=True))
    assert len(files(tmp_path)) == 2
    await uploads.take(chunk(b"two", name="b.txt", last=True))
    assert [path.name for path in files(tmp_path)] == [rows.rows["a.txt"].sha256]


async def test_uploads_at_once_are_bounded(make: Callable[..., Uploads]) -> None:
    uploads = make()
    for n in range(8):
        assert await uploads.take(chunk(b"", upload=f"u{n}", name="a.txt")) is None
    assert code(await uploads.take(chunk(b"", upload="u9", name="a.txt"))) == "QUEUE_FULL"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0", "a\n", "x" * 256, "a..b", " a", "a "])
def test_names_that_are_no_plain_file_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_artifact_name(name, "text/plain")


@pytest.mark.parametrize("media_type", ["", "text", "text/", "text/plain\n", "a/b; c", "x/" + "y" * 260])
def test_malformed_media_types_are_refused(media_type: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_artifact_name("a.txt", media_type)


def test_usual_names_pass() -> None:
    for name, media_type in (
        ("load over time (1).svg", "image/svg+xml"),
        ("report.md", "text/markdown; charset=utf-8"),
    ):
        check_artifact_name(name, media_type)


async def test_same_content_twice_is_one_file_and_removal_is_repeatable(tmp_path: Path) -> None:
    folder = LocalArtifactFolder(tmp_path)
    first, second = await asyncio.gather(*(folder.put(ALICE, "run-1", b"same") for _ in range(2)))
    assert first == second
    assert len(files(tmp_path)) == 1
    await folder.put(UserKey("bob"), "run-1", b"same")
    await folder.remove_run(ALICE, "run-1")
    await folder.remove_run(ALICE, "run-1")
    await folder.remove(ALICE, "run-1", first)
    assert await folder.read(UserKey("bob"), "run-1", first) == b"same"


async def test_missing_or_changed_files_are_told(tmp_path: Path) -> None:
    folder = LocalArtifactFolder(tmp_path)
    digest = await folder.put(ALICE, "run-1", b"true")
    files(tmp_path)[0].write_bytes(b"fake")
    with pytest.raises(CorruptStoreError):
        await folder.read(ALICE, "run-1", digest)
    with pytest.raises(CorruptStoreError):
        await folder.read(UserKey("bob"), "run-1", digest)


async def test_folder_without_room_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LocalArtifactFolder(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnavailableError) as raised:
        await folder.put(ALICE, "run-1", b"x")
    assert "No space left" in raised.value.message
    assert files(tmp_path) == []


async def test_probe_of_a_folder_that_cannot_be(tmp_path: Path) -> None:
    await LocalArtifactFolder(tmp_path / "new").probe()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError):
        await LocalArtifactFolder(tmp_path / "file").probe()
