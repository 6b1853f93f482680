"""What others wrote has an entry, each entry's files are there, and NOTICE is what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import notice


def test_every_file_that_looks_like_somebody_elses_has_an_entry() -> None:
    try:
        names = notice.tracked()
    except OSError:
        pytest.skip("no git here")
    assert list(notice.foreign(names)) == []
    assert notice.main(["--check"]) == 0


@pytest.mark.parametrize("path", [path for entry in notice.VENDORED for path in entry.paths])
def test_every_entry_has_its_files(path: str) -> None:
    assert (notice.ROOT / path).is_file()
    assert path in notice.NOTICE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gateway/console/vue.min.js", "x"),
        ("clients/js/vendor/a.js", "x"),
        ("protos/google/api/http.proto", "x"),
        ("tests/support/openapi_3_1_0.json", "{}"),
        ("carrel/borrowed.py", "# Copyright (c) 2019 Somebody"),
        ("carrel/borrowed.py", "# SPDX-License-Identifier: MIT"),
    ],
)
def test_what_is_carried_in_is_seen(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    assert list(notice.foreign([name], tmp_path)) == [name]
