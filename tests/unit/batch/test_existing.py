from __future__ import annotations

from dataclasses import replace

import pytest

from cdi.api.digest import Digest
from cdi.api.policy import CHECKSUM
from cdi.batch.existing import (
    Create,
    ExistingState,
    Facts,
    Keep,
    Replace,
    Resume,
    conflict,
    decide,
    not_as_pinned,
    pin_mismatch,
    source_changed,
)
from cdi.batch.images import finish
from cdi.batch.lockfile import Entry
from cdi.explain.item import with_size
from cdi.explain.prober import SourceVersion

URL = "https://h/a"
SUM, OTHER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
FACTS = Facts(validator='"1"', length=10, digest=SUM)
PIN = Entry(url=URL, validator='"1"', length=10, digest=SUM)
OFFER = SourceVersion(validator='"1"', length=10)


def item(source=None, size=None, annotations=None):
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "a", "annotations": annotations or {}},
        "spec": {"source": source or {"http": {"url": URL}}, "storage": {}},
    }
    body = body if size is None else with_size(body, size)
    return finish(body, names=str, place="x", label="a", namespace="default", url=None, path=None)


def standing(phase, wanted=None, *, claim=True, **metadata):
    wanted = item(size="4Mi") if wanted is None else wanted
    manifest = wanted.sized(4 << 20)
    body = {**manifest, "metadata": {**manifest["metadata"], **metadata}, "status": {"phase": phase}}
    return ExistingState(datavolume=body, claim={"metadata": {"name": "a"}} if claim else None)


def waiting(code, wanted=None):
    """Return a volume whose import failed with an error that a user must fix, and is retried in the background."""
    there = standing("ImportInProgress", wanted)
    conditions = [
        {"type": "Running", "status": "False", "reason": "Error", "message": "x"},
        {"type": "Ready", "status": "False", "reason": code, "message": "x"},
    ]
    status = {"phase": "ImportInProgress", "conditions": conditions}
    return replace(there, datavolume={**there.datavolume, "status": status})


@pytest.mark.parametrize(
    ("there", "offer", "update", "expected"),
    [
        (ExistingState(), None, False, Create),
        (standing("Failed"), None, False, Replace),
        (standing("ImportInProgress"), None, False, Resume),
        (waiting("SourceNotFound"), None, False, Replace),
        (waiting("SourceUnreachable"), None, False, Resume),
        (waiting("TargetFull"), None, False, Resume),
        (standing(""), None, True, Resume),
        (standing("Succeeded"), OFFER, True, Keep),
        (standing("Succeeded"), None, True, Keep),
        (standing("Succeeded"), SourceVersion(validator='"2"'), False, Keep),
        (standing("Succeeded"), SourceVersion(validator='"2"'), True, Replace),
        (standing("Succeeded", claim=False), OFFER, False, Replace),
        (standing("Failed", item(size="5Mi")), None, False, Replace),
        (standing("ImportInProgress", item(size="5Mi")), None, True, Replace),
    ],
)
def test_what_becomes_of_an_item(there, offer, update, expected):
    result = decide(item(), there, FACTS, offer, pin=None, update=update)
    if there.datavolume is not None and "5Mi" in str(there.datavolume):
        result = decide(item(size="4Mi"), there, FACTS, offer, pin=None, update=update)
    assert type(result) is expected
    if isinstance(result, Keep):
        assert result.source_changed == (offer is not None and offer.validator == '"2"')


def test_a_volume_that_is_not_what_is_pinned_is_replaced():
    pin = Entry(url=URL, digest=OTHER)
    assert isinstance(decide(item(), standing("Succeeded"), FACTS, OFFER, pin=pin, update=True), Replace)
    assert isinstance(decide(item(), standing("Succeeded"), FACTS, OFFER, pin=PIN, update=True), Keep)


