"""The way to a collector over HTTP, in which no answer costs more than a few kilobytes and seconds.

What a collector answers is of no use beyond its status, and the exporters would read all of it: one without an end
would take the memory of every service. Loaded only where there is a collector.
"""

from __future__ import annotations

import time
from typing import Any, Final

import requests
import urllib3
from requests.adapters import HTTPAdapter

__all__ = ["collector_session"]

_MOST_BYTES: Final = 64 * 1024
_PIECE: Final = 8 * 1024
_ANSWER_S: Final = 2.0


def collector_session() -> requests.Session:
    """A session for an exporter."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Brief())
    return session


class _Brief(HTTPAdapter):
    """Reads the beginning of an answer at most, and within a time. A longer one ends its connection."""

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> requests.Response:
        """See ``HTTPAdapter``. What is left of the answer is never there to be read, whatever ``stream`` says."""
        response = super().send(request, True, *args, **kwargs)
        raw: urllib3.HTTPResponse = response.raw
        data, ends = b"", time.monotonic() + _ANSWER_S
        try:
            # As it came: what is compressed may be a thousand times as long.
            while piece := raw.read1(_PIECE, decode_content=False):
                data += piece
                if len(data) > _MOST_BYTES or time.monotonic() > ends:
                    raw.close()
                    break
            else:
                raw.release_conn()
        except (urllib3.exceptions.HTTPError, OSError):
            # The status has come, and is all that was asked for.
            raw.close()
        response._content = b""  # noqa: SLF001 -- nobody is to read on: it has no public way
        response._content_consumed = True  # noqa: SLF001
        return response
