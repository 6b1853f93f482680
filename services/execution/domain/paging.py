"""Page tokens: opaque to callers, a listing's key to us. They grant nothing."""

from __future__ import annotations

import base64
import binascii
from typing import Final

import orjson

from carrel.errors import InvalidRequestError
from services.execution.store import PageKey

__all__ = ["decode_token", "encode_token"]

_MAX_INT: Final = 2**63 - 1  # of every database


def encode_token(listing: str, key: tuple[int | str, ...] | None) -> str:
    """The token for the page after ``key``; empty when there is none."""
    if key is None:
        return ""
    return base64.urlsafe_b64encode(orjson.dumps([listing, *key])).decode().rstrip("=")


def decode_token(listing: str, shape: str, token: str) -> PageKey | None:
    """The key in a token of this listing; None for the empty one.

    Args:
        listing: The listing that made it.
        shape: The key's types, one letter each: ``i`` for an integer, ``s`` for a string.
        token: What the caller sent.

    Raises:
        InvalidRequestError: It is no token of this listing.
    """
    if not token:
        return None
    try:
        value = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError):
        value = None
    if (
        isinstance(value, list)
        and len(value) == len(shape) + 1
        and value[0] == listing
        and all(_fits(part, letter) for part, letter in zip(value[1:], shape, strict=True))
    ):
        return tuple(value[1:])
    raise InvalidRequestError(
        "page_token is not one of this listing",
        advice="send next_page_token as it came, or none for the first page",
        fields={"page_token": "not one of this listing"},
    )


def _fits(part: object, letter: str) -> bool:
    if letter == "i":
        return type(part) is int and -_MAX_INT <= part <= _MAX_INT
    return isinstance(part, str)
