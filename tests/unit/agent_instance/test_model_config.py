"""Settings of the way to models: read from the environment, wrong ones said with what to write, secrets in no text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from carrel import Agent
from carrel.errors import AgentDependencyError, StartupError
from servicekit.settings import load_settings
from servicekit.settings_env import describe
from services.agent_instance.app import dependency_checker, open_models
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.domain.model_calls import ModelDesk
from services.agent_instance.domain.registry import AgentClassRegistry

P = "CARREL_AGENT_INSTANCE_MODELS__"
GOOD = {f"{P}BASE_URL": "http://localhost:1/v1", f"{P}DEFAULT": "small"}


def load(environ: Mapping[str, str]) -> AgentInstanceSettings:
    return load_settings(AgentInstanceSettings, "agent_instance", environ)


def test_without_settings_there_is_no_model() -> None:
    assert not load({}).models.configured


def test_a_model_is_configured_by_an_endpoint_and_a_name() -> None:
    settings = load({**GOOD, f"{P}API_KEY": "sk-very-secret", f"{P}ALLOWED": "large,huge"})
    assert settings.models.configured
    assert settings.models.read_key() == "sk-very-secret"
    assert settings.models.allowed == ("large", "huge")
    assert "sk-very-secret" not in repr(settings)
    assert not any("sk-very-secret" in repr(row) for row in describe(settings))


def test_an_endpoint_may_want_no_key() -> None:
    assert load(GOOD).models.read_key()


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({f"{P}DEFAULT": "small"}, f"{P}BASE_URL is missing"),
        ({f"{P}API_KEY": "sk-secret"}, f"{P}BASE_URL is missing"),
        ({f"{P}BASE_URL": "http://x/v1"}, f"{P}DEFAULT is missing"),
        ({**GOOD, f"{P}BASE_URL": "localhost:1"}, "http://localhost:11434/v1"),
        ({**GOOD, f"{P}API_KEY": "sk-secret", f"{P}API_KEY_FILE": "/x"}, "set one of them"),
        ({**GOOD, f"{P}TIMEOUT": "0"}, f"{P}TIMEOUT"),
        ({**GOOD, f"{P}OUTPUT_LIMIT_FIELD": "tokens"}, f"{P}OUTPUT_LIMIT_FIELD"),
        ({**GOOD, f"{P}MODEL": "small"}, f"{P}MODEL"),
    ],
)
def test_a_wrong_setting_is_said_with_what_to_write(environ: Mapping[str, str], problem: str) -> None:
    with pytest.raises(StartupError) as error:
        load(environ)
    assert problem in error.value.message
    assert "sk-secret" not in str(error.value)


class Talker(Agent):
    name = "talker"
    dependencies = ("llm",)

    async def run(self, ctx: Any, request: Any) -> dict[str, Any]:
        return {}


async def test_the_dependency_llm_is_there_when_a_model_is_configured() -> None:
    entry = AgentClassRegistry.of(Talker).entry("talker")
    await dependency_checker(load(GOOD)).require(entry)
    with pytest.raises(AgentDependencyError, match="MODELS__BASE_URL"):
        await dependency_checker(load({})).require(entry)


async def test_the_desk_is_built_as_the_settings_say() -> None:
    async with open_models(load({}).models) as none:
        assert none is None
    async with open_models(load({**GOOD, f"{P}PROXY": "false", f"{P}ALLOWED": "*", f"{P}WAIT": "7"}).models) as desk:
        assert isinstance(desk, ModelDesk)
        assert desk.door is None
        assert desk.policy.permits("anything")
        assert desk.policy.wait_s == 7
    async with open_models(load(GOOD).models) as desk:
        assert isinstance(desk, ModelDesk)
        assert desk.door is not None
        assert not desk.policy.permits("anything")
