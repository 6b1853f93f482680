"""What is in this repository that others wrote, and the NOTICE file made of it.

    python -m tools.notice [--check]

A test walks the repository for files that look like somebody else's and wants an entry for each. What is installed
beside Carrel is not here: the SBOM of a release lists that.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
NOTICE: Final = ROOT / "NOTICE"
_HEAD: Final = """\
Carrel
Licensed under the Apache License, Version 2.0; the text is in LICENSE.

This product includes what others wrote:
"""
# Said by whoever puts a licence on a file of theirs.
_SAYS: Final = re.compile(rb"copyright\s+(\(c\)\s*|\xc2\xa9\s*)?(19|20)\d\d|spdx-license-identifier", re.IGNORECASE)
# What is likely somebody else's by its place or name.
_PLACES: Final = re.compile(
    r"(^|/)(vendor|vendored|third_party|node_modules)/|\.min\.(js|css)$|^protos/(?!carrel/)|(^|/)[\w-]+_\d+_\d+_\d+\.json$"
)
# Ours, though they speak of copyright: the licence itself, this file and its test, and what is made from the table.
_OURS: Final = frozenset(
    {"LICENSE", "NOTICE", "tools/notice.py", "tests/unit/tools/test_notice.py", "protos/buf/validate/NOTICE"}
)
_OPAQUE: Final = (".whl", ".gz", ".binpb", ".png", ".parquet")


@dataclass(frozen=True, slots=True)
class Vendored:
    """Something of somebody else's: which files, what it is, from where, and under what terms."""

    paths: tuple[str, ...]
    name: str
    version: str
    source: str
    copyright: str
    licence: str
    changes: str = "unchanged"

    def __str__(self) -> str:
        return (
            f"{self.name} {self.version} ({self.source})\n"
            f"  {self.copyright}\n"
            f"  Licensed under {self.licence}; {self.changes}.\n" + "".join(f"  - {path}\n" for path in self.paths)
        )


VENDORED: Final = (
    Vendored(
        (
            "gateway/console/vendor/preact.js",
            "gateway/console/vendor/preact-hooks.js",
            "gateway/console/vendor/preact-LICENSE.txt",
        ),
        "Preact",
        "11.2.0",
        "github.com/preactjs/preact",
        "Copyright (c) 2015-present Jason Miller",
        "the MIT License; the text is in gateway/console/vendor/preact-LICENSE.txt",
        "the hooks import ./preact.js, and no source maps are named",
    ),
    Vendored(
        ("gateway/console/vendor/htm.js", "gateway/console/vendor/htm-LICENSE.txt"),
        "htm",
        "3.1.1",
        "github.com/developit/htm",
        "Copyright 2018 Google Inc.",
        "the Apache License, Version 2.0",
    ),
    Vendored(
        ("protos/buf/validate/validate.proto", "carrel/v1/validate_pb2.py", "carrel/v1/validate_pb2.pyi"),
        "Protovalidate",
        "1.2.2",
        "github.com/bufbuild/protovalidate",
        "Copyright 2023-2026 Buf Technologies, Inc.",
        "the Apache License, Version 2.0",
        "the proto is unchanged, the stubs are generated from it",
    ),
    Vendored(
        ("tests/support/asyncapi_3_0_0.json",),
        "AsyncAPI JSON Schema",
        "3.0.0",
        "github.com/asyncapi/spec-json-schemas",
        "Copyright the AsyncAPI Initiative and its contributors",
        "the Apache License, Version 2.0",
        "without descriptions, examples, and the bindings of protocols other than HTTP and WebSocket",
    ),
)


def text() -> str:
    """The NOTICE file."""
    return _HEAD + "".join(f"\n{entry}" for entry in VENDORED)


def tracked(root: Path = ROOT) -> list[str]:
    """The repository's files."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    return [name.decode() for name in done.stdout.split(b"\0") if name]


def foreign(names: list[str], root: Path = ROOT) -> Iterator[str]:
    """Files that look like somebody else's and have no entry."""
    known = {path for entry in VENDORED for path in entry.paths} | _OURS
    for name in names:
        path = root / name
        if name in known or name.endswith(_OPAQUE) or not path.is_file():
            continue
        if _PLACES.search(name) or _SAYS.search(path.read_bytes()[:20_000]):
            yield name


def main(arguments: list[str]) -> int:
    """Write the file, or compare it."""
    if "--check" not in arguments:
        NOTICE.write_text(text(), encoding="utf-8")
        return 0
    problems = [
        f"{name} looks like somebody else's: give it an entry in tools/notice.py" for name in foreign(tracked())
    ]
    if not NOTICE.is_file() or NOTICE.read_text(encoding="utf-8") != text():
        problems.append("NOTICE is not what tools/notice.py makes: run `python -m tools.notice`")
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
