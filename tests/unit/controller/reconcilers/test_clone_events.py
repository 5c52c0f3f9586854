"""Tests that a change of any object of a clone enqueues the keys of all that depend on it."""

from __future__ import annotations

from cdi.api.copy import TICKET_PREFIX, Ticket
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, PODS
from cdi.api.names import ANN_OWNER_UID, LABEL_COMPONENT
from cdi.api.storageprofile import CloneStrategy
from cdi.controller.reconcilers.registry import requests_for
from cdi.controller.request import Request, datavolume
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID, ANN_TARGET, ANNOTATION, LABEL_TEMPORARY, ClonePlanRecord
from cdi.reconcile.clone.size_detection import ANNOTATION as MEASURED
from cdi.reconcile.pods.roles import SIZE_DETECTION
from tests.unit.controller.objects import added, body, deleted, modified, watches

RECORD = ClonePlanRecord(source="uid-kept", strategy=CloneStrategy.COPY, namespace="gold", restored="tmp-pvc-uid-kept")


def target(name, record=RECORD):
    return body(CLAIMS, name, annotations={ANNOTATION: record.write()}, spec={})


RESTORED = body(
    CLAIMS,
    "tmp-pvc-uid-kept",
    "gold",
    labels={LABEL_TEMPORARY: "true"},
    annotations={ANN_SOURCE_UID: "uid-kept", ANN_TARGET: "ns/gone"},
    spec={},
)
OTHER = target(
    "c", ClonePlanRecord(source="uid-x", strategy=CloneStrategy.COPY, namespace="gold", restored="tmp-pvc-x")
)


def test_what_snapshots_are_read_through_is_news_for_every_clone_of_it():
    first, second = target("a"), target("b")
    known = watches((CLAIMS, first), (CLAIMS, second), (CLAIMS, OTHER), (CLAIMS, RESTORED))
    keys = requests_for(CLAIMS, added(RESTORED), known)
    assert {datavolume("ns", "a"), datavolume("ns", "b"), datavolume("gold", "tmp-pvc-uid-kept")} <= keys
    assert datavolume("ns", "c") not in keys


def test_a_clone_that_goes_on_without_it_or_goes_is_news_for_it():
    one = target("a")
    known = watches((CLAIMS, one), (CLAIMS, RESTORED))
    without = target("a", ClonePlanRecord(source="uid-kept", strategy=CloneStrategy.COPY, namespace="gold"))
    assert datavolume("gold", "tmp-pvc-uid-kept") in requests_for(CLAIMS, modified(one, without), known)
    assert datavolume("gold", "tmp-pvc-uid-kept") in requests_for(CLAIMS, deleted(one), known)


def test_who_looks_at_a_source_is_looked_at_once_its_datavolume_knows_or_goes():
    looks = body(
        PODS,
        "size-detection-uid-a",
        "gold",
        labels={LABEL_TEMPORARY: "true", LABEL_COMPONENT: SIZE_DETECTION.component},
        annotations={ANN_OWNER_UID: "uid-a", ANN_TARGET: "ns/a", ANN_SOURCE_UID: "uid-golden"},
        spec={},
        status={"phase": "Succeeded"},
    )
    own = Request(kind="reader", namespace="gold", name="size-detection-uid-a")
    assert requests_for(PODS, added(looks), watches((PODS, looks))) >= {own, datavolume("ns", "a")}
    known = watches((PODS, looks))
    before = body(DATA_VOLUMES, "a", spec={})
    assert own not in requests_for(DATA_VOLUMES, added(before), known)
    noted = body(DATA_VOLUMES, "a", annotations={MEASURED: "1 of uid-golden"}, spec={})
    assert own in requests_for(DATA_VOLUMES, modified(before, noted), known)
    assert own in requests_for(DATA_VOLUMES, deleted(noted), known)
    assert own not in requests_for(DATA_VOLUMES, deleted(body(DATA_VOLUMES, "b", spec={})), known)


READER = body(
    PODS,
    "uid-kept-1-source-pod",
    "gold",
    labels={LABEL_TEMPORARY: "true"},
    annotations={
        ANN_SOURCE_UID: "uid-kept",
        ANN_TARGET: "ns/a",
        f"{TICKET_PREFIX}uid-a": Ticket(id="uid-prime-a", address="10.0.0.1:8444", claim="ns/a").to_json(),
    },
    spec={},
    status={},
)
KEY = Request(kind="reader", namespace="gold", name="uid-kept-1-source-pod")


def test_a_pod_that_reads_is_news_for_every_clone_that_may_be_read_for_by_it():
    known = watches((CLAIMS, target("a")), (CLAIMS, target("b")), (CLAIMS, OTHER), (PODS, READER))
    for change in (added(READER), deleted(READER)):
        keys = requests_for(PODS, change, known)
        assert {KEY, datavolume("ns", "a"), datavolume("ns", "b")} <= keys
        assert datavolume("ns", "c") not in keys


def test_a_clone_that_changes_or_goes_is_news_for_the_pod_that_reads_for_it():
    one, other = target("a"), target("b")
    known = watches((CLAIMS, one), (CLAIMS, other), (PODS, READER))
    assert KEY in requests_for(CLAIMS, deleted(one), known)
    assert KEY in requests_for(CLAIMS, modified(one, body(CLAIMS, "a", spec={})), known)
    assert KEY not in requests_for(CLAIMS, deleted(other), known)
