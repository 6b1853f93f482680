"""The OpenFeature provider of feature switches: a JSON file, over what the settings say. Loads the SDK.

    {"gateway.compressed_batches": {"percent": 25, "users": ["u-1f0c…"]}, "execution.place_by_load": false}

``true`` and ``false`` are for all; ``percent`` of users, each always on the same side, and ``users`` by their pseudonym
as logs have it, beside them. A switch that is not named is as the settings say, or at its default. Not asked directly:
``servicekit.features`` is what services use.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import orjson
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import FlagNotFoundError
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider import AbstractProvider
from openfeature.provider.metadata import Metadata

from carrel.errors import InvalidConfigurationError
from servicekit.features import SWITCHES, Switch

__all__ = ["FileProvider", "Rule", "parse_rules"]

_MOST_BYTES: Final = 256 * 1024
_KNOWN: Final = {"percent", "users"}
# A provider is registered under a name of its own: two services in one process do not share theirs.
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Rule:
    """When a switch is on: for so many of ten thousand users, and for those who are named."""

    share: int
    users: frozenset[str] = frozenset()

    def on(self, name: str, user: str) -> bool:
        """Whether it is on for a pseudonym; without one, only if it is on for all."""
        if self.share >= 10_000 or (user and user in self.users):
            return True
        return bool(user) and _place(name, user) < self.share

    def __str__(self) -> str:
        named = f" and {len(self.users)} named" if self.users else ""
        return {0: "off", 10_000: "on"}.get(self.share, f"on for {self.share / 100:g} %") + named


class FileProvider(AbstractProvider):
    """Resolves the switches. Reads the file when it is made, and again when told to ``look``.

    Args:
        file: None for the settings alone.
        given: Switches by name, as the settings have them.

    Raises:
        InvalidConfigurationError: The file can't be read or is wrong, or a name is none of the switches.
    """

    def __init__(self, file: Path | None, given: Mapping[str, bool]) -> None:
        super().__init__()
        self.file = file
        self._given = parse_rules(given, "CARREL_FEATURES")
        self._bytes = b""
        self._rules = dict(self._given)
        self.look()
        domain = f"carrel-{next(_numbers)}"
        api.set_provider_and_wait(self, domain)
        self._client = api.get_client(domain)

    def look(self) -> dict[str, tuple[str, str]]:
        """Read the file if there is one; what has changed, as (before, after) by switch.

        Raises:
            InvalidConfigurationError: It can't be read or is wrong; then nothing has changed.
        """
        if self.file is None:
            return {}
        content = _read(self.file)
        if content == self._bytes:
            return {}
        rules = {**self._given, **parse_rules(_decoded(content, self.file), str(self.file))}
        before, self._rules, self._bytes = self._rules, rules, content
        default = {name: Rule(10_000 if switch.default else 0) for name, switch in SWITCHES.items()}
        return {
            name: (str(old), str(new))
            for name in SWITCHES
            if (old := before.get(name, default[name])) != (new := rules.get(name, default[name]))
        }

    def told(self) -> dict[str, tuple[str, str]]:
        """What has been said of switches, in words, and by whom."""
        return {
            name: (str(rule), "environment" if self._given.get(name) == rule else f"file {self.file}")
            for name, rule in self._rules.items()
        }

    def ask(self, switch: Switch, user: str) -> bool:
        """What the switch is for a user's pseudonym, by way of OpenFeature."""
        context = EvaluationContext(targeting_key=user) if user else None
        return self._client.get_boolean_value(switch.name, switch.default, context)

    def get_metadata(self) -> Metadata:
        """See ``FeatureProvider``."""
        return Metadata("carrel feature file")

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """See ``FeatureProvider``."""
        if flag_key not in SWITCHES:
            raise FlagNotFoundError(f"{flag_key} is none of the switches")
        rule = self._rules.get(flag_key)
        if rule is None:
            return FlagResolutionDetails(default_value, reason=Reason.DEFAULT)
        user = (evaluation_context.targeting_key if evaluation_context is not None else None) or ""
        reason = Reason.STATIC if rule.share in {0, 10_000} and not rule.users else Reason.TARGETING_MATCH
        return FlagResolutionDetails(rule.on(flag_key, user), reason=reason)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """There are none."""
        raise FlagNotFoundError(flag_key)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """There are none."""
        raise FlagNotFoundError(flag_key)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """There are none."""
        raise FlagNotFoundError(flag_key)

    def resolve_object_details(
        self, flag_key: str, default_value: Any, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[Any]:
        """There are none."""
        raise FlagNotFoundError(flag_key)


def parse_rules(values: Mapping[str, Any], source: str) -> dict[str, Rule]:
    """Switches as somebody wrote them.

    Raises:
        InvalidConfigurationError: A name is none of the switches, or a value no rule; it lists all such.
    """
    problems: list[str] = []
    rules: dict[str, Rule] = {}
    for name, value in values.items():
        switch = SWITCHES.get(name)
        if switch is None:
            close = difflib.get_close_matches(name, SWITCHES, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(SWITCHES)}"
            problems.append(f"{name} is no switch: {hint}")
            continue
        try:
            rules[name] = _rule(value, switch)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise InvalidConfigurationError(
            f"the feature switches of {source} are wrong: " + "; ".join(problems),
            advice="correct what is listed; docs/upgrades.md has the switches",
        )
    return rules


def _rule(value: Any, switch: Switch) -> Rule:
    if isinstance(value, bool):
        return Rule(10_000 if value else 0)
    if not isinstance(value, Mapping) or not value or set(value) - _KNOWN:
        raise ValueError('write true, false, or {"percent": 25, "users": ["u-…"]}')
    if not switch.by_user:
        raise ValueError("it is on or off for all: write true or false")
    percent, users = value.get("percent", 0), value.get("users", [])
    if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent <= 100:
        raise ValueError("percent is a number from 0 to 100")
    if not isinstance(users, Sequence) or not all(isinstance(user, str) and user.startswith("u-") for user in users):
        raise ValueError("users are pseudonyms as logs have them: u-…")
    return Rule(round(percent * 100), frozenset(users))


def _place(name: str, user: str) -> int:
    """Where a user is among ten thousand places; another place for each switch."""
    digest = hashlib.blake2s(f"{name} {user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 10_000


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InvalidConfigurationError(
            f"the feature file {path} can't be read: {error.strerror}", advice="mend CARREL_FEATURES_FILE"
        ) from None
    if len(content) > _MOST_BYTES:
        raise InvalidConfigurationError(f"the feature file {path} is too large", advice="it holds a few switches")
    return content


def _decoded(content: bytes, path: Path) -> Mapping[str, Any]:
    try:
        value = orjson.loads(content)
    except ValueError as error:
        raise InvalidConfigurationError(f"the feature file {path} is not JSON: {error}", advice="mend it") from None
    if not isinstance(value, dict):
        raise InvalidConfigurationError(f"the feature file {path} holds no object", advice='write e.g. {"name": true}')
    return value
