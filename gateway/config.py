"""The gateway's settings: ``CARREL_GATEWAY_<FIELD>``, beside the shared ones, and the documents' own names."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gateway.handshake import HandshakeOptions
from gateway.limits import Network
from gateway.login import LONGEST_LEEWAY_S, ClaimNames
from gateway.login_jwks_http import IssuerAddress, check_url
from gateway.origins import normal_origin
from gateway.outflow import Flow
from gateway.session import SessionOptions
from gateway.terms import Terms
from gateway.upstream import UpstreamOptions
from servicekit.settings import PeerAddress, Section, SharedSettings, TcpListenAddress, alias_env

__all__ = ["GatewaySettings", "LimitSettings", "LoginSettings"]

# A run ticket outlives its run's deadline, so that its last events are not refused.
_RUN_TICKET_GRACE_S = 900.0


class LoginSettings(Section):
    """Whose tokens log in. One of ``secret_file`` (HS256), ``jwks``, ``jwks_url`` and ``discovery`` (public keys).

    The first is for development.
    """

    issuer: str = Field("carrel-dev", min_length=1, description="the tokens' iss")
    audience: str = Field("carrel", min_length=1, description="the tokens' aud")
    secret_file: Path | None = Field(
        None,
        description="file with a shared secret of 32 bytes or more; keys/login.secret in the state folder if unset",
    )
    jwks: Path | None = Field(None, description="JWKS file with the issuer's public keys; read again when it changes")
    jwks_url: str | None = Field(None, description="URL of the issuer's JWKS document, https; fetched again and again")
    discovery: bool = Field(
        False, description="find the JWKS document by the issuer's /.well-known/openid-configuration; iss is then a URL"
    )
    jwks_ca: Path | None = Field(None, description="PEM file with the issuer's CA; the system's CAs if unset")
    jwks_refresh_seconds: float = Field(
        300.0, ge=60, le=3600, description="how long fetched keys are kept where the issuer does not say"
    )
    jwks_stale_seconds: float = Field(
        14_400.0, ge=300, le=86_400, description="how long fetched keys are good while the issuer cannot be reached"
    )
    leeway_seconds: float = Field(
        5.0, ge=0, le=LONGEST_LEEWAY_S, description="by how much the issuer's clock may differ from this machine's"
    )
    user_claim: str = Field("sub", min_length=1, description="claim that names the user")
    scope_claim: str = Field("scope", min_length=1, description="claim with permissions, separated by spaces")
    permissions_claim: str = Field("permissions", min_length=1, description="claim with a list of permissions")
    limits_claim: str = Field("limits", min_length=1, description="claim with the user's own limits, name to number")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.secret_file is not None and self.jwks is not None:
            raise ValueError("set CARREL_GATEWAY_LOGIN__SECRET_FILE or CARREL_GATEWAY_LOGIN__JWKS, not both")
        if sum((self.secret_file is not None, self.jwks is not None, self.jwks_url is not None, self.discovery)) > 1:
            raise ValueError(
                "set one of CARREL_GATEWAY_LOGIN__SECRET_FILE, CARREL_GATEWAY_LOGIN__JWKS,"
                " CARREL_GATEWAY_LOGIN__JWKS_URL and CARREL_GATEWAY_LOGIN__DISCOVERY"
            )
        return self

    @property
    def fetched(self) -> bool:
        """Whether the keys come over the network."""
        return self.jwks_url is not None or self.discovery

    def address(self, *, production: bool) -> IssuerAddress:
        """Where fetched keys come from."""
        return IssuerAddress(self.issuer, self.jwks_url or "", self.jwks_ca, production)

    def claim_names(self) -> ClaimNames:
        """Which claims say what."""
        return ClaimNames(self.user_claim, self.scope_claim, self.permissions_claim, self.limits_claim)


class LimitSettings(Section):
    """How many connections there may be, and how much of the log one user's may go through again."""

    connections: int = Field(20_000, ge=1, description="in all")
    per_address: int = Field(200, ge=1, description="from one address (IPv6: one /64 network)")
    per_user: int = Field(20, ge=1, description="of one user")
    replay_per_second: int = Field(
        4000,
        ge=100,
        description="entries of the log that AG-UI streams of one user go through again; ten times as many at once",
    )


def _key_of(values: dict[str, Any]) -> Path:
    return Path(values["state_dir"]) / "keys" / "gateway.jwk.json"


