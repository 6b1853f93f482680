"""Settings from the environment: names, kinds, and one refusal that lists everything that is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import pytest
from pydantic import Field, SecretStr, ValidationError, model_validator

from carrel.errors import StartupError
from gateway.config import GatewaySettings
from servicekit.settings import DOCUMENTS_NAMES, Section, SharedSettings, alias_env, load_settings
from servicekit.settings_env import describe, variables
from services.agent_instance.config import AgentInstanceSettings
from services.bridge.config import BridgeSettings
from services.emitter.config import EmitterSettings
from services.execution import config as services_execution


class Limits(Section):
    runs: int = Field(5, ge=1, description="unended runs of a user")
    share: float = 0.5


class ExecutionSettings(SharedSettings):
    listen: str = "127.0.0.1:50051"
    retries: Annotated[int, alias_env("WEBSOCKET_DELIVERY_RETRIES")] = Field(3, ge=0, description="tries")
    limits: Limits = Limits()
    agents: tuple[str, ...] = ()
    weights: dict[str, int] = Field(default_factory=dict)
    database: str = "sqlite:///carrel.db"
    secret: SecretStr | None = None
    timeout: float | None = 3.0
    debug: bool = False


def load(environ: Mapping[str, str]) -> ExecutionSettings:
    return load_settings(ExecutionSettings, "execution", environ)


def problems(environ: Mapping[str, str]) -> list[str]:
    with pytest.raises(StartupError) as caught:
        load(environ)
    assert caught.value.phase == "CONFIGURATION"
    found: list[str] = caught.value.details["problems"]
    assert all(problem in caught.value.message for problem in found)
    return found


def test_defaults_need_no_environment() -> None:
    settings = load({})
    assert settings == ExecutionSettings()
    assert settings.ticket_jwks == Path(".carrel/keys/tickets.jwks.json")
    assert not settings.production


def test_every_kind_of_value_is_read() -> None:
    settings = load(
        {
            "CARREL_ENVIRONMENT": "production",
            "CARREL_TLS__MODE": "mesh",
            "CARREL_STATE_DIR": "/var/lib/carrel",
            "CARREL_EXECUTION_LISTEN": "0.0.0.0:1",
            "CARREL_EXECUTION_LIMITS__RUNS": "7",
            "CARREL_EXECUTION_AGENTS": "data, report",
            "CARREL_EXECUTION_WEIGHTS": '{"a": 1}',
            "CARREL_EXECUTION_SECRET": "hush",
            "CARREL_EXECUTION_TIMEOUT": "none",
            "CARREL_EXECUTION_DEBUG": "true",
        }
    )
    assert settings.production
    assert settings.ticket_jwks == Path("/var/lib/carrel/keys/tickets.jwks.json")
    assert settings.listen == "0.0.0.0:1"
    assert settings.limits == Limits(runs=7, share=0.5)
    assert settings.agents == ("data", "report")
    assert settings.weights == {"a": 1}
    assert settings.secret is not None
    assert settings.secret.get_secret_value() == "hush"
    assert settings.timeout is None
    assert settings.debug


def test_list_may_be_json() -> None:
    assert load({"CARREL_EXECUTION_AGENTS": '["a,b", "c"]'}).agents == ("a,b", "c")


def test_documents_name_is_read_too() -> None:
    assert load({"WEBSOCKET_DELIVERY_RETRIES": "5"}).retries == 5
    assert load({"CARREL_EXECUTION_RETRIES": "6"}).retries == 6
    same = {"WEBSOCKET_DELIVERY_RETRIES": "5", "CARREL_EXECUTION_RETRIES": "5"}
    assert load(same).retries == 5


def test_two_names_of_one_setting_that_differ_are_refused() -> None:
    found = problems({"WEBSOCKET_DELIVERY_RETRIES": "5", "CARREL_EXECUTION_RETRIES": "6"})
    assert found == [
        (
            "CARREL_EXECUTION_RETRIES and WEBSOCKET_DELIVERY_RETRIES are two names of one setting and differ: "
            "set one of them"
        )
    ]


def test_empty_value_counts_as_not_set() -> None:
    assert load({"CARREL_EXECUTION_RETRIES": "", "CARREL_READY_FILE": " "}) == ExecutionSettings()


def test_every_problem_is_reported_at_once_with_what_to_write() -> None:
    found = problems(
        {
            "CARREL_LOGLEVEL": "debug",
            "CARREL_LOG_LEVEL": "loud",
            "CARREL_DRAIN_SECONDS": "-1",
            "CARREL_EXECUTION_LIMITS__RUNS": "none",
            "CARREL_EXECUTION_LIMITS__RUN": "7",
            "CARREL_EXECUTION_WEIGHTS": "{",
            "WEBSOCKET_DELIVERY_RETRIES": "many",
        }
    )
    unparsed = "unable to parse string as an integer"
    assert found == [
        "CARREL_DRAIN_SECONDS=-1 is wrong: write greater than or equal to 0, for example 10.0",
        "CARREL_EXECUTION_LIMITS__RUN is not a setting: did you mean CARREL_EXECUTION_LIMITS__RUNS?",
        f"CARREL_EXECUTION_LIMITS__RUNS=none is wrong: write a valid integer, {unparsed}, for example 5",
        'CARREL_EXECUTION_WEIGHTS is not JSON: write e.g. {"name": "value"}',
        "CARREL_LOGLEVEL is not a setting: did you mean CARREL_LOG_LEVEL?",
        "CARREL_LOG_LEVEL=loud is wrong: write 'debug', 'info', 'warning' or 'error', for example info",
        f"WEBSOCKET_DELIVERY_RETRIES=many is wrong: write a valid integer, {unparsed}, for example 3",
    ]


def test_unknown_name_with_nothing_like_it_says_where_the_names_are() -> None:
    (found,) = problems({"CARREL_XYZZY": "1"})
    assert "`carrel config` lists the names" in found


def test_other_services_names_and_other_programs_variables_are_left_alone() -> None:
    others = {"CARREL_BRIDGE_LISTEN": "x", "CARREL_AGENT_INSTANCE_ANY": "x", "CARREL_CLI_URL": "x", "PATH": "/bin"}
    theirs = dict.fromkeys(("WEBSOCKET_UNHEARD_OF", "WEBSOCKET_SEND_TIMEOUT", "WEBSOCKET_HEARTBEAT"), "1")
    assert load({**others, **theirs}) == ExecutionSettings()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WEBSOCKET_ENABLE_BATCHNG", "WEBSOCKET_ENABLE_BATCHING"),
        ("WEBSOCKET_ENABLE_COMPRESION", "WEBSOCKET_ENABLE_COMPRESSION"),
        ("WEBSOCKET_DELIVERY_RETRY", "WEBSOCKET_DELIVERY_RETRIES"),
        ("WEBSOCKET_EVENTS_TIMEOUT", "WEBSOCKET_EVENT_TIMEOUT"),
    ],
)
def test_name_that_is_nearly_one_of_the_documents_is_a_mistake(name: str, meant: str) -> None:
    assert problems({name: "1"}) == [f"{name} is not a setting: did you mean {meant}?"]


def test_every_name_of_the_documents_is_known_to_every_service() -> None:
    load(dict.fromkeys(DOCUMENTS_NAMES, "7"))
    settings = (AgentInstanceSettings, BridgeSettings, EmitterSettings, services_execution.ExecutionSettings)
    for cls in (*settings, GatewaySettings):
        aliases = {variable.alias for variable in variables(cls, "test")}
        assert {name for name in aliases if name.startswith("WEBSOCKET_")} <= set(DOCUMENTS_NAMES)


def test_wrong_secret_is_not_shown() -> None:
    class GatewaySettings(SharedSettings):
        secret: SecretStr = Field(SecretStr("x" * 32), min_length=32)

    with pytest.raises(StartupError) as caught:
        load_settings(GatewaySettings, "gateway", {"CARREL_GATEWAY_SECRET": "too-short"})
    assert "too-short" not in str(caught.value.to_dict())
    assert "CARREL_GATEWAY_SECRET=********" in caught.value.message


def test_password_in_a_wrong_url_is_not_shown() -> None:
    class GatewaySettings(SharedSettings):
        database: str = Field("sqlite://", pattern="^sqlite")

    with pytest.raises(StartupError) as caught:
        load_settings(GatewaySettings, "gateway", {"CARREL_GATEWAY_DATABASE": "postgresql://me:hush@db/x"})
    assert "hush" not in str(caught.value.to_dict())


def test_rule_between_fields_is_reported_in_its_own_words() -> None:
    class GatewaySettings(SharedSettings):
        low: int = 1
        high: int = 2

        @model_validator(mode="after")
        def _in_order(self) -> Self:
            if self.low > self.high:
                raise ValueError("CARREL_GATEWAY_LOW must not exceed CARREL_GATEWAY_HIGH")
            return self

    with pytest.raises(StartupError, match="CARREL_GATEWAY_LOW must not exceed CARREL_GATEWAY_HIGH"):
        load_settings(GatewaySettings, "gateway", {"CARREL_GATEWAY_LOW": "9"})


def test_required_setting_is_named_when_it_is_missing() -> None:
    class GatewaySettings(SharedSettings):
        issuer: str = Field(description="who signs login tokens")

    with pytest.raises(StartupError, match="CARREL_GATEWAY_ISSUER is required: who signs login tokens"):
        load_settings(GatewaySettings, "gateway", {})


def test_settings_are_frozen_and_refuse_unknown_names() -> None:
    with pytest.raises(ValidationError):
        load({}).listen = "x"  # type: ignore[misc]  # the point of the test
    with pytest.raises(ValidationError):
        ExecutionSettings.model_validate({"limits": {"rnus": 1}})


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    settings = load(
        {"CARREL_EXECUTION_SECRET": "hush-1", "CARREL_EXECUTION_DATABASE": "postgresql://me:hush-2@db:5432/x"}
    )
    rows = {row.name: row for row in describe(settings)}
    assert rows["CARREL_EXECUTION_SECRET"].value == "********"
    assert rows["CARREL_EXECUTION_DATABASE"].value == "postgresql://me:********@db:5432/x"
    assert "hush-1" not in repr(settings)
    assert "hush" not in str(rows)


def test_description_lists_each_setting_with_value_default_and_meaning() -> None:
    settings = load({"CARREL_EXECUTION_RETRIES": "9", "CARREL_EXECUTION_AGENTS": "a,b"})
    rows = {row.name: (row.value, row.default, row.doc) for row in describe(settings)}
    assert rows["CARREL_EXECUTION_RETRIES (WEBSOCKET_DELIVERY_RETRIES)"] == ("9", "3", "tries")
    assert rows["CARREL_EXECUTION_LIMITS__RUNS"] == ("5", "5", "unended runs of a user")
    assert rows["CARREL_EXECUTION_AGENTS"][0] == "a,b"
    assert rows["CARREL_TICKET_JWKS"][0] == ".carrel/keys/tickets.jwks.json"
    assert len(rows) == len(variables(ExecutionSettings, "execution"))


def test_prefix_of_a_service_of_two_words() -> None:
    class AgentInstanceSettings(SharedSettings):
        listen: str = "127.0.0.1:50052"

    settings = load_settings(AgentInstanceSettings, "agent_instance", {"CARREL_AGENT_INSTANCE_LISTEN": "x:1"})
    assert settings.listen == "x:1"
    assert "CARREL_AGENT_INSTANCE_LISTEN" in {row.name for row in describe(settings)}


def test_name_that_is_no_service_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="none of EXECUTION"):
        load_settings(ExecutionSettings, "executor", {})
