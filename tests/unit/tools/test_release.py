"""A release of a copy of this repository: what is made, what is refused, and that only TAG leaves anything behind."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from carrel import __version__
from tests.support.stack import ROOT
from tools import notice

NEXT = "99.1.0"


class Copy:
    """A repository of its own with this tree's files in one commit, at a version of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        for name in notice.tracked():
            if (ROOT / name).is_file():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)
        self.edit("pyproject.toml", f'version = "{__version__}"', f'version = "{NEXT}"')
        self.edit("carrel/__init__.py", f'"{__version__}"', f'"{NEXT}"')
        self.edit("CHANGELOG.md", "## [Unreleased]", f"## [{NEXT}] - today\n\n- Something.\n\n## [0.0.1]")
        self.git("init", "--quiet")
        self.commit()

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def git(self, *arguments: str) -> str:
        who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        when = {f"GIT_{role}_DATE": "2026-01-02T03:04:05Z" for role in ("AUTHOR", "COMMITTER")}
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.root,
            env={**os.environ, **who, **when},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "All of it")

    def release(self, *options: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "b",
        }
        command = [sys.executable, "-P", "-m", "tools.release", *options]
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=100, check=False
        )

    def refused(self) -> str:
        done = self.release()
        assert done.returncode == 1, done.stdout
        assert not (self.root / "dist").exists()
        return done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("release") / "copy")


@pytest.mark.timeout(120)
def test_what_stands_in_the_way_is_told_all_at_once(copy: Copy) -> None:
    copy.edit("CHANGELOG.md", "- Something.\n", "")
    copy.edit("carrel/__init__.py", NEXT, "99.0.0")
    (copy.root / "protos" / "other.proto").write_text('syntax = "proto3";', encoding="utf-8")
    said = copy.refused()
    for part in ("not committed", f"no section ## [{NEXT}]", "carrel.__version__ is not", "is not in NOTICE"):
        assert (part in said) is (part != "is not in NOTICE"), part  # an untracked file is nobody's yet
    copy.git("add", "--all")
    assert "protos/other.proto looks like somebody else's" in copy.refused()
    copy.git("reset", "--hard", "--quiet")
    copy.edit("protos/carrel/v1/context.proto", "  string user_id = ", "  int64 user_id = ")
    assert "the contract breaks that of carrel-0.1.0.binpb.gz" in copy.refused()
    copy.git("reset", "--hard", "--quiet")
    for wrong, told in (("1.0", "no version"), ("0.1.0", "not after 0.1.0")):
        copy.edit("pyproject.toml", f'version = "{NEXT}"', f'version = "{wrong}"')
        assert told in copy.refused()
        copy.git("reset", "--hard", "--quiet")


@pytest.mark.timeout(180)
def test_a_release_is_made_checked_and_left_alone_until_it_is_tagged(copy: Copy) -> None:
    done = copy.release()
    assert done.returncode == 0, done.stderr
    assert "make release TAG=1" in done.stdout
    dist, stem = copy.root / "dist", f"carrel-{NEXT}"
    names = {path.name for path in dist.iterdir()}
    wheel = f"{stem}-py3-none-any.whl"
    assert names == {
        wheel, f"{stem}.tar.gz", f"{stem}.cdx.json", f"{stem}.NOTICE", f"{stem}.binpb.gz", "SHA256SUMS",
    }  # fmt: skip
    lines = (dist / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert {line.split()[1] for line in lines} == names - {"SHA256SUMS"}
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == digest
    with zipfile.ZipFile(dist / wheel) as archive:
        inside = archive.namelist()
        assert f'__version__: Final = "{NEXT}"' in archive.read("carrel/__init__.py").decode()
        assert {"services/execution/migrations/versions/v0001_first.py", "gateway/app.py"} <= set(inside)
        assert not [name for name in inside if re.match(r"(tests|tools|releases|benchmarks)/", name)]
        assert {info.date_time for info in archive.infolist()} == {(2026, 1, 2, 3, 4, 4)}
    with tarfile.open(dist / f"{stem}.tar.gz") as archive:
        assert f"{stem}/pyproject.toml" in archive.getnames()
    assert gzip.decompress((dist / f"{stem}.binpb.gz").read_bytes())
    assert copy.git("status", "--porcelain") == ""
    assert copy.git("tag") == ""

    done = copy.release("--tag")
    assert done.returncode == 0, done.stderr
    assert copy.git("cat-file", "-t", f"v{NEXT}") == "tag", "annotated"
    assert copy.git("rev-parse", f"v{NEXT}^{{}}") == copy.git("rev-parse", "HEAD")
    assert "Something." in copy.git("tag", "--list", "--format=%(contents)")
    changed = {line.split()[-1] for line in copy.git("status", "--porcelain").splitlines()}
    assert changed == {
        f"releases/{wheel}", f"releases/{stem}.binpb.gz", "releases/README.md", "releases/SHA256SUMS",
    } | ({"protos/baseline.binpb"} & changed)  # fmt: skip
    assert lines == (dist / "SHA256SUMS").read_text(encoding="utf-8").splitlines(), "the same bytes again"
    assert f"git push origin HEAD v{NEXT}" in done.stdout
    assert f"there is a tag v{NEXT} already" in copy.release().stderr
