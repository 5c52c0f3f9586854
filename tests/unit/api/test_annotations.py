"""Tests of the typed accessors of annotations that hold state."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api import annotations
from cdi.api.annotation_types import Annotation
from cdi.api.annotations import (
    ATTEMPT,
    CLONE_PLAN,
    CLONE_TARGET,
    FILLED_FOR,
    GOLDEN_LAST_CLONED,
    GOLDEN_ORIGIN,
    IMPORT_STATUS,
    MANAGED_CERTIFICATE,
    SOURCE_DISK_SIZE,
    TICKETS,
    read_origin,
)
from cdi.api.copy import Ticket
from cdi.api.golden import Origin

ORIGIN = Origin(namespace="golden", cron="fedora", version="fedora-1", digest="sha256:1")
ROWS = (*annotations.INTERNAL, *annotations.PODS, *annotations.GOLDEN)
READERS = {
    "number": ATTEMPT.read,
    "reference": CLONE_TARGET.read,
    "time": GOLDEN_LAST_CLONED.read,
    "record": lambda found: GOLDEN_ORIGIN.read(Origin, found),
    "object": IMPORT_STATUS.read,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A record with a default."""

    source: str
    size: int | None = None


def test_what_is_written_is_read():
    assert ATTEMPT.read(ATTEMPT.write(7)) == 7
    assert FILLED_FOR.read(FILLED_FOR.write("u-1")) == "u-1"
    assert CLONE_TARGET.read(CLONE_TARGET.write("a", "b")) == ("a", "b")
    assert MANAGED_CERTIFICATE.read(MANAGED_CERTIFICATE.write())
    assert GOLDEN_LAST_CLONED.read(GOLDEN_LAST_CLONED.write(0)) == datetime(1970, 1, 1, tzinfo=UTC)
    assert IMPORT_STATUS.read(IMPORT_STATUS.write({"phase": "Pending"})) == {"phase": "Pending"}
    assert CLONE_PLAN.read(Plan, CLONE_PLAN.write(Plan(source="u", size=3))) == Plan(source="u", size=3)
    assert read_origin({"metadata": {"annotations": GOLDEN_ORIGIN.write(ORIGIN)}}) == ORIGIN


def test_a_disk_size_belongs_to_one_volume():
    assert SOURCE_DISK_SIZE.read(SOURCE_DISK_SIZE.write(1 << 40, "u"), "u") == 1 << 40
    assert SOURCE_DISK_SIZE.read(SOURCE_DISK_SIZE.write(None, "u"), "u") == 0
    assert SOURCE_DISK_SIZE.read(SOURCE_DISK_SIZE.write(5, "u"), "other") is None
    assert SOURCE_DISK_SIZE.read({SOURCE_DISK_SIZE.key: f"{'9' * 5000} of u"}, "u") == 0


def test_tickets_are_read_by_target_and_invalid_ones_are_left_out():
    ticket = Ticket(id="t", address="10.0.0.1:8444", claim="a/b")
    found = {**TICKETS.write("t", ticket), f"{TICKETS.key}broken": "{", "other": "1"}
    assert TICKETS.read(found) == {"t": ticket}
    assert TICKETS.write("t", None) == {f"{TICKETS.key}t": None}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "-1", "²", "9" * 5000, "a/b/c", "/", "{" * 100_000, "\x00"])
def test_a_hostile_value_reads_as_none(name, text):
    accessors = {"number": ATTEMPT, "reference": CLONE_TARGET, "time": GOLDEN_LAST_CLONED, "record": GOLDEN_ORIGIN}
    accessor = accessors.get(name, IMPORT_STATUS)
    assert READERS[name]({accessor.key: text}) is None
    assert READERS[name]({}) is None


def test_a_record_that_is_too_long_reads_as_none():
    long = Origin(namespace="n", cron="c", version="v", digest="d" * GOLDEN_ORIGIN.max_size)
    assert GOLDEN_ORIGIN.read(Origin, GOLDEN_ORIGIN.write(long)) is None


@given(st.dictionaries(st.sampled_from([row.key for row in ROWS]), st.text(max_size=40)))
def test_no_text_raises(found):
    for read in READERS.values():
        read(found)
    SOURCE_DISK_SIZE.read(found, "u")
    TICKETS.read(found)


def test_every_accessor_is_in_a_table_that_says_how_its_loss_is_recovered():
    accessors = [value for value in vars(annotations).values() if isinstance(value, Annotation)]
    assert sorted(row.key for row in ROWS) == sorted({one.key for one in accessors})
    assert all(row.on and row.written_by and row.read_by and row.content and row.recovery for row in ROWS)


def test_no_other_module_writes_a_key_as_text():
    """State is found by its accessor alone; the two keys that are names of KubeVirt's CDI, or of jobs, are imported."""
    package = Path(annotations.__file__).parents[1]
    sources = {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}
    del sources["api/annotations.py"]
    names = "|".join(re.escape(one.key.removeprefix("cdi.kubevirt.io/")) for one in ROWS)
    pattern = re.compile(rf"""["'](?:cdi\.kubevirt\.io|\{{\w*GROUP\}})/({names})["']""")
    found = {(path, match[1]) for path, text in sources.items() for match in pattern.finditer(text)}
    assert found == {("api/names.py", "ownerUID"), ("api/copy.py", "clone.target.")}
