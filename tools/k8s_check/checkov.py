"""checkov over builds, from its own environment. A check that fails has a reason in k8s/checkov.toml, or is a problem.

A reason that nothing needs any more is a problem too.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import yaml

from tools.k8s_check.build import FOLDER
from tools.k8s_check.objects import Object

__all__ = ["checkov_problems", "failed_checks", "reasons"]

_TAKES_S: Final = 300.0
_LEAST_REASON: Final = 40


def reasons() -> dict[str, str]:
    """Why each check that may fail does."""
    with (FOLDER / "checkov.toml").open("rb") as file:
        content = tomllib.load(file)
    return dict(content["skip"])


def failed_checks(checkov: Path, documents: list[Object]) -> dict[str, list[str]]:
    """The checks that fail, by their number, and for what.

    Raises:
        RuntimeError: checkov did not look at anything.
    """
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "built.yaml"
        file.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
        command = [str(checkov), "--file", str(file), "--framework", "kubernetes", "--output", "json", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TAKES_S, check=False)
    try:
        report = json.loads(done.stdout)
        results, passed = report["results"]["failed_checks"], report["summary"]["passed"]
    except (ValueError, KeyError, TypeError):
        raise RuntimeError(f"checkov gave no report: {(done.stderr or done.stdout)[-500:]}") from None
    if not passed:
        raise RuntimeError("checkov looked at nothing")
    found: dict[str, list[str]] = defaultdict(list)
    for result in results:
        found[result["check_id"]].append(f"{result['resource']}: {result['check_name']}")
    return dict(found)


def checkov_problems(failed: Mapping[str, list[str]], told: Mapping[str, str], *, ours: bool = True) -> Iterator[str]:
    """Checks that fail without a reason; of ours, reasons without a check that fails, too."""
    for number, where in sorted(failed.items()):
        if number not in told:
            yield from (f"{number} {text}" for text in where)
    for number, reason in sorted(told.items()):
        if ours and number not in failed:
            yield f"k8s/checkov.toml excuses {number}, which does not fail: take it out"
        elif len(reason) < _LEAST_REASON:
            yield f"k8s/checkov.toml excuses {number} without saying why"
