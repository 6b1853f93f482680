"""Removes secrets, and what policy withholds, from an event's data.

A cheap look decides whether the data can hold anything of the kind; most cannot, and are forwarded as they came. What
may is judged name by name and text by text. Not validation, which is ``guard``'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import orjson

from services.emitter.domain.secret_names import NameClass, classify, holds_secret
from services.emitter.domain.secret_values import REDACTED, clean_text, may_hold_secret

__all__ = ["DEFAULT_WITHHELD", "REDACTED", "WITHHELD", "Sanitizer"]

WITHHELD: Final = "[withheld]"
DEFAULT_WITHHELD: Final = (
    "system_prompt",
    "system_message",
    "developer_prompt",
    "prompt_template",
    "raw_prompt",
    "chain_of_thought",
    "traceback",
    "stack_trace",
    "environ",
)
_MAX_DEPTH: Final = 64
_TOO_DEEP: Final = "[too deep]"
_MAX_KNOWN_NAMES: Final = 8192

# A provider's key, a login's token, a body of base64: one long run of these characters.
_IN_RUN: Final = frozenset(b"-_./+=~") | frozenset(i for i in range(128) if chr(i).isalnum())
# Signs without which none of `_SIGNED` is in the data; the last begins a wide colon. Few events have one.
_SIGNS: Final = b"<$%|\xef"
_RUN_TABLE: Final = bytes(97 if i in _IN_RUN else 33 if i in _SIGNS else 32 for i in range(256))
_RUN: Final = b"a" * 16
# `45 in data` is a memchr; `b"-" in data` takes five times as long, since it raises and catches a TypeError within.
# So words are looked for with `find`.
_SIGN, _DASH, _BACKSLASH = b"!-\\"
_WHITE_BEGINS: Final = b" \\"
_PREFIX: Final = (
    rb"(?:sk-|A(?:KIA|SIA|BIA|CCA|Iza|GE-|A[A-Za-z0-9_-]{32})|eyJ|g(?:h[pousr]_|ithub_pat_|l(?:pat|dt|rt|ptt)-|lsa_|sk_)|"
    rb"xox[abeoprs]-|xapp-|hf_|[sr]k_|whsec_|SG\.|npm_|pypi-|ya29\.|GOCSPX|key-|do[opr]_v1|shp|r8_|pplx-|xai-|nvapi-|"
    rb"dapi|tvly-|lsv2_|hvs\.|figd_|PMAK-|hooks\.slack|discord|webhook\.office|sntry|lin_api_|ntn_|glc_|dckr_|pscale_|"
    rb"tskey-|HRKU-|NRAK-|sq0|ATATT3|secret_|dp\.|pat[A-Za-z0-9]{14}\.|pul-|rubygems_|SK[a-f0-9]{32}|"
    rb"[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.)"
)
# A key begins its run or stands after one of its signs, as `secret_values` has it too; searching everywhere would cost
# every id and hash in an event several microseconds. The search begins one before the run, where no letter stands;
# the set of first letters spares the many alternatives a try at most signs.
_AT_START: Final = re.compile(rb"[^A-Za-z0-9](?=[AGHMNOPSdefghklnprstvwxy])" + _PREFIX)
# After an escape such as `\n` the run begins within the escape.
_ANYWHERE: Final = re.compile(_PREFIX)
_BEFORE: Final = 12
# Marks of secrets that stand without a colon, an equals sign or a long run. How names of secrets end; white space as
# JSON has it.
_NAME_ENDS: Final = rb"(?:key|secret|token|pwd|pass|phrase)"
_WHITE: Final = rb"(?: |\\[a-z0-9]{1,5}|[\x80-\xff]{1,3})"
_SIGNED: Final = re.compile(
    rb"(?i)" + _NAME_ENDS + rb"(?:>|[`*]{0,3}" + _WHITE + rb"{0,8}\|)"  # an element, a table
    rb"|\$(?:2[aby]|apr1|[156y]|argon2i?d?)\$"  # a password's hash
    rb"|%3d|\xef\xbc\x9a"  # an equals sign within an address, a wide colon
)
_DASHED: Final = re.compile(
    rb"(?i)-(?=[a-z_-])(?:ant-"  # of these even a few characters are a key's
    rb"|----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY|Lines: "
    rb"|(?:[a-z_-]{0,70}(?:api )?" + _NAME_ENDS + rb"|u|p|-?user|-?proxy-user)(?:=|" + _WHITE + rb"))"  # a command's
)
_KEY_BEGINS: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY")
_KEY_ENDS: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY")


class Sanitizer:
    """Cleans data; ``withheld`` are names of fields whose values policy keeps from users, whatever they hold."""

    def __init__(self, withheld: Iterable[str] = DEFAULT_WITHHELD) -> None:
        self._withheld = frozenset(_fold(name) for name in withheld)
        self._plain: set[str] = set()

    def is_suspect(self, data: bytes, value: Any) -> bool:
        """Whether the data, and the value parsed from it, may hold something to remove; False is certain."""
        # A repeated name, of which only the last value was parsed, makes the data longer than what was parsed.
        if len(orjson.dumps(value)) != len(data):
            return True
        lowered = data.lower()
        runs = data.translate(_RUN_TABLE)
        return (
            lowered.find(b"passw") >= 0
            or (_SIGN in runs and _SIGNED.search(data) is not None)
            or (_DASH in data and _DASHED.search(data) is not None)
            or ((start := runs.find(_RUN)) >= 0 and _has_marked_run(data, lowered, runs, start))
            or self._has_marks(value)
        )

    def clean(self, data: bytes, value: Any) -> bytes:
        """The data without secrets, encoded anew; the same object when it needs no change."""
        cleaned = orjson.dumps(self._clean(value, 0))
        return data if cleaned == data else cleaned

    def _has_marks(self, value: Any) -> bool:
        plain, nodes = self._plain, [value]
        while nodes:
            node = nodes.pop()
            if node.__class__ is dict:
                if not plain.issuperset(node) and not all(map(self._is_plain, node)):
                    return True
                if "value" in node and _named_secret(node):
                    return True
                items = node.values()
            else:
                if len(node) == 2 and _is_secret_pair(node):
                    return True
                items = node
            for item in items:
                kind = item.__class__
                if kind is str:
                    if (":" in item or "=" in item) and may_hold_secret(item):
                        return True
                elif kind is dict or kind is list:
                    nodes.append(item)
        return False

    def _is_plain(self, name: str) -> bool:
        if name in self._plain:
            return True
        if classify(name) is not NameClass.PLAIN or _fold(name) in self._withheld:
            return False
        if (":" in name or "=" in name) and may_hold_secret(name):
            return False
        if len(self._plain) >= _MAX_KNOWN_NAMES:
            self._plain.clear()
        self._plain.add(name)
        return True

    def _clean(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return clean_text(value)
        if isinstance(value, dict):
            return self._clean_object(value, depth) if depth < _MAX_DEPTH else _TOO_DEEP
        if isinstance(value, list):
            return self._clean_list(value, depth) if depth < _MAX_DEPTH else _TOO_DEEP
        return value

    def _clean_object(self, value: dict[str, Any], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        named = _named_secret(value)
        for name, item in value.items():
            kind = classify(name)
            if (named and name == "value") or (kind is not NameClass.PLAIN and holds_secret(kind, item)):
                result[clean_text(name)] = REDACTED
            elif self._withheld and _fold(name) in self._withheld:
                result[clean_text(name)] = WITHHELD
            else:
                result[clean_text(name)] = self._clean(item, depth + 1)
        return result

    def _clean_list(self, value: list[Any], depth: int) -> list[Any]:
        if len(value) == 2 and _is_secret_pair(value):
            return [value[0], REDACTED]
        if any(isinstance(item, str) and _KEY_BEGINS.search(item) for item in value):
            value = _without_key(value)
        return [self._clean(item, depth + 1) for item in value]


def _without_key(lines: list[Any]) -> list[Any]:
    """A list of lines without those between a private key's first and its last."""
    kept: list[Any] = []
    within = False
    for line in lines:
        is_text = isinstance(line, str)
        kept.append(REDACTED if within and is_text and not _KEY_ENDS.search(line) else line)
        if is_text:
            begins, ends = _KEY_BEGINS.search(line), _KEY_ENDS.search(line)
            within = (within or begins is not None) and ends is None
    return kept


