"""Tests that docs/reference/storage-classes.md shows the table of provisioners."""

from __future__ import annotations

import re
from pathlib import Path

from cdi.reconcile.storage.capabilities import Capabilities, ParameterMatch
from cdi.reconcile.storage.capabilities_table import PROVISIONERS
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.storage.profiles import profile_patch, volume_sets

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "storage-classes.md"
MODES = {"ReadWriteMany": "RWX", "ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX"}


def condition(when: ParameterMatch) -> str:
    if when.any_of:
        return f"{when.parameter} {' or '.join(when.any_of)}"
    if when.prefix:
        return f"{when.parameter} {when.prefix}…"
    if when.includes:
        return f"{when.parameter} with {', '.join(when.includes)}"
    return f"{when.parameter} with {when.part}" if when.part else f"{when.parameter} given"


def cells(capabilities: Capabilities | None) -> str:
    if capabilities is None:
        return "not known | | "
    sets = ", ".join(f"{MODES[one.access_modes[0]]} {one.volume_mode}" for one in capabilities.sets)
    return f"{sets} | {capabilities.clone or ''} | {capabilities.minimum or ''}"


def table() -> str:
    """Return the rows that the page must have."""
    lines = [
        "| provisioner | product | where | modes, the best first | clones | least size |",
        "|---|---|---|---|---|---|",
    ]
    for one in sorted(PROVISIONERS.values(), key=lambda each: each.name):
        shown = f"| `{one.name}` | {one.product}"
        for variant in one.variants:
            where = " and ".join(condition(when) for when in variant.when)
            lines.append(f"{shown} | {where} | {cells(variant.capabilities)} |")
        where = "otherwise" if one.variants else ""
        lines.append(f"{shown} | {where} | {cells(one.otherwise)} |")
    return "\n".join(lines) + "\n"


def test_the_page_shows_every_provisioner_as_it_is():
    assert PAGE.read_text().endswith(table())


def test_the_command_of_the_page_is_the_one_of_the_condition():
    (shown,) = re.findall(r"^kubectl patch .*$", PAGE.read_text(), re.MULTILINE)
    sets = volume_sets(StorageClass(name="fast", provisioner="topolvm.io"), None)[:1]
    assert shown == profile_patch("fast", sets)
