"""Conditions and events of DataVolumes have the reasons and messages that programs written for KubeVirt's CDI compare."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest

from cdi.api.errors import Retry
from cdi.api.job import Failure
from cdi.api.phases import Phase
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.datavolume.events import events_for_transition
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.datavolume.result import Result, succeeded
from cdi.reconcile.datavolume.status import DataVolumeState, false, ready_condition, true
from cdi.reconcile.datavolume.status_cases import CASES, NOTES
from cdi.reconcile.datavolume.status_page import status_page
from cdi.reconcile.datavolume.status_table import COMPLETE, EVENTS, Course
from cdi.reconcile.source import resolve_source
from cdi.reconcile.types import PVC
from tests.status_texts import is_documented
from tests.unit.reconcile.clone.clone_simulation import CloneCluster
from tests.unit.reconcile.clone.test_laws import WAYS, cloning
from tests.unit.reconcile.cluster_simulation import CLAIMS, Cluster, dv
from tests.unit.reconcile.simulation import failing
from tests.unit.reconcile.test_context_builder import IMMEDIATE, until

UPLOAD = {"upload": {}}
SOURCES = {"pvc": {"namespace": "default", "name": "src"}, "snapshot": {"namespace": "default", "name": "src"}}


def triple(cluster, kind):
    condition = cluster.condition(kind)
    return condition["status"], condition["reason"], condition["message"]


def messages(cluster, reason):
    return [event.message for event in cluster.events if event.reason == reason]


def test_a_finished_import_has_no_reason_for_being_ready():
    cluster = Cluster(dv("csi")).run()
    assert triple(cluster, "Ready") == ("True", "", "")
    assert triple(cluster, "Bound") == ("True", "Bound", "PVC a Bound")
    assert triple(cluster, "Running") == ("False", "Completed", "Import Complete")


def test_an_import_that_fails_has_its_cause_in_running_and_detail_and_not_in_ready():
    cluster = Cluster(dv("csi"), script=[failing("SourceUnreachable", Retry.BACKOFF)])
    until(cluster, lambda: cluster.status.get("detail", {}).get("reason") == "SourceUnreachable")
    assert triple(cluster, "Ready") == ("False", "", "")
    assert triple(cluster, "Running")[:2] == ("False", "Error")


@pytest.mark.parametrize(("kind", "noun"), [("pvc", "pvc"), ("snapshot", "snapshot")])
def test_a_clone_without_a_source_says_so_in_bound_and_ready(kind, noun):
    cluster = CloneCluster(dv("csi", source={kind: SOURCES[kind]})).run()
    said = ("False", "CloneWithoutSource", f"The source {noun} src doesn't exist")
    assert triple(cluster, "Bound") == triple(cluster, "Ready") == said
    assert cluster.status["phase"] == "Pending"
    (message,) = messages(cluster, "CloneWithoutSource")
    assert message.startswith(f"{said[2]}: ") and "Try: create it" in message
    assert "Try: create it" in cluster.detail["message"]


@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_a_quota_is_the_reason_of_bound_and_ready(storage_class):
    cluster = Cluster(dv(storage_class))
    cluster.quota("PersistentVolumeClaim")
    for _ in range(4):
        cluster.step()
    assert triple(cluster, "Bound")[:2] == triple(cluster, "Ready")[:2] == ("False", "ErrExceededQuota")
    assert "exceeded quota" in triple(cluster, "Ready")[2]
    assert triple(cluster, "Running") == ("False", "", "")
    assert cluster.status["phase"] == "Pending"


def test_a_storage_class_that_does_not_exist_is_told_in_the_known_words():
    cluster = Cluster(dv("nvme")).run()
    (message,) = messages(cluster, "ErrClaimNotValid")
    assert message.startswith("PVC spec is missing accessMode and no storageClass to choose profile: StorageClass nvme")
    assert triple(cluster, "Bound")[1] == triple(cluster, "Ready")[1] == "ErrClaimNotValid"


def test_the_provisioners_warning_about_the_prime_claim_is_repeated():
    cluster = Cluster(dv("csi"))
    until(cluster, lambda: any(name.startswith("prime-") for name in cluster.names(CLAIMS)))
    context = cluster.context()
    prime = dataclasses.replace(
        context.prime, phase="Pending", provisioning_message="no room", provisioning_reason="ProvisioningFailed"
    )
    plan = reconcile(dataclasses.replace(context, prime=prime))
    bound = next(one for one in plan.status["conditions"] if one["type"] == "Bound")
    event = f"[{prime.name}] : no room"
    assert (bound["status"], bound["reason"]) == ("False", "Pending")
    assert bound["message"] == f"target PVC a Pending and {event}"
    warning = ("Warning", "ProvisioningFailed", event)
    assert warning in [(one.type, one.reason, one.message) for one in plan.events]
    assert warning in [(one.type, one.reason, one.message) for one in plan.claim_events]
    noted = [action.annotations for action in plan.actions if getattr(action, "name", "") == "a"]
    assert event in [each.get("cdi.kubevirt.io/storage.condition.bound.message") for each in noted]


def test_a_populator_of_others_that_succeeds_has_its_own_event():
    body = dv("csi")
    body["spec"].pop("source")
    body["spec"]["storage"]["dataSourceRef"] = {"apiGroup": "example.com", "kind": "Filler", "name": "f"}
    cluster = Cluster(body).run()
    assert [message.partition(":")[0] for message in messages(cluster, "ExternalPopulationSucceeded")] == [
        "PVC a successfully populated by f"
    ]
    assert not messages(cluster, "ImportSucceeded")
    assert triple(cluster, "Running") == ("False", "", "")


def test_a_clone_by_snapshot_tells_the_phases_that_exist_today():
    cluster = cloning(strategy="snapshot")().run()
    reasons = [event.reason for event in cluster.events]
    at = reasons.index("SnapshotForSmartCloneInProgress")
    assert "CloneFromSnapshotSourceInProgress" in reasons[at:]
    assert "SmartClonePVCInProgress" not in {*reasons, *cluster.phases}
    assert triple(cluster, "Running") == ("False", "Completed", "Clone Complete")


@pytest.mark.parametrize(("operation", "message"), [
    ("Import", "Import Complete"), ("Upload", "Upload Complete"), ("Clone", "Clone Complete"),
])  # fmt: skip
def test_running_of_what_is_complete_names_the_operation(operation, message):
    claim = PVC(namespace="default", name="a", uid="u", phase="Bound")
    state = succeeded(claim, AttemptHistory(done=True), "", operation=operation).state
    assert state.running == COMPLETE[operation] == false("Completed", message)


def test_ready_names_the_transfer_while_an_upload_server_runs():
    claim = PVC(namespace="default", name="a", uid="u", phase="Bound")
    state = DataVolumeState(
        phase=Phase.UPLOAD_READY,
        bound=true("Bound", f"PVC {claim.name} Bound"),
        running=true("Pod is running"),
        ready=false("Pending", "waiting for: cdi upload"),
        claim_name=claim.name,
    )
    assert ready_condition(state) == false("TransferRunning")


SOURCE_OF = {
    Course.IMPORT: {"http": {"url": "http://server/x"}},
    Course.UPLOAD: UPLOAD,
    Course.CLONE: {"snapshot": {"namespace": "golden", "name": "s"}},
    Course.EXTERNAL: None,
}
OPERATION = {Course.IMPORT: "Import", Course.UPLOAD: "Upload", Course.CLONE: "Clone", Course.EXTERNAL: "Import"}


@pytest.mark.parametrize(("course", "phase"), list(EVENTS), ids=lambda one: str(one))
def test_entering_a_phase_tells_its_event(course, phase):
    body = dv("csi", source=SOURCE_OF[course] or UPLOAD)
    if SOURCE_OF[course] is None:
        body["spec"].pop("source")
        body["spec"]["storage"]["dataSourceRef"] = {"apiGroup": "example.com", "kind": "Filler", "name": "f"}
    cluster = Cluster(body)
    failure = Failure(code="ImageCorrupt", message="it is corrupt", retry=Retry.NEVER, exit_status=4)
    state = DataVolumeState(
        phase=phase,
        bound=true("Bound", "PVC a Bound"),
        running=false(),
        ready=false(failure.code, failure.message) if phase is Phase.FAILED else false(),
        claim_name="a",
    )
    context = cluster.context()
    (event, *_) = events_for_transition(
        context, None, resolve_source(context), OPERATION[course], Result(state=state)
    ).steps
    row = EVENTS[course, phase]
    names = {"namespace": "default", "name": "a", "kind": "snapshot", "source": "golden/s", "populator": "f"}
    text = row.message.format(**names)
    assert (event.type, event.reason) == (row.type, row.reason)
    assert event.message == (f"{text}: [ImageCorrupt] it is corrupt" if phase is Phase.FAILED else text)


# --- every status that is passed through is documented ------------------------------------------------------------


def external(storage_class):
    body = dv(storage_class)
    body["spec"].pop("source")
    body["spec"]["storage"]["dataSourceRef"] = {"apiGroup": "example.com", "kind": "Filler", "name": "f"}
    return body


def with_quota(cluster):
    cluster.quota("PersistentVolumeClaim")
    return cluster


HTTP = {"http": {"url": "http://server/x"}}
SIMULATED = {
    "import, populator": (Course.IMPORT, lambda: Cluster(dv("csi"))),
    "import, first consumer": (Course.IMPORT, lambda: Cluster(dv("csi-wait"))),
    "import, at once": (Course.IMPORT, lambda: Cluster(dv("csi-wait", annotations=IMMEDIATE))),
    "import, direct": (Course.IMPORT, lambda: Cluster(dv("local"))),
    "import, direct, first consumer": (Course.IMPORT, lambda: Cluster(dv("local-wait"))),
    "import, block": (Course.IMPORT, lambda: Cluster(dv("csi", mode="Block"))),
    "import, retried": (Course.IMPORT, lambda: Cluster(dv("csi"), script=[failing()] * 2)),
    "import, direct, retried": (Course.IMPORT, lambda: Cluster(dv("local"), script=[failing()] * 2)),
    "import, scratch": (Course.IMPORT, lambda: Cluster(dv("csi"), script=[failing("ScratchNeeded", Retry.ON_CHANGE)])),
    "import, checksum": (
        Course.IMPORT, lambda: Cluster(dv("csi"), script=[failing("ChecksumMismatch", Retry.NEVER)])
    ),
    "import, corrupt": (Course.IMPORT, lambda: Cluster(dv("local"), script=[failing("ImageCorrupt", Retry.NEVER)])),
    "import, no class": (Course.IMPORT, lambda: Cluster(dv("nvme"))),
    "import, quota": (Course.IMPORT, lambda: with_quota(Cluster(dv("local")))),
    "import, Secret missing": (
        Course.IMPORT, lambda: Cluster(dv("local", source={"http": {"url": "http://s/x", "secretRef": "login"}}))
    ),
    "blank": (Course.IMPORT, lambda: Cluster(dv("csi", source={"blank": {}}))),
    "upload, populator": (Course.UPLOAD, lambda: Cluster(dv("csi", source=UPLOAD))),
    "upload, direct": (Course.UPLOAD, lambda: Cluster(dv("local", source=UPLOAD))),
    "upload, first consumer": (Course.UPLOAD, lambda: Cluster(dv("csi-wait", source=UPLOAD))),
    "external": (Course.EXTERNAL, lambda: Cluster(external("csi"))),
    "clone, no source": (Course.CLONE, lambda: CloneCluster(dv("csi", source={"pvc": SOURCES["pvc"]}))),
    **{f"clone, {way}": (Course.CLONE, lambda way=way: WAYS[way]()) for way in WAYS},
}  # fmt: skip


def passed_through(cluster):
    """Run a cluster and return every status of its DataVolume."""
    statuses = []
    for _ in range(80):
        cluster.step()
        if "conditions" in cluster.status:
            statuses.append(copy.deepcopy(cluster.status))
        cluster.nature()
    return statuses


@pytest.mark.parametrize("name", SIMULATED)
def test_every_status_on_the_way_is_documented(name):
    course, make = SIMULATED[name]
    statuses = passed_through(make())
    assert statuses
    assert [status for status in statuses if not is_documented(course, status)] == []


@pytest.mark.parametrize("name", ["import, populator", "import, direct", "import, scratch", "clone, copy", "external"])
def test_every_annotation_that_programs_follow_is_documented(name):
    cluster = SIMULATED[name][1]()
    known = {note.key for note in NOTES}
    for _ in range(80):
        cluster.step()
        cluster.nature()
        for claim in cluster.all(CLAIMS):
            written = {key for key in claim["metadata"]["annotations"] if FOLLOWED.match(key)}
            if claim["metadata"]["name"] == "a":
                assert written <= known


FOLLOWED = re.compile(r"cdi\.kubevirt\.io/(storage\.(pod\.|condition\.|populator\.|sourceClone)|clone[PTFE])")


@pytest.mark.parametrize("case", CASES, ids=lambda one: f"{one.phase}-{one.when}")
def test_ready_follows_from_the_other_conditions(case):
    for bound in case.bound:
        state = DataVolumeState(
            phase=case.phase,
            bound=bound,
            running=case.running,
            ready=false("SomeCode", "some cause. Try: something"),
            claim_name="a" if case.claim else None,
        )
        assert ready_condition(state) == case.ready


def test_the_page_has_every_row():
    page = status_page()
    for case in CASES:
        assert case.when in page
    for event in EVENTS.values():
        assert event.message in page
    for note in NOTES:
        assert note.key in page
