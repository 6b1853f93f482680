"""A scripted model where the libraries' own clients look for one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

# Now, and not while an agent's time runs: they load the libraries.
import examples.adapters.openai_desk
import examples.adapters.pydantic_desk  # noqa: F401
from tests.adapters.patience import let_go
from tests.support.model_server import ModelServer, by_rules, model_server


@pytest.fixture
async def model(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelServer]:
    """One that answers by rules, or by the script that a test gives it."""
    async with model_server(otherwise=by_rules, keep_alive=False) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "one")
        yield server
    await let_go()
