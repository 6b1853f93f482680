"""TLS between the services of a stack on this machine: certificates in its state folder, made anew at each start."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final

from carrel.cli.state import StateFolder

__all__ = ["operator_tls", "prepare_certificates", "tls_environment"]

_LIFE: Final = timedelta(days=30)


def prepare_certificates(state: StateFolder) -> None:
    """Make the authority if there is none, and everybody's certificate.

    Raises:
        StartupError: The folder cannot be written.
    """
    from carrel.cli.certificates import make_certificates

    for _ in make_certificates(state.certificates, life=_LIFE):
        pass


def tls_environment(state: StateFolder, service: str) -> dict[str, str]:
    """The settings that give a process its certificate."""
    folder = state.certificates / service
    return {
        "CARREL_TLS__CERT": str(folder / "tls.crt"),
        "CARREL_TLS__KEY": str(folder / "tls.key"),
        "CARREL_TLS__CA": str(folder / "ca.crt"),
    }


def operator_tls(state: StateFolder) -> Path | None:
    """The folder of the operator's certificate if the running stack has TLS between its services."""
    running = state.read_stack() or {}
    settings = running.get("settings", {})
    has_tls = any("CARREL_TLS__CERT" in own for own in settings.values() if isinstance(own, dict))
    return state.certificates / "operator" if has_tls else None
