from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from cdi.api.errors import AdmissionDenied, ClusterForbidden, Conflict, InvalidManifest, Retry
from cdi.api.job import FileTargetSpec, Job, Progress
from cdi.api.phases import Phase
from cdi.reconcile.actions import CreateObject, DeleteObject, ObjectRef, RebindVolume, RequireVersion, StartWorker
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.pods.status import NODE_LOST
from cdi.reconcile.settings import Retries
from cdi.reconcile.types import Input
from tests.unit.reconcile.clone.clone_simulation import CloneCluster
from tests.unit.reconcile.cluster_simulation import CLAIMS, COMPLETE, DVS, NS, PODS, VOLUMES, Cluster, dv, pvc
from tests.unit.reconcile.simulation import End, failing

PRE_POPULATED = {"cdi.kubevirt.io/storage.prePopulated": "a"}
POPULATED_FOR = {"cdi.kubevirt.io/storage.populatedFor": "a"}
IMMEDIATE = {"cdi.kubevirt.io/storage.bind.immediate.requested": ""}
RETAIN = {"cdi.kubevirt.io/storage.pod.retainAfterCompletion": "true"}


def until(cluster, done, steps=60):
    for _ in range(steps):
        if done():
            return cluster
        cluster.step()
        if not done():
            cluster.nature()
    raise AssertionError(cluster.status)


def started(cluster):
    return until(cluster, lambda: cluster.names(PODS))


def test_a_populated_volume_goes_through_its_phases():
    cluster = Cluster(dv("csi")).run()
    assert list(dict.fromkeys(cluster.phases)) == ["Pending", "ImportScheduled", "ImportInProgress", "Succeeded"]
    reasons = [event.reason for event in cluster.events]
    assert reasons == [
        "Pending", "CreatedPVCPrimeSuccessfully", "ImportScheduled", "ImportInProgress", "Bound", "ImportSucceeded",
    ]  # fmt: skip
    assert cluster.content == COMPLETE
    assert cluster.annotations["storage.usePopulator"] == "true"
    assert cluster.annotations["storage.pod.phase"] == "Succeeded"
    assert cluster.annotations["storage.condition.bound"] == "true"
    assert cluster.annotations["storage.condition.running.reason"] == "Completed"
    uid = cluster.get(CLAIMS, "a")["metadata"]["uid"]
    assert cluster.annotations["storage.populator.pvcPrime"] == f"prime-{uid}"
    assert cluster.annotations["storage.import.importPodName"] == f"importer-prime-{uid}"
    ref = cluster.get(CLAIMS, "a")["spec"]["dataSourceRef"]
    assert ref["name"] == "volume-import-source-dv-uid"
    assert cluster.names("volumeimportsources") == {"volume-import-source-dv-uid"}


def test_a_direct_volume_has_its_pod_on_the_claim_itself():
    cluster = started(Cluster(dv("local")))
    assert cluster.names(PODS) == {"importer-a"}
    assert cluster.annotations["storage.usePopulator"] == "false"
    assert "dataSourceRef" not in cluster.get(CLAIMS, "a")["spec"]
    cluster.run()
    assert cluster.names("volumeimportsources") == set()


def test_a_content_type_that_nobody_knows_is_not_taken_for_another():
    """Such an object was stored before the definition had an enumeration."""
    body = dv("csi")
    body["spec"]["contentType"] = "floppy"
    cluster = Cluster(body).run()
    assert cluster.status["phase"] == "Failed"
    assert cluster.detail["reason"] == "InvalidManifest"
    assert "floppy is not a content type (spec.contentType). Try: " in cluster.detail["message"]
    assert not cluster.names(PODS)


def test_populators_can_be_declined():
    cluster = Cluster(dv("csi", annotations={"cdi.kubevirt.io/storage.usePopulator": "false"}))
    assert started(cluster).names(PODS) == {"importer-a"}


def test_the_prime_claim_shows_what_programs_look_for():
    cluster = Cluster(dv("csi"))
    until(cluster, lambda: cluster.status.get("phase") == "ImportInProgress")
    cluster.step()
    prime = next(body for body in cluster.all(CLAIMS) if body["metadata"]["name"].startswith("prime-"))
    annotations = prime["metadata"]["annotations"]
    assert annotations["cdi.kubevirt.io/storage.pod.phase"] == "Running"
    assert annotations["cdi.kubevirt.io/storage.import.importPodName"] == f"importer-{prime['metadata']['name']}"
    assert prime["metadata"]["labels"]["velero.io/exclude-from-backup"] == "true"


@pytest.mark.parametrize(("storage_class", "said"), [("csi", {"csi.example"}), ("csi-wait", set()), ("local", set())])
def test_claims_say_who_makes_their_volumes_where_kubernetes_would_say_it_at_once(storage_class, said):
    cluster = Cluster(dv(storage_class))
    cluster.consumer = True
    claims = started(cluster).all(CLAIMS)
    assert len(claims) == (1 if storage_class == "local" else 2)
    for claim in claims:
        annotations = claim["metadata"]["annotations"]
        names = ("volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner")
        assert {annotations[name] for name in names if name in annotations} == said


# --- binding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage_class", "phase"), [("local-wait", "WaitForFirstConsumer"), ("csi-wait", "PendingPopulation")]
)
def test_a_waiting_class_waits_for_its_consumer(storage_class, phase):
    cluster = Cluster(dv(storage_class)).run()
    assert cluster.status["phase"] == phase
    assert not cluster.names(PODS)
    assert "Try: start a pod" in cluster.detail["message"]
    cluster.consumer = True
    if storage_class == "csi-wait":
        assert cluster.run().status["phase"] == "Succeeded"


