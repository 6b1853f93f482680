"""The versions that take part: this checkout, and the releases kept under releases/.

A wheel is unpacked, not installed: what it needs is what this checkout's environment has.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.execution.migrations import HEAD, READERS_FROM
from tests.skew.up import VERSIONS
from tests.support.stack import ROOT, SERVICES, RunningStack, running_stack
from tools.releases import kept_wheels

__all__ = ["AGENTS", "NEW", "RELEASES", "Mixed", "last_wheel", "mixed_stack", "next_release", "unpack"]

RELEASES: Final = ROOT / "releases"
AGENTS: Final = ROOT / "tests" / "chaos" / "agents.py"
NEW: Final = ROOT


def last_wheel() -> Path:
    """Of the release before this checkout: the one that it has to work beside."""
    return kept_wheels(RELEASES)[-1]


def unpack(wheel: Path, folder: Path) -> Path:
    """The wheel's tree, in a new folder."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


_MIGRATION: Final = '''"""What a release after this one might add. Only adds.

Revision ID: 0099
"""

import sqlalchemy as sa
from alembic import op

revision = "0099"
down_revision = "{head}"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Add a column with a default, and a table."""
    op.add_column("runs", sa.Column("colour", sa.String(length=16), server_default="red", nullable=False))
    op.create_table("colours", sa.Column("name", sa.String(length=16), primary_key=True))
'''


def next_release(folder: Path) -> Path:
    """This checkout with one more migration, which expands the run store: to stores, the release after it."""
    folder.mkdir()
    for package in ("carrel", "servicekit", "gateway", "examples"):
        (folder / package).symlink_to(NEW / package)
    shutil.copytree(NEW / "services", folder / "services", ignore=shutil.ignore_patterns("__pycache__"))
    migrations = folder / "services" / "execution" / "migrations"
    (migrations / "versions" / "v0099_colours.py").write_text(_MIGRATION.format(head=HEAD), encoding="utf-8")
    init = migrations / "__init__.py"
    line = f'        "{HEAD}": "{READERS_FROM[HEAD]}",\n'
    text = init.read_text(encoding="utf-8")
    assert line in text
    init.write_text(text.replace(line, line + f'        "0099": "{READERS_FROM[HEAD]}",\n'), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Mixed:
    """A stack whose processes are of several versions, and may change theirs."""

    stack: RunningStack
    versions: Path

    def put(self, process: str, tree: Path) -> None:
        """From its next start on the process is of this version."""
        (self.versions / process).write_text(f"{tree}\n", encoding="utf-8")

    def tree_of(self, process: str) -> Path:
        """What the running process was started from, as the kernel knows it."""
        pid = self.stack.pid(process)
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return Path(next(one for one in variables if one.startswith(b"PYTHONPATH=")).decode().partition("=")[2])


@contextmanager
def mixed_stack(
    folder: Path,
    trees: Mapping[str, Path],
    *,
    environment: Mapping[str, str] | None = None,
    replicas: Mapping[str, int] | None = None,
    agents: Sequence[str] = (str(AGENTS),),
    **options: Any,
) -> Iterator[Mixed]:
    """A stack with each process from the tree that ``trees`` has for it or its service; else from this checkout."""
    versions = folder / "versions"
    versions.mkdir(parents=True)
    for service in SERVICES:
        count = (replicas or {}).get(service, 1)
        for name in [service] if count == 1 else [f"{service}-{number}" for number in range(1, count + 1)]:
            (versions / name).write_text(f"{trees.get(name, trees.get(service, NEW))}\n", encoding="utf-8")
    settings = {**(environment or {}), VERSIONS: str(versions), "PYTHONPATH": str(NEW)}
    with running_stack(
        folder, agents=agents, environment=settings, replicas=replicas, program="tests.skew.up", **options
    ) as stack:
        yield Mixed(stack, versions)
