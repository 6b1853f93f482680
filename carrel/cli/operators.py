"""What commands for operators share: where this machine's execution is, how it is called, and tickets for that."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from grpc import aio

from carrel.cli.state import StateFolder, address_in
from carrel.client.calls import open_channel
from carrel.errors import StartupError

if TYPE_CHECKING:
    import grpc

__all__ = ["execution_address", "operator_channel", "operator_credentials", "operator_ticket"]

# As certificates name it in the trust domain of a stack on this machine.
_EXECUTION_NAME: Final = "execution.carrel.internal"


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


def operator_channel(state: StateFolder) -> aio.Channel:
    """A channel to execution of this machine's stack, with the operator's certificate where that has TLS.

    Raises:
        StartupError: No stack runs in the state folder, or the certificate cannot be read.
    """
    return open_channel(execution_address(state), operator_credentials(state), _EXECUTION_NAME)


def operator_ticket(state: StateFolder, permissions: Collection[str], lifetime_s: float) -> str:
    """A service ticket with these permissions. Nothing in a user's name.

    Raises:
        StartupError: The key cannot be read.
    """
    from servicekit.identity.keys import load_signing_key
    from servicekit.identity.tickets import TicketMinter

    minter = TicketMinter(load_signing_key(state.gateway_key), "gateway")
    return minter.mint_service("operator", permissions, lifetime_s)


def operator_credentials(state: StateFolder) -> grpc.ChannelCredentials | None:
    """The operator's certificate, where the running stack has TLS between its services.

    Raises:
        StartupError: It cannot be read.
    """
    import grpc

    from carrel.cli.stack_tls import operator_tls

    folder = operator_tls(state)
    if folder is None:
        return None
    try:
        ca, key, chain = ((folder / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
    except OSError as error:
        raise StartupError(
            f"the operator's certificate in {folder} cannot be read: {error.strerror}",
            advice="start the stack again, which makes one",
        ) from None
    return grpc.ssl_channel_credentials(ca, key, chain)