def test_a_workers_pod_runs_on_the_node_of_the_consumer():
    cluster = Cluster(dv("csi-wait"))
    cluster.consumer = True
    pod = started(cluster).all(PODS)[0]
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    fields = terms["nodeSelectorTerms"][0]["matchFields"]
    assert fields == [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]


@pytest.mark.parametrize("storage_class", ["csi-wait", "local-wait"])
def test_immediate_binding_is_done_at_once(storage_class):
    assert Cluster(dv(storage_class, annotations=IMMEDIATE)).run().status["phase"] == "Succeeded"


@pytest.mark.parametrize("form", ["storage", "pvc"])
def test_a_class_that_does_not_exist_is_named(form):
    body = dv("nvme", form=form)
    body["spec"][form]["accessModes"] = ["ReadWriteOnce"]
    cluster = Cluster(body).run()
    assert cluster.status["phase"] == "Pending"
    assert cluster.condition("Bound")["reason"] == "ErrClaimNotValid"
    assert "StorageClass nvme does not exist" in cluster.detail["message"]
    assert [event.reason for event in cluster.events] == ["ErrClaimNotValid"]


@pytest.mark.parametrize(("renders", "bound"), [(True, "NotFound"), (False, "ErrClaimNotValid")])
def test_a_claim_that_the_webhook_would_refuse_is_reported_as_missing(renders, bound):
    body = dv()
    body["metadata"]["labels"] = {"cdi.kubevirt.io/applyStorageProfile": "true"}
    cluster = Cluster(body, default=None)
    cluster.config = replace(cluster.config, renders_claims=renders)
    cluster.run()
    assert cluster.condition("Bound")["reason"] == bound
    events = {event.reason: event.message for event in cluster.events}
    assert ("no storageClass to choose profile") in events["ErrClaimNotValid"]
    assert events.get("NotFound") == ("No PVC found" if renders else None)
    assert cluster.status["phase"] == "Pending"


def test_no_default_class_is_told():
    cluster = Cluster(dv(), default=None).run()
    assert cluster.condition("Bound")["reason"] == "ErrClaimNotValid"
    assert "storageClass" in cluster.condition("Bound")["message"]


def test_what_keeps_a_volume_from_being_made_is_passed_on(monkeypatch):
    cluster = Cluster(dv("local"))
    monkeypatch.setattr(cluster, "_provision", lambda claim: None)
    cluster.step()
    cluster.step()
    assert cluster.status["phase"] == "Pending"
    assert "local.example" in cluster.detail["message"]


# --- sizes --------------------------------------------------------------------------------------------------------

GIB = 1 << 30


def job(cluster):
    return next(action for action in cluster.log if isinstance(action, StartWorker)).work


def test_storage_grows_by_what_the_file_system_needs_and_the_disk_is_at_least_what_was_asked_for():
    cluster = started(Cluster(dv("csi")))
    asked = int(cluster.get(CLAIMS, "a")["spec"]["resources"]["requests"]["storage"])
    assert asked == GIB * 106 // 100 + 1
    assert GIB <= job(cluster).size <= asked
    assert job(cluster).target == FileTargetSpec(path="/data/disk.img", volume=asked, overhead=60)
    assert job(cluster).journal == "/data/.cdi/journal"


def test_pvc_is_taken_as_it_is_and_the_disk_leaves_room_for_the_file_system():
    cluster = started(Cluster(dv("csi", form="pvc")))
    assert cluster.get(CLAIMS, "a")["spec"]["resources"]["requests"]["storage"] == "1Gi"
    assert job(cluster).size == 966 << 20


def test_a_block_volume_takes_the_whole_device():
    cluster = started(Cluster(dv("csi", mode="Block")))
    assert cluster.get(CLAIMS, "a")["spec"]["resources"]["requests"]["storage"] == "1Gi"
    assert (job(cluster).target.kind, job(cluster).target.path) == ("block", "/dev/cdi-block-volume")
    assert job(cluster).size is None
    assert job(cluster).journal == "/var/run/cdi/state/journal"


def test_an_archive_wants_a_file_system():
    cluster = Cluster(dv("csi", mode="Block", contentType="archive")).run()
    assert cluster.status["phase"] == "Failed"
    assert cluster.detail["reason"] == "TargetUnsuitable"


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_a_permanent_failure_leaves_no_pod_and_no_prime(storage_class):
    cluster = Cluster(dv(storage_class), script=[failing("ImageCorrupt", Retry.NEVER)]).run()
    assert cluster.status["phase"] == "Failed"
    assert cluster.condition("Running")["reason"] == "Error"
    assert cluster.names(CLAIMS) == {"a"}
    assert not cluster.names(PODS)
    assert cluster.events[-1].reason == "ImportFailed"


def test_a_checksum_mismatch_is_fatal_in_the_words_that_clients_know():
    cluster = Cluster(dv("csi"), script=[failing("ChecksumMismatch", Retry.NEVER)]).run()
    assert cluster.condition("Running")["reason"] == "ChecksumError"
    assert cluster.annotations["storage.import.fatalError"] == "true"


def test_passing_failures_are_tried_again_in_the_same_pod():
    cluster = Cluster(dv("csi"), script=[failing()] * 3).run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.status["restartCount"] == 3
    assert cluster.annotations["storage.pod.restarts"] == "3"
    starts = [action.attempt for action in cluster.log if isinstance(action, StartWorker)]
    assert starts == [1]


