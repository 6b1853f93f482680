"""The contract of every layer of the factory chain, in one place: what it asks for, gives, may raise, how quick it is.

Data alone. A service takes its layer with ``layer_contract`` and says which clauses a function of its own decides;
`carrel doctor --contracts` and docs/contracts.md print the rest from here. Bounds are milliseconds of the service's own
time for one operation on a machine that is not overloaded: a miss is counted and told, and no error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from carrel import errors
from carrel.errors import CarrelError
from servicekit.contracts import Clause, FactoryLayerContract

__all__ = ["LAYER_NAMES", "layer_contract"]


@dataclass(frozen=True, slots=True)
class _Layer:
    """``needs`` and ``gives`` are sentences by a short key, by which a service names them."""

    needs: Mapping[str, str]
    gives: Mapping[str, str]
    raises: tuple[type[CarrelError], ...]
    bounds_ms: Mapping[str, float]


_LAYERS: Final[Mapping[str, _Layer]] = {
    "gateway": _Layer(
        needs={
            "login": "a token of the deployment's issuer, not expired and not revoked",
            "request": "a request whose fields are all known and within their bounds",
        },
        gives={
            "owner": "a run is asked for in the token's user's name and no other",
            "own": "a connection gets its own user's events alone, each once, in order, or is told what is missing",
            "bounded": "a reader that stalls costs a bounded amount of memory, and nobody else's time",
            "typed": "every refusal is an error with a code, whether to try again, and what to do",
        },
        raises=(
            errors.TokenError,
            errors.TokenExpiredError,
            errors.PermissionDeniedError,
            errors.OriginError,
            errors.InvalidRequestError,
            errors.TooLargeError,
            errors.RateLimitError,
            errors.DrainingError,
            errors.UnavailableError,
        ),
        bounds_ms={"execute": 10.0},
    ),
    "execution_engine": _Layer(
        needs={
            "ids": "user, thread, run and root request are set and verified",
            "agents": "the agents that are named are in agent_instance's registry",
        },
        gives={
            "durable": "a new run is durable, and has an engine, a fence and its first stage, or waits for them",
            "limits": "no user has more engines or unended runs than their limits",
            "free": "the engine is free again once the run's outcome is decided",
        },
        raises=(
            errors.UnknownAgentError,
            errors.PlanError,
            errors.ThreadBusyError,
            errors.EnginesLimitError,
            errors.UnendedRunsError,
            errors.ActiveRunsError,
            errors.RateLimitError,
            errors.UnknownEngineError,
            errors.IdempotencyConflictError,
            errors.AlreadyExistsError,
            errors.StoreUnavailableError,
        ),
        bounds_ms={"execute": 5.0},
    ),
    "agent_instance": _Layer(
        needs={
            "run": "a verified context of a run",
            "agent": "an agent that is in the frozen registry",
            "dependencies": "the agent's declared dependencies (llm, tools, database) are there",
        },
        gives={
            "owner": "the instance is of one user and one run",
            "fresh": "its worker has served nobody before and will serve nobody after",
            "released": "an instance that is not run is released after 30 s",
        },
        raises=(
            errors.UnknownAgentError,
            errors.AgentDependencyError,
            errors.WorkersBusyError,
            errors.WorkerLostError,
            errors.UnknownInstanceError,
        ),
        bounds_ms={"create_instance": 3.0},
    ),
    "websocket_emitter": _Layer(
        needs={
            "run": "an item is of a verified run and names its producer",
            "numbers": "its numbers are consecutive, from 1",
            "kinds": "its events are of kinds that a producer may write; others are replaced by event_rejected",
        },
        gives={
            "fresh": "a producer met for the first time shares nothing with another",
            "durable": "an event is acknowledged only when the log has it",
            "secrets": "no secret that is known by its form leaves",
            "fair": "no user waits for another's flood longer than for a few hundred events",
        },
        raises=(
            errors.TicketError,
            errors.IdentityMismatchError,
            errors.InvalidEventError,
            errors.QueueFullError,
            errors.EventGapError,
            errors.StaleFenceError,
            errors.SealedLogError,
        ),
        bounds_ms={"create_emitter": 1.0},
    ),
    "bridge_integration": _Layer(
        needs={
            "user": "a subscription is of a verified user and has a generation",
            "tickets": "every item of a stream carries a context with a ticket of its own",
        },
        gives={
            "position": "a subscription that has begun has a place in its user's log",
            "durable": "an acknowledged event is durable, at one offset, for good",
            "once": "a gateway gets each entry after its position once, in order, and no other user's",
        },
        raises=(
            errors.IdentityMismatchError,
            errors.EventGapError,
            errors.StaleFenceError,
            errors.SealedLogError,
            errors.QueueFullError,
            errors.StoreUnavailableError,
            errors.UnknownRunError,
        ),
        bounds_ms={"subscribe": 5.0},
    ),
}

LAYER_NAMES: Final = tuple(_LAYERS)


def layer_contract(name: str, holds: Mapping[str, Callable[[Any], bool]] | None = None) -> FactoryLayerContract:
    """A layer's contract, with counts of its own.

    Args:
        name: The layer.
        holds: For clauses by ``needs.<key>`` and ``gives.<key>``: what decides them.

    Raises:
        KeyError: There is no such layer.
        ValueError: ``holds`` names a clause that the layer has not.
    """
    layer, deciding = _LAYERS[name], dict(holds or {})
    needs = tuple(Clause(text, deciding.pop(f"needs.{key}", None)) for key, text in layer.needs.items())
    gives = tuple(Clause(text, deciding.pop(f"gives.{key}", None)) for key, text in layer.gives.items())
    if deciding:
        raise ValueError(f"the contract {name} has no clause {', '.join(sorted(deciding))}")
    return FactoryLayerContract(name, needs, gives, layer.raises, layer.bounds_ms)
