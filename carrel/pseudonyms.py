"""How a user is called in log lines: the same in every process and in the library, and nobody's name.

Not anonymity: who has the users' names can find the pseudonym of each.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

__all__ = ["hash_user"]


@lru_cache(maxsize=4096)
def hash_user(user_id: str) -> str:
    """A short pseudonym of a user: lines can be followed without naming anybody."""
    return "u-" + hashlib.blake2s(user_id.encode(), digest_size=6, person=b"carrel").hexdigest()
