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
    rf"xox[abeoprs]-{_DIGIT}[A-Za-z0-9-]{{12,}}",  # Slack
    rf"xapp-{_DIGIT}[A-Za-z0-9-]{{12,}}",
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
    rf"(?:sntry[su]_|lin_api_|ntn_|glc_|dckr_(?:pat|oat)_|pscale_(?:tkn|pw|oauth)_|tskey-[a-z]{{2,9}}-){_DIGIT}[A-Za-z0-9_-]{{20,}}",
    rf"(?:HRKU-AA|NRAK-|sq0(?:csp|atp|idp)-|ATATT3){_DIGIT}[A-Za-z0-9_=-]{{20,}}",
    rf"secret_{_DIGIT}[A-Za-z0-9]{{43}}(?![A-Za-z0-9_])",  # Notion
    r"dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9]{40,44}(?![A-Za-z0-9])",  # Doppler
    r"pat[A-Za-z0-9]{14}\.[a-f0-9]{64}(?![A-Za-z0-9])",  # Airtable
    r"(?:pul-[a-f0-9]{40}|rubygems_[a-f0-9]{48}|SK[a-f0-9]{32})(?![A-Za-z0-9])",
    r"[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}(?![A-Za-z0-9_.-])",  # Discord
    r"\$(?:2[aby]\$\d\d|apr1|1|5|6|y|argon2id?(?:\$[a-z0-9=,]{1,60}){2})\$[A-Za-z0-9./+$]{22,200}",  # of passwords
    r"[0-9]{8,10}:AA[A-Za-z0-9_-]{32,34}(?![A-Za-z0-9_-])",  # Telegram
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*){0,2}",  # JWT, JWE, our own tickets
)
_PROVIDER: Final = re.compile(r"(?<![A-Za-z0-9])(?:" + "|".join(_PROVIDERS) + ")")

_PEM_NAME: Final = r"(?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?"
_PRIVATE_KEY: Final = re.compile(
    rf"-----BEGIN {_PEM_NAME}-----.*?(?:-----END {_PEM_NAME}-----|\Z)"
    r"|(?<=Private-Lines: )\d{1,3}\s+(?:[A-Za-z0-9+/=]{16,}(?:\\n|\s)*)+",  # PuTTY
    re.DOTALL,
)

