"""Records of origin through the whole reconciler: when a version is offered, and where its record is."""

from __future__ import annotations

import base64
import hashlib

import pytest

from cdi.api.annotations import GOLDEN_RECORD, GOLDEN_STATEMENT
from cdi.api.origin import SignResult, parse_record, parse_statement
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.dataimportcron.origin import SIGNING_TIMEOUT, signing_pod
from cdi.reconcile.types import Input
from tests.unit.reconcile.dataimportcron.world import NAMESPACE, World, cron_body, digest

NAME = "fedora-aaaaaaaaaaaa"
KEY = ObjectRef(kind="Secret", namespace=NAMESPACE, name="signer")


def world(*, key=False, secret=True, kept_as="pvc"):
    annotations = {"cdi.kubevirt.io/golden.recordKey": "signer"} if key else {}
    made = World(cron_body(annotations=annotations))
    if secret:
        made.inputs[KEY] = Input(version="1", keys=frozenset({"key.pem"}))
    made.use_class(format=kept_as)
    made.desire(digest("a"))
    return made


def record(made, plural="persistentvolumeclaims"):
    text = (made.get(plural, NAME)["metadata"].get("annotations") or {}).get(GOLDEN_RECORD.key)
    return None if text is None else parse_record(text)


def sign(made):
    """Let the signing pod end with a signature, as the worker does."""
    pod = made.get("pods", signing_pod(NAME))
    statement = pod["metadata"]["annotations"][GOLDEN_STATEMENT.key]
    result = SignResult(
        id=pod["metadata"]["annotations"]["cdi.kubevirt.io/ownerUID"],
        statement=hashlib.sha256(statement.encode()).hexdigest(),
        keyid="k",
        signature=base64.b64encode(b"sig").decode(),
    )
    state = {"terminated": {"exitCode": 0, "message": result.to_json()}}
    pod["status"] = {"phase": "Succeeded", "containerStatuses": [{"name": "importer", "state": state}]}


def advance(made, rounds=12):
    """Reconcile some times, without waiting for a fixed point and with the clock standing still."""
    for _ in range(rounds):
        made.reconcile()
        made.step()


def test_a_version_has_its_record_once_it_is_offered():
    made = world()
    made.settle()
    assert made.offered == f"pvc/{NAME}"
    statement = parse_statement(record(made).payload)
    assert statement["subject"][0] == {"name": NAME, "digest": {"sha256": "a" * 64}}
    before = record(made)
    made.now += 86_400
    made.settle()
    assert record(made) == before


def test_the_record_follows_the_version_into_its_snapshot():
    made = world(kept_as="snapshot")
    made.settle()
    assert made.offered == f"snapshot/{NAME}"
    assert record(made, "volumesnapshots") is not None


def test_with_a_key_the_version_is_offered_with_its_signed_record():
    made = world(key=True)
    advance(made)
    assert made.offered is None
    assert made.get("pods", signing_pod(NAME)) is not None
    sign(made)
    made.settle()
    assert made.offered == f"pvc/{NAME}"
    assert [one.value for one in record(made).signatures] == [b"sig"]
    assert made.get("pods", signing_pod(NAME)) is None


@pytest.mark.parametrize("fault", ["no secret", "no node"])
def test_a_record_that_cannot_be_signed_is_reported_and_stops_nothing(fault):
    made = world(key=True, secret=fault != "no secret")
    advance(made)
    pod = made.get("pods", signing_pod(NAME))
    if fault == "no node":
        pod["metadata"]["creationTimestamp"] = "2023-11-14T22:13:20Z"  # the clock of the world at its start
        made.now += SIGNING_TIMEOUT + 100
        advance(made)
    assert made.offered == f"pvc/{NAME}"
    assert record(made).signatures == ()
    assert "RecordNotSigned" in {event.reason for event in made.events}
