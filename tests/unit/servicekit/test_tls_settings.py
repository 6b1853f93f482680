"""TLS as settings and files: what is half configured, does not fit, or is missing in production, and what to do."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from carrel.cli.authority import Authority, write_bundle, write_certificate
from carrel.errors import InvalidConfigurationError, StartupError
from servicekit.settings import SharedSettings, load_settings
from servicekit.tls.files import TlsFiles, service_named
from servicekit.tls.settings import TlsSettings, server_name, spiffe_id
from tests.support.certificates import DOMAIN, certificate_for, tls_of


class _Settings(SharedSettings):
    """Nothing of its own."""


def _load(environ: Mapping[str, str]) -> _Settings:
    return load_settings(_Settings, "test", environ)


def test_without_files_there_is_no_tls_in_development() -> None:
    settings = _load({})
    assert not settings.tls.enabled
    assert tls_of(settings.tls).server_credentials() is None
    assert tls_of(settings.tls).to("bridge") is None


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"CARREL_TLS__CERT": "c", "CARREL_TLS__KEY": "k"}, "half configured.*set CARREL_TLS__CA too"),
        ({"CARREL_TLS__CA": "c"}, "set CARREL_TLS__CERT and CARREL_TLS__KEY too"),
        ({"CARREL_TLS__MODE": "off"}, "'auto' or 'mesh'"),
        (
            dict.fromkeys(("CARREL_TLS__CERT", "CARREL_TLS__KEY", "CARREL_TLS__CA"), "x")
            | {"CARREL_TLS__MODE": "mesh"},
            "leave one of them out",
        ),
        ({"CARREL_TLS__TRUST_DOMAIN": "Not A Domain"}, "CARREL_TLS__TRUST_DOMAIN"),
        ({"CARREL_ENVIRONMENT": "production"}, "production needs TLS.*CARREL_TLS__MODE=mesh"),
    ],
)
def test_what_is_not_whole_is_refused_with_what_to_write(environ: Mapping[str, str], says: str) -> None:
    with pytest.raises(StartupError, match=says) as refused:
        _load(environ)
    assert refused.value.phase == "CONFIGURATION"


def test_production_with_files_or_with_a_mesh_starts() -> None:
    files = {"CARREL_TLS__CERT": "c", "CARREL_TLS__KEY": "k", "CARREL_TLS__CA": "a"}
    assert _load({"CARREL_ENVIRONMENT": "production", **files}).tls.enabled
    assert not _load({"CARREL_ENVIRONMENT": "production", "CARREL_TLS__MODE": "mesh"}).tls.enabled


def test_names_of_a_service() -> None:
    assert spiffe_id("agent_instance", "carrel.internal") == "spiffe://carrel.internal/agent_instance"
    assert server_name("agent_instance", "carrel.internal") == "agent-instance.carrel.internal"
    assert service_named(["spiffe://carrel.internal/bridge"], DOMAIN) == "bridge"
    for wrong in (
        [],
        ["spiffe://carrel.internal/"],
        ["spiffe://carrel.internal/bridge/"],
        ["spiffe://carrel.internal.evil.example/bridge"],
        ["spiffe://carrel.internalx/bridge"],
        ["spiffe://other/bridge"],
        ["spiffe://carrel.internal/root"],
        ["spiffe://carrel.internal/bridge", "spiffe://carrel.internal/gateway"],
        ["https://carrel.internal/bridge"],
    ):
        assert service_named(wrong, DOMAIN) == ""


def test_files_that_do_not_belong_together_are_refused_with_what_to_do(tmp_path: Path) -> None:
    settings = certificate_for(tmp_path / "bridge", "bridge")
    assert tls_of(settings, "bridge").enabled
    with pytest.raises(InvalidConfigurationError, match=r"carries no URI spiffe://carrel\.internal/gateway"):
        TlsFiles(settings, "gateway")
    other = certificate_for(tmp_path / "other", "bridge")
    with pytest.raises(InvalidConfigurationError, match="is not the key of the certificate"):
        TlsFiles(settings.model_copy(update={"key": other.key}))
    with pytest.raises(InvalidConfigurationError, match="cannot be read: No such file"):
        TlsFiles(settings.model_copy(update={"ca": tmp_path / "none"}))
    with pytest.raises(InvalidConfigurationError, match="holds no PEM certificates"):
        TlsFiles(settings.model_copy(update={"ca": settings.key}))
    with pytest.raises(InvalidConfigurationError, match="ended at"):
        TlsFiles(certificate_for(tmp_path / "late", "bridge", life=timedelta(seconds=-1)))
    assert settings.key
    settings.key.chmod(0o644)
    with pytest.raises(InvalidConfigurationError, match="every user"):
        TlsFiles(settings)


def test_changes_are_followed_by_content_and_through_links_as_kubernetes_makes_them(tmp_path: Path) -> None:
    ca, now = Authority.new(), 0.0
    for version in ("1", "2", "3"):
        write_bundle(tmp_path / version, [ca.pem])
        write_certificate(tmp_path / version, *ca.issue("bridge", DOMAIN))
    data = tmp_path / "..data"
    data.symlink_to("1")
    settings = TlsSettings(cert=data / "tls.crt", key=data / "tls.key", ca=data / "ca.crt")
    files = TlsFiles(settings, "bridge", clock=lambda: now)

    def swap(version: str) -> None:
        (tmp_path / "..new").symlink_to(version)
        (tmp_path / "..new").replace(data)

    first = files.current()
    swap("2")
    assert files.current() is first, "not looked at yet"
    now += 1
    second = files.current()
    assert second.chain == (tmp_path / "2" / "tls.crt").read_bytes()
    assert second.generation > first.generation
    # The same content in other files is no change.
    (tmp_path / "2" / "tls.crt").write_bytes(second.chain)
    now += 1
    assert files.current() is second
    # Half of a change is none, until the other half is there.
    (tmp_path / "2" / "tls.crt").write_bytes((tmp_path / "3" / "tls.crt").read_bytes())
    now += 1
    assert files.current() is second
    (tmp_path / "2" / "tls.key").write_bytes((tmp_path / "3" / "tls.key").read_bytes())
    now += 1
    assert files.current().chain == (tmp_path / "3" / "tls.crt").read_bytes()
    # And files that are gone leave what was there.
    data.unlink()
    now += 1
    assert files.current().chain == (tmp_path / "3" / "tls.crt").read_bytes()


def test_certificate_of_tomorrow_is_not_taken_before_it_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    settings = certificate_for(tmp_path / "bridge", "bridge")
    files = TlsFiles(settings, "bridge", clock=lambda: now)
    first = files.current()
    monkeypatch.setattr("carrel.cli.authority._EARLIER", timedelta(hours=-1))
    certificate_for(tmp_path / "bridge", "bridge", life=timedelta(hours=3))
    now += 1
    assert files.current() is first, "every peer would refuse the other"
    with pytest.raises(InvalidConfigurationError, match="not valid before"):
        TlsFiles(settings, "bridge")
    monkeypatch.undo()
    certificate_for(tmp_path / "bridge", "bridge")
    now += 1
    assert files.current() is not first


def test_file_that_is_replaced_by_anything_else_leaves_what_was(tmp_path: Path) -> None:
    now = 0.0
    settings = certificate_for(tmp_path / "bridge", "bridge")
    files = TlsFiles(settings, "bridge", clock=lambda: now)
    first = files.current()
    assert settings.key
    for path in (settings.cert, settings.key, settings.ca):
        assert path
        content = path.read_bytes()
        for data in (b"", content[:200], b"\0" * 1000, b"[" * 100_000, content * 10_000):
            path.write_bytes(data)
            path.chmod(0o600)
            now += 1
            assert files.current() is first
        path.unlink()
        os.mkfifo(path, 0o600)
        now += 1
        assert files.current() is first
        path.unlink()
        path.write_bytes(content)
        path.chmod(0o600)
    now += 1
    assert files.current() is first


def test_keys_are_not_shown(tmp_path: Path) -> None:
    material = TlsFiles(certificate_for(tmp_path, "bridge")).current()
    assert "PRIVATE" not in repr(material)
    assert "PRIVATE" not in repr(Authority.new())
