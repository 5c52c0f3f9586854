"""Tests that a change of any object of a volume enqueues the volume's key."""

from __future__ import annotations

import copy

import pytest

from cdi.api.errors import AdmissionDenied, Conflict, InvalidManifest
from cdi.api.kinds import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    CSI_DRIVERS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    EVENTS,
    NODES,
    PODS,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_IMPORT_SOURCES,
    VOLUMES,
    Resource,
)
from cdi.controller.reconcilers.registry import RECONCILERS, WATCHES, Reconcilers, initial_requests, requests_for
from cdi.controller.request import CONFIG, Request, datavolume
from cdi.controller.result import TerminalError
from tests.unit.controller.objects import added, body, deleted, dependencies, modified, watches

DV = body(DATA_VOLUMES, "disk", spec={}, status={"phase": "ImportInProgress"})
DONE = body(DATA_VOLUMES, "old", spec={}, status={"phase": "Succeeded"})
TARGET = body(CLAIMS, "disk", owner=DV, spec={})
PRIME = body(CLAIMS, "prime-uid-disk", owner=TARGET, spec={})
SCRATCH = body(CLAIMS, "prime-uid-disk-scratch", owner=PRIME, spec={})
POD = body(PODS, "importer-prime-uid-disk", owner=PRIME, spec={"nodeName": "n1"}, status={})
SOURCE = body(DATA_SOURCES, "golden", spec={"source": {"pvc": {"namespace": "ns", "name": "disk"}}})
OURS = datavolume("ns", "disk")
SOURCE_KEY = Request(kind="source", namespace="ns", name="golden")


def known(*more):
    fixed = (
        (DATA_VOLUMES, DV), (DATA_VOLUMES, DONE), (CLAIMS, TARGET), (CLAIMS, PRIME), (CLAIMS, SCRATCH), (PODS, POD),
        (DATA_SOURCES, SOURCE),
    )  # fmt: skip
    return watches(*fixed, *more)


def of(resource, change, *more):
    return requests_for(resource, change, known(*more))


@pytest.mark.parametrize(
    ("resource", "change"),
    [
        (DATA_VOLUMES, added(DV)),
        (DATA_VOLUMES, deleted(DV)),
        (CLAIMS, added(TARGET)),
        (CLAIMS, added(PRIME)),
        (CLAIMS, deleted(PRIME)),
        (CLAIMS, added(SCRATCH)),
        (PODS, added(POD)),
        (PODS, deleted(POD)),
        (VOLUME_IMPORT_SOURCES, added(body(VOLUME_IMPORT_SOURCES, "volume-import-source-uid-disk", owner=DV))),
        (STORAGE_CLASSES, added(body(STORAGE_CLASSES, "fast"))),
        (STORAGE_PROFILES, added(body(STORAGE_PROFILES, "fast"))),
        (CSI_DRIVERS, added(body(CSI_DRIVERS, "d"))),
        (CDIS, added(body(CDIS, "cdi"))),
        (CDI_CONFIGS, added(body(CDI_CONFIGS, "config"))),
        (NODES, deleted(body(NODES, "n1", status={"conditions": [{"type": "Ready", "status": "True"}]}))),
        (
            EVENTS,
            added(
                body(EVENTS, "e", involvedObject={"namespace": "ns", "name": "prime-uid-disk"}, reason="r", message="")
            ),
        ),
    ],
    ids=lambda part: part.type + part.object["kind"] if hasattr(part, "type") else "",
)
def test_the_volume_is_looked_at(resource, change) -> None:
    assert OURS in of(resource, change)


def test_a_rebound_volume_is_news_for_the_old_claim_and_the_new_one() -> None:
    def pv(claim: str):
        return body(VOLUMES, "pv", spec={"claimRef": {"namespace": "ns", "name": claim}, "storageClassName": "fast"})

    keys = of(VOLUMES, modified(pv("prime-uid-disk"), pv("disk")))
    assert {OURS, datavolume("ns", "prime-uid-disk")} <= keys


def test_a_volume_that_is_done_is_left_alone_by_what_concerns_everybody() -> None:
    assert datavolume("ns", "old") not in of(STORAGE_CLASSES, added(body(STORAGE_CLASSES, "fast")))