@pytest.mark.parametrize(
    ("there", "update", "words"),
    [
        (ExistingState(), False, None),
        (standing("Succeeded"), False, None),
        (standing("Succeeded", item(size="5Mi")), False, "--update replaces it"),
        (standing("Succeeded", item(size="5Mi")), True, None),
        (standing("Failed", item(size="5Mi")), False, None),
        (waiting("SourceNotFound", item(size="5Mi")), False, None),
        (standing("Succeeded", deletionTimestamp="x"), True, "is being deleted"),
        (ExistingState(claim={"metadata": {}}), True, "has another owner"),
        (ExistingState(claim={"metadata": {"deletionTimestamp": "x"}}), False, None),
        (ExistingState(occupied=True), True, "files exist in the place"),
    ],
)
def test_what_is_in_the_way(there, update, words):
    found = conflict(item(size="4Mi"), there, update=update)
    assert (found is None) if words is None else (words in found)


def test_the_same_size_in_other_words_is_no_difference():
    assert conflict(item(size="4096Ki"), standing("Succeeded"), update=False) is None
    adopting = item(size="4Mi", annotations={"cdi.kubevirt.io/allowClaimAdoption": "true"})
    assert conflict(adopting, ExistingState(claim={"metadata": {}}), update=False) is None


@pytest.mark.parametrize(
    ("facts", "offer", "expected"),
    [
        (FACTS, OFFER, False),
        (FACTS, SourceVersion(validator='"2"', length=10), True),
        (FACTS, SourceVersion(validator='"1"', length=11), False),
        (FACTS, SourceVersion(validator=None, length=11), True),
        (FACTS, SourceVersion(validator=None, length=None), False),
        (Facts(), OFFER, False),
        (Facts(length=9), OFFER, True),
    ],
)
def test_whether_a_source_moved(facts, offer, expected):
    assert source_changed(facts, offer) is expected


@pytest.mark.parametrize(
    ("wanted", "pin", "offer", "words"),
    [
        (item(), PIN, OFFER, None),
        (item(), PIN, None, None),
        (item(), PIN, SourceVersion(validator=None), None),
        (item(), None, None, "does not pin it"),
        (item(), Entry(url="x"), None, "x is pinned, but the batch has https://h/a"),
        (item(), Entry(url=URL, validator='"1"'), None, "no digest"),
        (item(), PIN, SourceVersion(validator='"1"', length=11), "10 bytes are pinned, but the source has 11"),
        (item(), PIN, SourceVersion(validator='"2"', length=10), '"1" is pinned, but the source has "2"'),
        (item(), PIN, SourceVersion(validator='"1"', digests=(Digest.parse(OTHER),)), f"the source announces {OTHER}"),
        (item(), PIN, SourceVersion(validator='"1"', digests=(Digest.parse(SUM), Digest("md5", "0" * 32))), None),
        (item({"http": {"url": URL, "checksum": SUM}}), PIN, OFFER, None),
        (item({"http": {"url": URL, "checksum": OTHER}}), PIN, OFFER, f"checksum is {OTHER}"),
        (item(annotations={CHECKSUM: OTHER}), PIN, OFFER, f"checksum is {OTHER}"),
        (
            item({"registry": {"url": "docker://h/a"}}),
            Entry(url="docker://h/a", validator=SUM, digest=OTHER),
            SourceVersion(validator=SUM),
            None,
        ),
        (
            item({"registry": {"url": "docker://h/a"}}),
            Entry(url="docker://h/a", validator="x", digest=OTHER),
            None,
            "no digest",
        ),
    ],
)
def test_how_an_offer_differs_from_what_is_pinned(wanted, pin, offer, words):
    found = not_as_pinned(wanted, pin, offer)
    assert (found is None) if words is None else (words in found), found


def test_a_container_image_is_known_by_its_manifest():
    registry = item({"registry": {"url": "docker://h/a"}})
    pin = Entry(url="docker://h/a", validator=SUM, digest=OTHER)
    assert pin_mismatch(registry, Facts(validator=SUM, digest=SUM), pin) is None
    assert f"has {OTHER}, but {SUM} is pinned" in pin_mismatch(registry, Facts(validator=OTHER, digest=OTHER), pin)
    assert "unknown content" in pin_mismatch(item(), Facts(), pin)
