"""The compose stack in the shape that the suites of the delivery know: clients, tickets, where the bridge is."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from servicekit.tls.peers import PeerTls
from servicekit.tls.settings import TlsSettings
from tests.container.engine import Compose
from tests.support.certificates import tls_of
from tests.support.stack import RunningStack

__all__ = ["ComposeStack", "open_stack"]

_CLIENT: Final = "client"


@dataclass
class ComposeStack(RunningStack):
    """Its processes are containers, so that what kills processes or reads their files is not for it."""

    compose: Compose = field(kw_only=True)
    gateway: str = field(kw_only=True)
    bridges: dict[str, str] = field(default_factory=dict, kw_only=True)

    @property
    def facts(self) -> dict[str, Any]:
        """The addresses, as ``look_up`` found them."""
        return {
            "url": self.gateway,
            "urls": [self.gateway],
            "addresses": self.bridges,
            "copies": {"bridge": list(self.bridges), "gateway": ["gateway"]},
        }

    def look_up(self) -> None:
        """Find where the bridges are now: a container that was started again may have another number."""
        found = {}
        for number, container in enumerate(self.compose.containers("bridge"), 1):
            networks = self.compose.inspect(container)["NetworkSettings"]["Networks"]
            name = next(name for name in networks if name.endswith("gateway-bridge"))
            found[f"bridge-{number}"] = f"{networks[name]['IPAddress']}:50054"
        self.bridges = found

    def tls_to(self, service: str) -> PeerTls | None:
        """With the certificate of an internal service."""
        folder = self.state.certificates / _CLIENT
        files = TlsSettings(cert=folder / "tls.crt", key=folder / "tls.key", ca=folder / "ca.crt")
        return tls_of(files, _CLIENT).to(service)

    def log(self) -> str:
        """What all containers have written."""
        return self.compose.logs()


def open_stack(compose: Compose, folder: Path, port: int) -> ComposeStack:
    """The stack, with the keys that clients and tickets need copied to ``folder``."""
    nobody = cast("subprocess.Popen[bytes]", None)
    stack = ComposeStack(folder, nobody, folder / "none", compose=compose, gateway=f"http://127.0.0.1:{port}")
    stack.state.keys.mkdir(mode=0o700, parents=True)
    (stack.state.certificates / _CLIENT).mkdir(mode=0o700, parents=True)
    wanted = {
        path: path.name for path in (stack.state.gateway_key, stack.state.execution_key, stack.state.login_secret)
    }
    for name in ("ca.crt", "tls.key", "tls.crt"):
        wanted[stack.state.certificates / _CLIENT / name] = f"tls/{_CLIENT}/{name}"
    for path, name in wanted.items():
        text = compose("run", "--rm", "-T", "--no-deps", "cli", "cat", f"/var/lib/carrel/keys/{name}")
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
    stack.look_up()
    return stack
