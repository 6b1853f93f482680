"""Runs, threads, agents and artifacts of the contract as the JSON that REST and control frames show. Nothing else.

Names are the documents'; a field without a value is null, or left out where the protocol says so.
"""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import quote

import orjson
from google.protobuf.duration_pb2 import Duration

from carrel.errors import CarrelError
from carrel.v1 import agent_instance_pb2, execution_pb2
from carrel.wire import error_from_proto
from gateway.encoding import iso_time

__all__ = [
    "agent_json",
    "artifact_json",
    "error_json",
    "execution_time",
    "message_json",
    "run_json",
    "run_status",
    "thread_json",
    "timing_json",
]


class _Stamp(Protocol):
    @property
    def seconds(self) -> int: ...
    @property
    def nanos(self) -> int: ...


def error_json(error: CarrelError) -> dict[str, Any]:
    """An error as clients read it."""
    return error.to_dict()


def run_status(run: execution_pb2.Run) -> str:
    """The run's state in words: ``RUNNING``, ``SUCCEEDED`` …"""
    return execution_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")


def execution_time(run: execution_pb2.Run) -> float | None:
    """Seconds from admission to the outcome; None before it."""
    if not run.HasField("ended_at") or not run.HasField("created_at"):
        return None
    seconds = run.ended_at.seconds - run.created_at.seconds + (run.ended_at.nanos - run.created_at.nanos) / 1e9
    return round(seconds, 6)


def run_json(run: execution_pb2.Run) -> dict[str, Any]:
    """A whole run."""
    return {
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "request_id": run.request_id,
        "agent_name": run.agent_name,
        "status": run_status(run),
        "result": _embedded(run.result_json),
        "error": error_json(error_from_proto(run.error)) if run.HasField("error") else None,
        "execution_time": execution_time(run),
        "client_ref": run.client_ref or None,
        "created_at": _time(run, "created_at"),
        "started_at": _time(run, "started_at"),
        "ended_at": _time(run, "ended_at"),
        "stages": [_stage_json(stage) for stage in run.stages],
        "artifacts": [artifact_json(artifact, run.run_id) for artifact in run.artifacts],
        "waiting_for": _question_json(run.waiting_for) if run.HasField("waiting_for") else None,
    }


def timing_json(run: execution_pb2.Run) -> dict[str, Any]:
    """Where its time went, if that is known: milliseconds by part, in the order of a run's way, and their sum."""
    if not run.HasField("timing"):
        return {}
    timing = run.timing
    told = {
        "parts_ms": {part.name: _ms(part.time) for part in timing.parts},
        "total_ms": _ms(timing.total),
        "complete": timing.complete,
    }
    return {"timing": told}


def _ms(duration: Duration) -> float:
    return round(duration.ToNanoseconds() / 1e6, 3)


def _question_json(question: agent_instance_pb2.InputRequired) -> dict[str, Any]:
    told = {
        "input_id": question.input_id,
        "prompt": question.prompt,
        "schema": _embedded(question.schema_json),
        "expires_at": _time(question, "expires_at"),
    }
    if question.tool_name:
        told |= {"tool_name": question.tool_name, "arguments": _embedded(question.arguments_json)}
    return told


def _stage_json(stage: execution_pb2.Stage) -> dict[str, Any]:
    return {
        "index": stage.index,
        "agent_name": stage.agent_name,
        "status": execution_pb2.StageState.Name(stage.state).removeprefix("STAGE_STATE_"),
        "attempt": stage.attempt,
        "started_at": _time(stage, "started_at"),
        "ended_at": _time(stage, "ended_at"),
        # Only a fallback is news: a stage that went well was answered by its own agent.
        "answered_by": stage.answered_by if stage.answered_by not in {"", stage.agent_name} else None,
    }


def artifact_json(artifact: agent_instance_pb2.Artifact, run_id: str) -> dict[str, Any]:
    """An artifact's reference, with the address to read it at."""
    return {
        "name": artifact.name,
        "media_type": artifact.media_type,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "created_at": _time(artifact, "created_at"),
        "url": f"/api/runs/{quote(run_id, safe='')}/artifacts/{quote(artifact.name, safe='')}",
    }


def thread_json(thread: execution_pb2.Thread) -> dict[str, Any]:
    """A thread."""
    return {
        "thread_id": thread.thread_id,
        "created_at": _time(thread, "created_at"),
        "updated_at": _time(thread, "updated_at"),
        "message_count": thread.message_count,
        "unended_run_id": thread.unended_run_id or None,
    }


def message_json(message: agent_instance_pb2.ConversationMessage) -> dict[str, Any]:
    """A message of a thread."""
    return {
        "role": message.role,
        "text": message.text,
        "run_id": message.run_id or None,
        "created_at": _time(message, "created_at"),
    }


def agent_json(agent: agent_instance_pb2.AgentInfo) -> dict[str, Any]:
    """An agent class."""
    return {
        "name": agent.name,
        "description": agent.description,
        "requires": list(agent.requires),
        "plans": agent.plans,
        "fallback": agent.fallback or None,
        "isolation": agent_instance_pb2.Isolation.Name(agent.isolation).removeprefix("ISOLATION_").lower(),
        "available": agent.available,
        "unavailable_reason": agent.unavailable_reason or None,
        "tools": [
            {
                "name": tool.name,
                "description": tool.description,
                "permission": tool.permission or None,
                "input_schema": _embedded(tool.input_schema_json),
            }
            for tool in agent.tools
        ],
    }


def _embedded(data: bytes) -> Any:
    return orjson.Fragment(data) if data else None


def _time(message: Any, field: str) -> str | None:
    if not message.HasField(field):
        return None
    stamp: _Stamp = getattr(message, field)
    return iso_time(stamp.seconds, stamp.nanos)
