"""How commands for operators get in: where execution is, over what it is called, and who asks.

Of this machine's stack the state folder says all of it, to whoever may read its keys. A deployment elsewhere is named:
``--execution``, the certificate ``operator`` (``CARREL_TLS__…``), and a person's own login token, which the gateway
exchanges for a ticket of some minutes. The audit trail then names the person. Not for users' commands.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grpc import aio

from carrel.cli.state import StateFolder, address_in
from carrel.client.calls import open_channel
from carrel.client.tickets import GatewayTickets, Ticket, TicketSource
from carrel.errors import PermissionDeniedError, StartupError, UnavailableError
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import execution_pb2
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub

if TYPE_CHECKING:
    import grpc

    from carrel.cli.operator_settings import OperatorSettings

__all__ = ["Operator", "OperatorCalls", "OperatorOptions", "find_operator", "operator_ticket"]

_CALL_S: Final = 30.0
_LIFETIME_S: Final = 600.0
# As certificates name services in the trust domain of a stack on this machine.
_OWN_DOMAIN: Final = "carrel.internal"
_MAX_TOKEN: Final = 64 * 1024
_LOCALHOST: Final = "localhost"


@dataclass(frozen=True, slots=True)
class OperatorOptions:
    """What the command line says. ``token_file`` may be ``-``: standard input."""

    state: Path
    execution: str = ""
    url: str = ""
    token_file: str = ""


@dataclass(frozen=True, slots=True)
class Operator:
    """Execution, and the right to ask it for what operators may.

    Args:
        address: Where execution is.
        tls: With the operator's certificate; None where services speak without TLS.
        trust_domain: In which execution has its name.
        login: The gateway and the operator's login token there; None for tickets of the state folder's key.
        state: The state folder.
    """

    address: str
    tls: grpc.ChannelCredentials | None = field(repr=False)
    trust_domain: str
    login: tuple[str, str] | None = field(repr=False)
    state: StateFolder

    @asynccontextmanager
    async def calls(self, *permissions: str) -> AsyncIterator[OperatorCalls]:
        """Calls to execution under these permissions, for the length of the block."""
        async with AsyncExitStack() as stack:
            tickets: TicketSource
            if self.login is None:
                tickets = _OwnTickets(self.state, permissions)
            else:
                tickets = await stack.enter_async_context(GatewayTickets(*self.login, permissions=permissions))
            name = f"execution.{self.trust_domain}"
            channel = await stack.enter_async_context(open_channel(self.address, self.tls, name))
            yield OperatorCalls(self, tickets, channel)


class OperatorCalls:
    """What operators ask execution for. Each call gets a ticket that is good now."""

    def __init__(self, operator: Operator, tickets: TicketSource, channel: aio.Channel) -> None:
        self._operator = operator
        self._tickets = tickets
        self._stub = ExecutionServiceStub(channel)

    async def revoke_user(self, user_id: str, reason: str) -> execution_pb2.RevokeUserResponse:
        """``RevokeUser``.

        Raises:
            CarrelError: The gateway or execution refused, or cannot be reached.
        """
        request = execution_pb2.RevokeUserRequest(user_id=user_id, reason=reason)
        answer: execution_pb2.RevokeUserResponse = await self._call(self._stub.RevokeUser, request)
        return answer

    async def list_audit(
        self, request: execution_pb2.ListAuditRecordsRequest
    ) -> execution_pb2.ListAuditRecordsResponse:
        """``ListAuditRecords``: one page.

        Raises:
            CarrelError: The gateway or execution refused, or cannot be reached.
        """
        answer: execution_pb2.ListAuditRecordsResponse = await self._call(self._stub.ListAuditRecords, request)
        return answer

    async def _call(self, method: Any, request: Any) -> Any:
        request.context.CopyFrom((await self._tickets.service()).context())
        try:
            return await method(request, timeout=_CALL_S)
        except aio.AioRpcError as raised:
            error = from_rpc_error(raised)
            if not isinstance(error, UnavailableError):
                raise error from None
            details = raised.details() or error.message
        with_tls = "the certificate `operator`" if self._operator.tls is not None else "no TLS"
        raise UnavailableError(
            f"execution at {self._operator.address} cannot be reached with {with_tls}: {details}",
            advice="see that it listens there; where the services speak TLS, set CARREL_TLS__CERT, CARREL_TLS__KEY and"
            " CARREL_TLS__CA to a certificate `operator` of their authority, and CARREL_TLS__TRUST_DOMAIN to theirs",
        )


def find_operator(options: OperatorOptions, environ: Mapping[str, str] | None = None) -> Operator:
    """The way in that was named, or else that of the state folder.

    Raises:
        StartupError: Part of what is needed is not named or cannot be read, or no stack runs in the state folder.
        InvalidConfigurationError: A file cannot be used: another's certificate, a token that everybody may read.
    """
    from carrel.cli.operator_settings import OperatorSettings
    from servicekit.settings import load_settings

    given = {
        "CARREL_OPERATOR_EXECUTION": options.execution,
        "CARREL_OPERATOR_URL": options.url,
        "CARREL_OPERATOR_TOKEN_FILE": options.token_file,
    }
    effective = {**(os.environ if environ is None else environ), **{name: text for name, text in given.items() if text}}
    settings = load_settings(OperatorSettings, "operator", effective)
    if settings.execution:
        return _elsewhere(settings, StateFolder(options.state))
    if settings.url or settings.token_file:
        raise _incomplete("a deployment is named by half: --execution is missing", "name its execution, too")
    return _here(StateFolder(options.state))


def operator_ticket(state: StateFolder, permissions: Collection[str], lifetime_s: float) -> str:
    """A service ticket with these permissions, made with the state folder's key. Nothing in a user's name.

    Raises:
        StartupError: The key cannot be read.
    """
    from servicekit.identity.keys import load_signing_key
    from servicekit.identity.tickets import TicketMinter

    minter = TicketMinter(load_signing_key(state.gateway_key), "gateway")
    return minter.mint_service("operator", permissions, lifetime_s)


class _OwnTickets:
    """Tickets made with the key in the state folder."""

    def __init__(self, state: StateFolder, permissions: Collection[str]) -> None:
        self._state = state
        self._permissions = permissions

    async def service(self) -> Ticket:
        """A service ticket.

        Raises:
            StartupError: The key cannot be read.
        """
        text = operator_ticket(self._state, self._permissions, _LIFETIME_S)
        return Ticket("service", text, time.time() + _LIFETIME_S)

    async def session(self) -> Ticket:
        """There is none."""
        raise _no_user()

    async def run(self, *, run_id: str = "", thread_id: str = "") -> Ticket:
        """There is none."""
        raise _no_user()


def _here(state: StateFolder) -> Operator:
    running = state.read_stack()
    if running is None:
        raise StartupError(
            f"no stack runs in the state folder {state.root}",
            advice="start one with `carrel up`, or name its --state; for a deployment elsewhere give --execution, --url"
            " and --token-file",
        )
    return Operator(address_in(running, "execution"), _own_credentials(state), _OWN_DOMAIN, None, state)


def _own_credentials(state: StateFolder) -> grpc.ChannelCredentials | None:
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


def _elsewhere(settings: OperatorSettings, state: StateFolder) -> Operator:
    missing = [
        option for option, value in (("--url", settings.url), ("--token-file", settings.token_file)) if not value
    ]
    if missing:
        raise _incomplete(
            f"--execution needs {' and '.join(missing)}: execution takes a ticket, which the gateway gives for your own"
            " login token",
            "give --url GATEWAY and --token-file FILE (- is standard input); the token has operator:revoke for revoke,"
            " operator:read for audit",
        )
    url = settings.url if "://" in settings.url else f"http://{settings.url}"
    tls = _credentials(settings)
    login = url, _token(str(settings.token_file))
    return Operator(settings.execution, tls, settings.tls.trust_domain, login, state)


def _credentials(settings: OperatorSettings) -> grpc.ChannelCredentials | None:
    from servicekit.tls.files import TlsFiles
    from servicekit.tls.peers import PeerTls

    if settings.tls.enabled:
        return PeerTls.credentials(TlsFiles(settings.tls, "operator").current())
    if settings.tls.mode != "mesh" and not _is_this_machine(settings.execution):
        raise _incomplete(
            f"--execution {settings.execution} is another machine's, and there is no certificate: the ticket would"
            " cross the network for all to read",
            "set CARREL_TLS__CERT, CARREL_TLS__KEY and CARREL_TLS__CA to the files of the certificate `operator`"
            " (`carrel keys certs --service operator`, or the secret carrel-tls-operator), or CARREL_TLS__MODE=mesh"
            " where another layer encrypts",
        )
    return None


def _is_this_machine(address: str) -> bool:
    host = address.removeprefix("dns:///").rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == _LOCALHOST


def _token(file: str) -> str:
    from servicekit.private_files import check_private

    try:
        if file == "-":
            text = sys.stdin.read(_MAX_TOKEN)
        else:
            with Path(file).open(encoding="ascii") as opened:
                text = opened.read(_MAX_TOKEN)
            check_private("the token", Path(file))
    except (OSError, ValueError) as error:
        raise _incomplete(f"the token file {file} cannot be read: {error}", "name another with --token-file") from None
    token = text.strip()
    if not token or not token.isascii() or any(mark.isspace() for mark in token):
        raise _incomplete(f"the token file {file} holds no token", "put your login token alone into it")
    return token


def _incomplete(message: str, advice: str) -> StartupError:
    return StartupError(message, advice=advice, phase="CONFIGURATION")


def _no_user() -> PermissionDeniedError:
    return PermissionDeniedError("an operator's tickets stand for no user", advice="log in as the user")
