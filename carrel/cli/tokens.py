"""Login tokens for development: signed with the shared secret that ``carrel up`` made. Production has an issuer.

The gateway refuses such secrets in production, and so does this module.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from carrel.errors import PermissionDeniedError, StartupError
from carrel.ids import check_id

__all__ = ["DEFAULT_PERMISSIONS", "development_token"]

# What the packaged agents need; nothing of an operator's.
DEFAULT_PERMISSIONS: Final = ("trace:read", "trace:query", "optimize:run", "report:write")
# The defaults of the gateway's settings, so that making a token need not load them.
_ISSUER: Final = "carrel-dev"
_AUDIENCE: Final = "carrel"


def development_token(
    secret_file: Path,
    user: str,
    *,
    permissions: Collection[str] = DEFAULT_PERMISSIONS,
    lifetime_s: float = 3600.0,
    limits: Mapping[str, int] | None = None,
    environ: Mapping[str, str] | None = None,
) -> str:
    """A token that logs ``user`` in at a stack with this secret.

    Args:
        secret_file: ``keys/login.secret`` of the state folder.
        user: The user's id.
        permissions: What the user may do.
        lifetime_s: Seconds until it ends; negative ones make an expired token, for tests.
        limits: The user's own limits, by name.
        environ: Where issuer, audience and the kind of deployment are set; ``os.environ`` when None.

    Raises:
        PermissionDeniedError: This is a production deployment.
        StartupError: There is no secret.
        InvalidIdError: The user's id is malformed.
    """
    environ = os.environ if environ is None else environ
    if environ.get("CARREL_ENVIRONMENT", "").strip() == "production":
        raise PermissionDeniedError(
            "development tokens are not made in production", advice="log in at your deployment's own issuer"
        )
    secret = _read(secret_file)
    now = int(time.time())
    claims: dict[str, Any] = {
        "sub": check_id(user, "user"),
        "iss": environ.get("CARREL_GATEWAY_LOGIN__ISSUER", "").strip() or _ISSUER,
        "aud": environ.get("CARREL_GATEWAY_LOGIN__AUDIENCE", "").strip() or _AUDIENCE,
        "iat": min(now, int(now + lifetime_s) - 1),
        "exp": int(now + lifetime_s),
        "permissions": sorted(set(permissions)),
    }
    if limits:
        claims["limits"] = dict(limits)
    import jwt

    return jwt.encode(claims, secret, algorithm="HS256")


def _read(secret_file: Path) -> bytes:
    try:
        return secret_file.read_bytes().strip()
    except OSError as error:
        raise StartupError(
            f"there is no login secret at {secret_file}: {error.strerror}",
            advice="`carrel up` makes one; name its folder with --state, or give a token of your own",
        ) from None
