"""A small issuer of login tokens over real HTTP or HTTPS: keys that rotate, answers that go wrong when a test says so.

    async with issuer() as idp:
        token = idp.token("alice")
        idp.rotate()

Its certificate is of a CA of its own (``idp.ca``, a PEM file).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm


@dataclass
class Issuer:
    """The issuer. ``keys`` are published in their order; tokens are signed with the last one."""

    url: str = ""
    ca: Path | None = None
    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)
    others: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    cache_control: str = ""
    status: int = 200
    delay_s: float = 0.0
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    discovery: dict[str, Any] = field(default_factory=dict)

    @property
    def jwks_url(self) -> str:
        return self.url + "/keys"

    def rotate(self, *, keep: bool = True) -> str:
        """A new key signs from now on; the id of it."""
        if not keep:
            self.keys.clear()
        kid = f"key-{time.monotonic_ns()}"
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())
        return kid

    def token(self, user: str = "alice", *, kid: str = "", ttl_s: int = 300, **claims: Any) -> str:
        kid = kid or list(self.keys)[-1]
        now = int(time.time())
        body = {"sub": user, "iss": self.url, "aud": "carrel", "iat": now, "exp": now + ttl_s} | claims
        return jwt.encode(body, self.keys[kid], algorithm="ES256", headers={"kid": kid})

    def jwks(self) -> bytes:
        listed = [
            json.loads(ECAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "alg": "ES256", "use": "sig"}
            for kid, key in self.keys.items()
        ]
        return json.dumps({"keys": [*listed, *self.others]}).encode()

    async def _serve_keys(self, _request: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(self.delay_s)
        headers = dict(self.headers)
        if self.cache_control:
            headers["Cache-Control"] = self.cache_control
        body = self.jwks() if self.body is None else self.body
        return web.Response(body=body, status=self.status, headers=headers, content_type="application/json")

    async def _serve_discovery(self, _request: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": self.jwks_url} | self.discovery)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/keys", self._serve_keys)
        app.router.add_get("/.well-known/openid-configuration", self._serve_discovery)
        return app


@asynccontextmanager
async def issuer(folder: Path | None = None, *, port: int = 0, known: Issuer | None = None) -> AsyncIterator[Issuer]:
    """An issuer; with TLS when there is a folder for its certificates.

    ``known`` is one that was served before, and ``port`` where.
    """
    idp = known or Issuer()
    if not idp.keys:
        idp.rotate()
    context = None
    if folder is not None:
        idp.ca, certificate, key = make_certificates(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    runner = web.AppRunner(idp.application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context)
    await site.start()
    bound = runner.addresses[0][1]
    idp.url = f"{'https' if context else 'http'}://127.0.0.1:{bound}"
    try:
        yield idp
    finally:
        await runner.cleanup()


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A CA's certificate, and a server's for 127.0.0.1 with its key: PEM files."""
    now = dt.datetime.now(dt.UTC)

    def built(
        subject: str, of: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, *, is_ca: bool
    ) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")]))
            .public_key(of.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if not is_ca:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(by, hashes.SHA256())

    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    paths = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    pem = serialization.Encoding.PEM
    paths[0].write_bytes(built("test CA", authority, authority, is_ca=True).public_bytes(pem))
    paths[1].write_bytes(built("issuer", server, authority, is_ca=False).public_bytes(pem))
    paths[2].write_bytes(server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return paths
