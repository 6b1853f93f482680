"""Whom a token may act as by the doctor's header: the doctor's users, and nobody else."""

from __future__ import annotations

import time

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from carrel.doctor_names import DOCTOR_LIMITS, DOCTOR_USER_HEADER
from carrel.errors import InvalidRequestError, PermissionDeniedError, TokenError
from gateway.doctor_users import acting
from gateway.login import Login

_DOCTOR = Login("job", time.time() + 60, frozenset({"carrel:doctor", "operator:read", "act_as", "trace:read"}))


class Logins:
    """Knows whose logins are revoked."""

    def __init__(self, *revoked: str) -> None:
        self._revoked = revoked

    def check(self, login: Login) -> None:
        if login.user_id in self._revoked:
            raise TokenError("revoked")


def act(login: Login, *users: str, logins: Logins | None = None) -> Login:
    headers = CIMultiDict((DOCTOR_USER_HEADER, user) for user in users)
    request = make_mocked_request("GET", "/", headers=headers)
    return acting(login, request, logins or Logins())  # type: ignore[arg-type]  # all that is used of it


def test_without_the_header_the_login_is_the_tokens_own() -> None:
    assert act(_DOCTOR) is _DOCTOR


def test_login_of_a_doctors_user_has_that_permission_alone_small_limits_and_the_tokens_end() -> None:
    login = act(_DOCTOR, "carrel-doctor-7-b")
    assert (login.user_id, login.permissions) == ("carrel-doctor-7-b", frozenset({"carrel:doctor"}))
    assert (dict(login.limits), login.expires_at) == (DOCTOR_LIMITS, _DOCTOR.expires_at)
    assert not login.is_service


@pytest.mark.parametrize("permissions", [set[str](), {"act_as"}, {"operator:read", "act_as"}, {"carrel:doctors"}])
def test_other_tokens_may_not_use_the_header(permissions: set[str]) -> None:
    with pytest.raises(PermissionDeniedError):
        act(Login("alice", time.time() + 60, frozenset(permissions)), "carrel-doctor-7-b")


@pytest.mark.parametrize(
    "user",
    ["alice", "", "carrel-doctor-", "carrel-doctor-7", "carrel-doctor-7-c", "xcarrel-doctor-7-a", "carrel-doctor-7-a-",
     "carrel-doctor-A-a", "carrel-doctor-7-a\u00e9", "carrel-doctor-" + "7" * 33 + "-a"],
)  # fmt: skip
def test_nobody_else_can_be_acted_as(user: str) -> None:
    with pytest.raises(InvalidRequestError):
        act(_DOCTOR, user)


def test_two_headers_are_refused() -> None:
    with pytest.raises(InvalidRequestError):
        act(_DOCTOR, "carrel-doctor-7-a", "carrel-doctor-7-b")


def test_revoked_user_cannot_be_acted_as() -> None:
    with pytest.raises(TokenError):
        act(_DOCTOR, "carrel-doctor-7-a", logins=Logins("carrel-doctor-7-a"))
