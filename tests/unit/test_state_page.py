"""Tests that docs/reference/state.md names every annotation, label and finalizer in the code."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import cdi
from cdi.api import golden, names

PAGE = (Path(__file__).parents[2] / "docs/reference/state.md").read_text()
NAMES = re.compile(r"(ANN|LABEL)_[A-Z_]+|ANNOTATION|APPLIED|MAX_WORKERS|FINALIZER|TICKET_PREFIX")
PURE = (
    "cdi.api",
    "cdi.reconcile",
    "cdi.client",
    "cdi.local",
    "cdi.remote",
    "cdi.explain",
    "cdi.batch",
    "cdi.bundle",
    "cdi.kube",
)


def constants() -> dict[str, str]:
    """Return every constant that names an annotation, a label or a finalizer, by its value."""
    found = {}
    for package in PURE:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            for name, value in vars(importlib.import_module(module.name)).items():
                if NAMES.fullmatch(name) and isinstance(value, str):
                    found[value] = f"{module.name}.{name}"
    settings = {name: value for name, value in vars(golden).items() if isinstance(value, str)}
    return found | {
        value: f"{golden.__name__}.{name}"
        for name, value in settings.items()
        if value.startswith(golden.PREFIX) and name != "PREFIX"
    }


def shown() -> set[str]:
    """Return the names on the page: those in code style, and those that complete a row's common prefix."""
    found = set()
    for row in PAGE.splitlines():
        codes = re.findall(r"`([^`\s]+)`", row.split("|")[1] if row.startswith("|") else row)
        prefix = re.search(r"\(all `([^`]+)`\)", row)
        first = codes[0] if codes else ""
        for code in codes:
            found.add(code.rstrip("*"))
            if code.startswith("."):
                found |= {f"{first}{code}", f"{prefix[1] if prefix else ''}{code.removeprefix('.')}"}
    return {*found, *(f"{names.GROUP}/{name}" for name in found)}


def test_there_are_constants():
    assert len(constants()) > 100


@pytest.mark.parametrize("value", sorted(constants()))
def test_every_name_is_on_the_page(value):
    assert value in shown(), constants()[value]


def test_the_package_has_no_other_place_for_such_names():
    """A new package with such names must be added to the search."""
    root = Path(cdi.__file__).parent
    found = {
        ".".join(path.relative_to(root.parent).parts[:2])
        for path in root.rglob("*.py")
        if re.search(r"^(ANN|LABEL)_\w+(: Final)? = ", path.read_text(), re.MULTILINE)
    }
    assert found <= set(PURE)
