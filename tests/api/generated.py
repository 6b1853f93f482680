"""Requests that schemathesis makes of docs/openapi.json, sent to a stack: what of the answers is not as documented.

Data that fits the document and data that does not, every operation, as its own user. Nothing that a run of it leaves
behind goes on: agents are short, and what waits for a person is cancelled by whoever asked.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

import schemathesis
from schemathesis import AuthContext, Case, HookContext, Response
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.engine import events, from_schema

from servicekit.identity.principals import OPERATOR_READ
from tests.support.openapi import document
from tests.support.stack import RunningStack

__all__ = ["Found", "Known", "send"]

# Fields whose values a schema cannot judge: they belong to something else (a page, a run, another header), or are
# integers to it however they are written (164.0, or with more digits than 64 bits hold).
_BEYOND_SCHEMAS: Final = frozenset({"page_token", "bound", "thread_id", "client_ref", "lifetime_s"})
_SEED: Final = 20261


@dataclass(frozen=True, slots=True)
class Known:
    """What the user has: a run that has ended and its artifact, a run that waits for an answer, a thread."""

    run_id: str
    artifact: str
    thread_id: str
    waiting: str
    input_id: str
    answer: str


@dataclass
class Found:
    """What was sent, by operation, with the statuses of the answers, and by phase; and what was wrong."""

    phases: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def heard(self, event: events.ScenarioFinished) -> None:
        """Take in what came of one scenario: requests of one operation, or of several that follow from each other."""
        recorder = event.recorder
        names = {case_id: str(node.value.operation.label) for case_id, node in recorder.cases.items()}
        self.phases[event.phase.name.lower().removesuffix("_testing")] += len(recorder.interactions)
        for case_id, interaction in recorder.interactions.items():
            counts = self.statuses.setdefault(names[case_id], Counter())
            counts[interaction.response.status_code if interaction.response else 0] += 1
        for case_id, checks in recorder.checks.items():
            for check in checks:
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    sample = check.failure_info.code_sample
                    self.failures.append(f"{names[case_id]}: {failure.title}\n{failure.message[:400]}\n{sample[:600]}")


def send(stack: RunningStack, user: str, known: Known, *, examples: int, phases: Collection[str]) -> Found:
    """Send as many generated requests as told, always the same.

    Args:
        stack: Where.
        user: Whose requests they are.
        known: What the user has.
        examples: Of each kind of random data, for each operation.
        phases: Of schemathesis: ``examples``, ``coverage``, ``fuzzing``, ``stateful``.
    """
    found = Found()
    schema = schemathesis.openapi.from_dict(_with_known(known), config=_config(stack, examples, phases))
    _ = schema.auth(refresh_interval=None)(_tokens(stack, user))
    _ = schemathesis.hook("filter_failure")(_is_a_fault)
    try:
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                found.heard(event)
            elif isinstance(event, events.NonFatalError):
                found.failures.append(f"{event.label}: {event.info}")
            elif isinstance(event, events.FatalError):
                raise event.exception
    finally:
        schemathesis.hooks.unregister(_is_a_fault)
    return found


def _with_known(known: Known) -> dict[str, Any]:
    """The document, with examples that are there."""
    made: dict[str, Any] = copy.deepcopy(dict(document()))
    parameters = made["components"]["parameters"]
    parameters["run_id"]["examples"] = {"ended": {"value": known.run_id}}
    parameters["thread_id"]["examples"] = {"kept": {"value": known.thread_id}}
    artifact = made["paths"]["/api/runs/{run_id}/artifacts/{name}"]["get"]["parameters"]
    artifact[1]["examples"] = {"kept": {"value": known.artifact}}
    answer = made["paths"]["/api/runs/{run_id}/input"]["post"]
    waiting = {"name": "run_id", "in": "path", "required": True, "schema": parameters["run_id"]["schema"]}
    answer["parameters"] = [{**waiting, "examples": {"waiting": {"value": known.waiting}}}]
    body = {"input_id": known.input_id, "value": known.answer}
    answer["requestBody"]["content"]["application/json"]["example"] = body
    return made


def _config(stack: RunningStack, examples: int, phases: Collection[str]) -> SchemathesisConfig:
    off = {"enabled": False}
    return SchemathesisConfig.from_dict(
        {
            "base-url": stack.url,
            "request-timeout": 20,
            "seed": _SEED,
            "workers": 1,
            "continue-on-failure": True,
            "generation": {
                "max-examples": examples,
                "mode": "all",
                "deterministic": True,
                "database": "none",
                "with-security-parameters": False,
            },
            "phases": {name: {"enabled": name in phases} for name in ("examples", "coverage", "fuzzing", "stateful")},
            "operations": [
                # The console's own page asks.
                {"include-operation-id": "consoleSignIn", "headers": {"Origin": stack.url}},
                # What is right goes on for ever, so that only what is wrong is sent.
                {"include-operation-id": "events", "generation": {"mode": "negative"}},
                # Plain requests are no WebSockets: all are refused, but as documented.
                {"include-tag": "Socket", "checks": {"positive_data_acceptance": off}},
                # What is right is a run of the default agent; and AG-UI lets requests have what nobody knows.
                {
                    "include-tag": "AG-UI",
                    "generation": {"mode": "negative"},
                    "checks": {"positive_data_acceptance": off, "negative_data_rejection": off},
                },
            ],
        }
    )


def _tokens(stack: RunningStack, user: str) -> type:
    numbers = itertools.count()
    usual, operator = stack.token(user), stack.token(user, permissions=[OPERATOR_READ])

    class Tokens:
        """The user's, the operator's; and one of its own for each request that may sign it out."""

        def get(self, case: Case[Any], _context: AuthContext) -> str:
            if case.operation.path == "/api/logout":
                return stack.token(f"leaver-{next(numbers)}")
            return operator if case.operation.path.startswith("/api/operator/") else usual

        def set(self, case: Case[Any], data: str, _context: AuthContext) -> None:
            case.headers["Authorization"] = f"Bearer {data}"

    return Tokens


def _is_a_fault(_context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Whether a failure is one: the document cannot say everything about what is right."""
    # Below the same address there is a file of any name for GET, and this for POST.
    if failure.title == "Allow header mismatch" and case.operation.label == "POST /console/sign-in":
        return False
    if failure.title != "Schema-valid request rejected" or response.status_code != 400:
        return True
    error = json.loads(response.content)["error"]
    # What an answer may be, its question says.
    if error["code"] == "INVALID_INPUT":
        return False
    fields = set(error.get("details", {}).get("fields", {}))
    return not (fields and fields <= _BEYOND_SCHEMAS)
