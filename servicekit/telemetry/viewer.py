"""A small OTLP/HTTP receiver that shows traces as text, for a developer's machine and for tests. No collector.

    python -m servicekit.telemetry.viewer --listen 127.0.0.1:4318
    CARREL_TELEMETRY__ENABLED=true CARREL_TELEMETRY__TRACE_RATIO=1 \
        CARREL_TELEMETRY__OTLP_ENDPOINT=http://127.0.0.1:4318 carrel up

It keeps the newest spans in memory, forgets the others, and prints a trace once nothing of it has come for a while.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
import zlib
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from servicekit.telemetry.trace_tree import TraceSpan, of_otlp, render, traces

__all__ = ["OtlpReceiver", "main"]

_MAX_BODY: Final = 16 << 20
_GZIP: Final = 31  # zlib's word for gzip's framing
_MAX_SPANS: Final = 50_000
_MAX_METRICS: Final = 1000
_QUIET_S: Final = 3.0


class OtlpReceiver:
    """Takes spans and metrics on ``/v1/traces`` and ``/v1/metrics``, in threads of its own.

    Args:
        host: Where it listens.
        port: 0 for any free one.
        max_spans: Spans kept; the oldest go first.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, max_spans: int = _MAX_SPANS) -> None:
        self._lock = threading.Lock()
        self._spans: deque[TraceSpan] = deque(maxlen=max_spans)
        self._metrics: deque[ExportMetricsServiceRequest] = deque(maxlen=_MAX_METRICS)
        self._server = ThreadingHTTPServer((host, port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="OTLP receiver", daemon=True)

    @property
    def url(self) -> str:
        """What ``CARREL_TELEMETRY__OTLP_ENDPOINT`` is to be."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def spans(self) -> list[TraceSpan]:
        """What has come so far."""
        with self._lock:
            return list(self._spans)

    @property
    def metrics(self) -> list[ExportMetricsServiceRequest]:
        """The messages with metrics that have come so far."""
        with self._lock:
            return list(self._metrics)

    def take(self, path: str, body: bytes) -> bool:
        """Keep what a request has brought; False for an address that is none of ours.

        Raises:
            DecodeError: It is no OTLP message.
        """
        if path == "/v1/traces":
            spans = list(of_otlp(ExportTraceServiceRequest.FromString(body)))
            with self._lock:
                self._spans.extend(spans)
            return True
        if path == "/v1/metrics":
            metrics = ExportMetricsServiceRequest.FromString(body)
            with self._lock:
                self._metrics.append(metrics)
            return True
        return False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(receiver: OtlpReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if length > _MAX_BODY:
                self.close_connection = True
                self._answer(413)
                return
            body = self.rfile.read(length)
            try:
                if self.headers.get("Content-Encoding") == "gzip":
                    body = zlib.decompressobj(_GZIP).decompress(body, _MAX_BODY)
                self._answer(200 if receiver.take(self.path, body) else 404)
            except (DecodeError, zlib.error):
                self._answer(400)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
            """Nothing: the traces are what is shown."""

    return Handler


def main(arguments: list[str] | None = None) -> int:
    """Show traces until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m servicekit.telemetry.viewer", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--listen", default="127.0.0.1:4318", help="host:port (127.0.0.1:4318)")
    host, _, port = parser.parse_args(arguments).listen.rpartition(":")
    shown: set[str] = set()
    with OtlpReceiver(host, int(port)) as receiver:
        sys.stdout.write(f"CARREL_TELEMETRY__OTLP_ENDPOINT={receiver.url}\n")
        try:
            while True:
                time.sleep(_QUIET_S / 3)
                _show(receiver.spans, shown)
        except KeyboardInterrupt:
            return 0


def _show(spans: list[TraceSpan], shown: set[str]) -> None:
    quiet_since = time.time_ns() - int(_QUIET_S * 1e9)
    for trace_id, own in traces(spans).items():
        # Services send once a second; a trace whose last span is older than a few has come as a whole.
        if trace_id not in shown and max(span.ended_ns for span in own) < quiet_since:
            shown.add(trace_id)
            sys.stdout.write(render(spans, trace_id) + "\n\n")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
