"""Tests of the annotations that describe an imported image."""

from dataclasses import fields

import pytest

from cdi.api.image_facts import DISK_SIZE, VOLUME_SIZE, ImageFacts
from cdi.api.job import Outcome

OUTCOME = Outcome(
    id="u",
    format="qcow2",
    wrappers=("gz", "tar"),
    path="streamed",
    virtual_size=1 << 30,
    disk_size=2 << 30,
    digest="sha256:00",
    verified_by=("length", "checksum"),
    validator='"etag"',
)


def test_what_is_written_is_read_again():
    written = OUTCOME.to_annotations(3 << 30)
    facts = ImageFacts.read(written)
    assert all(getattr(facts, one.name) == getattr(OUTCOME, one.name) for one in fields(ImageFacts))
    assert written["cdi.kubevirt.io/image.verifiedBy"] == "length, checksum"
    assert written[VOLUME_SIZE] == str(3 << 30)


def test_the_size_of_the_volume_is_recorded_with_that_of_the_disk_only():
    assert Outcome(id="u", format="raw").to_annotations(1 << 30) == {"cdi.kubevirt.io/image.format": "raw"}
    assert {DISK_SIZE, VOLUME_SIZE} <= set(OUTCOME.to_annotations(1 << 30))


@pytest.mark.parametrize("text", ["", "x", "-1", "1e3", "٣", "9" * 20, "9" * 5000])
def test_a_size_that_is_no_number_is_unknown(text):
    assert ImageFacts.read({DISK_SIZE: text}).disk_size is None


def test_a_value_from_a_server_is_bounded():
    assert len(ImageFacts(validator="x" * 5000).to_annotations(None)["cdi.kubevirt.io/image.validator"]) == 1024
