"""Asks a service on this machine whether it is well: ``python -P -m servicekit.health_check SERVICE [NAME]``.

What an image's health check and a pod's probes run. It asks where the service listens by its settings:
``grpc.health.v1`` over TCP, TLS or a unix socket, or HTTP at the gateway. NAME is ``readiness`` (the default) or
``liveness``. Exit code 0 is well; 1 is not, with one line that says why; 2 is a wrong question.

It runs every few seconds for as long as a service lives. So it reads the few names that it needs from the environment
itself: loading the settings' models would take longer than the question.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Question", "ask", "main", "question"]

_TIMEOUT_S: Final = 3.0
_NAMES: Final = ("readiness", "liveness")
_PORTS: Final[Mapping[str, int]] = {
    "gateway": 8080,
    "execution": 50051,
    "agent_instance": 50052,
    "emitter": 50053,
    "bridge": 50054,
}
_PATHS: Final[Mapping[str, str]] = {"readiness": "/readyz", "liveness": "/healthz"}
# What listens on every address is reached on this machine's own.
_EVERYWHERE: Final[Mapping[str, str]] = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}  # noqa: S104
_TLS: Final = ("CERT", "KEY", "CA")
_TRUST_DOMAIN: Final = "carrel.internal"


@dataclass(frozen=True, slots=True)
class Question:
    """Where to ask, for which name, and with which certificate, key and authority (PEM files), if with any."""

    service: str
    address: str
    name: str
    tls: tuple[str, str, str] | None = None
    host: str = ""
    """A name of the service's certificate; empty where its address is one."""


def question(service: str, name: str, environ: Mapping[str, str]) -> Question:
    """What to ask of a service that was started with this environment.

    Raises:
        ValueError: There is no such service or name, its settings name no port, or only some of the TLS files.
    """
    service = service.replace("-", "_")
    if service not in _PORTS:
        raise ValueError(f"no service is called {service}: there are {', '.join(_PORTS)}")
    if name not in _NAMES:
        raise ValueError(f"no health is kept under {name}: write {' or '.join(_NAMES)}")
    files = [environ.get(f"CARREL_TLS__{part}", "").strip() for part in _TLS]
    listen = environ.get(f"CARREL_{service.upper()}_LISTEN", "").strip() or f"127.0.0.1:{_PORTS[service]}"
    # With TLS there may be an address for this very purpose, without it.
    plain = environ.get("CARREL_TLS__HEALTH_LISTEN", "").strip() if any(files) and service != "gateway" else ""
    listen = plain or listen
    if not listen.startswith("unix:"):
        host, _, port = listen.rpartition(":")
        if not port.isdecimal() or int(port) == 0:
            raise ValueError(f"{service} listens on {listen}, which names no port: it cannot be found there")
        listen = f"{_EVERYWHERE.get(host, host)}:{port}"
    if plain or not any(files) or service == "gateway":
        return Question(service, listen, name)
    if not all(files):
        raise ValueError("set all three of CARREL_TLS__CERT, CARREL_TLS__KEY and CARREL_TLS__CA, or none")
    cert, key, authority = files
    return Question(service, listen, name, (cert, key, authority), _host(environ, service))


def _host(environ: Mapping[str, str], service: str) -> str:
    domain = environ.get("CARREL_TLS__TRUST_DOMAIN", "").strip() or _TRUST_DOMAIN
    return f"{service.replace('_', '-')}.{domain}"


def ask(asked: Question) -> str:
    """Ask; an empty answer is well, any other says what is not."""
    return _ask_http(asked) if asked.service == "gateway" else _ask_grpc(asked)


def _ask_http(asked: Question) -> str:
    import http.client

    connection = http.client.HTTPConnection(asked.address, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", _PATHS[asked.name], headers={"Connection": "close"})
        answer = connection.getresponse()
        answer.read(1024)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer at {asked.address}: {type(error).__name__}: {error}"
    finally:
        connection.close()
    return "" if answer.status == 200 else f"{asked.name} at {asked.address}: status {answer.status}"


def _ask_grpc(asked: Question) -> str:
    import grpc
    from grpc_health.v1 import health_pb2

    # The call by its name: the package's stubs are slow to load, and this is the only one.
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    if asked.tls is None:
        channel = grpc.insecure_channel(asked.address, options)
    else:
        try:
            cert, key, authority = (Path(path).read_bytes() for path in asked.tls)
        except OSError as error:
            return f"{error.filename} cannot be read: {error.strerror}"
        credentials = grpc.ssl_channel_credentials(authority, key, cert)
        options.append(("grpc.ssl_target_name_override", asked.host))
        channel = grpc.secure_channel(asked.address, credentials, options)
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    try:
        answer = check(health_pb2.HealthCheckRequest(service=asked.name), timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        return f"{asked.name} at {asked.address}: {error.code().name}: {error.details()}"
    finally:
        channel.close()
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return "" if answer.status == health_pb2.HealthCheckResponse.SERVING else f"{asked.name} is {status}"


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Ask, and say what is not well; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not 1 <= len(arguments) <= 2:
        print("python -P -m servicekit.health_check SERVICE [readiness|liveness]", file=sys.stderr)  # noqa: T201
        return 2
    try:
        asked = question(arguments[0], (arguments[1:] or ["readiness"])[0], os.environ if environ is None else environ)
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201 -- for whoever reads the container's health
        return 2
    if problem := ask(asked):
        print(problem, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
