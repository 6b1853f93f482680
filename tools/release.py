"""Makes a release of what is committed: ``make release``, ``make release TAG=1``.

    python -m tools.release [--out dist] [--tag]

Into ``--out`` go the wheel, the sdist, the descriptor set, the SBOM, the NOTICE and their sums; nothing else changes.
With ``--tag`` there is an annotated tag of the commit, here and nowhere else, and the wheel and descriptor set are put
under releases/ for the tests of the releases to come. It pushes and uploads nothing: it prints what to do next.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from tools import check_migrations, notice
from tools.releases import all_descriptor_sets, all_wheels, number_of, version_of
from tools.sbom import make_sbom

__all__ = ["RefusedError", "release"]

ROOT: Final = Path(__file__).resolve().parent.parent
_BUILD: Final = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1])); print(b.build_sdist(sys.argv[1]))"
_SECTION: Final = r"^## \[{version}\][^\n]*\n(.*?)(?=^## \[|\Z)"


class RefusedError(Exception):
    """There can be no release of this; it says why and what to do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is released."""

    root: Path
    version: str
    project: dict[str, Any]
    commit: str
    committed_at: datetime
    changes: str


def release(root: Path, out: Path, *, tag: bool) -> list[str]:
    """Make the release; what to do next, line by line.

    Args:
        root: The repository.
        out: Where the files go; emptied of an earlier release's.
        tag: Whether to tag the commit and to keep the release under releases/.

    Raises:
        RefusedError: Something is not as it has to be; then nothing was tagged.
    """
    facts = _facts(root)
    _check(facts)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("carrel-*"):
        old.unlink()
    made = _files(facts, out)
    sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in sorted(made))
    (out / "SHA256SUMS").write_text(sums, encoding="utf-8")
    if not tag:
        return [
            f"{facts.version} is ready in {out}; nothing was tagged.",
            "Look at it, then: make release TAG=1",
        ]
    _keep(facts, made)
    # Last: what fails before leaves no tag behind.
    _git(root, "tag", "--annotate", f"v{facts.version}", "--message", f"Carrel {facts.version}\n\n{facts.changes}")
    return [
        f"{facts.version} is tagged as v{facts.version} here, at {facts.commit[:12]}, and in {out}. Next:",
        f'  git add releases protos && git commit -m "Release {facts.version} is kept for the next ones"',
        f"  git push origin HEAD v{facts.version}",
        f"  upload what is in {out} (wheel, sdist, SBOM, NOTICE, descriptor set, SHA256SUMS)",
        "  then raise the version in pyproject.toml, carrel/__init__.py and k8s (its tag) for what comes next",
    ]


def _facts(root: Path) -> Facts:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = str(project["version"])
    commit, at = _git(root, "log", "-1", "--format=%H %ct").split()
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(_SECTION.format(version=re.escape(version)), changelog, re.MULTILINE | re.DOTALL)
    return Facts(
        root,
        version,
        project,
        commit,
        datetime.fromtimestamp(int(at), UTC),
        section[1].strip() if section else "",
    )


def _check(facts: Facts) -> None:
    """Everything that may stand in the way, before anything is made."""
    root, version, problems = facts.root, facts.version, list[str]()
    try:
        number = number_of(version)
    except ValueError as error:
        raise RefusedError(str(error)) from None
    if dirty := _git(root, "status", "--porcelain"):
        names = ", ".join(line[3:] for line in dirty.splitlines()[:5])
        problems.append(f"there are changes that are not committed ({names}): commit them or put them aside")
    if not facts.changes:
        problems.append(f"CHANGELOG.md has no section ## [{version}], or nothing in it: say there what users get")
    own = (root / "carrel" / "__init__.py").read_text(encoding="utf-8")
    if f'__version__: Final = "{version}"' not in own:
        problems.append(f"carrel.__version__ is not {version}, as pyproject.toml says")
    kept = all_wheels(root / "releases")
    if any(number_of(version_of(path)) >= number for path in kept):
        problems.append(f"{version} is not after {version_of(kept[-1])}, which was released: raise it")
    if _git(root, "tag", "--list", f"v{version}"):
        problems.append(f"there is a tag v{version} already: raise the version")
    problems += [f"migration {problem}" for problem in check_migrations.check()]
    problems += [f"{name} looks like somebody else's and is not in NOTICE" for name in _foreign(root)]
    for path in all_descriptor_sets(root / "releases"):
        try:
            _run([_buf(), "breaking", "--against", str(path)], root)
        except RefusedError as error:
            problems.append(f"the contract breaks that of {path.name}: {error}")
    if problems:
        raise RefusedError("\n".join(f"- {problem}" for problem in problems))


def _foreign(root: Path) -> list[str]:
    return list(notice.foreign(notice.tracked(root), root))


def _files(facts: Facts, out: Path) -> list[Path]:
    """Build everything into ``out``."""
    made = _built_twice(facts, out)
    wheel = next(path for path in made if path.suffix == ".whl")
    stem = f"carrel-{facts.version}"
    contract = out / f"{stem}.binpb.gz"
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "set.binpb"
        _run([_buf(), "build", "-o", str(raw)], facts.root)
        contract.write_bytes(gzip.compress(raw.read_bytes(), 9, mtime=0))
    sbom = out / f"{stem}.cdx.json"
    try:
        text = make_sbom(
            facts.project,
            (facts.root / "constraints.txt").read_text(encoding="utf-8"),
            wheel_sha256=_sha256(wheel),
            made_at=facts.committed_at,
        )
    except ValueError as error:
        raise RefusedError(str(error)) from error
    sbom.write_text(text, encoding="utf-8")
    told = out / f"{stem}.NOTICE"
    told.write_text(notice.text(), encoding="utf-8")
    return [*made, contract, sbom, told]


def _built_twice(facts: Facts, out: Path) -> list[Path]:
    """Wheel and sdist of what is committed, from two folders; they have to be the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        builds = [_built(facts, Path(folder) / name) for name in ("one", "another")]
        for first, second in zip(*builds, strict=True):
            if first.read_bytes() != second.read_bytes():
                raise RefusedError(
                    f"- {first.name} comes out differently each time: what in it depends on the place or time?"
                )
        return [Path(shutil.copy(path, out)) for path in builds[0]]


