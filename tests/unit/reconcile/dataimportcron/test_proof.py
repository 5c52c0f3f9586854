"""Tests of boot proofs: what the pod is given, and what its end means for the version."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

import pytest

from cdi.api.annotations import FINGERPRINT, JOB, PROOF_ATTEMPTS
from cdi.api.dataimportcron import DataImportCron, GoldenVersion, ProofStatus, VersionState
from cdi.api.errors import BootFailed, Interrupted, QemuFailed, QemuMissing, QuotaExceeded
from cdi.api.golden import GoldenSettings
from cdi.api.job import Failure
from cdi.api.names import ANN_POD_RETAIN, COMPONENT_PROOF, LABEL_COMPONENT, LABEL_DATA_IMPORT_CRON
from cdi.api.proof import ProofJob, ProofResult
from cdi.reconcile.actions import CreateObject, DeleteObject, PatchObject, StartTask, StopTask
from cdi.reconcile.dataimportcron.context import CronContext, LocalTask
from cdi.reconcile.dataimportcron.proof import KVM_PATIENCE, plan_proof
from cdi.reconcile.dataimportcron.proof_pod import KVM, MEMORY_OVERHEAD
from cdi.reconcile.dataimportcron.proof_result import MAX_FAILURES, ProofStep
from cdi.reconcile.dataimportcron.slots import MAX_PROOFS
from cdi.reconcile.datavolume.rejection import refusal_of
from cdi.reconcile.settings import Platform, ResolvedConfig, WorkerPodConfig
from cdi.reconcile.types import PVC

NOW = 1_800_000_000.0
NAME = "debian-0123456789ab"
POD = f"prove-12345678-{NAME}"
CLAIM = PVC(namespace="golden", name=NAME, uid="12345678-aaaa", phase="Bound", version="7")
VERSION = GoldenVersion(name=NAME, digest="sha256:" + "0" * 64, state=VersionState.PROVING)
BOOTED = ProofResult(
    id=CLAIM.uid, booted=True, message="a login prompt: debian login:", accelerator="tcg", seconds=61.2
)
PANICKED = ProofResult(
    id=CLAIM.uid, message="the kernel panicked: no root", accelerator="kvm", seconds=4.5, console="[ 1.0] no root\n"
)


def rfc(seconds):
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def failed(error):
    return ProofResult(id=CLAIM.uid, failure=Failure.from_error(error))


@dataclass
class Cluster:
    """The objects that a proof concerns, changed as an applier changes them."""

    claim: PVC = CLAIM
    version: GoldenVersion = VERSION
    pods: dict[str, dict] = field(default_factory=dict)
    settings: GoldenSettings = field(default_factory=lambda: GoldenSettings(proof="boot"))
    annotations: dict[str, str] = field(default_factory=dict)
    template: dict = field(default_factory=dict)
    pods_config: WorkerPodConfig = field(default_factory=lambda: WorkerPodConfig(image="cdi:1"))
    now: float = NOW
    kvm: bool = False
    slots: dict[str, int] = field(default_factory=dict)
    """Proof pods by namespace."""
    waiting: dict[str, int] = field(default_factory=dict)
    """Versions that wait for their turn, by namespace."""
    refusal: object = None
    started: int = 0
    """Number of pods or processes that were started."""
    task: LocalTask | None | Literal[False] = False
    """The newest process on one machine; False in a cluster."""

    # The parts of CronLister that are used.

    def pod(self, namespace, name):
        assert namespace == "golden"
        return self.pods.get(name)

    def running_proofs(self):
        return self.slots

    def waiting_proofs(self, now):
        assert now == self.now
        return self.waiting

    def offers_device(self, resource):
        assert resource == KVM
        return self.kvm

    def local_task(self, task, uid):
        assert (task, uid) == ("proof", CLAIM.uid)
        return self.task

    def context(self):
        cron = DataImportCron.model_validate(
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "DataImportCron",
                "metadata": {"name": "debian", "namespace": "golden", "uid": "cron", "annotations": self.annotations},
                "spec": {
                    "schedule": "",
                    "managedDataSource": "debian",
                    "template": {"spec": {"source": {"registry": {"url": "docker://r/debian"}}, **self.template}},
                },
            }
        )
        config = ResolvedConfig(pods=self.pods_config, labels={"team": "golden"})
        return CronContext(
            now=self.now,
            cron=cron,
            objects=self,
            settings=self.settings,
            config=config,
            platform=Platform(cluster=self.task is False),
            refusal=self.refusal,
        )

    def step(self):
        return plan_proof(self.context(), self.version, self.claim)

    def apply(self, actions):
        for action in actions:
            match action:
                case CreateObject():
                    self._create(json.loads(json.dumps(action.body)))
                case DeleteObject(plural="pods"):
                    found = self.pods.get(action.name)
                    if found is not None and found["metadata"]["uid"] == action.uid:
                        del self.pods[action.name]
                case StartTask(uid=CLAIM.uid):
                    self.started += 1
                    self.task = LocalTask(running=True, started=self.now)
                    self.job = action.work
                case StopTask(task="proof", uid=CLAIM.uid):
                    self.task = LocalTask(running=False, started=self.now, ended=self.now)
                case PatchObject(plural="persistentvolumeclaims"):
                    assert action.version == self.claim.version
                    annotations = {**self.claim.annotations, **action.annotations}
                    kept = {name: text for name, text in annotations.items() if text is not None}
                    self.claim = replace(self.claim, annotations=kept, version=str(int(self.claim.version) + 1))
                case _:
                    raise AssertionError(action)

    def _create(self, body):
        name = body["metadata"]["name"]
        if name in self.pods:
            return
        self.started += 1
        body["metadata"] |= {"uid": f"pod-{self.started}", "creationTimestamp": rfc(self.now)}
        body["metadata"]["annotations"].pop(JOB.key)  # as in the controller's cache
        body["status"] = {"phase": "Pending"}
        self.pods[name] = body

    def record(self, step):
        """Write the result into the status, as the reconciler does after the actions."""
        if step.result is not None:
            state = VersionState.AVAILABLE if step.result.booted else VersionState.UNPROVEN
            self.version = self.version.model_copy(update={"state": state, "proof": step.result})

    def run(self):
        """Reconcile once and return the step."""
        step = self.step()
        self.apply(step.actions)
        self.record(step)
        return step

    def status(self, **status):
        self.pods[POD]["status"] = status

    def running(self):
        self.pods[POD]["spec"]["nodeName"] = "node1"
        self.status(phase="Running", containerStatuses=[{"name": "importer", "state": {"running": {}}}])

    def end(self, result=None, *, code=None, reason="Completed", **status):
        """End the pod; its exit status is what the worker gives for the result."""
        self.now += 60
        if code is None:
            assert result is not None
            code = result.failure.exit_status if result.failure else 0 if result.booted else BootFailed.exit_status
        terminated = {"exitCode": code, "reason": reason, "finishedAt": rfc(self.now)}
        if result is not None:
            terminated["message"] = result.to_json()
        self.pods[POD]["spec"]["nodeName"] = "node1"
        self.status(
            phase="Failed" if code else "Succeeded",
            containerStatuses=[{"name": "importer", "state": {"terminated": terminated}}],
            **status,
        )

    def unschedulable(self):
        condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
        self.status(phase="Pending", conditions=[condition])


@pytest.fixture
def cluster():
    return Cluster()


def started(cluster):
    step = cluster.run()
    assert list(cluster.pods) == [POD]
    assert step.result is None
    return cluster.pods[POD]


def created(cluster):
    (action,) = cluster.step().actions
    return action.body


# --- the pod --------------------------------------------------------------------------------------------------------


def test_the_pod_is_restricted_owned_by_the_volume_and_only_reads_it(cluster):
    pod = created(cluster)
    metadata, spec = pod["metadata"], pod["spec"]
    assert metadata["name"] == POD
    assert [(one["kind"], one["uid"]) for one in metadata["ownerReferences"]] == [("PersistentVolumeClaim", CLAIM.uid)]
    assert metadata["labels"][LABEL_COMPONENT] == COMPONENT_PROOF
    assert metadata["labels"][LABEL_DATA_IMPORT_CRON] == "debian"
    assert metadata["labels"]["team"] == "golden"
    assert spec["automountServiceAccountToken"] is False
    assert spec["restartPolicy"] == "Never"
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["image"] == "cdi:1"
    assert container["args"] == ["prove"]
    assert "ports" not in container
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {one["name"]: one for one in spec["volumes"]}
    assert volumes["data"] == {"name": "data", "persistentVolumeClaim": {"claimName": NAME, "readOnly": True}}
    mounts = {one["name"]: one for one in container["volumeMounts"]}
    assert mounts["data"] == {"name": "data", "mountPath": "/data", "readOnly": True}
    assert int(volumes["tmp"]["emptyDir"]["sizeLimit"]) > ProofJob.from_json(metadata["annotations"][JOB.key]).overlay


def test_a_block_volume_is_a_device_that_is_only_read(cluster):
    cluster.claim = replace(CLAIM, volume_mode="Block")
    pod = created(cluster)
    (container,) = pod["spec"]["containers"]
    assert container["volumeDevices"] == [{"name": "data", "devicePath": "/dev/cdi-block-volume"}]
    assert "data" not in {one["name"] for one in container["volumeMounts"]}
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] is True
    assert ProofJob.from_json(pod["metadata"]["annotations"][JOB.key]).disk == "/dev/cdi-block-volume"


def test_the_settings_become_the_workers_job(cluster):
    cluster.settings = GoldenSettings(
        proof="boot", proof_timeout=90, proof_expect="ready", proof_memory=2 << 30, proof_firmware="uefi"
    )
    pod = created(cluster)
    job = ProofJob.from_json(pod["metadata"]["annotations"][JOB.key])
    assert (job.id, job.disk) == (CLAIM.uid, "/data/disk.img")
    assert (job.timeout, job.expect, job.memory, job.firmware) == (90.0, "ready", 2 << 30, "uefi")
    resources = pod["spec"]["containers"][0]["resources"]
    for part in ("limits", "requests"):
        assert int(resources[part]["memory"]) == (2 << 30) + MEMORY_OVERHEAD
    assert int(resources["limits"]["ephemeral-storage"]) > job.overlay
    assert pod["spec"]["activeDeadlineSeconds"] > 90


def test_kvm_is_requested_where_a_node_offers_it(cluster):
    cluster.kvm = True
    resources = created(cluster)["spec"]["containers"][0]["resources"]
    assert resources["limits"]["devices.kubevirt.io/kvm"] == "1"
    assert resources["requests"]["devices.kubevirt.io/kvm"] == "1"


def test_no_device_is_requested_where_no_node_offers_one(cluster):
    resources = created(cluster)["spec"]["containers"][0]["resources"]
    assert set(resources["limits"]) == {"cpu", "memory", "ephemeral-storage"}


def test_the_architecture_of_the_version_chooses_the_node(cluster):
    cluster.version = VERSION.model_copy(update={"architecture": "arm64"})
    placement = {"nodeSelector": {"zone": "a"}, "tolerations": [{"key": "golden"}], "affinity": {"podAffinity": {}}}
    cluster.pods_config = WorkerPodConfig(image="cdi:1", placement=placement, pull_secrets=("pull",))
    cluster.template = {"priorityClassName": "low"}
    spec = created(cluster)["spec"]
    assert spec["nodeSelector"] == {"zone": "a", "kubernetes.io/arch": "arm64"}
    assert spec["tolerations"] == [{"key": "golden"}]
    assert spec["affinity"] == {"podAffinity": {}}
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert spec["priorityClassName"] == "low"


def test_too_many_proofs_at_a_time_wait(cluster):
    cluster.slots = {"other": MAX_PROOFS}
    step = cluster.run()
    assert cluster.pods == {}
    assert step.blocker.reason == "ProofQueued"
    assert step.requeue_after


def test_a_proof_waits_while_a_namespace_that_holds_fewer_slots_waits(cluster):
    cluster.slots = {"golden": 3, "other": 4}
    cluster.waiting = {"golden": 5, "third": 1}
    assert cluster.run().blocker.reason == "ProofQueued"
    assert cluster.pods == {}
    cluster.waiting = {"golden": 5}
    started(cluster)


def test_a_rejected_pod_is_reported_and_tried_again_later(cluster):
    action = cluster.step().actions[0]
    cluster.refusal = refusal_of(action, QuotaExceeded("exceeded quota: memory"))
    step = cluster.run()
    assert cluster.pods == {}
    assert step.blocker.reason == "QuotaExceeded"
    assert "exceeded quota: memory" in step.blocker.message
    assert step.requeue_after
    cluster.refusal = None
    started(cluster)


def test_without_a_volume_there_is_nothing_to_prove(cluster):
    assert plan_proof(cluster.context(), VERSION, None) == ProofStep()
    cluster.claim = replace(CLAIM, deleting=True)
    assert cluster.run() == ProofStep()


@pytest.mark.parametrize("retain", ["true", "false"])
@pytest.mark.parametrize("state", [VersionState.PROVING, VersionState.AVAILABLE, VersionState.REMOVED])
def test_the_pod_of_a_volume_that_is_being_deleted_is_deleted(cluster, state, retain):
    cluster.annotations["cdi.kubevirt.io/storage.pod.retainAfterCompletion"] = retain
    started(cluster)
    cluster.running()
    cluster.end(BOOTED)
    cluster.claim = replace(cluster.claim, deleting=True)
    cluster.version = cluster.version.model_copy(update={"state": state})
    cluster.run()
    assert cluster.pods == {}


# --- results --------------------------------------------------------------------------------------------------------


def test_a_version_that_boots_is_proven_and_its_pod_deleted_once_that_is_recorded(cluster):
    started(cluster)
    cluster.running()
    assert "boots a virtual machine" in cluster.run().blocker.message
    cluster.end(BOOTED)
    step = cluster.run()
    assert step.result == ProofStatus(booted=True, message=BOOTED.message, accelerator="tcg", finished=rfc(cluster.now))
    assert [(event.type, event.reason) for event in step.events] == [("Normal", "BootProven")]
    assert "61.2 s with tcg" in step.events[0].message
    assert POD in cluster.pods  # until the status is known to be written
    assert cluster.run().result is None
    assert cluster.pods == {}
    assert cluster.run() == ProofStep()


def test_a_version_that_does_not_boot_is_unproven_with_its_console(cluster):
    started(cluster)
    cluster.end(PANICKED)
    step = cluster.run()
    assert not step.result.booted
    assert step.reason == "BootFailed"
    assert "the kernel panicked: no root" in step.message
    assert "golden.retry" in step.message
    assert "[ 1.0] no root" in step.message
    (event,) = step.events
    assert (event.type, event.reason) == ("Warning", "BootFailed")
    assert NAME in event.message
    assert "[ 1.0] no root" in event.message
    cluster.run()
    assert cluster.pods == {}
    assert cluster.started == 1


def test_a_long_console_leaves_room_for_the_cause(cluster):
    started(cluster)
    cluster.end(replace(PANICKED, console="x" * 3000 + "the end"))
    step = cluster.run()
    assert len(step.events[0].message) <= 1024
    assert len(step.message) <= 1024
    assert step.events[0].message.endswith("the end")
    assert "no root" in step.events[0].message


def test_a_retained_pod_stays_and_does_not_answer_a_later_proof(cluster):
    cluster.annotations = {ANN_POD_RETAIN: "true"}
    started(cluster)
    cluster.end(PANICKED)
    cluster.run()
    for _ in range(3):
        cluster.run()
    assert POD in cluster.pods
    # golden.retry: the old result stays in the status until there is another one.
    cluster.version = cluster.version.model_copy(update={"state": VersionState.PROVING})
    assert cluster.run().result is None
    assert cluster.pods == {}
    started(cluster)
    cluster.end(BOOTED)
    assert cluster.run().result.booted


def test_a_retry_that_was_requested_early_is_not_answered_by_the_old_pod(cluster):
    started(cluster)
    cluster.end(PANICKED)
    cluster.run()
    cluster.version = cluster.version.model_copy(update={"state": VersionState.PROVING})
    assert cluster.run().result is None
    assert cluster.pods == {}


def test_a_version_that_is_revoked_meanwhile_needs_no_pod(cluster):
    started(cluster)
    cluster.running()
    cluster.version = VERSION.model_copy(update={"state": VersionState.REVOKED})
    cluster.run()
    assert cluster.pods == {}


def test_other_settings_start_the_proof_again(cluster):
    before = started(cluster)["metadata"]["annotations"][FINGERPRINT.key]
    cluster.end(PANICKED)
    cluster.settings = replace(cluster.settings, proof_firmware="uefi")
    assert cluster.run().result is None
    assert started(cluster)["metadata"]["annotations"][FINGERPRINT.key] != before


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (replace(BOOTED, id="another"), 0),
        (BOOTED, 1),
        (PANICKED, 0),
        (failed(QemuFailed("crashed")), 0),
    ],
    ids=["of another volume", "success with an exit status", "failure without one", "error without one"],
)
def test_a_result_that_contradicts_itself_does_not_count(cluster, result, code):
    started(cluster)
    cluster.end(result, code=code)
    step = cluster.run()
    assert step.result is None
    assert step.blocker.reason == "WorkerLost"
    assert cluster.pods == {}


# --- repetition -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ({"code": 137, "reason": "OOMKilled"}, "ResourceLimit"),
        ({"code": 137, "reason": "Error"}, "WorkerLost"),
        ({"code": 137, "result": BOOTED, "reason": "OOMKilled"}, "ResourceLimit"),
        ({"code": 130, "result": failed(Interrupted("stopped"))}, "WorkerLost"),
        ({"code": 137, "reason": "DeadlineExceeded"}, "WorkerLost"),
        ({"result": failed(QemuMissing("qemu-system-x86_64 is not installed"))}, "QemuMissing"),
    ],
    ids=["out of memory", "killed", "killed after the result", "interrupted", "deadline", "no emulator"],
)
def test_what_says_nothing_about_the_version_is_repeated_without_end(cluster, end, reason):
    for number in range(1, 3 * MAX_FAILURES):
        started(cluster)
        cluster.end(**end)
        step = cluster.run()
        assert step.result is None
        assert step.blocker.reason == reason
        assert cluster.pods == {}
        assert len(step.events) == 1
        waiting = cluster.run()
        assert waiting.actions == ()
        assert waiting.events == ()
        assert 0 < waiting.requeue_after <= 1.25 * 240
        cluster.now += waiting.requeue_after
        assert cluster.started == number
    started(cluster)
    cluster.end(BOOTED)
    assert cluster.run().result.booted
    assert PROOF_ATTEMPTS.key not in cluster.claim.annotations


def test_an_evicted_pod_is_repeated(cluster):
    started(cluster)
    cluster.now += 5
    cluster.status(phase="Failed", reason="Evicted", message="The node was low on resource: memory")
    step = cluster.run()
    assert step.blocker.reason == "WorkerEvicted"
    assert "repeated automatically" in step.blocker.message
    assert cluster.pods == {}


def test_a_missing_emulator_says_what_to_do(cluster):
    started(cluster)
    error = QemuMissing("qemu-system-x86_64 is not installed", remedy="use a worker image that contains it")
    cluster.end(failed(error))
    message = cluster.run().blocker.message
    assert "qemu-system-x86_64 is not installed" in message
    assert "use a worker image that contains it" in message


def test_an_emulator_that_fails_again_and_again_leaves_the_version_unproven(cluster):
    for _ in range(MAX_FAILURES - 1):
        started(cluster)
        cluster.end(failed(QemuFailed("qemu-system-x86_64 was killed by SIGSEGV")))
        assert cluster.run().result is None
        cluster.now += cluster.run().requeue_after
    started(cluster)
    cluster.end(failed(QemuFailed("qemu-system-x86_64 was killed by SIGSEGV")))
    step = cluster.run()
    assert not step.result.booted
    assert step.reason == "QemuFailed"
    assert f"failed {MAX_FAILURES} times" in step.message
    cluster.run()
    assert cluster.pods == {}
    assert PROOF_ATTEMPTS.key not in cluster.claim.annotations


def test_a_failure_in_between_that_is_the_clusters_does_not_count(cluster):
    for error in (QemuFailed("crashed"), QemuFailed("crashed"), None, QemuFailed("crashed")):
        started(cluster)
        if error is None:
            cluster.end(code=137, reason="OOMKilled")
        else:
            cluster.end(failed(error))
        assert cluster.run().result is None
        cluster.now += cluster.run().requeue_after


def test_a_clock_that_was_set_back_does_not_delay_the_next_attempt_for_long(cluster):
    started(cluster)
    cluster.end(code=137, reason="OOMKilled")
    cluster.run()
    cluster.now -= 1e8
    assert cluster.run().requeue_after <= 1.25 * 240


def test_an_unreadable_record_of_attempts_counts_as_none(cluster):
    cluster.claim = replace(CLAIM, annotations={PROOF_ATTEMPTS.key: '{"attempt": "x"}'})
    started(cluster)


# --- waiting pods -----------------------------------------------------------------------------------------------------


def test_without_a_free_kvm_device_the_processor_is_emulated(cluster):
    cluster.kvm = True
    started(cluster)
    cluster.unschedulable()
    step = cluster.run()
    assert step.blocker.reason == "Unschedulable"
    assert 0 < step.requeue_after <= KVM_PATIENCE
    cluster.now += step.requeue_after
    step = cluster.run()
    assert [event.reason for event in step.events] == ["KvmUnavailable"]
    assert cluster.pods == {}
    assert KVM not in started(cluster)["spec"]["containers"][0]["resources"]["limits"]
    # It stays so for the next attempts, and ends with the proof.
    cluster.end(code=137, reason="OOMKilled")
    cluster.run()
    cluster.now += cluster.run().requeue_after
    assert KVM not in started(cluster)["spec"]["containers"][0]["resources"]["limits"]
    cluster.end(BOOTED)
    cluster.run()
    assert PROOF_ATTEMPTS.key not in cluster.claim.annotations


def test_a_pod_without_kvm_waits_for_its_node(cluster):
    cluster.version = VERSION.model_copy(update={"architecture": "s390x"})
    started(cluster)
    cluster.unschedulable()
    cluster.now += 3600
    step = cluster.run()
    assert step.actions == ()
    assert step.blocker.reason == "Unschedulable"
    assert "node of architecture s390x" in step.blocker.message


def test_a_pod_whose_image_cannot_be_pulled_is_replaced_when_the_image_changes(cluster):
    started(cluster)
    cluster.pods[POD]["spec"]["nodeName"] = "node1"
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    cluster.status(phase="Pending", containerStatuses=[{"name": "importer", "state": {"waiting": waiting}}])
    step = cluster.run()
    assert step.actions == ()
    assert step.blocker.reason == "ImagePullFailed"
    cluster.pods_config = WorkerPodConfig(image="cdi:2")
    cluster.run()
    assert started(cluster)["spec"]["containers"][0]["image"] == "cdi:2"


def test_a_running_pod_is_not_replaced_by_another_image(cluster):
    started(cluster)
    cluster.running()
    cluster.pods_config = WorkerPodConfig(image="cdi:2")
    assert cluster.run().actions == ()


def test_a_pod_that_is_being_deleted_is_waited_for(cluster):
    started(cluster)
    cluster.running()
    cluster.pods[POD]["metadata"]["deletionTimestamp"] = rfc(NOW)
    step = cluster.run()
    assert step.actions == ()
    assert step.blocker is not None
    cluster.end(BOOTED)
    assert cluster.run().result is None


# --- on one machine ---------------------------------------------------------------------------------------------------


def end_task(cluster, result=None):
    cluster.now += 60
    text = "" if result is None else result.to_json()
    cluster.task = LocalTask(running=False, started=cluster.now - 60, ended=cluster.now, result=text)


@pytest.fixture
def machine():
    return Cluster(task=None, claim=replace(CLAIM, path="/volumes/debian"))


def test_on_one_machine_a_process_boots_the_disk_in_the_volumes_directory(machine):
    machine.version = VERSION.model_copy(update={"architecture": "arm64"})
    step = machine.run()
    assert step.blocker is not None
    assert (machine.job.disk, machine.job.architecture) == ("/volumes/debian/disk.img", "arm64")
    assert machine.run().actions == ()
    end_task(machine, BOOTED)
    assert machine.run().result.booted
    assert machine.run() == ProofStep()
    assert machine.started == 1


def test_on_one_machine_a_guest_that_does_not_boot_is_a_result_and_can_be_retried(machine):
    machine.run()
    end_task(machine, PANICKED)
    step = machine.run()
    assert (step.result.booted, step.reason) == (False, "BootFailed")
    machine.version = machine.version.model_copy(update={"state": VersionState.PROVING})
    assert machine.run().result is None
    assert machine.started == 2
    end_task(machine, BOOTED)
    assert machine.run().result.booted


@pytest.mark.parametrize(
    "result",
    [None, failed(Interrupted("stopped")), replace(BOOTED, id="another"), failed(QemuMissing("not installed"))],
    ids=["lost", "interrupted", "of another volume", "no emulator"],
)
def test_on_one_machine_a_process_without_a_result_is_repeated(machine, result):
    machine.run()
    for number in range(2, 3 * MAX_FAILURES):
        end_task(machine, result)
        step = machine.run()
        assert step.result is None
        assert len(step.events) == 1
        waiting = machine.run()
        assert waiting.actions == ()
        machine.now += waiting.requeue_after
        machine.run()
        assert machine.started == number
    end_task(machine, BOOTED)
    assert machine.run().result.booted


def test_on_one_machine_an_emulator_that_fails_again_and_again_is_a_result(machine):
    for _ in range(MAX_FAILURES):
        machine.run()
        end_task(machine, failed(QemuFailed("crashed")))
        step = machine.run()
        machine.now += step.requeue_after or 0
    assert step.reason == "QemuFailed"
    assert machine.started == MAX_FAILURES


def test_on_one_machine_the_process_of_a_revoked_version_is_stopped(machine):
    machine.run()
    machine.version = VERSION.model_copy(update={"state": VersionState.REVOKED})
    machine.run()
    assert machine.task.running is False


# --- restarts ---------------------------------------------------------------------------------------------------------


def _course(cluster, crash):
    """Prove a version whose first pod is evicted and whose third never gets KVM, dying at write number `crash`.

    A write is an action or the status. Returns whether the controller died.
    """
    writes = itertools.count()
    events = iter(
        [
            lambda: cluster.end(code=137, reason="OOMKilled"),
            lambda: cluster.end(failed(QemuFailed("crashed"))),
            lambda: cluster.unschedulable(),
            lambda: cluster.end(BOOTED),
        ]
    )
    died = False
    for _ in range(60):
        seen = cluster.started
        step = cluster.step()
        for action in step.actions:
            if next(writes) == crash:
                died = True
                break
            cluster.apply([action])
        else:
            if step.result is not None:
                if next(writes) == crash:
                    died = True
                    continue
                cluster.record(step)
            cluster.now += step.requeue_after or 0
            if cluster.started > seen:
                next(events, lambda: cluster.end(BOOTED))()
            elif not step.actions and step.result is None and not step.requeue_after:
                break
    return died


def test_a_controller_that_dies_between_any_two_writes_comes_to_the_same_end():
    for crash in itertools.count():
        cluster = Cluster(kvm=True)
        died = _course(cluster, crash)
        assert cluster.version.state == VersionState.AVAILABLE, crash
        assert cluster.version.proof.booted
        assert cluster.pods == {}, crash
        assert PROOF_ATTEMPTS.key not in cluster.claim.annotations, crash
        assert cluster.started == 4, crash
        if not died:
            assert crash > 8
            break
