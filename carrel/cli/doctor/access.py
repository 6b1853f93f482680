"""How an examination gets in: which gateways, as which test users, by which tokens, and which services it may ask.

Three ways, the first that is given: two users' tokens; a service's token with ``carrel:doctor``, which names the users
in a header; the login secret of the state folder, in development.
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc

from carrel.cli.doctor.http import Answer, from_answer
from carrel.cli.doctor.services import SERVICES
from carrel.cli.doctor.settings import DoctorSettings
from carrel.cli.doctor.users import SLOTS
from carrel.cli.operators import operator_ticket
from carrel.cli.state import StateFolder
from carrel.cli.tokens import development_token
from carrel.doctor_names import DOCTOR_LIMITS, DOCTOR_PERMISSION, DOCTOR_PREFIX, DOCTOR_USER_HEADER
from carrel.errors import PermissionDeniedError, StartupError, UnavailableError

__all__ = ["Access", "find_access"]

_TICKET_S: Final = 900
_OPERATOR_READ: Final = "operator:read"


@dataclass(frozen=True, slots=True)
class Access:
    """Args:
    urls: Gateways.
    ids: Pairs of users that may be taken.
    headers: Logs a user in.
    max_engines: Those users' limit of engines.
    operator_headers: Log an operator in; empty where there is none.
    operator: Gives service tickets.
    addresses: The copies of each service within reach.
    credentials: For mutual TLS with the services.
    """

    urls: Sequence[str]
    ids: Sequence[tuple[str, str]]
    headers: Callable[[str], Mapping[str, str]] = field(repr=False)
    max_engines: int
    operator_headers: Mapping[str, str] = field(repr=False)
    operator: Callable[[], Awaitable[str]] = field(repr=False)
    addresses: Mapping[str, Sequence[str]]
    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)


def find_access(settings: DoctorSettings, url: str, token_files: Sequence[Path], state: Path) -> Access:
    """The way in, by the command's options first and then by the settings.

    Raises:
        StartupError: No gateway is known, or a file cannot be read, or is no token.
        PermissionDeniedError: Development tokens were needed in production.
    """
    folder = StateFolder(state)
    running = folder.read_stack()
    urls = _urls(url or settings.url, running)
    # Services of the state folder belong to its gateway; another one's are named by settings, or not asked.
    local = running if running is not None and not (url or settings.url) else None
    addresses = _addresses(settings, local)
    files = tuple(token_files) or settings.user_token_files
    credentials = _credentials(settings)
    if files:
        return _by_users(settings, urls, files, addresses, credentials)
    if settings.token_file is not None:
        token = _read(settings.token_file)
        operator_headers = _bearer(token)

        def headers(user: str) -> Mapping[str, str]:
            return {**operator_headers, DOCTOR_USER_HEADER: user}

        limit = DOCTOR_LIMITS["max_engines_per_user"]
        ticket = _from_gateway(urls[0], operator_headers)
        return Access(urls, _slots(), headers, limit, operator_headers, ticket, addresses, credentials)
    if settings.production:
        raise PermissionDeniedError(
            "development tokens are not made in production",
            advice="set CARREL_DOCTOR_TOKEN_FILE to a service's token, or give --token-file twice; see docs/doctor.md",
        )
    return _by_secret(folder, urls, addresses, credentials)


def _by_users(
    settings: DoctorSettings,
    urls: Sequence[str],
    files: Sequence[Path],
    addresses: Mapping[str, Sequence[str]],
    credentials: grpc.ChannelCredentials | None,
) -> Access:
    if len(files) != 2:
        raise StartupError("two users' tokens are needed", advice="give --token-file twice", phase="CONFIGURATION")
    tokens = [_read(file) for file in files]
    users = [str(_claims(token).get("sub", "")) for token in tokens]
    if users[0] == users[1] or not all(users):
        raise StartupError(
            f"the two tokens are of {users[0] or 'nobody'} and {users[1] or 'nobody'}",
            advice="give tokens of two test users",
            phase="CONFIGURATION",
        )
    by_user = dict(zip(users, tokens, strict=True))
    operator: Mapping[str, str] = {}
    if settings.token_file is not None:
        operator = _bearer(_read(settings.token_file))
    return Access(
        urls,
        [(users[0], users[1])],
        lambda user: _bearer(by_user[user]),
        settings.max_engines,
        operator,
        _from_gateway(urls[0], operator),
        addresses,
        credentials,
    )


def _by_secret(
    folder: StateFolder,
    urls: Sequence[str],
    addresses: Mapping[str, Sequence[str]],
    credentials: grpc.ChannelCredentials | None,
) -> Access:
    def headers(user: str) -> Mapping[str, str]:
        token = development_token(
            folder.login_secret, user, permissions=(DOCTOR_PERMISSION,), limits=DOCTOR_LIMITS, lifetime_s=_TICKET_S
        )
        return _bearer(token)

    operator = development_token(folder.login_secret, f"{DOCTOR_PREFIX}operator", permissions=(_OPERATOR_READ,))

    async def ticket() -> str:
        return operator_ticket(folder, (_OPERATOR_READ,), _TICKET_S)

    limit = DOCTOR_LIMITS["max_engines_per_user"]
    return Access(urls, _slots(), headers, limit, _bearer(operator), ticket, addresses, credentials)


def _from_gateway(url: str, headers: Mapping[str, str]) -> Callable[[], Awaitable[str]]:
    async def ticket() -> str:
        if not headers:
            raise PermissionDeniedError("no service's token is given", advice="set CARREL_DOCTOR_TOKEN_FILE")
        body = {"scope": "service", "permissions": [_OPERATOR_READ], "lifetime_s": _TICKET_S}
        try:
            async with (
                aiohttp.ClientSession(headers=headers, trust_env=False) as session,
                session.post(f"{url}/api/tickets", json=body) as response,
            ):
                answer = Answer(response.status, await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UnavailableError(f"the gateway at {url} cannot be reached: {error}") from None
        if answer.status != 200:
            raise from_answer(answer)
        return str(answer.json["ticket"])

    return ticket


def _urls(given: str, running: Mapping[str, Any] | None) -> list[str]:
    named = [part.strip().rstrip("/") for part in given.split(",") if part.strip()]
    if named:
        return [part if "://" in part else f"http://{part}" for part in named]
    if running is None:
        raise StartupError(
            "no gateway is known", advice="give --url, or the --state of a stack that runs", phase="CONFIGURATION"
        )
    return [str(url) for url in running["urls"]]


def _addresses(settings: DoctorSettings, local: Mapping[str, Any] | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for service in SERVICES:
        named = [part.strip() for part in str(getattr(settings, service)).split(",") if part.strip()]
        if not named and local is not None:
            named = [str(local["addresses"][name]) for name in local["copies"][service]]
        found[service] = named
    return found


def _credentials(settings: DoctorSettings) -> grpc.ChannelCredentials | None:
    """Of the shared section ``tls``: certificate, key and authority, all three or none."""
    tls = getattr(settings, "tls", None)
    files = [getattr(tls, name, None) for name in ("ca", "key", "cert")]
    if not all(files):
        return None
    try:
        ca, key, cert = (Path(str(file)).read_bytes() for file in files)
    except OSError as error:
        raise StartupError(
            f"a file of CARREL_TLS__… cannot be read: {error}",
            advice="mount the certificates, or leave the three settings out",
            phase="CONFIGURATION",
        ) from None
    return grpc.ssl_channel_credentials(ca, key, cert)


def _slots() -> list[tuple[str, str]]:
    return [(f"{DOCTOR_PREFIX}{slot}-a", f"{DOCTOR_PREFIX}{slot}-b") for slot in range(SLOTS)]


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise StartupError(
            f"the token file {file} cannot be read: {error}", advice="mount it, or name another", phase="CONFIGURATION"
        ) from None


def _claims(token: str) -> dict[str, Any]:
    """What a token says of itself, to tell users apart; whether it is true is the gateway's to say."""
    try:
        part = token.split(".")[1]
        claims = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        raise StartupError(
            "a token file holds no JWT", advice="put the token alone into it", phase="CONFIGURATION"
        ) from None
    if not isinstance(claims, dict) or float(claims.get("exp", 0) or 0) < time.time():
        raise StartupError("a token has expired", advice="get another", phase="CONFIGURATION")
    return claims
