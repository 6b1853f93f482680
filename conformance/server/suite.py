"""All scenarios for gateways, in their order, and the command that plays them."""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from conformance.report import BreachError, Result, Scenario, as_json, as_table, run_scenarios
from conformance.server import asking, connecting, flowing, resuming
from conformance.server.world import Options, World

__all__ = ["ALL", "add_arguments", "main", "play"]

# What the agents that come with Carrel understand, with a language model or without.
_EXECUTE: Final = '{"message": "profile", "params": {"goal": "data"}}'

ALL: tuple[Scenario[World], ...] = (
    *connecting.SCENARIOS,
    *flowing.SCENARIOS,
    *resuming.SCENARIOS,
    *asking.SCENARIOS,
    *flowing.LAST,
)


async def play(
    options: Options,
    only: Sequence[str] = (),
    tell: Callable[[Result], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Play the scenarios against a gateway.

    Args:
        options: The gateway and its users.
        only: Names of scenarios, or how they begin; all when empty.
        tell: Called with each result as it comes.
        warn: Called at the end with what must be known of the results, if anything.

    Raises:
        BreachError: The first user's log could not be filled.
    """
    chosen = [item for item in ALL if not only or item.name.startswith(tuple(only))]
    async with aiohttp.ClientSession(trust_env=False) as http:
        world = World(options, http)
        await world.begin()
        results = await run_scenarios([_fresh(scenario) for scenario in chosen], world, tell)
    if shortcoming := world.shortcoming():
        warn(shortcoming)
    return results


def _fresh(scenario: Scenario[World]) -> Scenario[World]:
    """The scenario over the log as it is by then."""

    @functools.wraps(scenario.play)
    async def played(world: World) -> None:
        await world.reread()
        await scenario.play(world)

    return replace(scenario, play=played)


class _OneToken(argparse.Action):
    """``--token``, which would be one of two."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.error("the suite plays two users: give --token-a and --token-b, tokens of different users")


def _request(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it is not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("message"), str):
        raise argparse.ArgumentTypeError('it must be an object with a message, such as {"message": "hello"}')
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--url", required=True, help="the gateway, http://host:port")
    parser.add_argument("--token-a", required=True, help="token of a user whose log may be filled")
    parser.add_argument("--token-b", required=True, help="token of another user")
    parser.add_argument("--token", action=_OneToken, help=argparse.SUPPRESS)
    parser.add_argument(
        "--execute",
        default=_EXECUTE,
        type=_request,
        metavar="JSON",
        help="the agent_execute that makes events; without it one that the packaged agents of `carrel up` take",
    )
    parser.add_argument("--least", type=int, default=60, help="events that the log needs before scenarios begin")
    parser.add_argument("--most-runs", type=int, default=20, help="runs that may be made to get there")
    parser.add_argument("--ack-seconds", type=float, default=10.0, help="how long a window may stay full, at most")
    parser.add_argument("--drain", help="a command that makes the gateway drain; it must come back by itself")
    parser.add_argument("--slow", action="store_true", help="play what waits for long timeouts, too")
    parser.add_argument("--json", metavar="FILE", help="write the results there, - for standard output")
    parser.add_argument("only", nargs="*", help="names of scenarios, or how they begin")


def main(given: argparse.Namespace) -> int:
    """Play, print, and give the exit code: 0: nothing failed, 1: something did, 2: nothing could be played."""
    options = Options(
        given.url.rstrip("/"),
        given.token_a,
        given.token_b,
        given.execute,
        given.least,
        given.most_runs,
        given.ack_seconds,
        given.drain,
        given.slow,
    )
    try:
        results = asyncio.run(
            play(
                options,
                given.only,
                lambda result: print(as_table([result]).splitlines()[0], flush=True),
                lambda text: print(f"note: {text}", file=sys.stderr, flush=True),
            )
        )
    except (BreachError, aiohttp.ClientError, OSError) as error:
        print(f"the suite cannot begin: {error}", file=sys.stderr)
        return 2
    print(as_table(results).splitlines()[-1])
    if given.json:
        text = as_json(results)
        if given.json == "-":
            print(text)
        else:
            Path(given.json).write_text(text + "\n", encoding="utf-8")
    return 1 if any(result.outcome == "failed" for result in results) else 0