def _has_marked_run(data: bytes, lowered: bytes, runs: bytes, start: int) -> bool:
    if _SIGN in runs:
        runs = runs.replace(b"!", b" ")
    while start >= 0:
        end = runs.find(b" ", start)
        end = len(runs) if end < 0 else end
        # JSON begins with a brace, never with a run: there is a byte before it.
        if _AT_START.search(data, start - 1, end) is not None:
            return True
        before = data[start - 1]
        if before == _BACKSLASH and _ANYWHERE.search(data, max(0, start - _BEFORE), end) is not None:
            return True
        # Only after white space can it be a login's.
        is_after_white = before >= 0x80 or before in _WHITE_BEGINS
        if is_after_white and (lowered.find(b"bearer") >= 0 or lowered.find(b"basic") >= 0):
            return True
        start = runs.find(_RUN, end)
    return False


def _named_secret(value: dict[str, Any]) -> bool:
    """``{"name": "Authorization", "value": "…"}``: whether one field names the secret that another one holds."""
    item = value.get("value")
    if not isinstance(item, str):
        return False
    return any(_is_secret_pair((value.get(field), item)) for field in ("name", "key", "header"))


def _is_secret_pair(pair: Any) -> bool:
    name, item = pair
    if not isinstance(name, str) or not isinstance(item, str):
        return False
    kind = classify(name)
    return kind is not NameClass.PLAIN and holds_secret(kind, item)


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
