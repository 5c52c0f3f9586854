"""Tests that docs/reference/support.md lists every field and annotation, and no others."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdi.api import annotations as state
from cdi.api import names
from cdi.api.configuration import CDIConfig
from cdi.api.dataimportcron import DataImportCron
from cdi.api.datavolume import DataVolume
from cdi.api.installation import CDI
from cdi.api.kinds import KINDS as ALL_KINDS
from cdi.api.model import Model, wire_name
from cdi.api.storageprofile import StorageProfile
from cdi.reconcile.cdi.config import NO_EFFECT

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "support.md"
PACKAGE = Path(__file__).parents[4] / "cdi"
STATES = {"done", "no effect", "refused"}
WRITTEN_BY_PROGRAMS = {
    # Facts that controllers write; users do not set them to request anything.
    name
    for name in vars(names)
    if name.startswith(("ANN_POD_PHASE", "ANN_POD_RE", "ANN_POD_SCHEDULABLE", "ANN_RUNNING", "ANN_BOUND", "ANN_SOURCE_",
                        "ANN_SNAPSHOT_", "ANN_CHECKPOINT", "ANN_CLONE_")) or name in {
        "ANN_IMPORT_FATAL_ERROR", "ANN_IMPORT_POD", "ANN_REQUIRES_SCRATCH", "ANN_REQUIRES_DIRECT_IO", "ANN_UPLOAD_POD",
        "ANN_PREVIOUS_CHECKPOINT", "ANN_CURRENT_CHECKPOINT", "ANN_FINAL_CHECKPOINT", "ANN_POPULATOR_PROGRESS",
        "ANN_PVC_PRIME", "ANN_POPULATOR_KIND", "ANN_PREALLOCATION_APPLIED", "ANN_EXTENDED_CLONE_TOKEN",
        "ANN_DATA_SOURCE_NAMESPACE", "ANN_OWNED_BY_DATA_VOLUME", "ANN_OWNER_UID", "ANN_CREATED_FOR_DATA_VOLUME",
        "ANN_CREATED_BY_CONTROLLER", "ANN_OVN_OPEN_DEFAULT_PORTS", "ANN_IMAGE_VALIDATOR", "ANN_PERSISTENT_VOLUMES", "ANN_PROVISIONER", "ANN_PROVISIONER_BEFORE", "ANN_UPLOAD_CLIENT_NAME", "ANN_EVENT_SOURCE",
        "ANN_EVENT_SOURCE_KIND", "ANN_GARBAGE_COLLECTED",
    }
}  # fmt: skip
STATE = (
    state.DESIRED_DIGEST, state.FILLED_FOR, state.IMAGE_STREAM_REFERENCE, state.LAST_POLL, state.LAST_USE,
    state.LEARNED_SETS, state.NEXT_POLL, state.POLL_RECORD, state.STORAGE_CLASS,
)  # fmt: skip
"""Annotations with an accessor that are on this page as well; the linters find accessors that nothing uses."""
SET_BY_USERS = {"ANN_CLONE_REQUEST", "ANN_CLONE_STRATEGY", "ANN_POD_RETAIN"}
"""Annotations that match the prefixes above although users do set them."""


def section(title: str) -> list[list[str]]:
    """Return the rows of a section's table, cell by cell."""
    text = PAGE.read_text().split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    assert rows
    return rows


def fields(model: type[Model], path: str) -> Iterator[str]:
    """Yield the paths of a model's fields, down to those without fields of their own."""
    for name, field in model.model_fields.items():
        below = f"{path}.{wire_name(name)}"
        inner = next(iter(models(field.annotation)), None)
        if inner is None or not inner.model_fields:
            yield below
        else:
            yield from fields(inner, below)


def models(annotation: object) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, list):
        for each in typing.get_args(annotation):
            yield from models(each)


def covers(row: str, path: str) -> bool:
    return path == row or path.startswith(f"{row}.")


KINDS = [CDI, CDIConfig, StorageProfile, DataVolume, DataImportCron]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_there(kind):
    rows = [row[0].strip("`") for row in section(kind.__name__)]
    spec = next(iter(models(kind.model_fields["spec"].annotation)))
    missing = [path for path in fields(spec, "spec") if not any(covers(row, path) for row in rows)]
    assert missing == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_line_is_about_a_field(kind):
    parts = {name: next(models(kind.model_fields[name].annotation)) for name in ("spec", "status")}
    # The page describes every field of the spec, and those of the status that need it.
    known = [path for name, model in parts.items() for path in fields(model, name)]
    rows = [row[0].strip("`") for row in section(kind.__name__)]
    assert len(rows) == len(set(rows))
    assert [row for row in rows if not any(covers(row, path) for path in known)] == []
    assert [(a, b) for a in rows for b in rows if a != b and covers(a, b)] == []


def test_every_kind_is_there():
    rows = [row[0].strip("`") for row in section("Kinds")]
    assert sorted(rows) == sorted(kind.kind for kind in ALL_KINDS if kind.group)


@pytest.mark.parametrize("title", [*(kind.__name__ for kind in KINDS), "Annotations", "What is written", "Kinds"])
def test_every_line_says_what_becomes_of_it(title):
    for row in section(title):
        state, why = row[-2], row[-1]
        assert state in STATES, row
        assert state == "done" or why, row


def test_every_annotation_is_there():
    rows = {row[0].strip("`") for row in section("Annotations")}
    known = {
        value.removeprefix("cdi.kubevirt.io/")
        for name, value in vars(names).items()
        if name.startswith("ANN_") and (name not in WRITTEN_BY_PROGRAMS or name in SET_BY_USERS)
    }
    assert rows == known


def test_every_annotation_that_programs_write_is_there_and_what_becomes_of_it_is_true():
    """An annotation marked as done is used somewhere in the code, and one marked as having no effect is not."""
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if path != Path(names.__file__))
    used = set(re.findall(r"\bANN_\w+", source))
    known = {
        vars(names)[name].removeprefix("cdi.kubevirt.io/"): "done" if name in used else "no effect"
        for name in WRITTEN_BY_PROGRAMS - SET_BY_USERS
    } | {one.key.removeprefix("cdi.kubevirt.io/"): "done" for one in STATE}
    assert {row[0].strip("`"): row[2] for row in section("What is written")} == known


def test_nothing_is_said_twice():
    titles = re.findall(r"^## .*$", PAGE.read_text(), re.MULTILINE)
    assert len(titles) == len(set(titles))


def test_what_has_no_effect_is_told_in_the_cdi_object():
    told = {row[0].strip("`") for row in section("CDI") if row[1] == "no effect"}
    told |= {
        row[0].strip("`").replace("spec.", "spec.config.", 1) for row in section("CDIConfig") if row[1] == "no effect"
    }
    assert told == set(NO_EFFECT)


def test_the_page_that_it_names_is_there():
    for page in re.findall(r"\]\((\w+\.md)\)", PAGE.read_text()):
        assert (PAGE.parent / page).exists()
