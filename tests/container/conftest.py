"""Images that are built once for all tests here. Not the stack: tests of that start their own."""

from __future__ import annotations

import os

import pytest

from tests.container.engine import built_images


@pytest.fixture(scope="session")
def tag(request: pytest.FixtureRequest) -> str:
    """The tag of the images; skips where no engine answers."""
    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID", "") or f"{os.getpid()}-{id(request.session)}"
    return built_images(run_id)


@pytest.fixture(autouse=True)
def _no_settings_for_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGE_PREFIX", "TAG", "GATEWAY_PORT", "AGENTS_DIR"):
        monkeypatch.delenv(name, raising=False)
