"""Errors over gRPC: every class round-trips, foreign and plain failures become the nearest class."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types
from hypothesis import given
from hypothesis import strategies as st

from carrel import errors
from carrel.errors import CarrelError, EnginesLimitError, InvalidRequestError, Status, error_codes
from carrel.rpc_errors import DOMAIN, from_rpc_error, from_status, grpc_code, to_grpc_status, to_status

CLASSES = [cls for cls in error_codes().values() if cls.__module__.startswith("carrel.error")]
WORDS = st.text(max_size=30)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=4
)
NAMES = WORDS.filter(lambda n: n not in ("self", "message", "advice", "retry_after_s"))


def rpc_error(code: grpc.StatusCode, details: str, trailing: tuple[Any, ...] = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


def over_the_wire(error: CarrelError) -> CarrelError:
    status = to_grpc_status(error)
    return from_rpc_error(rpc_error(status.code, status.details, status.trailing_metadata))


@given(
    cls=st.sampled_from(CLASSES),
    message=WORDS,
    advice=WORDS,
    delay=st.none() | st.integers(0, 10**9).map(lambda ms: ms / 1000),
    details=st.dictionaries(NAMES, VALUES, max_size=4),
)
def test_every_class_comes_back_whole(
    cls: type[CarrelError], message: str, advice: str, delay: float | None, details: dict[str, object]
) -> None:
    error = cls(message, advice=advice, retry_after_s=delay, **details)
    copy = over_the_wire(error)
    assert type(copy) is cls
    assert copy.to_dict() == error.to_dict()


def test_details_that_clash_with_our_own_metadata_survive() -> None:
    error = CarrelError("m", advice="a", retryable="no", details_json="{", **{"": 1})
    assert over_the_wire(error).details == {"retryable": "no", "details_json": "{", "": 1}


def test_typed_details_for_clients_in_other_languages() -> None:
    limit = to_status(EnginesLimitError("two are active", limit="max_engines_per_user", limit_value=2, retry_after_s=2))
    found = {packed.TypeName(): packed for packed in limit.details}
    info, retry, quota = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.QuotaFailure(),
    )
    found["google.rpc.ErrorInfo"].Unpack(info)
    found["google.rpc.RetryInfo"].Unpack(retry)
    found["google.rpc.QuotaFailure"].Unpack(quota)
    assert limit.code == 8
    assert (info.reason, info.domain, info.metadata["retryable"]) == ("ENGINES_LIMIT", DOMAIN, "true")
    assert retry.retry_delay.seconds == 2
    assert quota.violations[0].subject == "max_engines_per_user"

    bad = error_details_pb2.BadRequest()
    wrong = to_status(InvalidRequestError("m", fields={"thread_id": "is required"}))
    next(packed for packed in wrong.details if packed.Is(bad.DESCRIPTOR)).Unpack(bad)
    assert [(v.field, v.description) for v in bad.field_violations] == [("thread_id", "is required")]


def test_a_huge_error_still_fits_into_metadata() -> None:
    error = InvalidRequestError("m" * 10_000, advice="a" * 10_000, field="thread_id", blob="x" * 10_000)
    status = to_status(error)
    assert status.ByteSize() <= 4096
    copy = over_the_wire(error)
    assert type(copy) is InvalidRequestError
    assert copy.details == {"field": "thread_id"}
    numbers: dict[str, Any] = {f"field_{n}": n for n in range(1000)}
    many = InvalidRequestError("m", **numbers)
    assert to_status(many).ByteSize() <= 4096


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_plain_grpc_failures_map_by_status_and_tell_no_addresses(code: grpc.StatusCode) -> None:
    error = from_rpc_error(rpc_error(code, "failed to connect to ipv4:10.0.0.7:50051"))
    assert grpc_code(error.status) is code
    assert "10.0.0.7" not in str(error.to_dict())
    assert error.retryable is (code.name in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"))


def test_a_status_of_a_foreign_domain_is_read_by_its_code_alone() -> None:
    packed = AnyMessage()
    packed.Pack(error_details_pb2.ErrorInfo(reason="THREAD_BUSY", domain="other.example"))
    error = from_status(status_pb2.Status(code=5, message="gone", details=[packed]))
    assert type(error) is errors.NotFoundError
    assert error.code == "NOT_FOUND"


def test_garbage_in_the_details_is_no_failure_of_its_own() -> None:
    trailing = (("grpc-status-details-bin", b"\xff\xff\xff"),)
    assert type(from_rpc_error(rpc_error(grpc.StatusCode.NOT_FOUND, "", trailing))) is errors.NotFoundError
    broken = status_pb2.Status(code=3)
    broken.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
    assert type(from_status(broken)) is InvalidRequestError
    assert from_status(status_pb2.Status(code=4711)).status is Status.UNKNOWN


def test_the_outer_code_wins_over_details_of_another_one() -> None:
    inner = to_status(errors.NotFoundError("m"))
    trailing = (("grpc-status-details-bin", inner.SerializeToString()),)
    assert type(from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "", trailing))) is errors.UnavailableError


def test_an_error_without_a_status_is_internal() -> None:
    assert type(from_rpc_error(grpc.RpcError())) is errors.InternalError


async def test_through_a_real_server() -> None:
    sent = EnginesLimitError("two are active", limit="max_engines_per_user", limit_value=2, use=2, retry_after_s=0.25)

    async def handler(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        status = to_grpc_status(sent)
        await context.abort(status.code, status.details, status.trailing_metadata)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.T", {"Call": grpc.unary_unary_rpc_method_handler(handler)}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test.T/Call")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", timeout=5)
    finally:
        await server.stop(None)
    assert from_rpc_error(caught.value).to_dict() == sent.to_dict()
