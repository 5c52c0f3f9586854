"""What the controller knows of golden images, and which changes lead to a reconcile of which DataImportCron."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import json
from collections import Counter

import pytest

from cdi.api.annotations import PROOF_ATTEMPTS
from cdi.api.errors import Conflict, KindNotServed, NotFound, Retry
from cdi.api.job import Failure
from cdi.api.kinds import (
    CLAIMS,
    CRON_JOBS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    IMAGE_STREAMS,
    JOBS,
    NODES,
    PODS,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    SUBJECT_ACCESS_REVIEWS,
    VOLUME_SNAPSHOTS,
)
from cdi.api.names import (
    ANN_CLONE_TOKEN,
    ANN_EXTENDED_CLONE_TOKEN,
    COMPONENT_PROOF,
    LABEL_COMPONENT,
    poll_pod,
    proof_pod,
)
from cdi.controller.applier import PlanApplier
from cdi.controller.clone_lister import InformerCloneLister, NoPodUsage, claims_of
from cdi.controller.cron_reads import CronReads
from cdi.controller.lister import ClusterLister
from cdi.controller.reconcilers.dataimportcron import DataImportCronReconciler
from cdi.controller.reconcilers.registry import initial_requests, requests_for
from cdi.controller.referenced_objects import ReferencedObjects
from cdi.controller.request import Request, Scope
from cdi.kube.jwt import SigningKey
from cdi.reconcile.actions import PatchObject, Plan
from cdi.reconcile.clone.plan_annotation import ANN_SNAPSHOT_REQUEST
from cdi.reconcile.clone.types import CloneAuthorization
from cdi.reconcile.dataimportcron.context import CloneRight
from cdi.reconcile.dataimportcron.poll_record import PollRecord
from cdi.reconcile.dataimportcron.proof_result import ProofAttempts
from cdi.reconcile.dataimportcron.slots import MAX_POLLS
from cdi.reconcile.settings import WorkerPodConfig
from tests.unit.controller.objects import added, body, deleted, dependencies, modified, watches

OWN = {"cdi.kubevirt.io/dataImportCron": "fedora-cron"}
INSTALLED = {**OWN, "cdi.kubevirt.io/dataImportCronNs": "ns"}
KEY = Request(kind="cron", namespace="ns", name="fedora-cron")
TEMPLATE = {"spec": {"source": {"pvc": {"namespace": "gold", "name": "source"}}, "storage": {}}}
CRON = body(
    DATA_IMPORT_CRONS,
    "fedora-cron",
    spec={"template": TEMPLATE, "schedule": "", "managedDataSource": "fedora"},
    status={"currentImports": [{"DataVolumeName": "fedora-1", "Digest": "uid:1"}]},
)
JOB = body(JOBS, "poll-1", "cdi", labels=INSTALLED, spec={}, status={})
POLL_POD = body(PODS, "poll-1-x", "cdi", labels={"batch.kubernetes.io/job-name": "poll-1"}, spec={}, status={})


def keys(resource, change, *more):
    return {
        key for key in requests_for(resource, change, watches((DATA_IMPORT_CRONS, CRON), *more)) if key.kind == "cron"
    }


@pytest.mark.parametrize(
    ("resource", "change"),
    [
        (DATA_IMPORT_CRONS, added(CRON)),
        (DATA_VOLUMES, added(body(DATA_VOLUMES, "fedora-1", labels=OWN, spec={}))),
        (DATA_VOLUMES, deleted(body(DATA_VOLUMES, "fedora-1", spec={}))),
        (CLAIMS, deleted(body(CLAIMS, "fedora-1", labels=OWN, spec={}))),
        (CLAIMS, added(body(CLAIMS, "source", "gold", spec={}))),
        (VOLUME_SNAPSHOTS, added(body(VOLUME_SNAPSHOTS, "fedora-1", labels=OWN, spec={}))),
        (DATA_SOURCES, deleted(body(DATA_SOURCES, "fedora", spec={"source": {}}))),
        (CRON_JOBS, deleted(body(CRON_JOBS, "poll", "cdi", labels=INSTALLED, spec={}))),
        (JOBS, added(JOB)),
        (PODS, added(POLL_POD)),
        (PODS, added(body(PODS, "poller-fedora-cron-1", owner=CRON, spec={}, status={}))),
        (PODS, added(body(PODS, "proof", labels=OWN, spec={}, status={}))),
        (STORAGE_CLASSES, added(body(STORAGE_CLASSES, "fast", provisioner="p"))),
        (STORAGE_PROFILES, added(body(STORAGE_PROFILES, "fast", spec={}, status={}))),
    ],
    ids=lambda part: f"{part.type}-{part.object['kind']}" if hasattr(part, "type") else "",
)
def test_a_change_leads_to_a_reconcile(resource, change):
    assert keys(resource, change, (JOBS, JOB)) == {KEY}


def test_progress_of_an_import_does_not():
    before = body(CLAIMS, "fedora-1", labels=OWN, spec={}, status={"phase": "Bound"})
    after = copy.deepcopy(before)
    after["metadata"]["annotations"] = {"cdi.kubevirt.io/storage.pod.restarts": "1"}
    assert keys(CLAIMS, modified(before, after)) == set()


def test_per_cents_of_an_import_do_not():
    before = body(DATA_VOLUMES, "fedora-1", labels=OWN, spec={}, status={"phase": "ImportInProgress", "progress": "1%"})
    after = copy.deepcopy(before)
    after["status"]["progress"] = "2%"
    assert keys(DATA_VOLUMES, modified(before, after)) == set()
    after["status"]["phase"] = "Succeeded"
    assert keys(DATA_VOLUMES, modified(before, after)) == {KEY}


CLONE = {"source": {"pvc": {"namespace": "ns", "name": "fedora-1"}}}
FROM_DATA_SOURCE = {"sourceRef": {"kind": "DataSource", "namespace": "ns", "name": "fedora"}}
VERSION = body(CLAIMS, "fedora-1", labels=OWN, spec={})
MANAGED = body(DATA_SOURCES, "fedora", labels=OWN, spec={"source": CLONE["source"]})
DESCENDANT = body(
    CLAIMS,
    "machine",
    "work",
    spec={},
    annotations={
        "cdi.kubevirt.io/golden.origin": json.dumps(
            {"namespace": "ns", "cron": "fedora-cron", "version": "fedora-1", "digest": "uid:1"}
        )
    },
)


@pytest.mark.parametrize("spec", [CLONE, FROM_DATA_SOURCE], ids=["volume", "DataSource"])
@pytest.mark.parametrize(
    "known", [(CLAIMS, DESCENDANT), ((CLAIMS, VERSION), (DATA_SOURCES, MANAGED))], ids=["origin", "source"]
)
def test_the_end_of_a_clone_leads_to_a_reconcile(spec, known):
    """The version that it was cloned from may have been kept for it only."""
    known = known if isinstance(known[0], tuple) else (known,)
    before = body(DATA_VOLUMES, "machine", "work", spec=spec, status={"phase": "CloneInProgress", "progress": "1%"})
    after = copy.deepcopy(before)
    after["status"]["progress"] = "2%"
    assert keys(DATA_VOLUMES, modified(before, after), *known) == set()
    after["status"]["phase"] = "Succeeded"
    assert keys(DATA_VOLUMES, modified(before, after), *known) == {KEY}
    assert keys(DATA_VOLUMES, deleted(before), *known) == {KEY}


def test_the_end_of_a_clone_into_a_claim_leads_to_a_reconcile():
    before = copy.deepcopy(DESCENDANT)
    before["metadata"]["annotations"]["k8s.io/CloneRequest"] = "ns/fedora-1"
    after = copy.deepcopy(before)
    after["metadata"]["annotations"]["cdi.kubevirt.io/storage.pod.phase"] = "Succeeded"
    assert keys(CLAIMS, modified(before, after)) == {KEY}
    assert keys(CLAIMS, deleted(before)) == {KEY}
    assert keys(CLAIMS, deleted(after)) == set()


def test_a_profile_without_a_relevant_change_does_not():
    before = body(STORAGE_PROFILES, "fast", spec={}, status={"dataImportCronSourceFormat": "pvc"})
    after = copy.deepcopy(before)
    after["status"]["cloneStrategy"] = "copy"
    assert keys(STORAGE_PROFILES, modified(before, after)) == set()
    after["status"]["dataImportCronSourceFormat"] = "snapshot"
    assert keys(STORAGE_PROFILES, modified(before, after)) == {KEY}


def test_what_a_deleted_cron_left_is_found_at_the_start():
    left = body(CRON_JOBS, "poll", "cdi", labels={**INSTALLED, "cdi.kubevirt.io/dataImportCron": "gone"}, spec={})
    made = watches((CRON_JOBS, left))
    # Caches call this for every change that a watch delivers.
    made.crons.changed(CRON_JOBS, added(left))
    assert Request(kind="cron", namespace="ns", name="gone") in initial_requests(made)


# --- the lister ---------------------------------------------------------------------------------------------------


class NoInputs:
    def get(self, ref):
        return None


class NoUsers:
    def pods_using(self, namespace, claim):
        return ()


def lister(*known, scope=None, key=None):
    made = watches()
    for resource, each in known:
        made.record_write(resource, each)
        made.crons.changed(resource, added(each))
        made.waiting.changed(resource, added(each))
    controller = reconciler(Server(), made, scope or Scope())
    controller._d.clones.key = key
    return controller.lister(CronReads(None))


def test_objects_are_selected_by_the_label_and_sorted():
    found = lister(
        (CLAIMS, body(CLAIMS, "b", labels=OWN, spec={})),
        (CLAIMS, body(CLAIMS, "a", labels=OWN, spec={})),
        (CLAIMS, body(CLAIMS, "other", labels={"cdi.kubevirt.io/dataImportCron": "x"}, spec={})),
        (CLAIMS, body(CLAIMS, "elsewhere", "gold", labels=OWN, spec={})),
        (JOBS, JOB),
        (JOBS, body(JOBS, "foreign", "cdi", labels={**INSTALLED, "cdi.kubevirt.io/dataImportCronNs": "x"}, spec={})),
        (PODS, POLL_POD),
    )
    assert [one.name for one in found.claims_of("ns", "fedora-cron")] == ["a", "b"]
    assert [one["metadata"]["name"] for one in found.jobs_of("ns", "fedora-cron")] == ["poll-1"]
    assert [one["metadata"]["name"] for one in found.job_pods("poll-1")] == ["poll-1-x"]
    assert found.cron_jobs_of("ns", "fedora-cron") == ()


NODE_PULL = {"registry": {"url": "docker://r/fedora", "pullMethod": "node"}}
POLLER = {"cdi.kubevirt.io/dataImportCronPoller": ""}


def polled(name, namespace="ns", source=None, **more):
    source = source or {"http": {"url": "https://h/disk.img"}}
    spec = {"schedule": "0 0 1 1 *", "managedDataSource": name, "template": {"spec": {"source": source, "storage": {}}}}
    return DATA_IMPORT_CRONS, body(DATA_IMPORT_CRONS, name, namespace, spec=spec, **more)


def test_polls_of_jobs_and_pods_are_counted_until_they_end():
    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    found = lister(
        (JOBS, JOB),
        (JOBS, body(JOBS, "done", "cdi", labels=INSTALLED, spec={}, status=ended)),
        (PODS, POLL_POD),
        polled("node", source=NODE_PULL),
        (PODS, body(PODS, poll_pod("node", "uid-node"), labels=POLLER, spec={}, status={"phase": "Running"})),
        polled("done", source=NODE_PULL),
        (PODS, body(PODS, poll_pod("done", "uid-done"), labels=POLLER, spec={}, status={"phase": "Succeeded"})),
    )
    assert found.running_polls() == {"ns": 2}


def test_pods_with_the_labels_of_polls_do_not_take_the_place_of_polls():
    """Any user may create such pods in a namespace of theirs."""
    pods = [
        body(PODS, name, namespace, labels={**POLLER, **OWN}, spec={}, status={"phase": "Running"})
        for namespace in ("ns", "tenant", "cdi")
        for name in ("a", poll_pod("gone", "uid-gone"), poll_pod("node", "uid-other"), poll_pod("url", "uid-url"))
    ]
    found = lister(polled("node", source=NODE_PULL), polled("url"), *((PODS, pod) for pod in pods))
    assert found.running_polls() == {}


def proof(claim, name=None, **more):
    labels = {LABEL_COMPONENT: COMPONENT_PROOF, **OWN}
    name = name or proof_pod(claim["metadata"]["uid"], claim["metadata"]["name"])
    more = {"status": {"phase": "Running"}, **more}
    return PODS, body(PODS, name, claim["metadata"]["namespace"], labels=labels, owner=claim, spec={}, **more)


def test_proofs_of_versions_are_counted_until_they_end():
    claims = [body(CLAIMS, name, labels=OWN, spec={}) for name in ("fedora-1", "fedora-2")]
    known = [(CLAIMS, claim) for claim in claims]
    versions = [{"name": name, "Digest": "uid:1", "state": "Proving"} for name in ("fedora-1", "fedora-2")]
    _, cron = polled("fedora-cron", status={"versions": versions})
    ended = proof(claims[1], status={"phase": "Failed"})
    assert lister((DATA_IMPORT_CRONS, cron), *known, proof(claims[0]), ended).running_proofs() == {"ns": 1}


@pytest.mark.parametrize("forged", ["nothing", "name", "label", "version", "owner", "cron"])
def test_pods_with_the_labels_of_proofs_do_not_take_the_place_of_proofs(forged):
    claim = body(CLAIMS, "fedora-1", labels={} if forged == "label" else OWN, spec={})
    versions = [{"name": "fedora-9" if forged == "version" else "fedora-1", "Digest": "uid:1", "state": "Proving"}]
    cron = polled("fedora-cron", "tenant" if forged == "cron" else "ns", status={"versions": versions})
    pod = proof(claim, "a-pod" if forged == "name" else None)
    if forged == "owner":
        pod[1]["metadata"]["ownerReferences"][0]["uid"] = "another"
    assert lister(cron, (CLAIMS, claim), pod).running_proofs() == ({"ns": 1} if forged == "nothing" else {})


DUE = {"cdi.kubevirt.io/storage.import.nextCronTime": "2020-01-01T00:00:00Z"}
LATER = {"cdi.kubevirt.io/storage.import.nextCronTime": "2099-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("cron", "waits"),
    [
        (polled("a", "tenant"), True),
        (polled("a", "tenant", annotations=DUE), True),
        (polled("a", "tenant", annotations=LATER), False),
        (polled("a", "tenant", {"pvc": {"namespace": "x", "name": "y"}}), False),
        (polled("a", "tenant", deletionTimestamp="2026"), False),
    ],
    ids=["new", "due", "later", "no-pod", "deleted"],
)
def test_a_poll_that_is_due_waits(cron, waits):
    assert lister(cron).waiting_polls(1_800_000_000.0) == ({"tenant": 1} if waits else {})


def test_a_poll_that_runs_or_cannot_run_does_not_wait():
    missing = PollRecord().with_obstacle(Failure(code="NotFound", message="", retry=Retry.ON_CHANGE)).write()
    labels = {"cdi.kubevirt.io/dataImportCron": "runs", "cdi.kubevirt.io/dataImportCronNs": "tenant"}
    invalid = polled("invalid", "tenant")
    invalid[1]["spec"]["schedule"] = "often"
    found = lister(
        polled("runs", "tenant"),
        (JOBS, body(JOBS, "poll", "cdi", labels=labels, spec={}, status={})),
        polled("blocked", "tenant", annotations=missing),
        invalid,
    )
    assert found.waiting_polls(1_800_000_000.0) == {}


FAILED_ONCE = ProofAttempts(
    attempt=1, ended=1_800_000_000.0, failure=Failure(code="WorkerLost", message="", retry=Retry.BACKOFF)
)


@pytest.mark.parametrize(
    ("case", "waits"),
    [
        ("due", True),
        ("invalid-settings", True),
        ("has-a-pod", False),
        ("no-claim", False),
        ("available", False),
        ("no-longer-wanted", False),
        ("delayed-after-a-failure", False),
        ("cron-deleted", False),
        ("another-installation", False),
    ],
)
def test_a_version_whose_proof_is_due_and_has_no_pod_waits(case, waits):
    settings = {"due": "boot", "invalid-settings": "flight", "no-longer-wanted": "none"}.get(case, "boot")
    attempts = PROOF_ATTEMPTS.write(FAILED_ONCE) if case == "delayed-after-a-failure" else {}
    claim = body(CLAIMS, "fedora-1", labels=OWN, annotations=attempts, spec={})
    state = "Available" if case == "available" else "Proving"
    cron = polled(
        "fedora-cron",
        annotations={"cdi.kubevirt.io/golden.proof": settings},
        status={"versions": [{"name": "fedora-1", "Digest": "uid:1", "state": state}]},
        **({"deletionTimestamp": "2026"} if case == "cron-deleted" else {}),
    )
    known = [cron]
    if case != "no-claim":
        known.append((CLAIMS, claim))
    if case == "has-a-pod":
        known.append(proof(claim))
    scope = Scope(namespaces=frozenset({"x"})) if case == "another-installation" else None
    assert lister(*known, scope=scope).waiting_proofs(1_800_000_000.0) == ({"ns": 1} if waits else {})


@pytest.mark.parametrize(
    ("ready", "amount", "offered"), [("True", "110", True), ("False", "110", False), ("True", "0", False)]
)
def test_a_device_is_offered_by_a_ready_node(ready, amount, offered):
    status = {
        "conditions": [{"type": "Ready", "status": ready}],
        "allocatable": {"devices.kubevirt.io/kvm": amount},
    }
    assert lister((NODES, body(NODES, "n", status=status))).offers_device("devices.kubevirt.io/kvm") is offered


def test_volumes_that_descend_from_a_version_are_found_in_all_namespaces():
    origin = json.dumps({"namespace": "ns", "cron": "fedora-cron", "version": "fedora-1", "digest": "uid:1"})
    annotations = {"cdi.kubevirt.io/golden.origin": origin}
    found = lister(
        (CLAIMS, body(CLAIMS, "vm", "vms", annotations=annotations, spec={})),
        (CLAIMS, body(CLAIMS, "bad", "vms", annotations={"cdi.kubevirt.io/golden.origin": "{"}, spec={})),
    )
    assert [one.name for one in found.descendants_of("ns", "fedora-cron")] == ["vm"]


def test_unfinished_clones_of_a_version_are_found():
    direct = {"source": {"pvc": {"namespace": "ns", "name": "fedora-1"}}}
    by_reference = {"sourceRef": {"kind": "DataSource", "namespace": "ns", "name": "fedora"}}
    source = {"source": {"pvc": {"namespace": "ns", "name": "fedora-1"}}}
    elsewhere = {"sourceRef": {"kind": "DataSource", "namespace": "ns", "name": "debian"}}
    storage = {"storage": {"resources": {"requests": {"storage": "1Gi"}}}}
    token = {ANN_CLONE_TOKEN: "not verified without the key"}
    found = lister(
        (DATA_SOURCES, body(DATA_SOURCES, "fedora", spec=source)),
        (DATA_VOLUMES, body(DATA_VOLUMES, "a", "vms", annotations=token, spec={**direct, **storage})),
        (DATA_VOLUMES, body(DATA_VOLUMES, "b", "vms", annotations=token, spec={**by_reference, **storage})),
        (DATA_VOLUMES, body(DATA_VOLUMES, "c", "vms", annotations=token, spec={**elsewhere, **storage})),
        (
            DATA_VOLUMES,
            body(
                DATA_VOLUMES, "d", "vms", annotations=token, spec={**direct, **storage}, status={"phase": "Succeeded"}
            ),
        ),
    )
    assert found.clones_in_progress("ns", "fedora-1") == ("vms/a", "vms/b")


SIGNER = SigningKey.generate()
NOW = 1_800_000_000.0
REQUEST = {"k8s.io/CloneRequest": "ns/fedora-1"}
PVC_SPEC = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}


def clone_token(**changed):
    """Return a token that allows ns/fedora-1 to be cloned to tenant/a."""
    grant = {
        "kind": "PersistentVolumeClaim",
        "namespace": "ns",
        "name": "fedora-1",
        "target_namespace": "tenant",
        "target_name": "a",
        "target_uid": "uid-a",
        **changed,
    }
    return SIGNER.sign(claims_of(CloneAuthorization(**grant)), NOW, 3600)


def annotated(namespace="tenant", **annotations):
    return CLAIMS, body(CLAIMS, "a", namespace, annotations={**REQUEST, **annotations}, spec=PVC_SPEC)


@pytest.mark.parametrize(
    ("token", "counted"),
    [
        (None, False),
        ("forged", False),
        (clone_token(), True),
        (clone_token(kind="VolumeSnapshot"), True),
        (clone_token(name="fedora-2"), False),
        (clone_token(namespace="other"), False),
        (clone_token(target_namespace="other"), False),
        (clone_token(target_uid="another"), False),
    ],
    ids=["none", "forged", "ours", "snapshot", "other-name", "other-namespace", "other-target", "other-uid"],
)
def test_an_annotation_in_another_namespace_keeps_a_version_only_if_the_clone_is_authorized(token, counted):
    claim = annotated(**({ANN_EXTENDED_CLONE_TOKEN: token} if token else {}))
    assert lister(claim, key=SIGNER).clones_in_progress("ns", "fedora-1") == (("tenant/a",) if counted else ())


def test_a_clone_whose_authorization_cannot_be_verified_yet_is_counted():
    claim = annotated(**{ANN_EXTENDED_CLONE_TOKEN: "a token"})
    assert lister(claim, key=None).clones_in_progress("ns", "fedora-1") == ("tenant/a",)
    assert lister(annotated(), key=None).clones_in_progress("ns", "fedora-1") == ()


def test_a_clone_within_the_namespace_needs_no_authorization():
    assert lister(annotated("ns"), key=SIGNER).clones_in_progress("ns", "fedora-1") == ("ns/a",)


@pytest.mark.parametrize("authorized", [True, False])
@pytest.mark.parametrize("spec", [CLONE, FROM_DATA_SOURCE], ids=["volume", "DataSource"])
def test_a_data_volume_of_another_namespace_counts_by_the_token_of_the_webhook(spec, authorized):
    token = {ANN_CLONE_TOKEN: clone_token(target_uid="")} if authorized else {}
    dv = body(DATA_VOLUMES, "a", "tenant", annotations=token, spec={**spec, "storage": {}})
    dv["metadata"]["creationTimestamp"] = dt.datetime.fromtimestamp(NOW + 60, dt.UTC).isoformat()
    found = lister((DATA_VOLUMES, dv), (DATA_SOURCES, MANAGED), key=SIGNER)
    assert found.clones_in_progress("ns", "fedora-1") == (("tenant/a",) if authorized else ())


def test_what_the_controller_does_not_clone_is_not_counted():
    _, orphan = annotated("ns")
    owner = body(DATA_VOLUMES, "a", "ns", spec={"source": {"blank": {}}, "pvc": PVC_SPEC})
    orphan["metadata"]["ownerReferences"] = body(CLAIMS, "x", owner=owner)["metadata"]["ownerReferences"]
    restored = body(CLAIMS, "b", "ns", annotations={ANN_SNAPSHOT_REQUEST: "ns/fedora-1"}, spec=PVC_SPEC)
    assert lister((CLAIMS, orphan), (CLAIMS, restored)).clones_in_progress("ns", "fedora-1") == ()
    assert lister((CLAIMS, orphan), (DATA_VOLUMES, owner)).clones_in_progress("ns", "fedora-1") == ()
    scope = Scope(selector={"team": "a"})
    assert lister(annotated("ns"), scope=scope).clones_in_progress("ns", "fedora-1") == ()


# --- questions ----------------------------------------------------------------------------------------------------

RIGHT = CloneRight(namespace="ns", service_account="importer", source_namespace="gold", source_name="source")


class Reviews:
    """An API server that answers SubjectAccessReviews and has at most one ImageStream."""

    def __init__(self, allowed=(), stream=None):
        self.allowed, self.stream, self.asked = allowed, stream, []

    async def create(self, resource, review):
        assert resource == SUBJECT_ACCESS_REVIEWS
        self.asked.append(review["spec"])
        attributes = review["spec"]["resourceAttributes"]
        return {"status": {"allowed": attributes.get("subresource", attributes["resource"]) in self.allowed}}

    async def get(self, resource, namespace, name):
        assert resource == IMAGE_STREAMS
        if isinstance(self.stream, Exception):
            raise self.stream
        return self.stream


@pytest.mark.parametrize(("allowed", "answer"), [((), False), (("source",), True), (("pods",), True)])
async def test_the_right_of_the_service_account_is_reviewed(allowed, answer):
    server = Reviews(allowed)
    reads = CronReads(server)
    assert reads.may_clone(RIGHT) is None
    assert await reads.answer()
    assert reads.may_clone(RIGHT) is answer
    assert not await reads.answer()
    spec = server.asked[0]
    assert spec["user"] == "system:serviceaccount:ns:importer"
    assert spec["groups"] == ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
    wanted = {
        "namespace": "gold",
        "name": "source",
        "verb": "create",
        "group": "cdi.kubevirt.io",
        "subresource": "source",
    }
    assert wanted.items() <= spec["resourceAttributes"].items()


@pytest.mark.parametrize(
    ("error", "words"),
    [(KindNotServed("the API server does not serve this kind"), "no API"), (NotFound("not found"), "does not exist")],
)
async def test_a_missing_image_stream_is_explained(error, words):
    reads = CronReads(Reviews(stream=error))
    assert reads.image_stream("ns", "fedora") is None
    await reads.answer()
    assert words in reads.image_stream("ns", "fedora").failure
    assert ". Try: " in reads.image_stream("ns", "fedora").failure


async def test_an_image_stream_is_read():
    reads = CronReads(Reviews(stream={"status": {}}))
    reads.image_stream("ns", "fedora")
    await reads.answer()
    assert reads.image_stream("ns", "fedora").body == {"status": {}}


# --- writing ------------------------------------------------------------------------------------------------------


class Patches:
    """An API server that records merge patches."""

    def __init__(self):
        self.sent = []

    async def patch(self, resource, namespace, name, patch, *, subresource=""):
        self.sent.append((resource, name, patch, subresource))
        return body(resource, name)


async def test_status_and_annotations_are_one_request():
    server = Patches()
    applier = PlanApplier(server, watches((DATA_IMPORT_CRONS, CRON)), None)
    annotations = {"cdi.kubevirt.io/golden.rollback": None, "a": "b"}
    plan = Plan(status={"versions": []}, annotations=annotations)
    await applier.apply(plan, CRON, 0.0)
    [(resource, name, patch, subresource)] = server.sent
    assert (resource, name, subresource) == (DATA_IMPORT_CRONS, "fedora-cron", "")
    assert patch["metadata"]["annotations"] == annotations
    assert patch["metadata"]["resourceVersion"] == CRON["metadata"]["resourceVersion"]
    assert patch["status"] == {"versions": [], "currentImports": None}


async def test_annotations_alone_leave_the_status_unchanged():
    server = Patches()
    await PlanApplier(server, watches((DATA_IMPORT_CRONS, CRON)), None).apply(Plan(annotations={"a": "b"}), CRON, 0.0)
    [(_, _, patch, _)] = server.sent
    assert "status" not in patch


async def test_a_command_given_meanwhile_is_not_removed_unseen():
    command = "cdi.kubevirt.io/golden.rollback"
    newer = copy.deepcopy(CRON)
    newer["metadata"] |= {"annotations": {command: "previous"}, "resourceVersion": "99999"}
    applier = PlanApplier(Patches(), watches((DATA_IMPORT_CRONS, newer)), None)
    with pytest.raises(Conflict):
        await applier.apply(Plan(annotations={command: None}), CRON, 0.0)


async def test_a_data_source_is_switched_by_one_patch():
    server = Patches()
    source = {"source": {"pvc": None, "snapshot": {"namespace": "ns", "name": "fedora-2"}}}
    action = PatchObject(plural="datasources", namespace="ns", name="fedora", uid="u", labels={"a": "b"}, spec=source)
    await PlanApplier(server, watches(), None).apply(Plan(actions=(action,)), CRON, 0.0)
    [(resource, _, patch, _)] = server.sent
    assert resource == DATA_SOURCES
    assert patch == {"metadata": {"uid": "u", "labels": {"a": "b"}}, "spec": source}


# --- reconciling --------------------------------------------------------------------------------------------------


class Server(Patches):
    """An API server that stores what is created, and in which nothing else exists."""

    def __init__(self):
        super().__init__()
        self.created = []
        self.deleted = []

    async def create(self, resource, document):
        self.created.append(document)
        return {**document, "metadata": {**document["metadata"], "uid": "u", "resourceVersion": "1"}}

    async def get(self, resource, namespace, name):
        raise NotFound(f"{name} not found")

    async def delete(self, resource, namespace, name, *, uid, propagation):
        self.deleted.append((resource, name, propagation))


def reconciler(server, made, scope):
    inputs = ReferencedObjects(server)
    observed = ClusterLister(made, None, inputs, NoUsers(), pods=WorkerPodConfig(), install_namespace="cdi")
    clones = InformerCloneLister(made, observed, NoPodUsage())
    return DataImportCronReconciler(
        dependencies(
            made, client=server, lister=observed, inputs=inputs, clones=clones, scope=scope, now=lambda: 1_800_000_000.0
        )
    )


async def test_what_is_created_carries_the_labels_of_the_scope():
    """Without them the controller would not handle the DataVolumes."""
    desired = {"cdi.kubevirt.io/storage.import.sourceDesiredDigest": "uid:fd83ea4c-7ef1-4a5e-9a5c-111111111111"}
    spec = {
        "template": {
            "spec": {
                "source": {"pvc": {"namespace": "ns", "name": "gold"}},
                "storage": {"resources": {"requests": {"storage": "1Gi"}}},
            }
        },
        "schedule": "",
        "managedDataSource": "fedora",
    }
    cron = body(DATA_IMPORT_CRONS, "fedora-cron", labels={"team": "a"}, annotations=desired, spec=spec)
    server = Server()
    made = watches((DATA_IMPORT_CRONS, cron))
    await reconciler(server, made, Scope(selector={"team": "a"})).reconcile(KEY)
    objects = {one["kind"]: one for one in server.created if one["kind"] != "Event"}
    assert set(objects) == {"DataSource", "DataVolume"}
    assert objects["DataVolume"]["metadata"]["name"] == "fedora-fd83ea4c-7ef"
    assert all(one["metadata"]["labels"]["team"] == "a" for one in objects.values())
    [(resource, _, patch, _)] = server.sent
    assert resource == DATA_IMPORT_CRONS
    assert patch["status"]["currentImports"][0]["DataVolumeName"] == "fedora-fd83ea4c-7ef"


async def test_crons_that_are_reconciled_at_once_do_not_exceed_the_limit_of_polls():
    class Slow(Server):
        async def create(self, resource, document):
            await asyncio.sleep(0)  # another reconcile is planned meanwhile
            return await super().create(resource, document)

    spec = {
        "template": {"spec": {"source": {"http": {"url": "https://h/disk.img"}}, "storage": {}}},
        "schedule": "0 0 1 1 *",
    }
    names = [f"cron-{number}" for number in range(2 * MAX_POLLS)]
    crons = [body(DATA_IMPORT_CRONS, name, spec={**spec, "managedDataSource": name}) for name in names]
    server = Slow()
    made = reconciler(server, watches(*((DATA_IMPORT_CRONS, cron) for cron in crons)), Scope())
    await asyncio.gather(*(made.reconcile(Request(kind="cron", namespace="ns", name=name)) for name in names))
    kinds = [one["kind"] for one in server.created]
    assert kinds.count("CronJob") == len(names), "each one has a poll that is due"
    assert kinds.count("Job") == MAX_POLLS


class Turns:
    """DataImportCrons of several namespaces that are all due, and the Jobs or pods that are created for them."""

    def __init__(self, kind, *known):
        self._kind = kind
        self._server = Server()
        self._watches = watches(*known)
        for resource, each in known:
            self._watches.crons.changed(resource, added(each))
        self._reconciler = reconciler(self._server, self._watches, Scope())

    async def reconcile(self, namespace):
        """Reconcile all DataImportCrons of a namespace, and return the number of pods held by each namespace."""
        for cron in list(self._watches.values(DATA_IMPORT_CRONS)):
            metadata = cron["metadata"]
            if metadata["namespace"] == namespace:
                await self._reconciler.reconcile(Request(kind="cron", namespace=namespace, name=metadata["name"]))
        return self.held

    @property
    def _created(self):
        return [one for one in self._server.created if one["kind"] == self._kind]

    @property
    def held(self):
        label = "cdi.kubevirt.io/dataImportCronNs"
        places = (one["metadata"].get("labels", {}).get(label) or one["metadata"]["namespace"] for one in self._created)
        return dict(Counter(places))


def due_polls(**namespaces):
    return [polled(f"{space}-{number}", space) for space, count in namespaces.items() for number in range(count)]


def due_proofs(**namespaces):
    """DataImportCrons with one imported version each, whose proof is due."""
    for space, count in namespaces.items():
        for number in range(count):
            name = f"image-{number}-1"
            labels = {"cdi.kubevirt.io/dataImportCron": f"image-{number}"}
            success = {"cdi.kubevirt.io/storage.pod.phase": "Succeeded"}
            claim = body(CLAIMS, name, space, labels=labels, annotations=success, spec={}, status={"phase": "Bound"})
            claim["metadata"]["uid"] = f"{space}-{number}"
            yield CLAIMS, claim
            cron = polled(
                f"image-{number}",
                space,
                annotations={"cdi.kubevirt.io/golden.proof": "boot", **LATER},
                status={"versions": [{"name": name, "Digest": "uid:1", "state": "Proving"}]},
            )
            yield cron


TURNS = pytest.mark.parametrize(("kind", "due"), [("Job", due_polls), ("Pod", due_proofs)], ids=["polls", "proofs"])


@TURNS
async def test_a_namespace_leaves_slots_to_those_of_others_that_wait(kind, due):
    turns = Turns(kind, *due(greedy=2 * MAX_POLLS, tenant=1))
    assert await turns.reconcile("greedy") == {"greedy": MAX_POLLS - 1}
    assert await turns.reconcile("tenant") == {"greedy": MAX_POLLS - 1, "tenant": 1}


@TURNS
async def test_two_namespaces_with_many_crons_do_not_hold_the_slots_of_a_third(kind, due):
    turns = Turns(kind, *due(a=2 * MAX_POLLS, b=2 * MAX_POLLS, c=3))
    for namespace in ("a", "b", "c"):
        held = await turns.reconcile(namespace)
    assert sum(held.values()) == MAX_POLLS
    assert sorted(held.values()) == [2, 3, 3]


async def test_what_a_deleted_cron_left_is_deleted():
    cleaned = {**OWN, "cdi.kubevirt.io/dataImportCron.cleanup": "true"}
    made = watches()
    for resource, each in (
        (CRON_JOBS, body(CRON_JOBS, "poll", "cdi", labels=INSTALLED, spec={})),
        (JOBS, JOB),
        (CLAIMS, body(CLAIMS, "fedora-1", labels=cleaned, spec={})),
        (CLAIMS, body(CLAIMS, "kept", labels=OWN, spec={})),
        (DATA_SOURCES, body(DATA_SOURCES, "fedora", labels=cleaned, spec={"source": {}})),
    ):
        made.record_write(resource, each)
        made.crons.changed(resource, added(each))
    server = Server()
    await reconciler(server, made, Scope()).reconcile(KEY)
    assert server.deleted == [
        (CRON_JOBS, "poll", "Background"),
        (JOBS, "poll-1", "Background"),
        (DATA_SOURCES, "fedora", "Background"),
        (CLAIMS, "fedora-1", "Background"),
    ]
