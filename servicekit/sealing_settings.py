"""The setting by which a service seals what it stores: ``CARREL_<SERVICE>_ENCRYPTION__KEY_FILE``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from servicekit.sealing import PLAIN, KeySeals, Seals
from servicekit.sealing_keys import SealingKeys
from servicekit.settings import Section

__all__ = ["EncryptionSettings"]


class EncryptionSettings(Section):
    """Whether what users and agents wrote is sealed before it is stored."""

    key_file: Path | None = Field(
        None,
        description="JWK set of symmetric keys (A256GCM), the newest first, mode 0600; nothing is sealed if unset."
        " `carrel encryption-key` makes one; followed while the service runs",
    )

    def seals(self) -> Seals:
        """What seals stored values.

        Raises:
            InvalidConfigurationError: The key file cannot be used.
        """
        return PLAIN if self.key_file is None else KeySeals(SealingKeys(self.key_file))
