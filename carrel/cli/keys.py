"""``carrel keys``: the keys and secrets of a deployment that ``carrel up`` does not start, made and handed out.

One folder holds all of them, with the names that a state folder's ``keys`` has. ``--hand-out`` copies to each service
what it may hold and nothing else. What is there already stays; the commands that rotate are in ``key_commands``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from carrel.cli.key_commands import add_commands

__all__ = ["HOLDERS", "hand_out", "keys_app", "make_keys"]

keys_app = typer.Typer(name="keys", help="Make the keys and secrets of a deployment.", no_args_is_help=True)
add_commands(keys_app)

_TICKETS, _GATEWAY, _EXECUTION, _LOGIN = (
    "tickets.jwks.json",
    "gateway.jwk.json",
    "execution.jwk.json",
    "login.secret",
)
_POSTGRES, _REDIS = "postgres.password", "redis.password"
# Who holds what. The folder of everything is nobody's but the operator's.
HOLDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "gateway": (_TICKETS, _GATEWAY, _LOGIN),
    "execution": (_TICKETS, _EXECUTION, _POSTGRES),
    "agent_instance": (_TICKETS,),
    "emitter": (_TICKETS,),
    "bridge": (_TICKETS, _REDIS),
    "postgres": (_POSTGRES,),
    "redis": (_REDIS,),
    "operator": (),
}
# Beside them each that has a certificate in the folder below gets it.
_CERTIFICATES: Final = "tls"
_TLS_FILES: Final = ("ca.crt", "tls.key", "tls.crt")
# Long, since nothing but the next start renews them; a cluster's live for days.
_CERTIFICATE_LIFE: Final = timedelta(days=90)
_CA_LIFE: Final = timedelta(days=3650)
# Servers of other makers run as users of their own, who could not read a file of mode 0600; the folder is theirs alone.
_FOREIGN: Final = ("postgres", "redis")


@keys_app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Gets all keys; made if it is missing.", metavar="DIR")],
    stores: Annotated[bool, typer.Option("--stores", help="Make passwords for PostgreSQL and Redis, too.")] = False,
    certs: Annotated[
        bool,
        typer.Option("--certs", help="Make certificates in tls/, too, and again when half of their 90 days are over."),
    ] = False,
    login: Annotated[
        bool, typer.Option(help="Make the shared secret of development logins; production takes none.")
    ] = True,
    handed: Annotated[
        Path | None,
        typer.Option(
            "--hand-out",
            help="Copy to each folder in here that is named after a service (gateway, execution, agent_instance, "
            "emitter, bridge, postgres, redis, operator) what that service may hold.",
            metavar="DIR",
        ),
    ] = None,
) -> None:
    """Make what is missing of a deployment's keys: those that sign tickets, and what verifies them."""
    from carrel.cli.output import Printer, exit_code_of
    from carrel.errors import CarrelError

    printer = Printer()
    try:
        made = make_keys(folder, stores=stores, login=login)
        if certs:
            made += _certificates(folder)
        printer.line("keys", f"{folder}: made {', '.join(made)}" if made else f"{folder}: everything is there")
        for holder, names in hand_out(folder, handed) if handed else ():
            printer.line(holder, ", ".join(names))
    except CarrelError as error:
        Printer().error(error)
        raise typer.Exit(exit_code_of(error)) from None


def make_keys(folder: Path, *, stores: bool = False, login: bool = True) -> list[str]:
    """Make the files that are missing in ``folder``; their names.

    Args:
        folder: Gets ``tickets.jwks.json`` and the two signing keys, which belong together, and secrets by themselves.
        stores: Whether to make passwords of stores.
        login: Whether to make the shared secret of development logins.

    Raises:
        StartupError: The folder can't be written, or holds some of the ticket keys but not all: none is replaced, since
            those that others have would then be worthless.
    """
    from carrel.errors import StartupError
    from servicekit.identity.keys import generate_key, write_jwks, write_private
    from servicekit.identity.principals import Scope

    tickets = (_TICKETS, _GATEWAY, _EXECUTION)
    made: list[str] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = [name for name in tickets if (folder / name).exists()]
        if there and len(there) < len(tickets):
            missing = ", ".join(name for name in tickets if name not in there)
            raise StartupError(
                f"{folder} holds {', '.join(there)} but lacks {missing}",
                advice="bring the missing files back, or move all three away to get new ones everywhere",
            )
        if not there:
            gateway = generate_key(issuer="gateway")
            execution = generate_key(issuer="execution", scopes={Scope.RUN})
            gateway.save(folder / _GATEWAY)
            execution.save(folder / _EXECUTION)
            write_jwks(folder / _TICKETS, [gateway, execution])
            made += tickets
        for name in (*((_LOGIN,) if login else ()), *((_POSTGRES, _REDIS) if stores else ())):
            if not (folder / name).exists():
                write_private(folder / name, secrets.token_hex(32).encode())
                made.append(name)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    return made


def _certificates(folder: Path) -> list[str]:
    from carrel.cli.certificates import keep_certificates

    made = keep_certificates(folder / _CERTIFICATES, life=_CERTIFICATE_LIFE, ca_life=_CA_LIFE)
    return [f"{_CERTIFICATES}/{name}" for name in made]


def hand_out(folder: Path, target: Path) -> Iterator[tuple[str, list[str]]]:
    """Copy to each holder's folder below ``target`` what it may hold; gives each holder with the names it has now.

    Folders that are not there are nobody's, and a file that is not there is not handed out.

    Raises:
        StartupError: None of the folders is there, or one can't be written.
    """
    from carrel.errors import StartupError

    holders = [name for name in HOLDERS if (target / name).is_dir()]
    if not holders:
        raise StartupError(
            f"{target} holds no folder of a service", advice=f"make those you want of {', '.join(HOLDERS)} in it"
        )
    for holder in holders:
        sources = [folder / name for name in HOLDERS[holder]]
        sources += [folder / _CERTIFICATES / holder / name for name in _TLS_FILES]
        sources = [source for source in sources if source.is_file()]
        try:
            for source in sources:
                _copy(source, target / holder / source.name, holder in _FOREIGN)
        except OSError as error:
            raise _cannot_write(target / holder, error) from None
        yield holder, [source.name for source in sources]


def _copy(source: Path, target: Path, is_foreign: bool) -> None:
    from servicekit.identity.keys import write_private

    data = source.read_bytes()
    if not target.exists() or target.read_bytes() != data:
        write_private(target, data)
    if is_foreign or source.name == _TICKETS:
        target.chmod(0o444)


def _cannot_write(folder: Path, error: OSError) -> Exception:
    from carrel.errors import StartupError

    return StartupError(
        f"{error.filename or folder} can't be read or written: {error.strerror}",
        advice="name a folder that this user may write, and files that it may read",
    )
