"""Reading files: only inside the data folder or the samples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from carrel.errors import TooLargeError
from examples.llm_costs import sources
from examples.llm_costs.errors import DataPathError


def test_file_in_the_data_folder_is_read(data_dir: Path) -> None:
    (data_dir / "sub").mkdir()
    (data_dir / "sub" / "a.csv").write_text("hello", encoding="utf-8")
    assert sources.read_text("sub/a.csv") == "hello"


def test_byte_order_mark_is_not_part_of_the_text(data_dir: Path) -> None:
    (data_dir / "a.csv").write_bytes(b"\xef\xbb\xbfhello")
    assert sources.read_text("a.csv") == "hello"


@pytest.mark.usefixtures("no_data_dir")
def test_sample_is_read_without_a_data_folder() -> None:
    assert sources.read_text(sources.DEFAULT_TRACE).startswith("TIMESTAMP,ContextTokens,GeneratedTokens\n")


@pytest.mark.usefixtures("no_data_dir")
def test_without_a_data_folder_the_error_names_the_variable() -> None:
    with pytest.raises(DataPathError, match="no data folder is configured") as caught:
        sources.read_text("a.csv")
    assert "LLM_COSTS_DATA_DIR" in caught.value.advice


@pytest.mark.parametrize(
    "path",
    [
        "../secret.csv",
        "sub/../../secret.csv",
        "/etc/passwd",
        "",
        "a\0b",
        "..",
        "sample:../prices.py",
        "sample:",
        "sample:/x",
    ],
)
def test_path_that_leaves_its_folder_is_refused(data_dir: Path, path: str) -> None:
    (data_dir.parent / "secret.csv").write_text("secret", encoding="utf-8")
    (data_dir / "sub").mkdir()
    with pytest.raises(DataPathError):
        sources.read_text(path)


def test_symbolic_link_out_of_the_folder_is_refused(data_dir: Path) -> None:
    (data_dir.parent / "secret.csv").write_text("secret", encoding="utf-8")
    (data_dir / "link.csv").symlink_to(data_dir.parent / "secret.csv")
    (data_dir / "up").symlink_to(data_dir.parent)
    for path in ("link.csv", "up/secret.csv"):
        with pytest.raises(DataPathError, match="leaves the folder"):
            sources.read_text(path)


def test_symbolic_link_inside_the_folder_is_followed(data_dir: Path) -> None:
    (data_dir / "a.csv").write_text("hello", encoding="utf-8")
    (data_dir / "link.csv").symlink_to("a.csv")
    assert sources.read_text("link.csv") == "hello"


def test_link_loop_missing_file_folder_and_pipe_are_refused(data_dir: Path) -> None:
    (data_dir / "loop.csv").symlink_to("loop.csv")
    (data_dir / "folder").mkdir()
    os.mkfifo(data_dir / "pipe.csv")
    for path in ("loop.csv", "missing.csv", "folder", "pipe.csv"):
        with pytest.raises(DataPathError):
            sources.read_text(path)


def test_error_does_not_tell_where_the_folder_is(data_dir: Path) -> None:
    with pytest.raises(DataPathError) as caught:
        sources.read_text("missing.csv")
    assert str(data_dir) not in str(caught.value.to_dict())


def test_file_over_the_bound_is_refused(data_dir: Path) -> None:
    (data_dir / "a.csv").write_bytes(b"x" * 11)
    with pytest.raises(TooLargeError) as caught:
        sources.read_text("a.csv", max_bytes=10)
    assert (caught.value.limit_value, caught.value.use) == (10, 11)


def test_file_that_is_not_utf8_names_the_line(data_dir: Path) -> None:
    (data_dir / "a.csv").write_bytes(b"one\ntwo\n\xff\xfe")
    with pytest.raises(DataPathError, match=r"not a text file in UTF-8 \(line 3\)"):
        sources.read_text("a.csv")
