"""Calls that `carrel doctor` makes as its own two users, with one service's token. No way to act as anybody else.

A token with the permission ``carrel:doctor`` may name, in a header, a user whose id begins with ``carrel-doctor-``. The
login that follows has that permission alone, limits of its own, and the token's end: it reaches no person's data, and
one that is stolen makes a small load. Nothing here looks at ``act_as``.
"""

from __future__ import annotations

from aiohttp import web

from carrel.doctor_names import DOCTOR_LIMITS, DOCTOR_PERMISSION, DOCTOR_USER, DOCTOR_USER_HEADER
from carrel.errors import InvalidRequestError, PermissionDeniedError
from gateway.login import Login, LoginVerifier

__all__ = ["acting"]


def acting(login: Login, request: web.Request, logins: LoginVerifier) -> Login:
    """The login of the doctor's user that the request is for; the token's own when it names none.

    Raises:
        PermissionDeniedError: The token lacks the permission.
        InvalidRequestError: The header names no user of the doctor's, or comes twice.
        CarrelError: That user's logins are revoked.
    """
    named = request.headers.getall(DOCTOR_USER_HEADER, [])
    if not named:
        return login
    if DOCTOR_PERMISSION not in login.permissions:
        raise PermissionDeniedError(
            f"the header {DOCTOR_USER_HEADER} is for tokens with {DOCTOR_PERMISSION}",
            advice="leave the header out",
            permission=DOCTOR_PERMISSION,
        )
    if len(named) > 1 or not DOCTOR_USER.fullmatch(named[0]):
        raise InvalidRequestError(
            f"the header {DOCTOR_USER_HEADER} names no user of the doctor's",
            advice="send carrel-doctor-<letters and digits>-a, or …-b",
        )
    user = Login(named[0], login.expires_at, frozenset({DOCTOR_PERMISSION}), dict(DOCTOR_LIMITS), login.issued_at)
    logins.check(user)
    return user
