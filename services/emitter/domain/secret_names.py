"""Which names of fields hold secrets: judged by their words, so that `api_key` is one and `keyboard` is not.

A name alone rarely settles it: ``token`` may be a credential or a word of a model's output. So a name has a class, and
the class says what its values must look like to be taken for a secret.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

__all__ = ["NameClass", "classify", "holds_secret", "is_stand_in"]

MAX_NAME: Final = 128


class NameClass(enum.Enum):
    """What a field's name says about its value."""

    PLAIN = 0
    SECRET = 1  # any text
    CREDENTIAL = 2  # text that looks like a credential: `token`, `authorization`
    COOKIE = 3  # text of the form name=value


_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_LAST_WORDS: Final = frozenset(
    "password passwords passwd passphrase pwd secret secrets apikey apikeys credential credentials".split()
)
# The kinds of `key` and `token` that are secret; there are many that are not (primary key, next page token, input
# tokens). Compared with a name's last word and last two words, since `invalid_token` ends in "idtoken".
_KINDS: Final = frozenset(
    f"{kind}key"
    for kind in "api secret private access signing encryption master accountshared sharedaccess ssh hmac".split()
) | frozenset(
    f"{kind}token"
    for kind in (
        "access refresh auth id bearer session csrf xsrf api bot user security oauth personal deploy socket secret "
        "private github gitlab slack hf registry registration identity device verification reset"
    ).split()
)
_ENDS: Final = ("password", "apikey", "secretkey", "privatekey", "accesstoken", "authtoken", "clientsecret")
_WHOLE: Final = frozenset(
    "secretaccesskey connectionstring passwordhash hashedpassword authstring basicauth httpauth privatekeypem "
    "clientassertion dbpass userpass phpsessid jsessionid".split()
)
_CREDENTIALS: Final = frozenset("token jwt auth authorization proxyauthorization".split())
# A login as a header has it; what follows may be of any alphabet, all in small letters too.
_SCHEME: Final = re.compile(
    r"(?i)\s*(?:bearer|basic|digest|token|apikey|negotiate)\s+(?=\S{16}|\S*[0-9._~+/=])\S{8,}\s*"
)
_COOKIES: Final = frozenset("cookie cookies setcookie cookiejar cookieheader".split())
# What people write in the place of a secret; an error's {"password": "required"} is one of these.
_STAND_INS: Final = frozenset(
    "required optional missing invalid expired none null true false string str text unset set hidden masked redacted "
    "[redacted] [withheld] *** ****** ******** <redacted> xxx password secret".split()
)
_JSON_TYPES: Final = frozenset("string number integer boolean object array null".split())


@lru_cache(maxsize=8192)
def classify(name: str) -> NameClass:
    """The class of a field's name, whatever its spelling (snake, kebab, camel)."""
    words = [word.lower() for word in _WORD.findall(name[-MAX_NAME:])]
    if not words:
        return NameClass.PLAIN
    joined = "".join(words)
    known = words[-1] in _LAST_WORDS or words[-1] in _KINDS or "".join(words[-2:]) in _KINDS
    if known or joined in _WHOLE or joined.endswith(_ENDS):
        return NameClass.SECRET
    if joined in _COOKIES or (words[-1] == "cookie" and len(words) <= 2):
        return NameClass.COOKIE
    if joined in _CREDENTIALS or joined.endswith("authorization"):
        return NameClass.CREDENTIAL
    return NameClass.PLAIN


def is_stand_in(text: str) -> bool:
    """Whether the text is one that people write in the place of a secret."""
    return text.strip().lower() in _STAND_INS


def holds_secret(kind: NameClass, value: Any) -> bool:
    """Whether a value under a name of this class is a secret as a whole; if not, its parts are looked at."""
    if value is None or isinstance(value, bool) or value in ("", 0):
        return False
    if kind is NameClass.SECRET:
        return _secret(value)
    if kind is NameClass.CREDENTIAL:
        return isinstance(value, str) and _looks_like_credential(value)
    return _cookies(value)


def _secret(value: Any) -> bool:
    if isinstance(value, str):
        return not is_stand_in(value)
    if isinstance(value, dict):
        # A JSON Schema describes a password and holds none.
        return value.get("type") not in _JSON_TYPES and "$ref" not in value
    if isinstance(value, list):
        return any(_secret(item) for item in value)
    return True


def _looks_like_credential(text: str) -> bool:
    if _SCHEME.fullmatch(text):
        return True
    if len(text) < 16 or text.count(" ") > 1:
        return False
    body = text.rpartition(" ")[2]
    mixed = any(c.isdigit() for c in body) or (body != body.lower() and body != body.upper() and body != body.title())
    return len(body) >= 8 and mixed


def _cookies(value: Any) -> bool:
    if isinstance(value, str):
        return "=" in value
    items: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict):
        return any(isinstance(item, str) and len(item) >= 8 for item in items)
    return any(isinstance(item, dict) or (isinstance(item, str) and "=" in item) for item in items)
