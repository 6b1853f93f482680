"""The contract of today against those of every release that is kept: what was said on a wire still means the same."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skew.versions import RELEASES
from tests.support.stack import ROOT
from tools.releases import all_descriptor_sets, all_wheels, version_of

BUF = Path(sys.executable).with_name("buf")


def _breaking(against: Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BUF, "breaking", "--against", against], cwd=folder, capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.parametrize("released", all_descriptor_sets(RELEASES), ids=lambda path: path.name)
def test_protos_break_nothing_that_was_released(released: Path) -> None:
    done = _breaking(released)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_field_that_gets_another_type_is_seen(tmp_path: Path) -> None:
    (tmp_path / "buf.yaml").write_text((ROOT / "buf.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    for path in (ROOT / "protos").rglob("*.proto"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    context = tmp_path / "protos" / "carrel" / "v1" / "context.proto"
    text = context.read_text(encoding="utf-8")
    assert "  string user_id = " in text
    context.write_text(text.replace("  string user_id = ", "  int64 user_id = ", 1), encoding="utf-8")
    done = _breaking(all_descriptor_sets(RELEASES)[-1], tmp_path)
    assert done.returncode != 0
    assert "user_id" in done.stdout + done.stderr


def test_what_is_kept_is_what_the_sums_say_and_complete() -> None:
    lines = [line.split(maxsplit=1) for line in (RELEASES / "SHA256SUMS").read_text(encoding="utf-8").splitlines()]
    listed = {name: digest for digest, name in lines}
    kept = [*all_wheels(RELEASES), *all_descriptor_sets(RELEASES)]
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept} == listed
    assert list(map(version_of, all_wheels(RELEASES))) == list(map(version_of, all_descriptor_sets(RELEASES)))
