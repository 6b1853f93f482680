"""Writes docs/contracts.md from the code: each layer's ``FactoryLayerContract``.

python -m tools.contracts            # write it
python -m tools.contracts --check    # exit 1 when what is there is not what would be written
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from carrel.cli.doctor.contracts import described

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "contracts.md"
_HEAD: Final = """\
# Contracts of the layers

What each layer of the chain asks for, gives, may raise, and how quick it is. Made from `servicekit/layers.py` by
`python -m tools.contracts`; a test compares it with the code.

A clause that a function can decide is checked at every call: a requirement that does not hold is the caller's
`INVALID_REQUEST`, a guarantee that does not hold is ours, `INTERNAL`. A bound is no promise to a client: it is the time
that the layer's own operation should take on a machine that is not overloaded, at the median. What takes longer is
counted. `carrel doctor --contracts` shows the counts of a deployment, and
`python -m benchmarks --cases contracts` compares measured times with the bounds.
"""


def page() -> str:
    """The page's text."""
    return _HEAD + "".join(f"\n{line}" if line else "\n" for layer in described() for line in _lines(layer)) + "\n"


def _lines(layer: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"## {layer['name']}", "")
    for title, key in (("Asks for", "input_requirements"), ("Gives", "output_guarantees")):
        yield from (f"{title}:", "")
        yield from (f"- {text}" for text in layer[key])
        yield ""
    yield "May raise " + ", ".join(f"`{code}`" for code in layer["error_conditions"]) + "."
    yield ""
    yield from ("| operation | bound |", "|---|---|")
    yield from (f"| `{name}` | {bound:g} ms |" for name, bound in layer["performance_bounds_ms"].items())


def main(argv: list[str] | None = None) -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(prog="python -m tools.contracts", description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(argv)
    if not arguments.check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print("docs/contracts.md is not what the code says: run `python -m tools.contracts`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
