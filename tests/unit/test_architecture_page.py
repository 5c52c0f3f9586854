"""Tests that docs/explanation/architecture.md draws the packages as they are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explanation/architecture.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def layers() -> list[list[str]]:
    """Return the layers that import-linter enforces, from the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in settings if one["type"] == "layers")
    return [line.split(" | ") for line in contract["layers"]]


def test_the_drawing_shows_the_layers_of_import_linter():
    drawing = section("Packages").split("```text\n", 1)[1].split("\n```", 1)[0]
    shown = [re.split(r" {2,}", line)[0].split(" │ ") for line in drawing.splitlines()]
    assert shown == layers()


def test_each_package_is_described():
    described = set(re.findall(r"^\| `cdi/(\w+)(?:\.py)?` ", section("Packages"), re.MULTILINE))
    assert {name for layer in layers() for name in layer if (ROOT / "cdi" / name).is_dir()} <= described


def test_each_everyday_change_names_a_place_that_exists():
    rows = re.findall(r"^\| (?!change|-)(.+?) \| (.+) \|$", section("Where do I change what?"), re.MULTILINE)
    assert len(rows) >= 20
    for change, place in rows:
        paths = re.findall(r"`(cdi/[^`]+)`", place)
        assert paths, change
        assert [path for path in paths if not (ROOT / path).exists()] == [], change


def test_each_module_that_is_named_exists():
    files = {str(path.relative_to(ROOT)) for folder in ("cdi", "scripts") for path in (ROOT / folder).rglob("*.py")}
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE)
    assert len(named) > 30
    assert [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)] == []
