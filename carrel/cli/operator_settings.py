"""Settings of the commands for operators: ``CARREL_OPERATOR_<FIELD>``, beside the shared ones. Options go first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from servicekit.addresses import tcp_listen
from servicekit.settings import SharedSettings

__all__ = ["OperatorSettings", "one_address"]


def one_address(text: str) -> str:
    """The address, which is one to call, or empty; for validators.

    Raises:
        ValueError: It is not of a form that names one service.
    """
    if not text:
        return text
    try:
        checked = tcp_listen(text.removeprefix("dns:///"))
    except ValueError:
        checked = ":0"
    if checked.endswith(":0"):
        raise ValueError("write host:port or [IPv6 address]:port, the port from 1 to 65535, or dns:///name:port")
    return text


class OperatorSettings(SharedSettings):
    """Where the execution of a deployment is, and who asks it. Nothing is set for the stack of the state folder."""

    execution: Annotated[str, AfterValidator(one_address)] = Field(
        "",
        description="host:port of execution, for `carrel revoke` and `carrel audit` against a deployment; the stack of"
        " the state folder when not set",
    )
    url: str = Field("", description="the deployment's gateway, which gives a ticket for the token")
    token_file: Path | None = Field(
        None,
        description="file with the operator's own login token, which has operator:read (audit) or operator:revoke"
        " (revoke); not readable by everybody",
    )

    @model_validator(mode="after")
    def _encrypted_in_production(self) -> Self:
        # The stack of the state folder says itself whether it has TLS.
        if self.execution:
            self.check_encryption()
        return self
