"""Runs through execution over real gRPC, between a scripted agent_instance and an emitter that plays the log."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import grpc
import orjson
import pytest

from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import execution_pb2 as pb
from carrel.v1.context_pb2 import ErrorDetail
from services.execution.models import UserKey
from services.execution.store_artifacts import LocalArtifactFolder
from tests.conftest import Eventually
from tests.support.execution import Attempt, Script, Up, World, answer, result, running_execution
from tests.support.identity import service_context, session_context


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_execution(tmp_path) as running:
        yield running


async def test_pipeline_runs_in_dependency_order_and_each_stage_gets_all_results_before_it(world: World) -> None:
    for name in ("data", "optimization", "report"):
        world.agents.scripts[name] = answer({"from": name})
    admitted = await world.execute(pipeline=["report", "data", "optimization"], params_json=b'{"n":1}')
    assert admitted.run.state == pb.RUN_STATE_RUNNING
    assert [stage.agent_name for stage in admitted.run.stages] == ["data", "optimization", "report"]
    run = await world.ended(admitted.run.run_id)
    assert run.state == run.outcome == pb.RUN_STATE_SUCCEEDED
    assert orjson.loads(run.result_json) == {"from": "report"}
    assert [stage.state for stage in run.stages] == [pb.STAGE_STATE_SUCCEEDED] * 3
    starts = [attempt.start for attempt in world.agents.attempts]
    assert [sorted(start.results_json) for start in starts] == [[], ["data"], ["data", "optimization"]]
    assert orjson.loads(starts[1].results_json["data"]) == {"from": "data"}
    assert [start.producer_id for start in starts] == [f"{run.run_id}:{n}:1" for n in range(3)]
    assert starts[0].message == "hello"
    assert starts[0].params_json == b'{"n":1}'
    assert world.emitter.log(run.run_id) == [
        (
            "run_accepted",
            {
                "run_id": run.run_id,
                "thread_id": run.thread_id,
                "client_ref": "",
                "agent_name": "report",
                "stages": ["data", "optimization", "report"],
            },
        ),
        ("run_completed", {"status": "SUCCEEDED", "result": {"from": "report"}}),
    ]


async def test_watch_tells_the_present_state_then_changes_and_ends_with_the_terminal_one(world: World) -> None:
    go = asyncio.Event()

    async def waiting(attempt: Attempt) -> AsyncIterator[Up]:
        await go.wait()
        yield result({})

    world.agents.scripts["data"] = waiting
    run_id = (await world.execute()).run.run_id
    call = world.stub.WatchRun(pb.WatchRunRequest(context=session_context(), run_id=run_id), timeout=10)
    states = []
    async for response in call:
        states.append(response.run.state)
        go.set()
    assert states[0] == pb.RUN_STATE_RUNNING
    assert states[-1] == pb.RUN_STATE_SUCCEEDED
    assert await world.watched(run_id)  # an ended run: its terminal state, once


async def test_watch_hears_of_a_stages_end_at_once(world: World) -> None:
    go = asyncio.Event()

    async def waiting(attempt: Attempt) -> AsyncIterator[Up]:
        await go.wait()
        yield result({})

    async def released(attempt: Attempt) -> AsyncIterator[Up]:
        await watched.wait()
        yield result({})

    watched = asyncio.Event()
    world.agents.scripts |= {"data": released, "optimization": waiting}
    run_id = (await world.execute(pipeline=["data", "optimization"])).run.run_id
    call = world.stub.WatchRun(pb.WatchRunRequest(context=session_context(), run_id=run_id), timeout=10)
    async with asyncio.timeout(3):  # sooner than it would look by itself
        async for response in call:
            watched.set()
            if response.run.stages[1].state == pb.STAGE_STATE_RUNNING:
                break
    call.cancel()
    go.set()
    await world.ended(run_id)


async def test_execution_closes_its_side_once_it_has_read_the_result(world: World, eventually: Eventually) -> None:
    async def patient(attempt: Attempt) -> AsyncIterator[Up]:
        yield result({})
        await attempt.half_closed.wait()
        parted.append(attempt)

    parted: list[Attempt] = []
    world.agents.scripts["data"] = patient
    run = await world.ended((await world.execute()).run.run_id)
    assert run.state == pb.RUN_STATE_SUCCEEDED
    await eventually(lambda: len(parted) == 1)
    await eventually(lambda: parted[0].closed)


async def test_run_is_terminal_only_when_the_log_has_its_terminal_event(world: World, eventually: Eventually) -> None:
    world.emitter.hold = lambda event: event.event_type == "run_completed"
    world.agents.scripts["data"] = answer({"ok": True})
    run_id = (await world.execute()).run.run_id

    async def finishing() -> bool:
        return (await world.run(run_id)).state == pb.RUN_STATE_FINISHING

    await eventually(finishing)
    run = await world.run(run_id)
    assert run.outcome == pb.RUN_STATE_SUCCEEDED
    assert run.engine_id == ""  # its engine is free already
    assert world.emitter.kinds(run_id) == ["run_accepted"]
    world.emitter.released.set()
    assert (await world.ended(run_id)).state == pb.RUN_STATE_SUCCEEDED
    assert world.emitter.kinds(run_id) == ["run_accepted", "run_completed"]


async def test_supervisors_plan_is_completed_ordered_and_run_with_its_params(world: World) -> None:
    async def plan(attempt: Attempt) -> AsyncIterator[Up]:
        stage_plan = ai.StagePlan(stages=["report"], params_json=b'{"depth":2}', reason="asked for")
        yield Up(result=ai.StageResult(plan=stage_plan, answered_by="supervisor"))

    world.agents.scripts["supervisor"] = plan
    for name in ("data", "optimization", "report"):
        world.agents.scripts[name] = answer({"from": name})
    admitted = await world.execute(pipeline=[], params_json=b'{"trace":"t"}')
    assert admitted.run.agent_name == "supervisor"
    run = await world.ended(admitted.run.run_id)
    assert run.state == pb.RUN_STATE_SUCCEEDED
    assert [stage.agent_name for stage in run.stages] == ["supervisor", "data", "optimization", "report"]
    last = world.agents.attempts[-1].start
    assert orjson.loads(last.params_json) == {"trace": "t", "depth": 2}
    assert orjson.loads(last.results_json["supervisor"])["plan"] == ["data", "optimization", "report"]


@pytest.mark.parametrize(
    ("stages", "code"),
    [(["nobody"], "UNKNOWN_STAGE"), (["left"], "CYCLIC_PLAN"), (["supervisor"], "PLAN"), ([], "PLAN")],
)
async def test_plan_that_cannot_run_fails_the_run_with_an_agent_error(
    world: World, stages: list[str], code: str
) -> None:
    async def plan(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(result=ai.StageResult(plan=ai.StagePlan(stages=stages)))

    world.agents.scripts["supervisor"] = plan
    run = await world.ended((await world.execute(pipeline=[])).run.run_id)
    assert run.state == pb.RUN_STATE_FAILED
    assert run.error.code == code
    log = world.emitter.log(run.run_id)
    assert [kind for kind, _ in log] == ["run_accepted", "agent_error", "run_completed"]
    assert log[1][1]["agent_name"] == "supervisor"


async def test_failed_agent_ends_the_run_without_a_second_agent_error(world: World) -> None:
    async def fail(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(result=ai.StageResult(error=ErrorDetail(code="AGENT_FAILED", message="no trace")))

    world.agents.scripts["data"] = fail
    world.agents.scripts["optimization"] = answer({})
    run = await world.ended((await world.execute(pipeline=["data", "optimization"])).run.run_id)
    assert run.state == pb.RUN_STATE_FAILED
    assert (run.error.code, run.error.message) == ("AGENT_FAILED", "no trace")
    assert [stage.state for stage in run.stages] == [pb.STAGE_STATE_FAILED, pb.STAGE_STATE_SKIPPED]
    log = world.emitter.log(run.run_id)
    assert [kind for kind, _ in log] == ["run_accepted", "run_completed"]
    assert log[1][1]["status"] == "FAILED"
    assert log[1][1]["error"]["code"] == "AGENT_FAILED"


async def test_stage_that_ran_out_of_the_runs_time_ends_it_as_timed_out(world: World) -> None:
    async def late(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(result=ai.StageResult(error=ErrorDetail(code="ENGINE_TIMEOUT", message="too long")))

    world.agents.scripts["data"] = late
    run = await world.ended((await world.execute(pipeline=["data"])).run.run_id)
    assert run.state == pb.RUN_STATE_TIMED_OUT
    assert world.emitter.log(run.run_id)[-1][1]["status"] == "TIMED_OUT"


async def test_result_that_is_no_json_object_fails_the_run(world: World) -> None:
    async def wrong(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(result=ai.StageResult(result_json=b"[1]"))

    world.agents.scripts["data"] = wrong
    run = await world.ended((await world.execute()).run.run_id)
    assert run.error.code == "INVALID_RESULT"
    assert world.emitter.kinds(run.run_id) == ["run_accepted", "agent_error", "run_completed"]


async def test_result_over_the_event_bound_becomes_an_artifact_and_a_reference(world: World) -> None:
    big = {"rows": ["x" * 100] * 800}
    world.agents.scripts["data"] = answer(big)
    run = await world.ended((await world.execute()).run.run_id)
    assert run.state == pb.RUN_STATE_SUCCEEDED
    _, terminal = world.emitter.log(run.run_id)[-1]
    assert "result" not in terminal
    assert terminal["artifact"]["name"] == "result.json"
    assert terminal["artifact"]["url"] == f"/api/runs/{run.run_id}/artifacts/result.json"
    assert orjson.loads(run.result_json) == {"artifact": terminal["artifact"]}
    assert [artifact.name for artifact in run.artifacts] == ["result.json"]


async def test_conversation_before_the_run_reaches_the_agent(world: World) -> None:
    world.agents.scripts["data"] = answer({"message": "four"})
    for _ in range(2):
        await world.ended((await world.execute(thread="t1")).run.run_id)
    history = world.agents.attempts[-1].start.history
    assert [(message.role, message.text) for message in history] == [("user", "hello"), ("assistant", "four")]
    assert not world.agents.attempts[0].start.history


async def test_what_an_agent_keeps_comes_back_in_the_threads_next_run(tmp_path: Path) -> None:
    async def keeps(attempt: Attempt) -> AsyncIterator[Up]:
        kept = attempt.start.memory + b"\0"
        yield Up(result=ai.StageResult(result_json=b"{}", answered_by=attempt.start.agent_name, memory=kept))

    # Also where no message comes with it.
    async with running_execution(tmp_path, scripts={"data": keeps}, history_messages=0) as world:
        for thread in ("t1", "t1", "t2", "t1"):
            run = await world.ended((await world.execute(thread=thread)).run.run_id)
            assert run.state == pb.RUN_STATE_SUCCEEDED
        assert [attempt.start.memory for attempt in world.agents.attempts] == [b"", b"\0", b"", b"\0\0"]
        assert not any(attempt.start.history for attempt in world.agents.attempts)


def keeps(kept: bytes, by: str = "") -> Script:
    """A script that succeeds and keeps something, for another than itself when told so."""

    async def script(attempt: Attempt) -> AsyncIterator[Up]:
        answered = by or attempt.start.agent_name
        if attempt.start.agent_name == "supervisor":
            plan = ai.StagePlan(stages=["data"])
            yield Up(result=ai.StageResult(plan=plan, answered_by=answered, memory=kept))
        else:
            yield Up(result=ai.StageResult(result_json=b"{}", answered_by=answered, memory=kept))

    return script


async def test_a_stage_keeps_for_its_own_agent_alone_also_one_that_plans(tmp_path: Path) -> None:
    async with running_execution(tmp_path) as world:

        async def run(agent: str) -> pb.Run:
            return await world.ended((await world.execute(thread="t", pipeline=[agent])).run.run_id)

        world.agents.scripts |= {"supervisor": keeps(b"plans"), "data": keeps(b"own")}
        assert (await run("supervisor")).state == pb.RUN_STATE_SUCCEEDED
        # As an agent_instance says that was taken over.
        for script in (keeps(b"forged", by="supervisor"), keeps(b"x" * 262_145)):
            world.agents.scripts["data"] = script
            failed = await run("data")
            assert (failed.state, failed.error.code) == (pb.RUN_STATE_FAILED, "PROTOCOL")
        # A fallback answers in its place, and keeps nothing.
        world.agents.scripts["data"] = keeps(b"", by="supervisor")
        assert (await run("data")).state == pb.RUN_STATE_SUCCEEDED
        world.agents.scripts["data"] = keeps(b"own")
        await run("supervisor")
        assert [attempt.start.memory for attempt in world.agents.attempts[-2:]] == [b"plans", b"own"]


async def test_a_user_whose_agents_keep_too_much_is_told_and_loses_nothing(tmp_path: Path) -> None:
    async with running_execution(tmp_path, memory_quota_per_user=100) as world:

        async def run(thread: str, user: str = "alice") -> pb.Run:
            return await world.ended((await world.execute(user=user, thread=thread)).run.run_id, user)

        world.agents.scripts["data"] = keeps(b"x" * 60)
        await run("one")
        failed = await run("two")
        assert (failed.state, failed.error.code) == (pb.RUN_STATE_FAILED, "QUOTA")
        assert "delete threads" in failed.error.advice
        assert world.emitter.kinds(failed.run_id) == ["run_accepted", "agent_error", "run_completed"]
        assert (await run("two", "bob")).state == pb.RUN_STATE_SUCCEEDED
        assert (await run("one")).state == pb.RUN_STATE_SUCCEEDED
        request = pb.DeleteThreadRequest(context=session_context("alice"), thread_id="one")
        await world.stub.DeleteThread(request, timeout=5.0)
        assert (await run("two")).state == pb.RUN_STATE_SUCCEEDED


async def test_what_was_kept_long_ago_is_cleaned_up(tmp_path: Path, eventually: Eventually) -> None:
    async with running_execution(tmp_path, cleanup_interval=0.05, memory_retention_days=1.5 / 86_400) as world:
        world.agents.scripts["data"] = keeps(b"old")
        await world.ended((await world.execute()).run.run_id)
        with closing(sqlite3.connect(world.folder / "data" / "runs.sqlite3")) as file:
            count = "SELECT count(*) FROM memories"
            assert file.execute(count).fetchone() == (1,)
            await eventually(lambda: file.execute(count).fetchone() == (0,))


async def test_artifacts_of_a_stage_are_stored_answered_and_read_back_by_their_owner_only(world: World) -> None:
    data = bytes(range(256)) * 3000
    answers = []

    async def uploads(attempt: Attempt) -> AsyncIterator[Up]:
        chunks = [data[n : n + 262_144] for n in range(0, len(data), 262_144)]
        for n, chunk in enumerate(chunks):
            yield Up(
                artifact_chunk=ai.ArtifactChunk(
                    upload_id="u1",
                    name="load.svg" if n == 0 else "",
                    media_type="image/svg+xml" if n == 0 else "",
                    data=chunk,
                    last=n == len(chunks) - 1,
                )
            )
        answers.append(await attempt.messages.get())
        yield Up(artifact_chunk=ai.ArtifactChunk(upload_id="u2", name="../etc/passwd", data=b"x", last=True))
        answers.append(await attempt.messages.get())
        yield result({})

    world.agents.scripts["data"] = uploads
    run = await world.ended((await world.execute()).run.run_id)
    stored, refused = (answer.artifact_stored for answer in answers)
    assert (stored.upload_id, stored.artifact.name, stored.artifact.size) == ("u1", "load.svg", len(data))
    assert refused.error.code == "INVALID_REQUEST"
    assert list(run.artifacts) == [stored.artifact]
    request = pb.GetArtifactRequest(context=session_context(), run_id=run.run_id, name="load.svg")
    first, *rest = [response async for response in world.stub.GetArtifact(request, timeout=5)]
    assert first.artifact == stored.artifact
    assert b"".join(response.data for response in rest) == data
    foreign = pb.GetArtifactRequest(context=session_context("bob"), run_id=run.run_id, name="load.svg")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        [response async for response in world.stub.GetArtifact(foreign, timeout=5)]
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    files = [path for path in (world.folder / "data" / "artifacts").rglob("*") if path.is_file()]
    assert [path.name for path in files] == [stored.artifact.sha256]
    assert not any("load" in part or "alice" in part for path in files for part in path.parts[-3:])
    await world.stub.DeleteThread(pb.DeleteThreadRequest(context=session_context(), thread_id=run.thread_id), timeout=5)
    assert not any(path.is_file() for path in (world.folder / "data" / "artifacts").rglob("*"))


async def test_journal_is_acknowledged_once_durable_and_audit_is_kept_under_the_runs_identity(world: World) -> None:
    acknowledged = 0

    async def works(attempt: Attempt) -> AsyncIterator[Up]:
        nonlocal acknowledged
        for number in (1, 2, 3):
            yield Up(journal_entry=ai.JournalEntry(number=number, call_id=f"c{number}", kind="tool", name="load"))
            record = ai.AuditRecord(record_id=f"a{number}", user_id="mallory", action="tool.call", target="load")
            yield Up(audit_record=record)
        while acknowledged < 3:
            acknowledged = (await attempt.messages.get()).journal_stored.through
        yield result({})

    world.agents.scripts["data"] = works
    run = await world.ended((await world.execute()).run.run_id)
    assert run.state == pb.RUN_STATE_SUCCEEDED
    request = pb.ListAuditRecordsRequest(context=service_context(), run_id=run.run_id)
    records = (await world.stub.ListAuditRecords(request, timeout=5)).records
    assert {(record.record_id, record.user_id) for record in records} == {(f"a{n}", "alice") for n in (1, 2, 3)}
    own = await world.stub.ListAuditRecords(pb.ListAuditRecordsRequest(context=session_context("mallory")), timeout=5)
    assert not own.records


def _entry(number: int) -> Up:
    return Up(journal_entry=ai.JournalEntry(number=number, call_id=f"c{number}", kind="tool", name="load"))


async def _next_stored(attempt: Attempt) -> int:
    while (message := await attempt.messages.get()).WhichOneof("message") != "journal_stored":
        pass
    return message.journal_stored.through


async def test_entries_that_come_together_share_an_acknowledgement_that_comes_when_they_are_durable(
    world: World,
) -> None:
    acknowledged: list[int] = []
    locked = sqlite3.connect(world.folder / "data" / "runs.sqlite3", isolation_level=None)

    async def works(attempt: Attempt) -> AsyncIterator[Up]:
        locked.execute("BEGIN IMMEDIATE")
        for number in range(1, 21):
            yield _entry(number)
        early = asyncio.create_task(_next_stored(attempt))
        await asyncio.wait({early}, timeout=0.3)
        assert not early.done(), "nothing can be stored yet"
        locked.execute("ROLLBACK")
        acknowledged.append(await early)
        while acknowledged[-1] < 20:
            acknowledged.append(await _next_stored(attempt))
        yield result({})

    world.agents.scripts["data"] = works
    run = await world.ended((await world.execute()).run.run_id)
    locked.close()
    assert run.state == pb.RUN_STATE_SUCCEEDED, run.error
    assert len(acknowledged) <= 3
    assert acknowledged == sorted(acknowledged)


async def test_an_artifact_that_is_being_stored_holds_no_acknowledgement_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, free = LocalArtifactFolder.put, asyncio.Event()

    async def slow(self: LocalArtifactFolder, user: UserKey, run_id: str, data: bytes) -> str:
        await free.wait()
        return await put(self, user, run_id, data)

    monkeypatch.setattr(LocalArtifactFolder, "put", slow)
    kinds: list[str | None] = []

    async def works(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(artifact_chunk=ai.ArtifactChunk(upload_id="u1", name="a.txt", data=b"a", last=True))
        yield _entry(1)
        kinds.append((await attempt.messages.get()).WhichOneof("message"))
        free.set()
        kinds.append((await attempt.messages.get()).WhichOneof("message"))
        # One that is not answered yet is stored nevertheless.
        yield Up(artifact_chunk=ai.ArtifactChunk(upload_id="u2", name="b.txt", data=b"b", last=True))
        yield result({})

    world.agents.scripts["data"] = works
    run = await world.ended((await world.execute()).run.run_id)
    assert kinds == ["journal_stored", "artifact_stored"]
    assert sorted(artifact.name for artifact in run.artifacts) == ["a.txt", "b.txt"]


async def test_a_long_attempt_gets_a_fresh_ticket(tmp_path: Path) -> None:
    async with running_execution(tmp_path, ticket_refresh_seconds=0.05) as world:

        async def beats(attempt: Attempt) -> AsyncIterator[Up]:
            while attempt.messages.empty():
                await asyncio.sleep(0.02)
                yield Up(heartbeat=ai.Heartbeat())
            yield result({"got": attempt.messages.get_nowait().WhichOneof("message")})

        world.agents.scripts["data"] = beats
        run = await world.ended((await world.execute()).run.run_id)
        assert orjson.loads(run.result_json) == {"got": "refresh"}