def test_scratch_space_comes_on_demand_and_goes():
    cluster = Cluster(dv("csi"), script=[failing("ScratchNeeded", Retry.ON_CHANGE)])
    until(cluster, lambda: cluster.status.get("conditions") and cluster.condition("Bound")["reason"] != "Pending")
    assert cluster.condition("Bound")["reason"] == "CreatingScratchSpace"
    assert any(name.endswith("-scratch") for name in cluster.names(CLAIMS))
    assert cluster.annotations["storage.import.requiresScratch"] == "true"
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.names(CLAIMS) == {"a"}
    assert [action.work.scratch for action in cluster.log if isinstance(action, StartWorker)] == [None, "/scratch"]


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "Pod"])
def test_a_quota_is_told_and_waited_for(kind):
    cluster = Cluster(dv("local"))
    cluster.quota(kind)
    for _ in range(6):
        cluster.step()
        cluster.nature()
    event = cluster.events[-1]
    assert event.reason == "ErrExceededQuota"
    assert "exceeded quota" in cluster.detail["message"]
    condition = cluster.condition("Bound" if kind == "PersistentVolumeClaim" else "Running")
    assert (condition["status"], condition["reason"]) == ("False", "ErrExceededQuota")
    if kind == "PersistentVolumeClaim":
        assert cluster.status["phase"] == "Pending"
    cluster.refuse.clear()
    assert cluster.run().status["phase"] == "Succeeded"


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "Pod"])
def test_what_stays_rejected_causes_no_writes(kind):
    # A write to the PVC would be an event, which starts the next try at once and so again and again.
    cluster = Cluster(dv("csi"))
    cluster.quota(kind)
    for _ in range(12):
        cluster.step()
        cluster.nature()
    before, status = len(cluster.log), copy.deepcopy(cluster.status)
    for _ in range(3):
        cluster.step()
    tried = [type(action) for action in cluster.log[before:]]
    assert CreateObject in tried or StartWorker in tried
    assert not set(tried) - {CreateObject, StartWorker, RequireVersion}
    assert cluster.status == status


def test_a_prime_that_cannot_be_made_is_told():
    cluster = Cluster(dv("csi"))
    cluster.step()
    cluster.refuse["PersistentVolumeClaim"] = ClusterForbidden("not allowed")
    cluster.step()
    assert cluster.events[-1].reason == "ErrCreatingPVCPrime"
    assert cluster.condition("Bound")["reason"] == "ErrClaimNotValid"


def test_a_claim_that_the_server_will_never_take_ends_it():
    cluster = Cluster(dv("csi"))
    cluster.refuse["PersistentVolumeClaim"] = InvalidManifest("spec.accessModes: unsupported")
    cluster.run()
    assert cluster.status["phase"] == "Failed"
    assert cluster.condition("Bound")["reason"] == "ErrClaimNotValid"
    assert "ErrClaimNotValid" in [event.reason for event in cluster.events]


POLICY = AdmissionDenied("ValidatingAdmissionPolicy 'owners' denied request: label owner is missing")


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "Pod", "prime"])
@pytest.mark.parametrize("error", [POLICY, ClusterForbidden("minimum storage usage per PersistentVolumeClaim is 1Gi")])
def test_what_a_policy_does_not_let_in_is_told_and_goes_on_by_itself(kind, error):
    cluster = Cluster(dv("csi"))
    if kind == "prime":
        cluster.step()
    cluster.refuse["PersistentVolumeClaim" if kind == "prime" else kind] = error
    for _ in range(6):
        cluster.step()
        cluster.nature()
    condition = cluster.condition("Running" if kind == "Pod" else "Bound")
    assert error.what in condition["message"] and error.remedy in condition["message"]
    assert cluster.detail["reason"] == error.code
    assert "Failed" not in cluster.phases
    cluster.refuse.clear()
    assert cluster.run().status["phase"] == "Succeeded"


def test_a_pod_that_the_server_finds_invalid_can_become_valid():
    """The pod also depends on the cluster's configuration, which may change."""
    cluster = Cluster(dv("local"))
    cluster.refuse["Pod"] = InvalidManifest(
        "must be less than or equal to cpu limit", where="spec.containers[0].resources"
    )
    for _ in range(6):
        cluster.step()
        cluster.nature()
    ready = cluster.detail
    assert ready["reason"] == "WorkerPodInvalid"
    assert "spec.containers[0].resources" in ready["message"] and "CDIConfig" in ready["message"]
    cluster.refuse.clear()
    assert cluster.run().status["phase"] == "Succeeded"


def test_what_was_refused_is_tried_again_soon_at_first():
    cluster = Cluster(dv("csi"))
    cluster.refuse["PersistentVolumeClaim"] = POLICY
    pauses = []
    for _ in range(20):
        pause = cluster.step().requeue_after
        pauses.append(pause)
        cluster.now += pause
    assert pauses[0] == 5
    assert pauses == sorted(pauses)
    assert pauses[-1] == Retries().patience


def test_a_pod_that_cannot_be_made_is_told():
    cluster = Cluster(dv("local"))
    cluster.refuse["Pod"] = ClusterForbidden('no PriorityClass with name "gold" was found')
    for _ in range(4):
        cluster.step()
        cluster.nature()
    assert cluster.events[-1].reason == "ErrStartingPod"
    assert "gold" in cluster.condition("Running")["message"]