def test_claims_without_a_datavolume_are_found_by_what_they_ask_for() -> None:
    by_hand = body(CLAIMS, "hand", annotations={"cdi.kubevirt.io/storage.import.source": "http"}, spec={})
    ref = {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeImportSource", "name": "fedora"}
    populated = body(CLAIMS, "pop", spec={"dataSourceRef": ref})
    filled = body(
        CLAIMS,
        "full",
        annotations={"cdi.kubevirt.io/storage.import.source": "http", "cdi.kubevirt.io/storage.pod.phase": "Succeeded"},
        spec={},
    )
    more = ((CLAIMS, by_hand), (CLAIMS, populated), (CLAIMS, filled))
    assert of(CSI_DRIVERS, added(body(CSI_DRIVERS, "d")), *more) == {
        OURS,
        datavolume("ns", "hand"),
        datavolume("ns", "pop"),
    }
    assert of(VOLUME_IMPORT_SOURCES, added(body(VOLUME_IMPORT_SOURCES, "fedora")), *more) == {datavolume("ns", "pop")}
    assert of(VOLUME_IMPORT_SOURCES, added(body(VOLUME_IMPORT_SOURCES, "fedora", "other")), *more) == set()


def test_data_sources_hear_of_phases_and_not_of_progress() -> None:
    further = copy.deepcopy(DV)
    further["status"]["progress"] = "50.00%"
    assert SOURCE_KEY not in of(DATA_VOLUMES, modified(DV, further))
    further["status"]["phase"] = "Succeeded"
    assert SOURCE_KEY in of(DATA_VOLUMES, modified(DV, further))


def test_a_node_that_only_says_that_it_lives_is_no_news() -> None:
    ready = body(NODES, "n1", status={"conditions": [{"type": "Ready", "status": "True"}]})
    lost = body(NODES, "n1", status={"conditions": [{"type": "Ready", "status": "Unknown"}]})
    assert of(NODES, modified(ready, copy.deepcopy(ready))) == set()
    assert OURS in of(NODES, modified(ready, lost))


def test_owners_in_a_circle_end() -> None:
    first, second = body(CLAIMS, "a", spec={}), body(CLAIMS, "b", spec={})
    first = body(CLAIMS, "a", owner=second, spec={})
    second = body(CLAIMS, "b", owner=first, spec={})
    found = of(CLAIMS, added(first), (CLAIMS, first), (CLAIMS, second))
    assert found == {datavolume("ns", "a"), datavolume("ns", "b"), SOURCE_KEY}


def test_at_the_start_everything_is_looked_at_once() -> None:
    keys = initial_requests(
        known((STORAGE_CLASSES, body(STORAGE_CLASSES, "fast")), (DATA_IMPORT_CRONS, body(DATA_IMPORT_CRONS, "daily")))
    )
    assert keys == {
        CONFIG, OURS, SOURCE_KEY, datavolume("ns", "old"), datavolume("ns", "prime-uid-disk"),
        datavolume("ns", "prime-uid-disk-scratch"), Request(kind="profile", name="fast"),
        Request(kind="cron", namespace="ns", name="daily"),
    }  # fmt: skip


# --- registration ---------------------------------------------------------------------------------------------------


READ_ONLY = frozenset[Resource]()
"""Watched resources whose changes lead to no reconcile."""


def test_every_watched_resource_leads_to_reconciles_and_every_watch_is_fed() -> None:
    assert watches().resources - READ_ONLY == WATCHES.keys()


def test_each_kind_has_one_reconciler() -> None:
    names = [reconciler.name for reconciler in RECONCILERS]
    assert len(set(names)) == len(names)


def test_a_reconciler_requests_its_own_kind_only() -> None:
    caches = known((STORAGE_CLASSES, body(STORAGE_CLASSES, "fast")), (CDIS, body(CDIS, "cdi")))
    changes = {DATA_VOLUMES: DV, CLAIMS: TARGET, PODS: POD, DATA_SOURCES: SOURCE}
    for reconciler in RECONCILERS:
        found = set(reconciler.initial(caches))
        for watch in reconciler.watches():
            changed = changes.get(watch.resource) or body(watch.resource, "x", spec={}, involvedObject={})
            found.update(watch.requests(added(changed), caches), watch.requests(deleted(changed), caches))
        assert {request.kind for request in found} <= {reconciler.name}


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (InvalidManifest("never"), TerminalError),
        (AdmissionDenied("not now"), AdmissionDenied),
        (Conflict("old"), Conflict),
    ],
    ids=lambda part: "" if isinstance(part, type) else type(part).__name__,
)
async def test_only_an_invalid_object_is_a_terminal_error(error, raised) -> None:
    class Failing:
        async def reconcile(self, _request):
            raise error

    reconcilers = Reconcilers(dependencies(watches(), now=lambda: 0.0))
    reconcilers._by_kind["volume"] = Failing()
    with pytest.raises(raised):
        await reconcilers.reconcile(OURS)
