"""Fetching an issuer's keys over HTTP: by the keys' own URL, or by the issuer's (OpenID Connect Discovery 1.0, §4).

Strict with the answer: no redirects, no compression, bounded in size and time, an issuer that is exactly the one that
is configured. What the keys are used for, and how long, is ``login_jwks``'s.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp import hdrs

from carrel.errors import InvalidConfigurationError
from gateway.login_jwks import Fetched, FetchFailed
from gateway.login_keys import NoKeysError, public_keys

__all__ = ["IssuerAddress", "IssuerClient", "check_url"]

_MAX_BYTES: Final = 256 * 1024
_TOTAL_S: Final = 5.0
_CONNECT_S: Final = 3.0
_DISCOVERY: Final = "/.well-known/openid-configuration"
_MAX_AGE: Final = re.compile(r"(?:^|[\s,])max-age\s*=\s*\"?(\d{1,9})\"?", re.IGNORECASE)
_NEVER_KEPT: Final = re.compile(r"(?:^|[\s,])no-(?:store|cache)\b", re.IGNORECASE)


def check_url(url: str, *, production: bool) -> None:
    """Raises:
    ValueError: The URL may not be fetched from; the message says what to write.
    """
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no URL; write https://host/path") from None
    if parts.scheme not in {"https", "http"} or not host or parts.fragment:
        raise ValueError("is no URL; write https://host/path")
    if "@" in parts.netloc:
        raise ValueError("must hold no user or password")
    if parts.scheme == "http" and (production or not _is_loopback(host)):
        raise ValueError(
            "must begin with https://: whoever changes an answer on its way logs in as anybody"
            + ("" if production else " (http:// is for this machine, in development)")
        )


@dataclass(frozen=True, slots=True)
class IssuerAddress:
    """Where the keys are: at ``jwks_url``, or, when that is empty, where the issuer says."""

    issuer: str
    jwks_url: str = ""
    ca: Path | None = None
    production: bool = True


class IssuerClient:
    """Asks one issuer. An asynchronous context manager: it keeps its connections.

    Raises:
        InvalidConfigurationError: The file with the issuer's CA cannot be read.
    """

    def __init__(self, address: IssuerAddress) -> None:
        self._address = address
        self._tls = _tls(address.ca)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> IssuerClient:
        timeout = aiohttp.ClientTimeout(total=_TOTAL_S, sock_connect=_CONNECT_S)
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=2)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={hdrs.ACCEPT_ENCODING: "identity", hdrs.ACCEPT: "application/json", hdrs.USER_AGENT: "carrel"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def fetch(self) -> Fetched:
        """The issuer's keys.

        Raises:
            FetchFailed: They did not come, or are none.
        """
        url = self._address.jwks_url or await self._discover()
        document, headers = await self._get(url)
        try:
            keys = public_keys(document)
        except NoKeysError as error:
            raise FetchFailed(f"what is at {url} {error}") from None
        return Fetched(keys, _max_age(headers))

    async def _discover(self) -> str:
        url = self._address.issuer.rstrip("/") + _DISCOVERY
        document, _ = await self._get(url)
        if document.get("issuer") != self._address.issuer:
            raise FetchFailed(f"{url} tells of another issuer than CARREL_GATEWAY_LOGIN__ISSUER")
        keys_url = document.get("jwks_uri")
        if not isinstance(keys_url, str):
            raise FetchFailed(f"{url} names no jwks_uri")
        try:
            check_url(keys_url, production=self._address.production)
        except ValueError as error:
            raise FetchFailed(f"the jwks_uri that {url} names {error}") from None
        return keys_url

    async def _get(self, url: str) -> tuple[dict[str, Any], Mapping[str, str]]:
        assert self._session is not None, "it is entered"
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise FetchFailed(f"{url} answered {response.status}, not 200 (redirects are not followed)")
                if response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
                    raise FetchFailed(f"{url} answered compressed, which was not asked for")
                data = await _read(response)
                headers = dict(response.headers)
        except TimeoutError:
            raise FetchFailed(f"{url} did not answer within {_TOTAL_S:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FetchFailed(f"{url} cannot be asked: {type(error).__name__}: {str(error)[:200]}") from None
        if data is None:
            raise FetchFailed(f"{url} answered more than {_MAX_BYTES} bytes")
        try:
            document = orjson.loads(data)
        except ValueError:
            raise FetchFailed(f"{url} did not answer JSON") from None
        if not isinstance(document, dict):
            raise FetchFailed(f"{url} did not answer a JSON object")
        return document, headers


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """The body; None when it is too long, of which no more is read than that."""
    data = bytearray()
    async for piece in response.content.iter_chunked(16 * 1024):
        data += piece
        if len(data) > _MAX_BYTES:
            return None
    return bytes(data)


def _max_age(headers: Mapping[str, str]) -> float | None:
    said = next((value for name, value in headers.items() if name.lower() == "cache-control"), "")
    if _NEVER_KEPT.search(said):
        return 0.0
    found = _MAX_AGE.search(said)
    return float(found.group(1)) if found else None


def _tls(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfigurationError(
            f"the CA file {ca} cannot be used: {error}",
            advice="set CARREL_GATEWAY_LOGIN__JWKS_CA to a PEM file with the certificate of the issuer's CA",
        ) from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