def _with_pod_status(status):
    cluster = started(Cluster(dv("local")))
    pod = cluster.all(PODS)[0]
    pod["status"] = status
    pod["spec"]["nodeName"] = "node-1" if status.get("containerStatuses") else None
    cluster.step()
    return cluster


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
                ],
            },
            "Unschedulable",
        ),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {"name": "importer", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such"}}}
                ],
            },
            "ImagePullFailed",
        ),
        (
            {
                "phase": "Pending",
                "containerStatuses": [{"name": "importer", "state": {"waiting": {"reason": "ContainerCreating"}}}],
            },
            "ContainerCreating",
        ),
    ],
)
def test_a_pod_that_does_not_come_up_says_why(status, reason):
    cluster = _with_pod_status(status)
    assert cluster.status["phase"] == "ImportScheduled"
    assert (cluster.condition("Running")["status"], cluster.condition("Running")["reason"]) == ("False", reason)
    assert cluster.annotations["storage.condition.running.reason"] == reason
    assert cluster.annotations["storage.pod.phase"] == "Pending"


def test_a_failure_that_is_seen_late_is_told_before_the_next_attempt():
    cluster = started(Cluster(dv("local"), retries=Retries(base=1, longest=1)))
    pod = cluster.all(PODS)[0]
    pod["status"] = {
        "phase": "Failed",
        "containerStatuses": [{"name": "importer", "state": {"terminated": {"exitCode": 137, "finishedAt": "2020-01-01T00:00:00Z"}}}],
    }  # fmt: skip
    cluster.step()
    assert [event.reason for event in cluster.events][-1] == "Error"
    assert [event.reason for event in cluster.claim_events] == ["ErrImportFailed"]
    assert cluster.detail["reason"] == "WorkerLost"
    until(cluster, lambda: cluster.names(PODS) and cluster.all(PODS)[0]["metadata"]["uid"] != pod["metadata"]["uid"])


def _pods_image(cluster):
    return cluster.all(PODS)[0]["spec"]["containers"][0]["image"]


