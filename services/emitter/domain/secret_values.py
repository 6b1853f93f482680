"""Secrets inside text: keys of common providers, tokens, headers, private keys, connection strings, cookies.

Each form is recognised by its own marks (prefix, length, alphabet), never by entropy alone, so that hashes, ids and
encoded images pass. What was split over two events cannot be seen here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Final

from services.emitter.domain.secret_names import is_stand_in

__all__ = ["REDACTED", "clean_text", "may_hold_secret"]

REDACTED: Final = "[redacted]"

# Every key of theirs has a digit; CSS classes and hyphenated words have none.
_DIGIT: Final = r"(?=[A-Za-z0-9_-]{0,200}[0-9])"
_PROVIDERS: Final = (
    rf"sk-{_DIGIT}[A-Za-z0-9_-]{{20,}}",  # OpenAI, Anthropic, OpenRouter
    r"sk-ant-[A-Za-z0-9_-]{3,}",  # however short: what else begins like this
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"ya29\.[A-Za-z0-9_-]{20,}",
    r"GOCSPX-[A-Za-z0-9_-]{20,}",
    r"gh[pousr]_[A-Za-z0-9]{30,}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"gl(?:pat|dt|rt|ptt)-[A-Za-z0-9_-]{20,}",  # GitLab
    rf"xox[abeoprs]-{_DIGIT}[A-Za-z0-9-]{{10,}}",  # Slack
    rf"xapp-{_DIGIT}[A-Za-z0-9-]{{10,}}",
    rf"hf_{_DIGIT}[A-Za-z0-9]{{30,}}",  # Hugging Face
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"whsec_[A-Za-z0-9+/=]{24,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # SendGrid
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{50,}",
    r"key-[0-9a-f]{32}(?![0-9a-f])",  # Mailgun
    r"do[opr]_v1_[a-f0-9]{64}",  # DigitalOcean
    r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",  # Shopify
    rf"gsk_{_DIGIT}[A-Za-z0-9]{{40,}}",  # Groq
    rf"(?:r8_|pplx-|xai-|nvapi-|dapi|tvly-|lsv2_(?:pt|sk)_|hvs\.|glsa_|figd_|PMAK-){_DIGIT}[A-Za-z0-9_-]{{30,}}",
    r"AGE-SECRET-KEY-1[A-Z0-9]{50,}",
    r"[0-9]{8,10}:AA[A-Za-z0-9_-]{32,34}(?![A-Za-z0-9_-])",  # Telegram
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*){0,2}",  # JWT, JWE, our own tickets
)
_PROVIDER: Final = re.compile(r"(?<![A-Za-z0-9])(?:" + "|".join(_PROVIDERS) + ")")

_PEM_NAME: Final = r"(?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?"
_PRIVATE_KEY: Final = re.compile(rf"-----BEGIN {_PEM_NAME}-----.*?(?:-----END {_PEM_NAME}-----|\Z)", re.DOTALL)

_QUOTE: Final = r"\\{0,3}[\"']"
_HEADER: Final = re.compile(
    rf"(?i)(\bauthorization(?:{_QUOTE})?\s{{0,8}}[:=]\s{{0,8}}(?:{_QUOTE})?)"
    r"((?:bearer|basic|digest|token|apikey|negotiate|aws4-hmac-sha256)\s+[^\"'\r\n\\]+|(?=[^\s\"'\\]*[0-9])[^\s\"'\\,;]{8,})"
)
_BEARER: Final = re.compile(r"(?i)(\bbearer\s+)(?=[A-Za-z._~+/-]{0,200}[0-9])[A-Za-z0-9._~+/-]{16,}=*")
_BASIC: Final = re.compile(r"(?i)(\bbasic\s+)([A-Za-z0-9+/]{8,}={0,2})")
_URL_LOGIN: Final = re.compile(r"(://[^\s:/@\"'<>]{0,200}:)([^\s/\"'<>]{1,500})(?=@)")
_SECRET_NAME: Final = (
    r"(?:passw(?:or)?d|pwd|passphrase|secret|api[_-]?key|secret[_-]?key|access[_-]?key|account[_-]?key|"
    r"private[_-]?key|signing[_-]?key|(?:access|refresh|auth|id|session|bearer|api|security|bot)[_-]?token)"
)
# In quotes on both sides it is data; bare it may be prose or a program, so the value must have a digit or a sign.
_QUOTED: Final = re.compile(
    rf"(?i)({_SECRET_NAME}{_QUOTE}\s{{0,8}}[:=]>?\s{{0,8}}({_QUOTE}))(?!\2)(.{{1,2000}}?)(?=\2|$)"
)
_ASSIGNED: Final = re.compile(
    rf"(?i)({_SECRET_NAME}\s{{0,8}}[:=]\s{{0,8}}(?:{_QUOTE})?)(?!/)"
    r"(?=[^\s\"'\\,;&()\[\]{}]{0,200}[0-9!@#$%^*+])[^\s\"'\\,;&()\[\]{}]{6,}"
)
_SETTING: Final = re.compile(r"(?i)(;\s{0,8}(?:password|pwd|accountkey|sharedaccesskey)\s{0,8}=)([^;\"'\s]+)")
_QUERY: Final = re.compile(
    r"(?i)([?&;](?:sig|signature|x-amz-signature|x-amz-security-token|x-goog-signature|token|access_token|api_key|key|"
    r"apikey|auth|code)=)([A-Za-z0-9%._~+/=-]{16,})"
)
_COOKIE: Final = re.compile(
    r"(?i)(\b(?:set-)?cookie(?:[\"'])?\s{0,8}:\s{0,8}(?:[\"'])?)([\w!#$%&*.^`|~+-]{1,100}=[^\r\n\"']+)"
)
_WEBHOOK: Final = re.compile(
    r"((?:hooks\.slack\.com/services|discord(?:app)?\.com/api/webhooks)/)([A-Za-z0-9_/-]{20,})"
)


def _keep_first(match: re.Match[str]) -> str:
    return f"{match[1]}{REDACTED}"


def _whole(_match: re.Match[str]) -> str:
    return REDACTED


def _quoted(match: re.Match[str]) -> str:
    return match[0] if is_stand_in(match[3]) else f"{match[1]}{REDACTED}"


def _basic(match: re.Match[str]) -> str:
    # Plain words look like base64 too: only what decodes to user:password is a login.
    try:
        login = base64.b64decode(match[2] + "=" * (-len(match[2].rstrip("=")) % 4), validate=False)
    except binascii.Error:
        return match[0]
    is_login = b":" in login and all(32 <= byte < 127 for byte in login)
    return f"{match[1]}{REDACTED}" if is_login else match[0]


# (what the text must hold for the pattern to be worth trying, in lower case; the pattern; what to put in its place)
_NAMES: Final = ("passw", "passphrase", "pwd", "secret", "key", "token")
_RULES: Final[tuple[tuple[tuple[str, ...], re.Pattern[str], Callable[[re.Match[str]], str]], ...]] = (
    (("private key",), _PRIVATE_KEY, _whole),
    (("authorization",), _HEADER, _keep_first),
    (("bearer",), _BEARER, _keep_first),
    (("basic",), _BASIC, _basic),
    (("@",), _URL_LOGIN, _keep_first),
    (_NAMES, _QUOTED, _quoted),
    (_NAMES, _ASSIGNED, _keep_first),
    (("passw", "pwd", "key"), _SETTING, _keep_first),
    (("sig", "token", "key", "auth", "code="), _QUERY, _keep_first),
    (("cookie",), _COOKIE, _keep_first),
    (("hooks.slack", "/webhooks/"), _WEBHOOK, _keep_first),
)
# The marks of those rules that need no long run of letters and digits, which ``sanitize`` looks for by itself.
_MARKS: Final = (*_NAMES, "auth", "cookie", "sig", "code=")


def may_hold_secret(text: str) -> bool:
    """Whether a text with a ``:`` or ``=`` in it is worth cleaning."""
    if "@" in text and "://" in text:
        return True
    lowered = text.lower()
    for mark in _MARKS:  # noqa: SIM110 -- any() takes three times as long
        if mark in lowered:
            return True
    return False


def clean_text(text: str) -> str:
    """The text with every secret in it replaced; the same object when there is none."""
    if len(text) < 8:
        return text
    cleaned = _PROVIDER.sub(REDACTED, text)
    lowered = cleaned.lower()
    for marks, pattern, put in _RULES:
        for mark in marks:
            if mark in lowered:
                cleaned = pattern.sub(put, cleaned)
                break
    return text if cleaned == text else cleaned
