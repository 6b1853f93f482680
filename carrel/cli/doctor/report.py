"""What a check found, step by step, as data and as a table; the exit code that follows. Nothing is called here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from carrel.cli.output import EXIT_FAILED, EXIT_OK, Printer
from carrel.cli.render import clean

__all__ = ["SCHEMA", "Check", "Report", "SkipCheck", "Step"]

SCHEMA: Final = "carrel.doctor/1"
Status = Literal["pass", "fail", "skipped"]
_COLOURS: Final = {"pass": "32", "fail": "31", "skipped": "33"}
_MAX_EVIDENCE: Final = 500


class SkipCheck(Exception):  # noqa: N818 -- an outcome, and no error
    """The rest of the check cannot be made here; the text says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was looked at: what, how it was, what was seen, and what to do when it is wrong."""

    what: str
    status: Status
    evidence: str = ""
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """As the JSON report has it."""
        return {"what": self.what, "status": self.status, "evidence": self.evidence, "advice": self.advice}


@dataclass(slots=True)
class Check:
    """A check as it goes on. A check without a step that passed, and without one that failed, is skipped."""

    name: str
    steps: list[Step] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def status(self) -> Status:
        """``fail`` when a step failed, ``pass`` when some passed."""
        found = {step.status for step in self.steps}
        return "fail" if "fail" in found else "pass" if "pass" in found else "skipped"

    def expect(self, holds: bool, what: str, evidence: object = "", advice: str = "") -> bool:
        """Note whether something holds; ``advice`` is for when it does not."""
        text = str(evidence)[:_MAX_EVIDENCE]
        self.steps.append(Step(what, "pass" if holds else "fail", text, "" if holds else advice))
        return holds

    def fail(self, what: str, evidence: object, advice: str) -> None:
        """Note what is wrong."""
        _ = self.expect(False, what, evidence, advice)

    def skip(self, what: str, reason: str) -> None:
        """Note what could not be looked at, and why."""
        self.steps.append(Step(what, "skipped", reason[:_MAX_EVIDENCE]))

    def to_json(self) -> dict[str, Any]:
        """As the JSON report has it."""
        failed = [step for step in self.steps if step.status == "fail"]
        return {
            "name": self.name,
            "status": self.status,
            "duration_s": round(self.duration_s, 3),
            "advice": failed[0].advice if failed else "",
            "steps": [step.to_json() for step in self.steps],
        }


@dataclass(slots=True)
class Report:
    """A whole examination."""

    version: str
    urls: Sequence[str]
    users: Sequence[str] = ()
    strict: bool = False
    checks: list[Check] = field(default_factory=list)
    leftovers: int = 0
    cleaned: int = 0
    not_cleaned: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.time)
    duration_s: float = 0.0

    @property
    def status(self) -> Literal["pass", "fail"]:
        """``fail`` when a check failed, when anything was left behind, or when ``strict`` and something was skipped."""
        skipped = any(step.status == "skipped" for check in self.checks for step in check.steps)
        failed = any(check.status == "fail" for check in self.checks) or bool(self.not_cleaned)
        return "fail" if failed or (self.strict and skipped) else "pass"

    @property
    def exit_code(self) -> int:
        """0 or 1."""
        return EXIT_OK if self.status == "pass" else EXIT_FAILED

    def to_json(self) -> dict[str, Any]:
        """The report as docs/doctor.md describes it."""
        return {
            "schema": SCHEMA,
            "version": self.version,
            "gateways": list(self.urls),
            "users": list(self.users),
            "strict": self.strict,
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "duration_s": round(self.duration_s, 3),
            "status": self.status,
            "checks": [check.to_json() for check in self.checks],
            "leftovers_removed": self.leftovers,
            "threads_removed": self.cleaned,
            "not_removed": self.not_cleaned,
        }

    def show(self, printer: Printer, *, verbose: bool) -> None:
        """Print a line for each check, and its steps: all of them, or those that did not pass."""
        for check in self.checks:
            passed = sum(step.status == "pass" for step in check.steps)
            mark = printer.paint(f"{check.status:<8}", _COLOURS[check.status])
            printer.say(f"{mark} {check.name:<24} {passed}/{len(check.steps)} steps  {check.duration_s:.2f} s")
            for step in check.steps:
                if verbose or step.status != "pass":
                    printer.say(clean(f"           {step.status}: {step.what}" + _colon(step.evidence)))
                if step.advice:
                    printer.say(f"           {printer.paint('to do:', '1')} {clean(step.advice)}")
        if self.leftovers:
            printer.say(f"{self.leftovers} threads of an earlier examination that did not end were removed")
        for left in self.not_cleaned:
            printer.say(f"not removed: {clean(left)}; the next examination tries again")
        word = printer.paint(self.status, _COLOURS[self.status])
        printer.say(f"{word}: {', '.join(self.urls)} in {self.duration_s:.1f} s")


def _colon(text: str) -> str:
    return f": {text}" if text else ""