@pytest.mark.parametrize("started", [False, True])
def test_a_pod_that_cannot_begin_makes_way_for_one_that_is_made_otherwise_now(started):
    trouble = {"name": "importer", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such"}}}
    fine = {"name": "importer", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    cluster = _with_pod_status({"phase": "Pending", "containerStatuses": [fine if started else trouble]})
    before = cluster.all(PODS)[0]["metadata"]["uid"]
    cluster.step()
    assert cluster.all(PODS)[0]["metadata"]["uid"] == before, "nothing was corrected"
    cluster.config = replace(cluster.config, pods=replace(cluster.config.pods, image="example/cdi:2"))
    cluster.step()
    if started:
        assert _pods_image(cluster) == "example/cdi:1"
        return
    until(cluster, lambda: cluster.names(PODS) and _pods_image(cluster) == "example/cdi:2")
    assert cluster.run().status["phase"] == "Succeeded"
    assert cluster.status["restartCount"] == 0


def test_a_lost_claim_is_told_and_not_imported_again():
    cluster = Cluster(dv("local")).run()
    del cluster.objects[VOLUMES, "", cluster.get(CLAIMS, "a")["spec"]["volumeName"]]
    cluster.run()
    assert cluster.status["phase"] == "Failed"
    assert cluster.condition("Bound")["reason"] == "ClaimLost"
    assert cluster.events[-1].reason == "ErrClaimLost"


def test_a_claim_that_is_bound_to_another_volume_is_misbound():
    cluster = started(Cluster(dv("csi")))
    target = cluster.get(CLAIMS, "a")
    cluster._provision(target)
    cluster.nature()
    cluster.run()
    assert cluster.status["phase"] == "Failed"
    assert cluster.detail["reason"] == "ClaimMisbound"
    assert "ClaimMisbound" in [event.reason for event in cluster.events]
    assert COMPLETE in [body["content"] for body in cluster.all(VOLUMES)]


@pytest.mark.parametrize("form", ["import", "clone"])
def test_a_volume_that_another_controller_rebound_is_not_taken_for_another(form):
    clone = dv("csi", source={"pvc": {"namespace": NS, "name": "fedora"}})
    cluster = Cluster(dv("csi")) if form == "import" else CloneCluster(clone, strategy="csi-clone")
    until(cluster, lambda: any(_prime_volumes(cluster)))
    (volume,) = _prime_volumes(cluster)
    target = cluster.get(CLAIMS, "a")
    cluster.step()
    cluster.history.append(copy.deepcopy(cluster.objects))
    volume["spec"]["claimRef"] = {"namespace": NS, "name": "a", "uid": target["metadata"]["uid"]}
    volume["metadata"]["annotations"] = {"cdi.kubevirt.io/storage.filledFor": target["metadata"]["uid"]}
    volume["content"] = COMPLETE
    cluster._bind(target, volume)
    cluster.step(late=(0, 0, 1))
    assert cluster.status["phase"] == ("ImportInProgress" if form == "import" else "RebindInProgress")
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"


@pytest.mark.parametrize("form", ["import", "clone"])
def test_nothing_is_created_for_a_data_volume_that_is_seen_to_exist_but_was_deleted(form):
    clone = dv("csi", source={"pvc": {"namespace": NS, "name": "fedora"}})
    cluster = Cluster(dv("csi")) if form == "import" else CloneCluster(clone, strategy="csi-clone")
    cluster.step()
    del cluster.objects[CLAIMS, NS, "a"]
    before = set(cluster.objects) - {(DVS, NS, "a")}
    cluster.history.append(copy.deepcopy(cluster.objects))
    cluster.remove(DVS, "a")
    cluster.step(late=(0, 0, 0, 1))
    assert set(cluster.objects) == before
    cluster.create(clone if form == "clone" else dv("csi"))
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"


def _prime_volumes(cluster):
    target = cluster.get(CLAIMS, "a")
    if target is None:
        return []
    prime = cluster.get(CLAIMS, f"prime-{target['metadata']['uid']}") or {"metadata": {"uid": "none"}}
    return [one for one in cluster.all(VOLUMES) if one["spec"]["claimRef"].get("uid") == prime["metadata"]["uid"]]


@pytest.mark.parametrize("kind", ["Secret", "ConfigMap"])
def test_one_that_may_not_be_looked_at_is_not_called_missing(kind):
    named = {"secretRef": "login"} if kind == "Secret" else {"certConfigMap": "login"}
    cluster = Cluster(dv("local", source={"http": {"url": "http://server/x", **named}}))
    ref = ObjectRef(kind=kind, namespace="default", name="login")
    cluster.inputs[ref] = Input(version="", keys=frozenset(), refused=ClusterForbidden("it may not be got").message)
    cluster.run()
    ready = cluster.detail
    assert ready["reason"] == "ClusterForbidden"
    assert f"{kind} default/login cannot be read: it may not be got. Try: grant" in ready["message"]
    assert not cluster.names(PODS)
    cluster.add_input(kind, "login", "accessKeyId", "secretKey")
    assert cluster.run().status["phase"] == "Succeeded"


def test_a_missing_secret_is_waited_for():
    source = {"http": {"url": "http://server/x", "secretRef": "login"}}
    cluster = Cluster(dv("csi", source=source)).run()
    assert "Secret default/login does not exist" in cluster.detail["message"]
    assert not cluster.names(PODS)
    cluster.add_input("Secret", "login", "accessKeyId", "secretKey")
    assert cluster.run().status["phase"] == "Succeeded"


# --- existing objects ---------------------------------------------------------------------------------------------


def test_a_claim_is_adopted():
    cluster = Cluster(dv("csi", annotations={"cdi.kubevirt.io/allowClaimAdoption": "true"}), claim=pvc("local")).run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.get(CLAIMS, "a")["metadata"]["ownerReferences"][0]["uid"] == "dv-uid"
    assert not cluster.names(PODS)


def test_a_claim_that_is_in_the_way_is_not_touched():
    cluster = Cluster(dv("csi"), claim=pvc("local")).run()
    assert cluster.status["phase"] == "Failed"
    assert "already exists" in cluster.condition("Bound")["message"]
    assert "ownerReferences" not in cluster.get(CLAIMS, "a")["metadata"]


def test_a_prepopulated_volume_is_taken():
    assert Cluster(dv("csi", annotations=PRE_POPULATED), claim=pvc("local")).run().status["phase"] == "Succeeded"


@pytest.mark.parametrize("source", [None, {"upload": {}}, {"pvc": {"namespace": NS, "name": "golden"}}])
@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_a_prepopulated_data_volume_waits_for_its_pvc_instead_of_creating_one(storage_class, source):
    cluster = Cluster(dv(storage_class, annotations=PRE_POPULATED, source=source)).run()
    assert cluster.status["phase"] == "Pending"
    assert "waiting for PVC a" in cluster.detail["message"]
    assert not cluster.names(CLAIMS) | cluster.names(PODS) | cluster.names("volumeimportsources")
    cluster.create(pvc("local", annotations=POPULATED_FOR))
    cluster.run()
    assert (cluster.status["phase"], cluster.status["progress"]) == ("Succeeded", "N/A")
    assert cluster.get(CLAIMS, "a")["metadata"]["ownerReferences"][0]["uid"] == "dv-uid"
    assert not cluster.names(PODS)


@pytest.mark.parametrize("source", [None, {"upload": {}}])
def test_a_pvc_populated_beforehand_marks_its_data_volume_as_prepopulated(source):
    cluster = Cluster(dv("csi", source=source), claim=pvc("local", annotations=POPULATED_FOR)).run()
    assert cluster.get(DVS, "a")["metadata"]["annotations"] == PRE_POPULATED
    assert (cluster.status["phase"], cluster.status["progress"]) == ("Succeeded", "N/A")
    # Deleted later, the PVC is waited for: what it held cannot be imported again.
    cluster.remove(CLAIMS, "a")
    cluster.run()
    assert (cluster.status["phase"], cluster.names(CLAIMS)) == ("Pending", set())


def test_an_adopted_pvc_does_not_mark_its_data_volume_as_prepopulated():
    adopting = {"cdi.kubevirt.io/allowClaimAdoption": "true"}
    cluster = Cluster(dv("csi", annotations=adopting), claim=pvc("local")).run()
    assert cluster.get(DVS, "a")["metadata"]["annotations"] == adopting


@pytest.mark.parametrize("source", [None, {"blank": {}}, {"upload": {}}])
@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_a_pvc_deleted_after_success_is_created_and_filled_again(storage_class, source):
    cluster = Cluster(dv(storage_class, source=source)).run()
    first = cluster.get(CLAIMS, "a")["metadata"]["uid"]
    cluster.phases.clear()
    cluster.log.clear()
    cluster.remove(CLAIMS, "a")
    cluster.step()
    # Pods may use the volume for a long time before the PVC is gone.
    assert (cluster.status["phase"], cluster.phases) == ("Succeeded", [])
    cluster.run()
    assert cluster.get(CLAIMS, "a")["metadata"]["uid"] != first
    assert (cluster.status["phase"], cluster.content) == ("Succeeded", COMPLETE)
    assert [action.attempt for action in cluster.log if isinstance(action, StartWorker)] == [1]
    assert cluster.phases[0] == "Pending"


@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_no_pvc_is_created_beside_the_status_of_the_deleted_one(storage_class):
    cluster = Cluster(dv(storage_class)).run()
    del cluster.objects[CLAIMS, NS, "a"]
    plan = reconcile(cluster.context())
    # Nothing but the check that there is none, for the cache may be behind.
    assert plan.actions[0] == RequireVersion.of_absent_claim(NS, "a")
    assert all(isinstance(action, RequireVersion) for action in plan.actions)
    assert plan.status["phase"] == "Pending"
    assert plan.requeue_after == 1.0


def test_a_pvc_that_is_not_seen_yet_does_not_withdraw_the_end():
    cluster = Cluster(dv("csi")).run()
    seen = cluster.objects.pop((CLAIMS, NS, "a"))
    cluster.history.append(copy.deepcopy(cluster.objects))
    cluster.objects[CLAIMS, NS, "a"] = seen
    cluster.shown.clear()
    cluster.step(late=(1,))
    assert cluster.status["phase"] == "Succeeded"


def test_a_lost_pvc_is_replaced_once_it_is_deleted():
    cluster = Cluster(dv("local")).run()
    del cluster.objects[VOLUMES, "", cluster.get(CLAIMS, "a")["spec"]["volumeName"]]
    assert cluster.run().status["phase"] == "Failed"
    assert cluster.condition("Bound")["message"] == "Claim Lost"
    assert "delete the claim" in cluster.detail["message"]
    cluster.remove(CLAIMS, "a")
    assert cluster.run().status["phase"] == "Succeeded"
    assert cluster.content == COMPLETE


def test_what_another_importer_filled_is_left_alone():
    cluster = Cluster(dv("local")).run()
    metadata = cluster.get(CLAIMS, "a")["metadata"]
    metadata["annotations"] = {"cdi.kubevirt.io/storage.pod.phase": "Succeeded"}
    cluster.log.clear()
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"
    assert not [action for action in cluster.log if isinstance(action, StartWorker)]
    metadata["annotations"] = {}
    cluster.run()
    assert not [action for action in cluster.log if isinstance(action, StartWorker)]


def test_a_volume_that_others_fill_is_only_watched():
    body = dv("local")
    body["spec"].pop("source")
    body["spec"]["storage"]["dataSourceRef"] = {"apiGroup": "example.com", "kind": "Filler", "name": "f"}
    cluster = Cluster(body)
    cluster.step()
    assert cluster.annotations["externalPopulation"] == "true"
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"
    assert not [action for action in cluster.log if isinstance(action, StartWorker)]


# --- completion and deletion --------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_a_worker_that_is_to_be_retained_stays(storage_class):
    cluster = Cluster(dv(storage_class, annotations=RETAIN)).run()
    assert cluster.status["phase"] == "Succeeded"
    assert len(cluster.names(PODS)) == 1
    assert cluster.content == COMPLETE
    assert len(cluster.names(CLAIMS)) == (2 if storage_class == "csi" else 1)
    if storage_class == "csi":
        prime = cluster.get(CLAIMS, f"prime-{cluster.get(CLAIMS, 'a')['metadata']['uid']}")
        assert prime["status"]["phase"] == "Lost"
        assert prime["metadata"]["annotations"]["cdi.kubevirt.io/storage.pod.phase"] == "Succeeded"
        assert cluster.annotations["storage.populator.progress"] == "100.0%"
    cluster.remove(DVS, "a")
    cluster.run()
    cluster.settle_deletions()
    while cluster.nature():
        cluster.settle_deletions()
    assert not cluster.names(PODS) | cluster.names(CLAIMS)


def test_labels_of_a_container_disk_go_to_the_claim_and_the_data_volume():
    labels = {
        "instancetype.kubevirt.io/default-preference": "fedora",
        "x.kubevirt.io/bad": "not a label!",
        "other.example/x": "y",
    }
    cluster = Cluster(dv("csi"), script=[End(labels=labels)]).run()
    wanted = {"instancetype.kubevirt.io/default-preference": "fedora"}
    own = {"app": "containerized-data-importer", "alerts.k8s.io/KubePersistentVolumeFillingUp": "disabled"}
    assert cluster.get(CLAIMS, "a")["metadata"]["labels"] == own | wanted
    assert cluster.get(DVS, "a")["metadata"]["labels"] == wanted


def test_labels_of_a_container_disk_never_replace_labels_of_the_claim():
    name = "instancetype.kubevirt.io/default-preference"
    cluster = Cluster(dv("csi", labels={name: "mine"}), script=[End(labels={name: "fedora"})]).run()
    assert cluster.get(CLAIMS, "a")["metadata"]["labels"][name] == "mine"
    by_hand = pvc("csi", annotations={"cdi.kubevirt.io/storage.import.endpoint": "http://server/x"})
    by_hand["metadata"]["labels"] = {name: "mine"}
    cluster = Cluster(claim=by_hand, script=[End(labels={name: "fedora"})]).run()
    assert cluster.get(CLAIMS, "a")["metadata"]["labels"] == {name: "mine"}


@pytest.mark.parametrize("storage_class", ["csi", "local"])
@pytest.mark.parametrize("mode", ["Filesystem", "Block"])
def test_alerts_about_full_volumes_are_disabled_for_filesystems_of_data_volumes(storage_class, mode):
    label = "alerts.k8s.io/KubePersistentVolumeFillingUp"
    cluster = Cluster(dv(storage_class, mode=mode))
    cluster.step()
    labels = cluster.get(CLAIMS, "a")["metadata"]["labels"]
    assert labels.get(label) == ("disabled" if mode == "Filesystem" else None)
    cluster = Cluster(dv(storage_class, mode=mode, labels={label: "enabled"}))
    cluster.step()
    assert cluster.get(CLAIMS, "a")["metadata"]["labels"][label] == "enabled"


def test_the_claim_of_a_data_volume_shows_the_progress_of_its_population():
    cluster = started(Cluster(dv("csi")))
    assert cluster.annotations["storage.populator.progress"] == "N/A"
    until(cluster, lambda: cluster.all(PODS)[0]["status"]["phase"] == "Running")
    cluster.progress = Progress(phase="transferring", done=50, total=100)
    cluster.step()
    assert cluster.annotations["storage.populator.progress"] == cluster.status["progress"] == "50.00%"
    cluster.run()
    assert cluster.annotations["storage.populator.progress"] == "100.0%"


def test_the_prime_claim_stays_while_its_volume_is_not_seen():
    cluster = Cluster(dv("csi"))
    until(cluster, lambda: any(body["content"] == COMPLETE for body in cluster.all(VOLUMES)))
    cluster.step()
    hidden = {key: body for key, body in cluster.objects.items() if key[0] == VOLUMES}
    for key in hidden:
        del cluster.objects[key]
    for _ in range(3):
        plan = cluster.step()
        assert not [action for action in plan.actions if isinstance(action, DeleteObject | RebindVolume)]
    cluster.objects |= hidden
    assert cluster.run().content == COMPLETE


def test_a_worker_that_ended_before_its_prime_claim_was_seen_bound_is_not_started_again():
    cluster = Cluster(dv("csi"))
    until(cluster, lambda: any(body["content"] == COMPLETE for body in cluster.all(VOLUMES)))
    prime = next(body for body in cluster.all(CLAIMS) if body["metadata"]["name"] != "a")
    bound = copy.deepcopy(prime)
    del prime["spec"]["volumeName"]
    prime["status"] = {"phase": "Pending"}
    for _ in range(3):
        plan = cluster.step()
        assert not [action for action in plan.actions if isinstance(action, DeleteObject | RebindVolume | StartWorker)]
    prime["spec"], prime["status"] = bound["spec"], bound["status"]
    assert cluster.run().content == COMPLETE


def _handed_over(cluster):
    target = cluster.get(CLAIMS, "a")
    return target is not None and any(
        body["spec"]["claimRef"]["uid"] == target["metadata"]["uid"] for body in cluster.all(VOLUMES)
    )


def test_the_prime_claim_goes_once_its_volume_names_the_target():
    cluster = Cluster(dv("csi"))
    until(cluster, lambda: _handed_over(cluster))
    assert len(cluster.names(CLAIMS)) == 2
    cluster.step()
    assert cluster.get(CLAIMS, "a")["status"]["phase"] == "Pending"
    assert all(
        "deletionTimestamp" in body["metadata"] for body in cluster.all(CLAIMS) if body["metadata"]["name"] != "a"
    )
    assert cluster.run().content == COMPLETE


def test_a_volume_that_was_handed_over_is_complete_also_where_the_ledger_is_lost():
    cluster = Cluster(dv("csi"))
    until(cluster, lambda: _handed_over(cluster))
    for name in cluster.names(CLAIMS) - {"a"}:
        del cluster.objects[CLAIMS, NS, name]
    del cluster.get(CLAIMS, "a")["metadata"]["annotations"]["cdi.kubevirt.io/storage.attempts"]
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.content == COMPLETE
    assert len([action for action in cluster.log if isinstance(action, StartWorker)]) == 1


def test_a_volume_that_was_filled_for_an_earlier_claim_is_not_taken_for_this_ones():
    cluster = Cluster(dv("csi"))
    until(cluster, lambda: cluster.get(CLAIMS, "a") is not None)
    cluster.static_volume("old", content="somebody's")
    old = cluster.get(VOLUMES, "old", "")
    old["spec"]["claimRef"]["uid"] = cluster.get(CLAIMS, "a")["metadata"]["uid"]
    old["metadata"]["annotations"] = {"cdi.kubevirt.io/storage.filledFor": "another uid"}
    cluster.run()
    assert cluster.detail["reason"] == "ClaimMisbound"
    assert old["content"] == "somebody's"


def test_who_looks_at_an_old_state_begins_nothing():
    cluster = Cluster(dv("local"))
    until(cluster, lambda: cluster.status.get("phase") == Phase.PVC_BOUND or cluster.get(CLAIMS, "a") is not None)
    while cluster.get(CLAIMS, "a")["status"]["phase"] != "Bound":
        cluster.nature()
    stale = copy.deepcopy(cluster).context()
    cluster.run()
    plan = reconcile(stale)
    assert any(isinstance(action, StartWorker) for action in plan.actions)
    with pytest.raises(Conflict):
        for action in plan.actions:
            cluster.act(action)
    assert not cluster.names(PODS)


def test_limits_reach_a_worker_that_runs():
    cluster = started(Cluster(dv("local")))
    cluster.get(DVS, "a")["metadata"]["annotations"]["cdi.kubevirt.io/policy.bandwidth"] = "1M"
    cluster.step()
    limits = cluster.all(PODS)[0]["metadata"]["annotations"]["cdi.kubevirt.io/limits"]
    assert '"bandwidth":1000000' in limits


def test_a_lost_node_is_named():
    cluster = started(Cluster(dv("local")))
    pod = cluster.all(PODS)[0]
    pod["spec"]["nodeName"] = "node-9"
    pod["status"] = {"phase": "Running", "reason": "NodeLost"}
    cluster.step()
    assert cluster.condition("Running")["reason"] == NODE_LOST
    assert "node-9" in cluster.condition("Running")["message"]


# --- claims without a DataVolume ----------------------------------------------------------------------------------


def test_a_claim_annotated_by_hand_is_filled_and_says_so_itself():
    annotations = {"cdi.kubevirt.io/storage.import.endpoint": "http://server/x"}
    cluster = Cluster(claim=pvc("csi", annotations=annotations)).run()
    assert cluster.content == COMPLETE
    assert not cluster.names(DVS)
    assert cluster.annotations["storage.pod.phase"] == "Succeeded"
    reasons = [event.reason for event in cluster.events]
    assert reasons == ["ImportScheduled", "ImportInProgress", "ImportSucceeded"]
    before = len(cluster.events)
    cluster.run()
    assert len(cluster.events) == before


def test_an_import_source_that_comes_later_is_waited_for():
    cluster = Cluster(claim=pvc("csi", ref="s")).run()
    assert "VolumeImportSource default/s does not exist" in cluster.annotations["storage.condition.bound.message"]
    cluster.create(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "VolumeImportSource",
            "metadata": {"name": "s", "namespace": NS},
            "spec": {"source": {"blank": {}}},
        }
    )
    cluster.run()
    assert cluster.content == COMPLETE
    assert cluster.annotations["storage.populator.progress"] == "100.0%"


VOLUME_SOURCES = {
    "blank": {"blank": {}},
    "http": {
        "http": {
            "url": "https://server/x", "secretRef": "login", "certConfigMap": "ca", "checksum": "sha256:" + "0" * 64,
            "insecureSkipVerify": True, "extraHeaders": ["A: 1", "B: 2"], "secretExtraHeaders": ["token"],
        }
    },
    "s3": {"s3": {"url": "https://server/bucket/x", "secretRef": "login", "certConfigMap": "ca"}},
    "gcs": {"gcs": {"url": "gs://bucket/x", "secretRef": "login"}},
    "registry": {
        "registry": {
            "url": "docker://server/x:1", "pullMethod": "pod", "secretRef": "login", "certConfigMap": "ca",
            "platform": {"architecture": "arm64"},
        }
    },
}  # fmt: skip


def _volume_import_source(source):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "VolumeImportSource",
        "metadata": {"name": "s", "namespace": NS},
        "spec": {"source": source, "contentType": "archive" if "http" in source else "kubevirt", "preallocation": True},
    }


