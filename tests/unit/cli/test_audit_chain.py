"""The file of an audit export: a line taken out, changed or moved is found; a torn end is passed over."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from carrel.cli.audit_chain import Chain, chain_of
from carrel.cli.audit_export import verify_file
from carrel.errors import CorruptStoreError, StartupError


def written(path: Path, records: int = 6) -> Chain:
    file, chain = io.StringIO(), Chain()
    chain = chain.write(file, {"selection": {"since": "", "user": ""}})
    for number in range(records):
        chain = chain.write(file, {"record": {"record_id": f"aud-{number}", "target": "löschen"}})
        if number % 3 == 2:
            chain = chain.write(file, {"cursor": f"at-{number}"})
    path.write_text(file.getvalue(), encoding="utf-8")
    return chain


def test_a_file_that_is_as_it_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "audit.jsonl"
    chain = written(path)
    end, at_cursor = chain_of(path)
    assert (end.head, end.records, end.cursor) == (chain.head, 6, "at-5")
    assert at_cursor.size == end.size == path.stat().st_size
    assert verify_file(path) == 0
    assert chain.head in capsys.readouterr().out


@pytest.mark.parametrize("line", [0, 1, 3, 5])
@pytest.mark.parametrize("how", ["taken out", "changed", "doubled", "moved"])
def test_a_line_that_is_not_as_it_was_is_found(tmp_path: Path, line: int, how: str) -> None:
    path = tmp_path / "audit.jsonl"
    written(path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if how == "taken out":
        del lines[line]
    elif how == "changed":
        lines[line] = lines[line].replace("e", "f", 1)
    elif how == "doubled":
        lines.insert(line, lines[line])
    else:
        lines.insert(line + 2, lines.pop(line))
    path.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(CorruptStoreError, match="line"):
        verify_file(path)


def test_a_torn_end_is_passed_over_when_an_export_goes_on_and_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    written(path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(whole[:-20])
    _, at_cursor = chain_of(path, torn=True)
    assert (at_cursor.cursor, at_cursor.records) == ("at-2", 3)
    assert whole[: at_cursor.size] == b"".join(lines[:5])
    path.write_bytes(whole[: whole.rindex("ö".encode()) + 1])
    assert chain_of(path, torn=True)[1] == at_cursor
    with pytest.raises(CorruptStoreError):
        verify_file(path)
    with pytest.raises(StartupError):
        verify_file(tmp_path / "none")


@pytest.mark.parametrize(
    "content", [b'{"kty":"OKP","d":"a key in one line"}', b"{", b'{"hashes":1}', b"\xff\xfe\0", b"a\n"]
)
def test_a_file_that_is_something_else_is_never_gone_on_with(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    if content == b"{":  # what a killed export may have left behind
        assert chain_of(path, torn=True)[1].size == 0
        return
    with pytest.raises(CorruptStoreError):
        chain_of(path, torn=True)
