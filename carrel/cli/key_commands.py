"""The commands of ``carrel keys`` that keep a deployment's keys and certificates fresh while it runs.

What they do is in ``key_rotation`` and ``authority``; making a deployment's first keys is ``keys``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from carrel.cli.key_rotation import KeyRotation

__all__ = ["add_commands"]

_Folder = Annotated[Path, typer.Argument(help="Holds the deployment's keys.", metavar="DIR")]
_KnownAfter = Annotated[
    float, typer.Option("--known-after", min=0, help="Seconds after which every service has a changed file.")
]
_For = Annotated[str, typer.Option("--for", help="Whose key: gateway or execution.", metavar="ISSUER")]


def add_commands(group: typer.Typer) -> None:
    """Add them to the group."""
    for command in (publish, sign, retire, show, certs):
        _ = group.command()(command)


def publish(folder: _Folder, issuer: _For) -> None:
    """Rotate, step 1: make a new key and publish its public half. Nothing is signed with it yet."""
    with _told() as say:
        from carrel.cli.key_rotation import KNOWN_AFTER_S

        key = _rotation(folder, issuer).publish(issuer)
        say(
            f"{key.kid} is published for {issuer}. Bring tickets.jwks.json to every service;"
            f" then, {KNOWN_AFTER_S:g} s from now at the earliest: carrel keys sign"
        )


def sign(
    folder: _Folder,
    issuer: _For,
    known_after: _KnownAfter = 120.0,
) -> None:
    """Rotate, step 2: sign with the new key. Refused while not every service may know it."""
    with _told() as say:
        old, new = _rotation(folder, issuer).sign(issuer, known_after)
        say(
            f"{issuer} signs with {new.kid} once it has the new {issuer}.jwk.json; {old.kid} stays published for the"
            " tickets that it has signed, until carrel keys retire"
        )


def retire(
    folder: _Folder,
    longest_ticket: Annotated[
        float, typer.Option("--longest-ticket", min=0, help="Seconds that a ticket may live, at most.")
    ] = 90_000.0,
    known_after: _KnownAfter = 120.0,
) -> None:
    """Rotate, step 3: remove public keys that no ticket needs any more; of others it is said how long they are kept."""
    with _told() as say:
        from carrel.cli.key_rotation import KeyRotation

        removed, waiting = KeyRotation(folder).retire(longest_ticket, known_after)
        for kid in removed:
            say(f"{kid} is retired; bring tickets.jwks.json to every service")
        for kid, left in waiting:
            say(f"{kid} is kept: tickets that it has signed may be good for another {left:.0f} s")
        if not removed and not waiting:
            say("nothing to retire")
        if waiting and not removed:
            raise typer.Exit(3)


def show(folder: _Folder) -> None:
    """Show the keys, and where each is on its way."""
    with _told() as say:
        from carrel.cli.key_rotation import KeyRotation

        for key in KeyRotation(folder).states():
            say(f"{key.kid}  {key.issuer or 'anybody'}  {key.state}{_since(key.superseded or key.published)}")


def certs(
    folder: Annotated[
        Path, typer.Argument(help="Gets a folder for each service, and ca/ with the authority.", metavar="DIR")
    ],
    services: Annotated[
        list[str] | None, typer.Option("--service", help="Only this one; may be repeated. All by default.")
    ] = None,
    days: Annotated[float, typer.Option("--days", min=0.01, max=365, help="How long they are good.")] = 7.0,
    trust_domain: Annotated[str, typer.Option("--trust-domain", help="As CARREL_TLS__TRUST_DOMAIN.")] = (
        "carrel.internal"
    ),
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A further DNS name or number in each; may be repeated.")
    ] = None,
    new_ca: Annotated[
        bool, typer.Option("--new-ca", help="Begin with a new authority; the former one is trusted beside it.")
    ] = False,
    drop_old_ca: Annotated[
        bool, typer.Option("--drop-old-ca", help="Trust the present authority only, from now on.")
    ] = False,
) -> None:
    """Make the services' certificates for TLS between them, or renew them: running services take them up by themselves.

    For development and small deployments. A new authority in three steps, each at every service before the next:
    --new-ca (both are trusted), without options (certificates of the new one), --drop-old-ca.
    """
    with _told() as say:
        from carrel.cli.certificates import make_certificates

        made = make_certificates(
            folder,
            services=tuple(services or ()),
            life=timedelta(days=days),
            trust_domain=trust_domain,
            names=tuple(name or ()),
            new_ca=new_ca,
            drop_old_ca=drop_old_ca,
        )
        for line in made:
            say(line)


def _rotation(folder: Path, issuer: str) -> KeyRotation:
    from carrel.cli.key_rotation import ISSUERS, KeyRotation

    if issuer not in ISSUERS:
        raise typer.BadParameter(f"must be one of {', '.join(ISSUERS)}", param_hint="--for")
    return KeyRotation(folder)


def _since(moment: float | None) -> str:
    return "" if moment is None else f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(moment))}"


@contextmanager
def _told() -> Iterator[Callable[[str], None]]:
    import sys

    from carrel.cli.output import Printer, exit_code_of
    from carrel.errors import CarrelError

    try:
        yield Printer().say
    except CarrelError as error:
        Printer(sys.stderr).error(error)
        raise typer.Exit(exit_code_of(error)) from None
