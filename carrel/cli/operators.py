"""What commands for operators share: where this machine's execution is, how it is called, and tickets for that."""

from __future__ import annotations

from collections.abc import Collection

from grpc import aio

from carrel.cli.state import StateFolder, address_in
from carrel.errors import StartupError

__all__ = ["execution_address", "operator_channel", "operator_ticket"]


def execution_address(state: StateFolder) -> str:
    """Where execution listens.

    Raises:
        StartupError: No stack runs in the state folder.
    """
    running = state.read_stack()
    if running is None:
        raise StartupError(
            f"no stack runs in the state folder {state.root}", advice="start one with `carrel up`, or name its --state"
        )
    return address_in(running, "execution")


def operator_channel(address: str) -> aio.Channel:
    """A channel to a service of this machine's stack."""
    return aio.insecure_channel(address, [("grpc.enable_http_proxy", 0)])


def operator_ticket(state: StateFolder, permissions: Collection[str], lifetime_s: float) -> str:
    """A service ticket with these permissions. Nothing in a user's name.

    Raises:
        StartupError: The key cannot be read.
    """
    from servicekit.identity.keys import load_signing_key
    from servicekit.identity.tickets import TicketMinter

    minter = TicketMinter(load_signing_key(state.gateway_key), "gateway")
    return minter.mint_service("operator", permissions, lifetime_s)
