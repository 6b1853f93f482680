"""The way to the model: the ``openai`` SDK as a client of an OpenAI-compatible endpoint.

Only its transport is used (connections, key, retries, time limits); what goes in and out is the domain's. The SDK is
imported when a model is configured. Nothing of a request, an answer or the key is logged or put into an error, but for
what the endpoint itself says about a request that it refuses, which goes to who sent it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from carrel.errors import CarrelError, ModelRefusedError, ModelUnavailableError, StartupError
from servicekit.telemetry.tracing import METADATA_KEY, current_span
from services.agent_instance.config_models import ModelSettings

if TYPE_CHECKING:
    import openai

__all__ = ["OpenAiEndpoint"]

_MAX_QUOTED: Final = 500
_OVERLOADED: Final = frozenset({408, 409, 425, 429})
# Of these refusals the endpoint's words are the request's author's business; a 401's are the operator's.
_ABOUT_THE_REQUEST: Final = frozenset({400, 404, 413, 422})
_RAW: Final = {"X-Stainless-Raw-Response": "stream"}


class OpenAiEndpoint:
    """``domain.model_endpoint.ModelEndpoint`` over HTTP; an async context manager that closes its connections.

    Args:
        settings: The endpoint.
        tells_trace: Whether requests carry the traceparent of the call.

    Raises:
        StartupError: The SDK is not installed, or the key's file cannot be read.
    """

    def __init__(self, settings: ModelSettings, *, tells_trace: bool = False) -> None:
        self._tells_trace = tells_trace
        sdk = _sdk()
        self._sdk = sdk
        self._key = settings.read_key()
        self._client = sdk.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=self._key,
            # Of the service's environment nothing counts but its own settings.
            organization="",
            project="",
            max_retries=settings.retries,
            timeout=sdk.Timeout(settings.silence, connect=settings.connect),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    @asynccontextmanager
    async def open(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[_Answer]:
        """Send a request; leaving the block aborts what has not come yet."""
        try:
            raw: Any = await self._client.post(
                "/" + path, cast_to=object, body=dict(body), options={"headers": self._headers()}
            )
        except self._sdk.OpenAIError as error:
            raise self._told(error) from None
        try:
            yield _Answer(self._sdk, raw.http_response)
        finally:
            await raw.http_response.aclose()

    def _headers(self) -> dict[str, str]:
        # The endpoint is somebody else's as a rule, and a trace's id is ours.
        traceparent = current_span().traceparent if self._tells_trace else ""
        return {**_RAW, METADATA_KEY: traceparent} if traceparent else dict(_RAW)

    def _told(self, error: openai.OpenAIError) -> CarrelError:
        sdk = self._sdk
        if isinstance(error, sdk.APITimeoutError):
            return ModelUnavailableError("the model's endpoint did not answer in time")
        if isinstance(error, sdk.APIConnectionError):
            return ModelUnavailableError("the model's endpoint cannot be reached")
        if not isinstance(error, sdk.APIStatusError):
            return ModelUnavailableError(f"the model's endpoint cannot be asked ({type(error).__name__})")
        status = error.status_code
        if status in _OVERLOADED or status >= 500:
            return ModelUnavailableError(
                f"the model's endpoint answers {status}", retry_after_s=_seconds(error), endpoint_status=status
            )
        details: dict[str, Any] = {"endpoint_status": status}
        details |= {name: value[:128] for name in ("code", "type", "param") if (value := _text(error, name))}
        if status in _ABOUT_THE_REQUEST and (said := _text(error, "message")):
            details["endpoint_says"] = said.replace(self._key, "********")[:_MAX_QUOTED]
            return ModelRefusedError(f"the model's endpoint refuses the request ({status})", **details)
        return ModelRefusedError(
            f"the model's endpoint refuses the request ({status})",
            advice="have the operator look at the key and the address of the model's endpoint",
            **details,
        )


class _Answer:
    def __init__(self, sdk: Any, response: Any) -> None:
        self._sdk = sdk
        self._response = response

    @property
    def content_type(self) -> str:
        """Its media type."""
        return str(self._response.headers.get("content-type", "")).partition(";")[0].strip().lower()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes."""
        try:
            async for chunk in self._response.aiter_bytes():
                yield chunk
        except Exception as error:
            # The transport's own errors: the SDK gives them no common name outside its private modules.
            if not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            raise ModelUnavailableError("the model's answer broke off") from None


def _sdk() -> Any:
    try:
        import openai
    except ImportError as error:
        raise StartupError(
            "a model is configured, but the package that speaks to it is not installed",
            advice="install carrel[models], or remove CARREL_AGENT_INSTANCE_MODELS__BASE_URL",
            phase="CONFIGURATION",
            what="the package openai",
        ) from error
    # At debug it would log whole requests.
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return openai


def _text(error: Any, name: str) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    value = (inner if isinstance(inner, dict) else body).get(name)
    return value if isinstance(value, str) else ""


def _seconds(error: Any) -> float | None:
    try:
        value = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return value if 0 <= value < 86_400 else None
