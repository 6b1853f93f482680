"""The wall clocks of single processes of a stack, to be set while they run; their monotonic clocks are left alone.

Done by a library that is preloaded (``clock_shift.c``, built when it is needed), so that Python, SQLite and gRPC see
the same time, and no code of the product knows about it. Skips where there is no C compiler.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.stack import SERVICES

__all__ = ["Clocks"]

_SOURCE: Final = Path(__file__).with_name("clock_shift.c")


class Clocks:
    """Args:
    folder: Gets the library and a file for each process.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            pytest.skip("needs a C compiler to shift a process's clock")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._library = folder / "clock_shift.so"
        built = subprocess.run(
            [compiler, "-O1", "-shared", "-fPIC", "-o", str(self._library), str(_SOURCE), "-ldl"],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            pytest.skip(f"the library that shifts clocks cannot be built: {built.stderr.strip()}")
        for service in SERVICES:
            self.set(service, 0.0)

    @property
    def environment(self) -> Mapping[str, str]:
        """What the stack's processes need."""
        return {"LD_PRELOAD": str(self._library), "FAULTS_CLOCKS": str(self._folder)}

    def set(self, service: str, seconds: float) -> None:
        """Let a service's processes be ahead of the world by so much, from now on."""
        module = service if service == "gateway" else f"services.{service}"
        path = self._folder / module
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))
