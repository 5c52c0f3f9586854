"""Tests of parsing AdmissionReviews and of the format of responses."""

import base64
import json

import pytest

from cdi.api.errors import InvalidManifest
from cdi.api.rules.problems import Cause, Problem
from cdi.server.review import MAX_CAUSES, Allowed, Refused, answer, read
from tests.unit.api.manifests import dv, sound
from tests.unit.server.reviews import BY_NAME, body, review

HOOK = BY_NAME["datavolume-validate"]


def test_a_question_is_read():
    asked = read(body(dv(), operation="UPDATE", old=dv(preallocation=True)), HOOK)
    assert (asked.uid, asked.operation, asked.plural, asked.namespace, asked.name) == (
        "u-1", "UPDATE", "datavolumes", "default", "thing",
    )  # fmt: skip
    assert asked.user == "alice"
    assert asked.object["spec"] != asked.old["spec"]


def test_what_the_operation_does_not_have_is_empty():
    created = read(body(dv()), HOOK)
    assert created.old == {}
    deleted = read(body(None, operation="DELETE", old=sound("CDI")), BY_NAME["cdi-validate"])
    assert deleted.object == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"NaN", "not JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than"),
        (json.dumps(review(dv()) | {"x": json.loads("[" * 500 + "]" * 500)}).encode(), "nested more than"),
        (b"9" * 10_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "not an AdmissionReview"),
        (json.dumps(review(dv()) | {"apiVersion": "admission.k8s.io/v1beta1"}).encode(), "not an AdmissionReview"),
        (json.dumps(review(dv()) | {"request": None}).encode(), "request is not a JSON object"),
        (body(dv(), uid=""), "uid"),
        (body(dv(), uid=5), "uid"),
        (body(dv(), uid="x" * 5000), "uid"),
        (body(dv(), object=[]), "request.object is not a JSON object"),
        (body(dv(), object=None), "request.object is not a JSON object"),
        (body(dv(), operation="CONNECT"), "CONNECT"),
        (body(dv(), operation="DELETE", old=dv()), "DELETE"),
        (body(dv(), operation=["CREATE"]), "operation is not a string"),
        (body(dv(), name={"a": 1}), "name is not a string"),
        (body(sound("DataSource")), "does not handle datasources"),
        (body(dv(), resource={"group": "evil.example", "resource": "datavolumes"}), "does not handle"),
    ],
    ids=range(22),
)
def test_what_is_no_question_is_refused(text, words):
    with pytest.raises(InvalidManifest) as caught:
        read(text, HOOK)
    assert words in caught.value.what
    assert len(caught.value.what) < 400


def test_a_refusal_lists_every_problem_as_a_cause():
    asked = read(body(dv()), HOOK)
    problems = (
        Problem(field="spec.a", message="it is missing", cause=Cause.REQUIRED),
        Problem(field="spec.b", message="it is wrong"),
    )
    response = answer(asked, Refused(problems=problems))["response"]
    assert (response["uid"], response["allowed"]) == ("u-1", False)
    status = response["status"]
    assert (status["code"], status["reason"], status["status"]) == (422, "Invalid", "Failure")
    assert status["message"] == "spec.a: it is missing; spec.b: it is wrong"
    assert status["details"]["causes"] == [
        {"reason": "FieldValueRequired", "message": "it is missing", "field": "spec.a"},
        {"reason": "FieldValueInvalid", "message": "it is wrong", "field": "spec.b"},
    ]
    assert (status["details"]["kind"], status["details"]["name"]) == ("datavolumes", "thing")


def test_a_refusal_is_bounded():
    problems = tuple(Problem(field=f"f{index}", message="x" * 200) for index in range(500))
    status = answer(read(body(dv()), HOOK), Refused(problems=problems))["response"]["status"]
    assert len(status["details"]["causes"]) == MAX_CAUSES
    assert len(status["message"]) < 4100


def test_a_patch_is_sent_as_the_api_wants_it():
    patch = ({"op": "add", "path": "/spec/volumeMode", "value": "Block"},)
    response = answer(read(body(dv()), HOOK), Allowed(patch=patch))["response"]
    assert (response["allowed"], response["patchType"]) == (True, "JSONPatch")
    assert json.loads(base64.b64decode(response["patch"])) == list(patch)


def test_warnings_are_bounded():
    response = answer(read(body(dv()), HOOK), Allowed(warnings=("w" * 1000,) * 100))["response"]
    assert len(response["warnings"]) == 11
    assert max(map(len, response["warnings"])) <= 120
