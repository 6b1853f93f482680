"""A real conversation, held against docs/asyncapi.json: each frame of either side is one of its messages and fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.asyncapi import CLIENT, GATEWAY, message_of, messages_of, problems
from tests.unit.gateway.harness import Gateway, Socket, gateway, token

# A hole of the log is what no bridge that works makes.
_UNHEARD = {"gap"}


class Recorded:
    """What both sides have said, and what of it the document does not know."""

    def __init__(self) -> None:
        self.heard: set[str] = set()
        self.said: set[str] = set()
        self.problems: list[str] = []

    def hear(self, frame: dict[str, Any]) -> dict[str, Any]:
        self.problems += problems(frame, GATEWAY)
        self.heard.add(message_of(frame, GATEWAY))
        return frame

    def say(self, frame: dict[str, Any]) -> None:
        self.problems += problems(frame, CLIENT)
        self.said.add(message_of(frame, CLIENT))


class Talk:
    """One connection, recorded."""

    def __init__(self, socket: Socket, record: Recorded) -> None:
        self._socket = socket
        self._record = record

    async def say(self, **frame: Any) -> None:
        self._record.say(frame)
        await self._socket.send(**frame)

    async def until(self, kind: str) -> dict[str, Any]:
        while True:
            frame = self._record.hear(await self._socket.frame())
            if kind in {frame.get("type"), frame.get("event_type")}:
                return frame

    async def end(self) -> None:
        frames, _ = await self._socket.closed()
        for frame in frames:
            self._record.hear(frame)


async def _talk(g: Gateway, record: Recorded, **connect: Any) -> Talk:
    talk = Talk(await g.open(), record)
    await talk.say(type="connect", token=token(), **connect)
    return talk


async def test_every_frame_of_a_conversation_is_in_the_document(tmp_path: Path) -> None:
    record = Recorded()
    async with gateway(tmp_path, heartbeat_interval=0.2, max_events_per_user=16, drain_seconds=3) as g:
        talk = await _talk(g, record, batch=True, compress=True, ack={"window": 900})
        hello = await talk.until("connected")
        await talk.say(type="agent_execute", message="m", params={"n": 1}, client_ref="r1", strategy="reject")
        run_id = (await talk.until("run_accepted"))["run_id"]
        await talk.say(type="agent_execute", message="m", client_ref="r1")
        assert (await talk.until("run_accepted"))["existing"] is True
        await g.publish("alice", run_id, 1)
        event = await talk.until("agent_thinking")
        await g.publish("alice", run_id, 60)
        assert (await talk.until("event_batch"))["compressed"] in {True, False}
        await talk.say(type="ack", offset=event["offset"])
        g.execution.ask("alice", run_id)
        await talk.say(type="input_provide", run_id=run_id, input_id="input-1", value=True, client_ref="a1")
        _ = await talk.until("input_accepted")
        await talk.say(type="agent_cancel", run_id="run-of-nobody", reason="why", client_ref="c0")
        assert (await talk.until("error"))["client_ref"] == "c0"
        await talk.say(type="agent_cancel", run_id=run_id, client_ref="c1")
        _ = await talk.until("cancel_accepted")
        await talk.say(type="refresh", token=token(ttl_s=600))
        _ = await talk.until("refreshed")
        await talk.say(type="ping", client_ref="p1")
        _ = await talk.until("pong")
        beat = await talk.until("ping")
        await talk.say(type="pong", offset=beat["offset"])
        await g.publish("alice", run_id, 1, last=True)
        _ = await talk.until("run_completed")
        other = await _talk(g, record, thread_id="thread-2")
        _ = await other.until("connected")
        await g.publish("alice", "run-1", 3)
        await g.publish("alice", "run-2", 1, thread="thread-2")
        _ = await other.until("through")
        lost = {"epoch": hello["epoch"], "offset": event["offset"], "event_id": "evt-other"}
        reset = await _talk(g, record, resume=lost)
        assert (await reset.until("reset"))["reason"] == "event_mismatch"
        _ = await reset.until("run_state")
        await g.server.drain()
        for one in (talk, other, reset):
            await one.end()
    assert not record.problems, json.dumps(record.problems[:5], indent=1)
    controls = {key for name, key in messages_of(GATEWAY).items() if not name.startswith("event:")}
    assert controls - record.heard == _UNHEARD
    assert set(messages_of(CLIENT).values()) == record.said
