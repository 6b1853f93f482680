"""Puts the examples of examples/api into docs/openapi.json (as x-codeSamples) and into docs/api.md.

    python -m tools.api_samples [--check]

The examples are run by tests/api/test_examples.py. The rest of docs/openapi.json is written by hand; this gives it its
form, so that a change to it is small. Not what fills the pages at /docs: those show what is in the documents.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["OPERATIONS", "formatted", "pages"]

ROOT: Final = Path(__file__).resolve().parent.parent
_EXAMPLES: Final = ROOT / "examples" / "api"
_WIDTH: Final = 118
_LANGUAGES: Final = {"sh": "curl", "py": "Python", "mjs": "JavaScript"}
_FENCES: Final = {"sh": "sh", "py": "python", "mjs": "js"}
# Where each topic is shown, by operationId.
OPERATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "execute": ("execute",),
    "events": ("runEvents",),
    "resume": ("events",),
    "cancel": ("cancelRun",),
    "answer": ("provideInput",),
    "listing": ("listRuns", "listThreads", "listMessages"),
    "artifacts": ("listArtifacts", "getArtifact"),
}
_HEAD: Final = """\
# The API

A gateway shows what it offers to programs at `/docs`, from its own files, without a network:

| | document | in words |
|---|---|---|
| REST, and events over HTTP | [openapi.json](openapi.json), OpenAPI 3.1 | [protocol.md](protocol.md#rest) |
| WebSocket | [asyncapi.json](asyncapi.json), AsyncAPI 3.0 | [protocol.md](protocol.md) |
| gRPC, between services | [proto.md](proto.md), made of `protos/` | [contracts.md](contracts.md) |

The documents are at `/docs/openapi.json`, `/docs/asyncapi.json` and `/docs/proto.json` for tools of yours. No login is
needed: nothing in them is anybody's. `CARREL_GATEWAY_DOCS=false` leaves all of it out.

Tests hold the documents against the code, and send the gateway generated requests, right and wrong ones, of every
operation: no answer may be a fault, have an undocumented status or content type, or another body than is written there.

## Examples

Each is a program in `examples/api`, run by a test against a whole stack (`tests/api/test_examples.py`, with the agents
of `tests/api/api_agents.py`). The first argument is the gateway's address, the second a token
(`carrel token --user alice` prints one in development). The curl ones read JSON with `grep`, which is enough for ids;
the JavaScript ones are for Node and browsers ([javascript.md](javascript.md)).
"""


def pages() -> Mapping[Path, str]:
    """What the two files must hold."""
    document: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    operations = {
        operation["operationId"]: operation for item in document["paths"].values() for operation in item.values()
    }
    for operation in operations.values():
        operation.pop("x-codeSamples", None)
    for topic, names in OPERATIONS.items():
        for name in names:
            operations[name]["x-codeSamples"] = [
                {"lang": language, "label": _title(topic), "source": _source(topic, ending)}
                for ending, language in _LANGUAGES.items()
            ]
    return {
        ROOT / "docs" / "openapi.json": formatted(document) + "\n",
        ROOT / "docs" / "api.md": "\n".join([_HEAD, *_markdown()]),
    }


def formatted(value: Any, indent: int = 0) -> str:
    """JSON with what is short on one line."""
    line = json.dumps(value, ensure_ascii=False)
    short = indent and len(line) + indent <= _WIDTH
    if short or not isinstance(value, dict | list) or not value:
        return line
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [
            f"{inner}{json.dumps(name, ensure_ascii=False)}: {formatted(part, indent + 2)}"
            for name, part in value.items()
        ]
        return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(inner + formatted(part, indent + 2) for part in value) + "\n" + " " * indent + "]"


def _title(topic: str) -> str:
    said = ast.get_docstring(ast.parse((_EXAMPLES / f"{topic}.py").read_text(encoding="utf-8"))) or ""
    return said.partition(":")[0]


def _source(topic: str, ending: str) -> str:
    """The program without its first words, which are about the file."""
    lines = (_EXAMPLES / f"{topic}.{ending}").read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith(("#", "//", '"""', "set ")))
    return "\n".join(lines[first:]).strip() + "\n"


def _markdown() -> Iterator[str]:
    for topic in OPERATIONS:
        yield f"\n### {_title(topic)}\n"
        for ending in _LANGUAGES:
            yield f"```{_FENCES[ending]}\n{_source(topic, ending)}```\n"


def main() -> int:
    """Write both, or with ``--check`` say whether they are as they should be."""
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text}
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python -m tools.api_samples", file=sys.stderr)
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
