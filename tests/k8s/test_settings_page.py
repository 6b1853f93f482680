"""docs/settings.md is what the code says, and the code says something of every setting."""

from tools.k8s_check.code import SETTINGS
from tools.k8s_check.settings_page import PAGE, page, undocumented


def test_every_setting_says_what_it_is() -> None:
    assert undocumented() == []


def test_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tools.k8s_check.settings_page"


def test_page_has_every_service_and_shared_settings_once() -> None:
    text = page()
    assert text.count("`CARREL_DRAIN_SECONDS`") == 1
    assert all(f"## {app.replace('-', '_')}\n" in text for app in SETTINGS)