_QUOTE: Final = r"\\{0,3}[\"']"
_HEADER: Final = re.compile(
    rf"(?i)(\bauthorization(?:{_QUOTE})?\s{{0,8}}[:=]\s{{0,8}}(?:{_QUOTE})?)"
    r"((?:bearer|basic|digest|token|apikey|negotiate|aws4-hmac-sha256)\s+[^\"'\r\n\\]+|(?=[^\s\"'\\]*[0-9])[^\s\"'\\,;]{8,})"
)
_BEARER: Final = re.compile(r"(?i)(\bbearer\s+)(?=[A-Za-z._~+/-]{0,200}[0-9])[A-Za-z0-9._~+/-]{16,}=*")
_BASIC: Final = re.compile(r"(?i)(\bbasic\s+)(?=[A-Za-z0-9+/=]{16})([A-Za-z0-9+/]{8,}={0,2})")
_URL_LOGIN: Final = re.compile(
    r"(://(?:[^\s:/@\"'<>]{0,200}:(?=[^\s/\"'<>]{1,500}@)|(?=[A-Za-z0-9_-]{0,200}[0-9][A-Za-z0-9_-]{0,200}@)(?=[A-Za-z0-9_-]{20})))"
    r"[^\s/\"'<>]{1,500}(?=@)"
)
_SECRET_NAME: Final = (
    r"(?:passw(?:or)?d|pwd|passphrase|secret|api[ _-]?key|secret[_-]?key|access[_-]?key|account[_-]?key|"
    r"private[_-]?key|signing[_-]?key|\b(?:db|user|root|admin|smtp|pg|mysql)[_-]?pass|\bpass(?==)|"
    r"(?:access|refresh|auth|id|session|bearer|api|security|bot|private|vault)[_-]?token)"
)
# In quotes on both sides it is data; bare it may be prose or a program, so the value must have a digit or a sign.
_QUOTED: Final = re.compile(
    rf"(?i)({_SECRET_NAME}{_QUOTE}\s{{0,8}}[:=]>?\s{{0,8}}({_QUOTE}))(?!\2)(.{{1,2000}}?)(?=\2|$)"
)
_BARE: Final = r"(?=[^\s\"'\\,;&|`<>()\[\]{}]{0,200}[0-9!@#$%^*+])[^\s\"'\\,;&|`<>()\[\]{}]{6,}"
_ASSIGNED: Final = re.compile(
    # In a table, in Markdown, and in an address within an address too.
    rf"(?i)({_SECRET_NAME}[`*]{{0,3}}\s{{0,8}}(?:[:=\uff1a|]|%3d)[`*\u200b\s]{{0,8}}(?:{_QUOTE})?)(?![/*]){_BARE}"
)
# Of words alone, where the quotes leave no doubt of it.
_PASSWORD: Final = re.compile(
    r"(?i)(\b(?:password|passwd|pwd|passphrase)=([\"']))(?![<${%])([^\"'\r\n\\]{6,200})(?=\2)"
)
_ELEMENT: Final = re.compile(rf"(?i)(<(?:[a-z]\w{{0,40}}[:._-])?{_SECRET_NAME}>\s{{0,8}})([^<>\s][^<>]{{0,500}})(?=</)")
_INPUT: Final = re.compile(r"(?i)(\btype=[\"']password[\"'][^<>]{0,200}?\bvalue=[\"'])([^\"'<>]{1,500})(?=[\"'])")
# As an argument of a command, in a netrc, in a sentence.
_ARGUMENT: Final = re.compile(
    rf"(?i)((?:--?(?:[a-z]{{1,20}}-){{0,3}}(?:{_SECRET_NAME}|token)|\bsshpass\s+-p|"
    rf"\blogin\s+\S{{1,100}}\s+password|\bpassword\s+(?:is|was))\s+(?:{_QUOTE})?)(?![-/<${{]){_BARE}"
)
_CURL: Final = re.compile(
    r"(?i)(\bcurl(?=\s)[^\r\n]{0,500}?(?:\s-u|\s--user|\s-U|\s--proxy-user)[\s=]\s{0,4}([\"']?)[^\s:\"']{1,100}:)(?(2)[^\"'\r\n]{1,200}?(?=\2(?:\s|$))|[^\s\"']{1,200})"
)
_AUTH: Final = re.compile(rf"(?i)(\b_?auth{_QUOTE}?\s{{0,8}}[:=]\s{{0,8}}(?:{_QUOTE})?)([A-Za-z0-9+/]{{8,}}={{0,2}})")
# What a line break has cut off a key that is found.
_REST: Final = re.compile(
    r"(?<=\[redacted\])(?:(?:\r?\n|\\n)[ \t]{0,8}(?=[A-Za-z0-9+/_.=-]{0,200}[0-9])"
    r"[A-Za-z0-9+/_.=-]{20,}(?![^\s\\\"',;)]))+"
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
    r"(?<![A-Za-z0-9])((?:hooks\.slack\.com/services|discord(?:app)?\.com/api/webhooks|webhook\.office\.com/webhookb2)/)([A-Za-z0-9_/@-]{20,})"
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


def _element(match: re.Match[str]) -> str:
    return match[0] if is_stand_in(match[2]) else f"{match[1]}{REDACTED}"


def _password(match: re.Match[str]) -> str:
    return match[0] if is_stand_in(match[3]) else f"{match[1]}{REDACTED}"


# (what the text must hold for the pattern to be worth trying, in lower case; the pattern; what to put in its place)
_NAMES: Final = ("passw", "pass=", "_pass", "passphrase", "pwd", "secret", "key", "token")
_RULES: Final[tuple[tuple[tuple[str, ...], re.Pattern[str], Callable[[re.Match[str]], str]], ...]] = (
    (("private key", "private-lines"), _PRIVATE_KEY, _whole),
    (("authorization",), _HEADER, _keep_first),
    (("bearer",), _BEARER, _keep_first),
    (("basic",), _BASIC, _basic),
    (("@",), _URL_LOGIN, _keep_first),
    (_NAMES, _QUOTED, _quoted),
    (_NAMES, _ASSIGNED, _keep_first),
    (("passw", "pwd", "passphrase"), _PASSWORD, _password),
    (("</",), _ELEMENT, _element),
    (("value=",), _INPUT, _keep_first),
    (("--", "sshpass", "password"), _ARGUMENT, _keep_first),
    (("curl",), _CURL, _keep_first),
    (("auth",), _AUTH, _basic),
    (("passw", "pwd", "key"), _SETTING, _keep_first),
    (("sig", "token", "key", "auth", "code="), _QUERY, _keep_first),
    (("cookie",), _COOKIE, _keep_first),
    (("hooks.slack", "/webhooks/", "/webhookb2/"), _WEBHOOK, _keep_first),
)
# The marks of those rules that need no long run of letters and digits, which ``sanitize`` looks for by itself.
_MARKS: Final = ("pass", "pwd", "secret", "key", "token", "auth", "cookie", "sig", "code=")


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
    if cleaned == text:
        return text
    return _REST.sub("", cleaned)
