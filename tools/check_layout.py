"""Checks what import-linter cannot say about the shape of this repository.

    python -m tools.check_layout [root]

It holds: which files a service's folder may have, the order in which a service's modules may import one another,
that the library's core loads nothing heavy, that generated stubs lean on nothing of ours, and how long a file may be.
Imports between packages are import-linter's work (pyproject.toml); style is ruff's.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("carrel", "servicekit", "services", "gateway", "examples", "benchmarks", "conformance", "tools")
MAX_LINES = 400
MAX_TEST_LINES = 800
MAX_MAIN_LINES = 15

# From top to bottom; a module may import only what stands below its own line, and its own family.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("app",),
    ("service", "proxy"),
    ("client_*", "store_*", "workers"),
    ("convert", "config"),
    ("domain",),
    ("store",),
    ("models",),
)
RANK = {family: rank for rank, families in enumerate(LAYERS) for family in families}
# One family: the implementations of a store, with the tables and migrations that are theirs.
STORES = {"tables", "migrations"}
FOLDERS = {"domain", "workers", "migrations"}
FILES = RANK.keys() - {"workers"} | {"tables"}

# Modules of carrel that may load grpc, protobuf, settings or an HTTP client; all others are its core.
HEAVY = {"v1", "wire", "rpc_errors", "client", "cli", "testing"}
HEAVY_OUTSIDE = {"grpc", "grpc_status", "google", "protovalidate", "pydantic_settings", "aiohttp", "sqlalchemy"}
STUBS_MAY_IMPORT = {"carrel.v1", "grpc", "google"}


@dataclass(frozen=True, order=True)
class Problem:
    """One breach: where, and what to do about it."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Import:
    """One imported module name; `from a import b` counts as `a.b`, since b may be a module."""

    name: str
    line: int
    at_load: bool

    def within(self, *packages: str) -> bool:
        """Whether the name is one of the packages or lies inside one."""
        return any(self.name == package or self.name.startswith(f"{package}.") for package in packages)


class _Imports(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: list[Import] = []
        self._depth = 0

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(alias.name, node.lineno, self._depth == 0) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            self.found += [Import(name, node.lineno, self._depth == 0) for name in names]

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            self.generic_visit(node)
            return
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef


def imports_of(path: Path) -> list[Import]:
    """Every import of a module but those made for the type checker only."""
    visitor = _Imports()
    visitor.visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    return visitor.found


def family_of(module: str) -> str:
    """The name by which LAYERS knows a module: `store_sqlite`, `tables` → `store_*`; `domain.runs` → `domain`."""
    head = re.sub(r"^(convert|config|models|proxy|service)_.+", r"\1", module.split(".", 1)[0])
    return "store_*" if head in STORES else re.sub(r"^(store|client)_.+", r"\1_*", head)


def check_files(service: Path) -> Iterator[Problem]:
    """A service's folder holds only what the list names, so that the four look alike."""
    allowed = ", ".join(f"{name}.py" for name in sorted(FILES)) + "; folders " + ", ".join(sorted(FOLDERS | {"lua"}))
    for entry in sorted(service.iterdir()):
        if entry.name in {"__pycache__", "__init__.py"}:
            continue
        if entry.is_dir():
            fits = entry.name in FOLDERS or (entry.name == "lua" and _only_lua(entry))
        else:
            fits = entry.suffix == ".py" and entry.stem != "migrations" and family_of(entry.stem) in FILES
        if not fits:
            yield Problem(entry, 1, f"is not on the list of what a service may hold ({allowed})")
    for name in ("workers", "proxy.py"):
        if (service / name).exists() and service.name != "agent_instance":
            yield Problem(service / name, 1, f"only agent_instance has {name}")
    if (service / "domain").is_dir() and (service / "domain.py").exists():
        yield Problem(service / "domain.py", 1, "domain is either a file or a folder")
    main = service / "__main__.py"
    if main.exists() and _lines(main) > MAX_MAIN_LINES:
        yield Problem(
            main, MAX_MAIN_LINES + 1, f"has {_lines(main)} lines; it only starts app ({MAX_MAIN_LINES} at most)"
        )


def _only_lua(folder: Path) -> bool:
    return all(entry.suffix == ".lua" for entry in folder.iterdir())


def check_order(service: Path) -> Iterator[Problem]:
    """Imports inside a service go from top to bottom of LAYERS, never up and never across to another family."""
    package = f"services.{service.name}"
    for path in _python(service):
        own = family_of(".".join(path.relative_to(service).with_suffix("").parts))
        if own not in RANK:
            continue
        for found in imports_of(path):
            if not found.within(package) or found.name == package:
                continue
            other = family_of(found.name.removeprefix(f"{package}."))
            if other in RANK and other != own and RANK[other] <= RANK[own]:
                yield Problem(path, found.line, f"{own} may not import {other}: the order is {_order()}")


def _order() -> str:
    return " > ".join(" | ".join(families) for families in LAYERS)


def check_core(library: Path) -> Iterator[Problem]:
    """`import carrel` must stay quick: core modules load no heavy module when they are loaded."""
    heavy = [f"carrel.{name}" for name in sorted(HEAVY)]
    for path in _python(library):
        if path.relative_to(library).with_suffix("").parts[0] in HEAVY:
            continue
        for found in imports_of(path):
            if found.at_load and (found.within(*heavy) or found.within(*HEAVY_OUTSIDE)):
                yield Problem(path, found.line, f"carrel's core may not load {found.name}; import it where it is used")


def check_stubs(stubs: Path) -> Iterator[Problem]:
    """The contract stands on its own: stubs import one another, grpc, protobuf and the standard library."""
    for path in sorted(stubs.glob("*.py")):
        for found in imports_of(path):
            standard = found.name.split(".", 1)[0] in sys.stdlib_module_names
            if not standard and not found.within(*STUBS_MAY_IMPORT):
                yield Problem(path, found.line, f"carrel.v1 may not import {found.name}")


def check_lengths(root: Path) -> Iterator[Problem]:
    """No file of ours outgrows what a reader takes in at once."""
    bounds = [*((name, MAX_LINES) for name in OURS), ("tests", MAX_TEST_LINES)]
    for name, bound in bounds:
        for path in _python(root / name):
            generated = "_pb2" in path.name or "versions" in path.parts
            if not generated and _lines(path) > bound:
                yield Problem(path, bound + 1, f"has {_lines(path)} lines; split it ({bound} at most)")


def _python(folder: Path) -> Iterable[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def check(root: Path) -> list[Problem]:
    """Every breach under the repository's root, sorted."""
    problems = [*check_core(root / "carrel"), *check_stubs(root / "carrel" / "v1"), *check_lengths(root)]
    services = root / "services"
    for service in sorted(p for p in services.glob("*") if p.is_dir() and p.name != "__pycache__"):
        problems += [*check_files(service), *check_order(service)]
    return sorted(set(problems))


def main(argv: list[str]) -> int:
    """Prints each breach; returns the exit code."""
    root = Path(argv[0]).resolve() if argv else ROOT
    problems = check(root)
    for problem in problems:
        print(Problem(problem.path.relative_to(root), problem.line, problem.text), file=sys.stderr)
    print(f"layout: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
