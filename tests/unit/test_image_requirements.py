"""The lists that the images are built from say what constraints.txt and the modules' imports say."""

import textwrap
from pathlib import Path

import pytest

from tools.image_requirements import COMMON, FOLDER, ROOT, Deployable, deployables, imports_of, lists, pins


def test_what_the_images_get_is_made_from_the_lock_and_the_imports() -> None:
    kept = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.txt")}
    assert kept == lists(), "run `make lock`, or `python -m tools.image_requirements`"


def test_every_pin_of_an_image_is_the_locks() -> None:
    pinned = pins(ROOT / "constraints.txt")
    for path in FOLDER.glob("*.txt"):
        for name, block in pins(path).items():
            assert pinned[name] == block, f"{path.name}: {name}"
            assert "--hash=sha256:" in block


def test_an_import_inside_a_function_of_a_module_that_is_led_to_counts(tmp_path: Path) -> None:
    for name, text in {
        "services/__init__.py": "",
        "services/a/__init__.py": "",
        "services/a/app.py": "def go():\n    from carrel.used import thing\n",
        "carrel/__init__.py": "",
        "carrel/used.py": "def thing():\n    import aiohttp.web\n",
        "carrel/unused.py": "import sqlalchemy\n",
        "gateway/__init__.py": "",
        "gateway/config.py": "import pydantic\n",
        "gateway/app.py": "import uvloop\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    found = imports_of(Deployable("a", ("services.a",), ("carrel", "gateway"), ()), tmp_path)
    assert {"aiohttp.web", "pydantic"} <= found
    assert not {"sqlalchemy", "uvloop"} & found


def test_a_package_without_a_pin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constraints.txt").write_text("grpcio==1.0 \\\n    --hash=sha256:00\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(LookupError, match=r"constraints.txt lacks .*pydantic"):
        lists(tmp_path)


def test_every_image_is_listed_once() -> None:
    names = [each.name for each in deployables()]
    assert sorted(names) == ["agent-instance", "bridge", "cli", "emitter", "execution", "gateway"]
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for name in names:
        assert f"FROM runtime AS {name}\n" in dockerfile
        own, shared = pins(FOLDER / f"{name}.txt").keys(), pins(FOLDER / f"{COMMON}.txt").keys()
        assert not own & shared
