"""Names by which the parts of a deployment know `carrel doctor`: its agent, its permission, its users. No behaviour."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["DOCTOR_AGENT", "DOCTOR_LIMITS", "DOCTOR_PERMISSION", "DOCTOR_PREFIX", "DOCTOR_USER", "DOCTOR_USER_HEADER"]

DOCTOR_AGENT: Final = "carrel_doctor"
"""The built-in agent that the checks run. It does nothing for whoever lacks the permission."""

DOCTOR_PERMISSION: Final = "carrel:doctor"
"""Lets a token run the agent, and act as the doctor's own users."""

DOCTOR_PREFIX: Final = "carrel-doctor-"
"""Users and threads of the doctor begin so. An issuer must give no person such a name."""

DOCTOR_USER: Final = re.compile(r"carrel-doctor-[a-z0-9]{1,32}-[ab]")
"""A whole user of the doctor's, as a token with the permission may act as."""

DOCTOR_USER_HEADER: Final = "Carrel-Doctor-User"
"""The request header that names whom of them a call is for."""

DOCTOR_LIMITS: Final = {"max_engines_per_user": 2, "max_unended_runs_per_user": 4}
"""Limits of users that are acted as: the load that a leaked token can make, and what the checks expect."""