@pytest.mark.parametrize("kind", VOLUME_SOURCES)
def test_population_continues_when_its_import_source_is_deleted(kind):
    """Once the prime PVC exists, all attempts get the job that they would have got from the deleted object."""

    def begun():
        cluster = Cluster(
            claim=pvc("csi", ref="s"),
            bodies=[_volume_import_source(VOLUME_SOURCES[kind])],
            script=[failing("ScratchNeeded", Retry.ON_CHANGE), End()],
        )
        for name, keys in (("login", ("accessKeyId", "secretKey", "credentials.json")), ("token", ("a",))):
            cluster.add_input("Secret", name, *keys)
        cluster.add_input("ConfigMap", "ca", "ca.crt")
        return until(cluster, lambda: len(cluster.names(CLAIMS)) == 2)

    def jobs(cluster):
        begun = [action for action in cluster.log if isinstance(action, StartWorker)]
        return [Job.from_json(one.pod["metadata"]["annotations"]["cdi.kubevirt.io/job"]) for one in begun]

    kept, deleted = begun(), begun()
    deleted.remove("volumeimportsources", "s")
    assert (kept.run().content, deleted.run().content) == (COMPLETE, COMPLETE)
    assert len(jobs(kept)) == 2
    assert jobs(deleted) == jobs(kept)


