"""Runs inside an image (`python -c`) and prints what is there as JSON. Arguments: packages to load, modules to miss."""

import importlib
import importlib.util
import json
import os
import pkgutil
import shutil
import sys
import sysconfig
from pathlib import Path

PROGRAMS = ("gcc", "cc", "g++", "clang", "ld", "make", "pip", "pip3", "cargo", "git")
BUILDERS = ("pip", "setuptools", "wheel", "ensurepip")
CACHES = ("/var/lib/apt/lists", "/var/cache/apt", "/var/cache/debconf")
PLACES = ("/", "/opt/carrel", "/usr", "/etc", "/var", "/root")
UNCHECKED_HASH = bytes([1, 0, 0, 0])


def there(name: str) -> bool:
    """Whether it could be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def load(package: str) -> int:
    """Import all of its modules; how many there are."""
    path = importlib.import_module(package).__path__
    names = [each.name for each in pkgutil.walk_packages(path, package + ".")]
    names = [name for name in names if not name.endswith("__main__") and ".migrations." not in name]
    for name in names:
        importlib.import_module(name)
    return len(names)


def look(packages: list[str], foreign: list[str]) -> dict[str, object]:
    """Everything that is asked of an image."""
    site, library = (Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib"))
    compiled = [*site.rglob("*.pyc"), *library.rglob("*.pyc")]
    bare = [path for path in site.rglob("*.py") if not Path(importlib.util.cache_from_source(str(path))).exists()]
    return {
        "user": [os.getuid(), os.getgid()],
        "modules": sum(load(package) for package in packages),
        "programs": [name for name in PROGRAMS if shutil.which(name)],
        "pip": [name for name in BUILDERS if there(name)],
        "foreign": [name for name in foreign if there(name)],
        "caches": [str(path) for folder in CACHES if Path(folder).is_dir() for path in Path(folder).glob("*")],
        "compiled": len(compiled),
        "looks at times": [str(path) for path in compiled if path.read_bytes()[4:8] != UNCHECKED_HASH][:5],
        "not compiled": [str(path) for path in bare][:5],
        "writable": [place for place in PLACES if os.access(place, os.W_OK)],
    }


if __name__ == "__main__":
    print(json.dumps(look(*json.loads(sys.argv[1]))))
