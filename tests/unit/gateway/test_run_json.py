"""Messages of the contract as the JSON that clients read, where that is more than copying."""

from __future__ import annotations

import pytest

from carrel.v1 import execution_pb2
from gateway.run_json import run_json


@pytest.mark.parametrize(("answered_by", "shown"), [("", None), ("data", None), ("plain-data", "plain-data")])
def test_a_stage_names_who_answered_only_when_its_fallback_did(answered_by: str, shown: str | None) -> None:
    stage = execution_pb2.Stage(
        agent_name="data", state=execution_pb2.STAGE_STATE_SUCCEEDED, attempt=1, answered_by=answered_by
    )
    (told,) = run_json(execution_pb2.Run(run_id="run-1", stages=[stage]))["stages"]
    assert (told["status"], told["answered_by"]) == ("SUCCEEDED", shown)
