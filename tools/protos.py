"""Generates the stubs under carrel/v1 from protos/, or says which of them are out of date.

    python -m tools.protos            # write carrel/v1/*_pb2*.py[i]
    python -m tools.protos --check    # exit 1 and name each file that differs

The validation rules' own file, buf/validate/validate.proto, is generated beside ours as carrel.v1.validate_pb2:
protovalidate no longer ships a module for google.protobuf, and a top-level `buf` package of ours could hide
somebody else's. This is not a general protobuf build tool: it knows this repository's layout only.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGET = ROOT / "carrel" / "v1"
VALIDATE_IMPORT = re.compile(r"^from buf\.validate import validate_pb2\b", re.MULTILINE)
PACKAGE_DOC = '"""Stubs generated from protos/carrel/v1 by `make protos`. Nothing here is written by hand."""\n'


class ProtocError(Exception):
    """The protocol compiler refused the sources; its own output has been printed."""


def generate(into: Path) -> dict[str, str]:
    """Compiles every proto into the empty folder `into` and returns file name -> text as it belongs in carrel/v1."""
    ours = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.glob("carrel/v1/*.proto"))
    if not ours:
        raise ProtocError("no .proto file under protos/carrel/v1")
    _protoc(into, [*ours, "buf/validate/validate.proto"], grpc=False)
    services = [name for name in ours if re.search(r"^service\s", (PROTOS / name).read_text(), re.MULTILINE)]
    if services:
        _protoc(into, services, grpc=True)
    generated = [*into.glob("carrel/v1/*"), *into.glob("buf/validate/*")]
    return {p.name: _rehome(p.read_text()) for p in sorted(generated) if p.is_file()}


def _protoc(into: Path, names: list[str], *, grpc: bool) -> None:
    outputs = (
        [f"--grpc_python_out={into}", f"--mypy_grpc_out=quiet,only_async:{into}"]
        if grpc
        else [f"--python_out={into}", f"--mypy_out=quiet:{into}"]
    )
    include = files("grpc_tools") / "_proto"
    command = [sys.executable, "-P", "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{include}", *outputs, *names]
    # protoc looks its plugins up on PATH; they live beside the interpreter, which need not be on it.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(command, cwd=PROTOS, env={**os.environ, "PATH": path}, check=False)
    if done.returncode:
        raise ProtocError("protoc failed")


def _rehome(text: str) -> str:
    return VALIDATE_IMPORT.sub("from carrel.v1 import validate_pb2", text)


def _present() -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(TARGET.glob("*_pb2*.py*")) if p.is_file()}


def write(wanted: dict[str, str]) -> list[str]:
    """Makes carrel/v1 hold exactly `wanted`; returns the names that changed."""
    TARGET.mkdir(parents=True, exist_ok=True)
    if not (TARGET / "__init__.py").exists():
        (TARGET / "__init__.py").write_text(PACKAGE_DOC)
    differing = difference(wanted)
    for name in differing:
        if name in wanted:
            (TARGET / name).write_text(wanted[name])
        else:
            (TARGET / name).unlink()
    return differing


def difference(wanted: dict[str, str]) -> list[str]:
    """The names of the stubs that are missing, stale or left over."""
    present = _present()
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="generate the stubs under carrel/v1")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when they differ")
    arguments = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="carrel-protos-") as folder:
            wanted = generate(Path(folder))
    except ProtocError as error:
        print(f"protos: {error}", file=sys.stderr)
        return 1
    if not arguments.check:
        changed = write(wanted)
        print(f"protos: {len(wanted)} stubs, {len(changed)} changed")
        return 0
    stale = difference(wanted)
    for name in stale:
        print(f"protos: carrel/v1/{name} is not what protos/ generates; run `make protos`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
