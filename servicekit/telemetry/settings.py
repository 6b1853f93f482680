"""The settings of telemetry, shared by every service: ``CARREL_TELEMETRY__…``."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from servicekit.addresses import tcp_listen
from servicekit.section import Section

__all__ = ["METRICS_OFF", "TelemetrySettings"]

METRICS_OFF: Final = "off"
_METRICS_ABOVE: Final = 1000
_LAST_PORT: Final = 65_535


def _collector(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("write the collector's OTLP/HTTP address, as http://collector:4318")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("write scheme, host, port and path only: neither a login nor a query")
    return url.rstrip("/")


def _metrics(text: str) -> str:
    return METRICS_OFF if text.lower() == METRICS_OFF else tcp_listen(text)


class TelemetrySettings(Section):
    """Traces and metrics: one switch, and where they go."""

    enabled: bool = Field(False, description="turns traces and metrics on; the one switch")
    otlp_endpoint: Annotated[str, AfterValidator(_collector)] | None = Field(
        None, description="OTLP/HTTP collector that traces and metrics are sent to, as http://collector:4318"
    )
    trace_ratio: float = Field(0.1, ge=0, le=1, description="part of the traces that is kept, chosen where they begin")
    event_spans_per_second: int = Field(
        50,
        ge=0,
        le=100_000,
        description="spans that one process makes of events on their way, at most; twice as many at once",
    )
    metrics_listen: Annotated[str, AfterValidator(_metrics)] | None = Field(
        None,
        description="host:port of the Prometheus endpoint; the service's own port + 1000 when not set; off for none",
    )
    trust_incoming: bool = Field(
        False,
        description="whether a client's own traceparent is the parent of its traces, and so decides what is kept; "
        "else it is a link",
    )
    to_models: bool = Field(
        False, description="whether calls of language models carry the traceparent, which tells the endpoint our trace"
    )

    def metrics_address(self, listen: str) -> str:
        """Where the Prometheus endpoint of a service that listens on ``listen`` is; "" for none.

        Any free port where the service has any, or where its own leaves no room for another 1000.
        """
        if self.metrics_listen is not None:
            return "" if self.metrics_listen == METRICS_OFF else self.metrics_listen
        host, _, port = listen.rpartition(":")
        if listen.startswith("unix:") or not port.isdigit():
            return ""
        number = int(port) + _METRICS_ABOVE if int(port) else 0
        return f"{host}:{number if number <= _LAST_PORT else 0}"