def _built(facts: Facts, folder: Path) -> list[Path]:
    source, made = folder / f"carrel-{facts.version}", folder / "made"
    source.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", "--format=tar", facts.commit], cwd=facts.root, capture_output=True, check=True
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(source, filter="data")
    epoch = str(int(facts.committed_at.timestamp()))
    _run([sys.executable, "-P", "-c", _BUILD, str(made)], source, {"SOURCE_DATE_EPOCH": epoch})
    return sorted(made.iterdir())


def _keep(facts: Facts, made: list[Path]) -> None:
    """Put what later releases are tested against under releases/, and make the contract the baseline."""
    folder = facts.root / "releases"
    for path in made:
        if path.suffix == ".whl" or path.name.endswith(".binpb.gz"):
            shutil.copy(path, folder)
    kept = sorted([*all_wheels(folder), *all_descriptor_sets(folder)])
    sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in kept)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    with (folder / "README.md").open("a", encoding="utf-8") as page:
        page.write(f"| {facts.version} | {facts.commit[:7]} |\n")
    _run([_buf(), "build", "-o", "protos/baseline.binpb"], facts.root)


def _buf() -> str:
    return str(Path(sys.executable).with_name("buf"))


def _git(root: Path, *arguments: str) -> str:
    return _run(["git", *arguments], root).strip("\n")


def _run(command: list[str], cwd: Path, environment: dict[str, str] | None = None) -> str:
    env = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(f"- {' '.join(command[:3])} failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Read the options and go."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--tag", action="store_true", help="tag the commit and keep the release under releases/")
    options = parser.parse_args()
    try:
        print("\n".join(release(ROOT, options.out.resolve(), tag=options.tag)))
    except RefusedError as error:
        sys.stderr.write(f"no release:\n{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