class GatewaySettings(SharedSettings):
    """What the gateway is told at its start. Durations are seconds, sizes are bytes."""

    listen: TcpListenAddress = Field("127.0.0.1:8080", description="host:port to listen on; port 0 is any free one")
    execution: PeerAddress = Field("127.0.0.1:50051", description="address of execution")
    agent_instance: PeerAddress = Field("127.0.0.1:50052", description="address of agent_instance")
    bridge: PeerAddress = Field("127.0.0.1:50054", description="address of the bridge")
    ticket_key: Path = Field(default_factory=_key_of, description="private key that signs the gateway's tickets")
    login: LoginSettings = Field(default_factory=LoginSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    allowed_origins: tuple[str, ...] = Field(
        (), description="origins of pages that may connect; in development those of this machine may, too"
    )
    trusted_proxies: tuple[str, ...] = Field((), description="networks of proxies whose X-Forwarded-For is believed")
    console: bool = Field(True, description="serve the console, a page for people, at /")
    docs: bool = Field(True, description="serve pages about the API, and its OpenAPI and AsyncAPI documents, at /docs")
    console_sign_in: bool = Field(
        True,
        description="in development, let the console's page on this machine sign in by a user's name, without a token",
    )
    connect_seconds: float = Field(15.0, gt=0, le=300, description="how long a connection may take to log in")
    position_seconds: float = Field(10.0, gt=0, le=300, description="how long a connection waits for the event log")
    upstream_patience_seconds: float = Field(
        60.0, gt=0, description="how long connections are kept while the bridge is away"
    )
    reattach_seconds: float = Field(1500.0, gt=0, description="age at which the stream from the bridge is opened anew")
    run_seconds: float = Field(
        300.0, gt=0, description="ENGINE_TIMEOUT_SECONDS of execution, which run tickets outlive"
    )
    execute_wait_seconds: float = Field(330.0, gt=0, description="how long POST /api/agents/execute waits for its run")
    ring_bytes: int = Field(4 << 20, ge=64 << 10, description="newest events kept for each connected user")
    rings_bytes: int = Field(1 << 30, ge=1 << 20, description="the same for all users together")
    max_events_per_user: Annotated[
        int, Field(ge=16, description="the same in events"), alias_env("WEBSOCKET_MAX_EVENTS_PER_USER")
    ] = 1000
    heartbeat_interval: Annotated[
        float, Field(gt=0, le=3600, description="seconds between pings"), alias_env("WEBSOCKET_HEARTBEAT_INTERVAL")
    ] = 30.0
    delivery_timeout: Annotated[
        float,
        Field(gt=0, description="how long a reader may take nothing before it is cut off"),
        alias_env("WEBSOCKET_DELIVERY_TIMEOUT"),
    ] = 5.0
    enable_batching: Annotated[
        bool, Field(description="clients that ask for batches get them"), alias_env("WEBSOCKET_ENABLE_BATCHING")
    ] = True
    enable_compression: Annotated[
        bool,
        Field(description="clients that ask for compressed batches, or for permessage-deflate, get them"),
        alias_env("WEBSOCKET_ENABLE_COMPRESSION"),
    ] = True
    ack_window_events: int = Field(
        1000, ge=1, le=10_000, description="events that a client which acknowledges may leave unacknowledged; at most"
    )
    ack_window_bytes: int = Field(1 << 20, ge=64 << 10, description="the same in bytes")
    ack_seconds: float | None = Field(
        None, gt=0, le=3600, description="how long a full window may go unacknowledged; the delivery timeout if unset"
    )
    send_buffer_bytes: int = Field(64 << 10, ge=4096, description="unsent bytes of a connection at which writing waits")

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(normal_origin(origin) for origin in origins)

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ipaddress.ip_network(network)) for network in networks)

    # Of the field, not of the whole: it is told together with what is wrong with other fields.
    @field_validator("login")
    @classmethod
    def _public_keys(cls, login: LoginSettings, info: ValidationInfo) -> LoginSettings:
        production = info.data.get("environment") == "production"
        if production and login.jwks is None and not login.fetched:
            raise ValueError(
                "production takes no shared login secret: set CARREL_GATEWAY_LOGIN__JWKS to the file with your issuer's"
                " public keys, or CARREL_GATEWAY_LOGIN__JWKS_URL to where they are"
            )
        if login.fetched:
            name = "JWKS_URL" if login.jwks_url else "ISSUER"
            try:
                check_url(login.jwks_url or login.issuer, production=production)
            except ValueError as error:
                raise ValueError(f"CARREL_GATEWAY_LOGIN__{name} {error}") from None
        return login

    @property
    def login_secret(self) -> Path:
        """The file with the shared secret, when there is no JWKS."""
        return self.login.secret_file or self.state_dir / "keys" / "login.secret"

    @property
    def run_ticket_seconds(self) -> float:
        """How long a run ticket lives."""
        return self.run_seconds + _RUN_TICKET_GRACE_S

    @property
    def proxies(self) -> tuple[Network, ...]:
        """Networks of proxies whose word is taken."""
        return tuple(ipaddress.ip_network(network) for network in self.trusted_proxies)

    def handshake_options(self) -> HandshakeOptions:
        """How connections are received, served and written to."""
        return HandshakeOptions(
            connect_s=self.connect_seconds,
            terms=self.terms(),
            session=SessionOptions(heartbeat_s=self.heartbeat_interval),
            trusted_proxies=self.proxies,
        )

    def terms(self) -> Terms:
        """How connections are written to, and what they may ask for."""
        flow = Flow(
            stall_s=self.delivery_timeout,
            full_bytes=self.send_buffer_bytes,
            ack_s=self.ack_seconds or self.delivery_timeout,
        )
        return Terms(flow, self.enable_batching, self.enable_compression, self.ack_window_events, self.ack_window_bytes)

    def upstream_options(self) -> UpstreamOptions:
        """How the stream from the bridge is kept."""
        return UpstreamOptions(self.reattach_seconds, self.upstream_patience_seconds)
