"""Rotating the keys that sign tickets, in a folder of files: publish a new key, sign with it, retire the old one.

The order is what makes that no ticket is ever refused: everybody must know a key before something is signed with it,
and must know it until the last ticket has ended that was. The JWKS file says since when each key is published
(``carrel_published``) and is no longer signed with (``carrel_superseded``), in seconds since the epoch; a step that
comes too early is refused. How files get to the services is not here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carrel.errors import StartupError
from servicekit.identity.keys import SigningKey, generate_key, load_signing_key, write_public
from servicekit.identity.principals import ANY_SCOPE, Scope

__all__ = ["ISSUERS", "KNOWN_AFTER_S", "LONGEST_TICKET_S", "KeyRotation", "KeyState"]

ISSUERS: Final = {"gateway": ANY_SCOPE, "execution": frozenset({Scope.RUN})}
# Kubernetes takes up to about 90 s to bring a changed secret to a pod, and services look every 5 s.
KNOWN_AFTER_S: Final = 120.0
# A run may be given a day; its ticket outlives it by 15 minutes, and clocks differ by seconds.
LONGEST_TICKET_S: Final = 25 * 3600.0

_PUBLISHED, _SUPERSEDED = "carrel_published", "carrel_superseded"


@dataclass(frozen=True, slots=True)
class KeyState:
    """One public key of the file. ``state``: signing, next, or superseded; times in seconds since the epoch or None."""

    kid: str
    issuer: str
    state: str
    published: float | None
    superseded: float | None


class KeyRotation:
    """The files in one folder: ``tickets.jwks.json``, and for each issuer ``<issuer>.jwk.json`` and, between publish
    and sign, ``<issuer>.next.jwk.json``.

    Args:
        folder: Where they are.
        clock: Seconds since the epoch.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock

    @property
    def jwks(self) -> Path:
        """The public keys."""
        return self._folder / "tickets.jwks.json"

    def signing(self, issuer: str) -> Path:
        """The key that the issuer signs with."""
        return self._folder / f"{issuer}.jwk.json"

    def next(self, issuer: str) -> Path:
        """The key that it will sign with."""
        return self._folder / f"{issuer}.next.jwk.json"

    def states(self) -> list[KeyState]:
        """Every public key, as it stands.

        Raises:
            CarrelError: The files cannot be read.
        """
        signing = {load_signing_key(self.signing(issuer)).kid for issuer in ISSUERS if _is_there(self.signing(issuer))}
        coming = {load_signing_key(self.next(issuer)).kid for issuer in ISSUERS if _is_there(self.next(issuer))}
        return [
            KeyState(
                jwk["kid"],
                jwk.get("iss", ""),
                "signing" if jwk["kid"] in signing else "next" if jwk["kid"] in coming else "superseded",
                jwk.get(_PUBLISHED),
                jwk.get(_SUPERSEDED),
            )
            for jwk in self._read()
        ]

    def publish(self, issuer: str) -> SigningKey:
        """Make the issuer's next key and add its public half to the file.

        Raises:
            StartupError: There is a next key already, or a file cannot be read or written.
        """
        keys = self._read()
        if _is_there(self.next(issuer)):
            kid = load_signing_key(self.next(issuer)).kid
            raise StartupError(
                f"{issuer} has a next key already: {kid}", advice=f"go on with `carrel keys sign --for {issuer}`"
            )
        key = generate_key(issuer=issuer, scopes=ISSUERS[issuer])
        # The private half first: without it a published key would be for nobody.
        key.save(self.next(issuer))
        self._write([*keys, key.public.to_jwk() | {_PUBLISHED: round(self._clock())}])
        return key

    def sign(self, issuer: str, known_after_s: float = KNOWN_AFTER_S) -> tuple[SigningKey, SigningKey]:
        """Let the issuer sign with its next key from now on: the key of before, and the new one.

        Raises:
            StartupError: There is none, it is not published, or not for ``known_after_s``.
        """
        path = self.next(issuer)
        if not _is_there(path):
            raise StartupError(
                f"{issuer} has no next key in {self._folder}", advice=f"begin with `carrel keys publish --for {issuer}`"
            )
        new, old, keys = load_signing_key(path), load_signing_key(self.signing(issuer)), self._read()
        published = next((jwk.get(_PUBLISHED, 0) for jwk in keys if jwk["kid"] == new.kid), None)
        if published is None:
            raise StartupError(
                f"the next key of {issuer}, {new.kid}, is not in {self.jwks}: nobody would take what it signs",
                advice=f"remove {path} and begin with `carrel keys publish --for {issuer}`",
            )
        if (left := published + known_after_s - self._clock()) > 0:
            raise StartupError(
                f"the key {new.kid} is published for less than {known_after_s:g} s: not every service may know it yet",
                advice=f"see that every service has the new {self.jwks.name}, and try again in {left:.0f} s",
            )
        now = round(self._clock())
        self._write([jwk | {_SUPERSEDED: now} if jwk["kid"] == old.kid else jwk for jwk in keys])
        path.replace(self.signing(issuer))
        return old, new

    def retire(
        self, longest_ticket_s: float = LONGEST_TICKET_S, known_after_s: float = KNOWN_AFTER_S
    ) -> tuple[list[str], list[tuple[str, float]]]:
        """Remove public keys under which no ticket can be good any more: those removed, and those kept with the seconds
        until they may be.

        Args:
            longest_ticket_s: How long a ticket may live.
            known_after_s: How long a changed file may take to get to whoever signs.

        Raises:
            StartupError: The files cannot be read or written, or it cannot be seen which keys are signed with: in a
                service's own folder all keys but its own would look as if nobody used them.
        """
        self._refuse_a_part()
        in_use = {state.kid for state in self.states() if state.state != "superseded"}
        now, kept = self._clock(), list[dict[str, Any]]()
        removed, waiting = list[str](), list[tuple[str, float]]()
        for jwk in self._read():
            kid, superseded = jwk["kid"], jwk.get(_SUPERSEDED)
            if kid in in_use:
                kept.append(jwk)
                continue
            if superseded is None:
                # Replaced by hand: from now on it is known since when.
                superseded = round(now)
            # Whoever signs may have gone on with it until the new one had come there.
            left = superseded + known_after_s + longest_ticket_s - now
            if left > 0:
                kept.append(jwk | {_SUPERSEDED: superseded})
                waiting.append((kid, left))
            else:
                removed.append(kid)
        self._write(kept)
        return removed, waiting

    def _refuse_a_part(self) -> None:
        for issuer in ISSUERS:
            used = [jwk["kid"] for jwk in self._read() if jwk.get("iss") == issuer and _SUPERSEDED not in jwk]
            if used and not _is_there(self.signing(issuer)):
                raise StartupError(
                    f"{self._folder} has no {self.signing(issuer).name}: {issuer} may be signing with {used[0]}",
                    advice="name the folder that holds all of the deployment's keys, not what a service was handed",
                )

    def _read(self) -> list[dict[str, Any]]:
        try:
            keys = json.loads(self.jwks.read_bytes())["keys"]
            if not isinstance(keys, list) or not all(isinstance(jwk["kid"], str) for jwk in keys):
                raise ValueError
        except OSError as error:
            raise StartupError(
                f"{self.jwks} cannot be read: {error.strerror}",
                advice="name the folder that holds the deployment's keys; `carrel keys init` makes one",
            ) from None
        except (ValueError, KeyError, TypeError):
            raise StartupError(f"{self.jwks} is no JWKS file", advice="bring it back, or make the keys anew") from None
        return keys

    def _write(self, keys: list[dict[str, Any]]) -> None:
        try:
            write_public(self.jwks, json.dumps({"keys": keys}, indent=1).encode())
        except OSError as error:
            raise StartupError(
                f"{self.jwks} cannot be written: {error.strerror}", advice="mend the folder's permissions"
            ) from None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise StartupError(
            f"{path} cannot be looked at: {error.strerror}", advice="run this as the user whom the keys belong to"
        ) from None