def test_an_import_source_that_is_deleted_before_the_prime_claim_exists_is_waited_for():
    cluster = Cluster(claim=pvc("csi", ref="s"), bodies=[_volume_import_source({"blank": {}})])
    cluster.remove("volumeimportsources", "s")
    cluster.run()
    assert cluster.names(CLAIMS) == {"a"}
    assert "VolumeImportSource default/s does not exist" in cluster.annotations["storage.condition.bound.message"]


def test_a_source_too_large_for_annotations_is_not_recorded():
    source = {"http": {"url": "http://server/x", "extraHeaders": ["A: " + "x" * 200_000]}}
    cluster = Cluster(claim=pvc("csi", ref="s"), bodies=[_volume_import_source(source)])
    until(cluster, lambda: len(cluster.names(CLAIMS)) == 2)
    prime = next(body for body in cluster.all(CLAIMS) if body["metadata"]["name"] != "a")
    assert "cdi.kubevirt.io/storage.import.source" not in prime["metadata"]["annotations"]
    assert cluster.run().content == COMPLETE


def test_other_claims_are_not_our_business():
    assert Cluster(claim=pvc("csi")).context() is None


def test_an_image_stream_of_a_data_volume_is_refused():
    source = {"registry": {"imageStream": "i", "pullMethod": "node"}}
    cluster = Cluster(dv("csi", source=source)).run()
    assert (cluster.status["phase"], cluster.detail["reason"]) == ("Failed", "SourceNotSupported")
