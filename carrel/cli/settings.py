"""The services' settings, looked at from outside: their classes, and whether environments hold nothing wrong.

Each service reads its own by itself when it starts; nothing here is handed to it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, Final

from carrel.errors import CarrelError, StartupError

if TYPE_CHECKING:
    from servicekit.settings import SharedSettings

__all__ = ["SETTINGS", "check_settings", "settings_class"]

SETTINGS: Final[Mapping[str, str]] = {
    "execution": "services.execution.config:ExecutionSettings",
    "agent_instance": "services.agent_instance.config:AgentInstanceSettings",
    "emitter": "services.emitter.config:EmitterSettings",
    "bridge": "services.bridge.config:BridgeSettings",
    "gateway": "gateway.config:GatewaySettings",
    "doctor": "carrel.cli.doctor.settings:DoctorSettings",
    "operator": "carrel.cli.operator_settings:OperatorSettings",
}
_UNKNOWN: Final = " is not a setting: "
_GUESS: Final = "did you mean "


def settings_class(service: str) -> type[SharedSettings]:
    """The class of a service's settings."""
    module, _, name = SETTINGS[service].partition(":")
    cls: Any = getattr(importlib.import_module(module), name)
    found: type[SharedSettings] = cls
    return found


def check_settings(environments: Iterable[tuple[str, Mapping[str, str]]]) -> None:
    """Look at every process's environment, so that all that is wrong with any of them is said at once.

    And at what the settings name, in the way and the words of the service that reads it: feature switches, encryption
    keys, files and modules of agents as far as it shows without running them.

    Args:
        environments: Services' names, each with a process's environment.

    Raises:
        StartupError: Something is wrong; a mistake that several services would complain of is named once.
    """
    from servicekit.settings import load_settings

    problems: list[str] = []
    loaded: dict[str, SharedSettings] = {}
    for service, environment in environments:
        try:
            loaded[service] = load_settings(settings_class(service), service, environment)
        except StartupError as error:
            found = error.details.get("problems")
            problems += [str(problem) for problem in found] if isinstance(found, list) else [error.message]
    if problems:
        raise _refusal(_once(problems))
    for service, settings in loaded.items():
        try:
            _check_named(service, settings)
        except CarrelError as error:
            raise StartupError(error.message, advice=error.advice, phase="CONFIGURATION") from None


def _check_named(service: str, settings: Any) -> None:
    if service in {"gateway", "execution"}:
        from servicekit.features import open_features

        _ = open_features(settings.features_file, settings.features)
    if service in {"execution", "bridge"}:
        _ = settings.encryption.seals()
    if service == "agent_instance":
        from services.agent_instance.domain.registry import AgentClassRegistry

        AgentClassRegistry.check(settings.agents)


def _once(problems: Iterable[str]) -> list[str]:
    kept: dict[str, str] = {}
    for problem in problems:
        name, unknown, hint = problem.partition(_UNKNOWN)
        # Services guess differently what an unknown name was meant to be; anything else they say in the same words.
        key = name if unknown else problem
        if key not in kept or (unknown and _likeness(name, hint) > _likeness(name, kept[key])):
            kept[key] = problem
    return sorted(kept.values())


def _likeness(name: str, hint: str) -> float:
    guess = hint.partition(_GUESS)[2].removesuffix("?")
    return SequenceMatcher(None, name, guess).ratio() if guess else 0.0


def _refusal(problems: list[str]) -> StartupError:
    count = "1 setting is wrong" if len(problems) == 1 else f"{len(problems)} settings are wrong"
    return StartupError(
        f"{count}:\n" + "\n".join(f"  - {problem}" for problem in problems),
        advice="correct what is listed; `carrel config` shows every setting and its default",
        phase="CONFIGURATION",
        problems=problems,
    )
