"""The agents that a deployment has, as agent_instance lists them. Asked each time: it may have been replaced."""

from __future__ import annotations

from typing import Any

from grpc import aio

from carrel.doctor_names import DOCTOR_AGENT, DOCTOR_PERMISSION
from carrel.v1 import agent_instance_pb2
from carrel.v1.agent_instance_pb2_grpc import AgentInstanceServiceStub
from gateway.login import Login
from gateway.run_json import agent_json
from gateway.tickets import TicketDesk

__all__ = ["Agents"]


class Agents:
    """Asks agent_instance in the name of a login."""

    def __init__(self, channel: aio.Channel, desk: TicketDesk) -> None:
        self._stub = AgentInstanceServiceStub(channel)
        self._desk = desk

    async def list(self, login: Login) -> dict[str, Any]:
        """The registry as JSON; the doctor's agent is shown to the doctor alone."""
        request = agent_instance_pb2.ListAgentsRequest(context=self._desk.session(login))
        response = await self._stub.ListAgents(request)
        shown = [
            agent for agent in response.agents if agent.name != DOCTOR_AGENT or DOCTOR_PERMISSION in login.permissions
        ]
        return {"agents": [agent_json(agent) for agent in shown], "digest": response.registry_digest}
