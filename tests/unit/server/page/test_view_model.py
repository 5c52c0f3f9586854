"""Tests of the page's view of an object, whatever its content."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.job import Progress
from cdi.client.backend import Fraction
from cdi.server.page.view_model import row

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


def volume(phase="UploadReady", **more):
    body = {
        "metadata": {"name": "a", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-02T03:04:00Z"},
        "spec": {"source": {"upload": {}}, "storage": {"resources": {"requests": {"storage": "10Gi"}}}},
        "status": {"phase": phase},
    }
    for path, value in more.items():
        body[path] = {**body[path], **value}
    return body


def conditions(*, running="False", reason="", ready=""):
    return [
        {"type": "Ready", "status": "False", "reason": "SomeCode", "message": ready},
        {"type": "Running", "status": running, "reason": reason, "message": ""},
    ]


class TestTone:
    @pytest.mark.parametrize(
        ("phase", "tone"),
        [
            ("", "wait"),
            ("Pending", "wait"),
            ("UploadReady", "wait"),
            ("ImportInProgress", "work"),
            ("CloneInProgress", "work"),
            ("Succeeded", "good"),
            ("Failed", "bad"),
            ("SomethingNew", "wait"),
        ],
    )
    def test_follows_the_phase(self, phase, tone):
        assert row(volume(phase), None, NOW)["tone"] == tone

    def test_an_upload_that_gets_on_is_work(self):
        body = volume(status={"conditions": conditions(running="True")})
        assert row(body, Progress(phase="transferring", done=5, total=10), NOW)["tone"] == "work"
        assert row(body, Fraction(fraction=0.5), NOW)["tone"] == "work"
        assert row(body, Fraction(fraction=0.0), NOW)["tone"] == "wait"

    def test_one_that_ended_is_not(self):
        body = volume(status={"conditions": conditions(running="False")})
        assert row(body, Progress(phase="transferring", done=5, total=10), NOW)["tone"] == "wait"

    def test_a_pause_after_a_failure_is_waiting(self):
        body = volume("ImportInProgress", status={"conditions": conditions(reason="Error")})
        assert row(body, Fraction(fraction=0.5), NOW)["tone"] == "wait"


def test_facts():
    shown = row(volume(), None, NOW)
    assert (shown["size"], shown["source"], shown["age"], shown["takesUpload"]) == ("10 GiB", "upload", 5.0, True)


def test_only_uploads_take_one():
    assert not row(volume(spec={"source": {"http": {"url": "x"}}}), None, NOW)["takesUpload"]
    assert not row(volume("Succeeded"), None, NOW)["takesUpload"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"source": {"pvc": {"name": "golden", "namespace": "n"}}}, "pvc golden"),
        ({"source": {"http": {"url": "https://secret@host/"}}}, "http"),
        ({"source": None, "sourceRef": {"kind": "DataSource", "name": "d"}}, "DataSource d"),
    ],
)
def test_the_source_without_its_url(spec, said):
    assert row(volume(spec=spec), None, NOW)["source"] == said


def test_a_remedy_is_shown_until_it_is_no_longer_needed():
    status = {"conditions": conditions(ready="it is wrong. Try: another")}
    assert row(volume("Failed", status=status), None, NOW)["message"] == "it is wrong. Try: another"
    assert row(volume("Succeeded", status={**status, "phase": "Succeeded"}), None, NOW)["message"] == ""


def test_a_version_of_a_golden_image_that_should_not_be_used_any_more_says_so():
    body = volume("Succeeded")
    assert row(body, None, NOW)["message"] == ""
    body["metadata"]["annotations"] = {"cdi.kubevirt.io/golden.revoked": "backdoor"}
    assert row(body, None, NOW)["message"] == "This version of a golden image was revoked (backdoor)."


def test_texts_are_bounded():
    status = {"conditions": [*conditions(ready="x" * 100_000), *({"type": str(i)} for i in range(100))]}
    assert len(json.dumps(row(volume(status=status), None, NOW))) < 20_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(metadata=JSON, spec=JSON, status=JSON)
def test_no_object_is_too_odd(metadata, spec, status):
    json.dumps(row({"metadata": metadata, "spec": spec, "status": status}, None, NOW))
