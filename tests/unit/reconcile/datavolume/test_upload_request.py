"""Tests of uploads in a cluster: when one is accepted, its address, and its status."""

from __future__ import annotations

import dataclasses

import pytest

from cdi.api.errors import Retry
from cdi.api.job import Failure, Job, Progress, StreamSourceSpec
from cdi.reconcile.actions import CreateObject, EnsureCertificate, StartWorker
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.datavolume.upload import is_upload_target
from cdi.reconcile.pods.status import worker_from_pod
from tests.unit.reconcile.cluster_simulation import CLAIMS, COMPLETE, PODS, Cluster, dv, pvc
from tests.unit.reconcile.simulation import failing

UPLOAD = {"upload": {}}
IMMEDIATE = {"cdi.kubevirt.io/storage.bind.immediate.requested": ""}
TARGET = {"cdi.kubevirt.io/storage.upload.target": ""}


def upload(storage_class="csi", **options):
    return Cluster(dv(storage_class, source=UPLOAD, **options))


def until(cluster, there, steps=60):
    """Step the cluster until a condition holds and return it."""
    for _ in range(steps):
        cluster.step()
        if there():
            return cluster
        cluster.nature()
        cluster.now += 0.25
    raise AssertionError(cluster.status if cluster.names("datavolumes") else cluster.annotations)


def pod(cluster):
    return cluster.all(PODS)[0]


def phase(name):
    return lambda cluster: until(cluster, lambda: cluster.status.get("phase") == name)


# --- sequence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_phases_are_those_that_clients_wait_for(storage_class):
    cluster = upload(storage_class).run()
    steps = list(dict.fromkeys(cluster.phases))
    assert steps == ["Pending", "UploadScheduled", "UploadReady", "Succeeded"]
    assert [event.reason for event in cluster.events if event.reason.startswith("Upload")] == [
        "UploadScheduled", "UploadReady", "UploadSucceeded",
    ]  # fmt: skip
    assert cluster.content == COMPLETE


def test_it_is_ready_when_its_pod_says_so_and_not_before():
    cluster = upload("local")
    until(cluster, lambda: cluster.names(PODS) and pod(cluster)["status"]["phase"] == "Running")
    cluster.step()
    assert (cluster.status["phase"], cluster.annotations["storage.pod.ready"]) == ("UploadScheduled", "false")
    assert cluster.annotations["storage.pod.phase"] == "Running"
    pod(cluster)["status"]["containerStatuses"][0]["ready"] = True
    cluster.step()
    assert (cluster.status["phase"], cluster.annotations["storage.pod.ready"]) == ("UploadReady", "true")
    pod(cluster)["status"]["containerStatuses"][0]["ready"] = False
    cluster.step()
    assert (cluster.status["phase"], cluster.annotations["storage.pod.ready"]) == ("UploadScheduled", "false")


def test_clients_find_what_they_look_for_on_the_claim():
    cluster = phase("UploadReady")(upload("local"))
    shown = cluster.annotations
    assert shown["storage.upload.target"] == ""
    assert shown["storage.uploadPodName"] == "cdi-upload-a"
    assert shown["uploadClientName"] == "client.upload-server.cdi.kubevirt.io"
    assert "storage.import.importPodName" not in shown


def test_clients_of_a_populated_claim_find_it_on_both():
    cluster = phase("UploadReady")(upload("csi"))
    prime = next(name for name in cluster.names(CLAIMS) if name.startswith("prime-"))
    assert cluster.annotations["storage.populator.pvcPrime"] == prime
    assert cluster.annotations["storage.usePopulator"] == "true"
    assert cluster.annotations["storage.uploadPodName"] == f"cdi-upload-{prime}"
    of_prime = cluster.get(CLAIMS, prime)["metadata"]["annotations"]
    assert of_prime["cdi.kubevirt.io/storage.pod.ready"] == "true"
    assert of_prime["cdi.kubevirt.io/storage.populator.kind"] == "VolumeUploadSource"
    assert of_prime["cdi.kubevirt.io/storage.upload.target"] == ""


def test_a_class_that_waits_for_its_consumer_is_waited_for():
    assert upload("local-wait").run().status["phase"] == "WaitForFirstConsumer"
    assert upload("csi-wait").run().status["phase"] == "PendingPopulation"
    assert upload("local-wait", annotations=IMMEDIATE).run().content == COMPLETE


def test_while_it_waits_the_command_is_told_that_brings_an_image():
    cluster = phase("UploadReady")(upload("local"))
    ready = cluster.detail
    assert ready["message"] == "waiting for: cdi upload -n default a FILE"
    assert cluster.condition("Running")["status"] == "True"


def worker_of(cluster, **told):
    context = cluster.context()
    found = worker_from_pod(pod(cluster))
    return dataclasses.replace(context, worker=dataclasses.replace(found, **told))


def test_progress_is_shown_as_of_imports():
    cluster = phase("UploadReady")(upload("local"))
    plan = reconcile(
        worker_of(
            cluster, progress=Progress(phase="transfer", done=1 << 20, total=4 << 20, written=0, note="raw-stream")
        )
    )
    assert (plan.status["phase"], plan.status["progress"]) == ("UploadReady", "25.00%")
    assert "raw-stream" in plan.status["detail"]["message"]


def test_why_an_image_was_refused_is_told_and_another_one_may_come():
    cluster = phase("UploadReady")(upload("local"))
    refused = Failure(code="TargetTooSmall", message="it has 2 GiB.", retry=Retry.NEVER, exit_status=6)
    plan = reconcile(worker_of(cluster, refused=refused))
    ready = plan.status["detail"]
    assert (plan.status["phase"], ready["reason"]) == ("UploadReady", "TargetTooSmall")
    assert ready["message"] == "it has 2 GiB. Upload it again"
    assert [(event.type, event.reason) for event in plan.events] == [("Warning", "UploadFailed")]


# --- created objects ----------------------------------------------------------------------------------------------


def started(cluster):
    until(cluster, lambda: any(isinstance(action, StartWorker) for action in cluster.log))
    return next(action for action in cluster.log if isinstance(action, StartWorker))


def test_the_pod_is_an_upload_server():
    start = started(upload("csi", mode="Block"))
    container = start.pod["spec"]["containers"][0]
    prime = start.pod["metadata"]["ownerReferences"][0]["name"]
    assert start.pod["metadata"]["name"] == f"cdi-upload-{prime}"
    assert start.pod["metadata"]["labels"]["cdi.kubevirt.io"] == "cdi-upload-server"
    ports = start.pod["metadata"]["annotations"]["k8s.ovn.org/open-default-ports"]
    assert ports == '[{"protocol":"tcp","port":8443}]'
    assert (container["command"], container["args"]) == (["cdi-worker"], ["upload"])
    assert container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": 8443, "scheme": "HTTPS"}
    assert {"name": "tls", "mountPath": "/var/run/cdi/tls", "readOnly": True} in container["volumeMounts"]
    (tls,) = (one for one in start.pod["spec"]["volumes"] if one["name"] == "tls")
    assert tls["secret"]["secretName"] == f"cdi-upload-{prime}"
    job = Job.from_json(start.pod["metadata"]["annotations"]["cdi.kubevirt.io/job"])
    assert job.source == StreamSourceSpec(descriptor=0)
    assert start.pod["spec"]["automountServiceAccountToken"] is False


def test_its_service_selects_it_and_no_other_pod():
    cluster = upload("local")
    start = started(cluster)
    service = cluster.get("services", "cdi-upload-a")
    labels = start.pod["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["selector"]["cdi.kubevirt.io/uploadTarget"] == start.claim
    assert (service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]) == ("None", 8443)


def test_its_certificate_is_for_its_own_names_and_goes_with_its_service():
    cluster = upload("local")
    started(cluster)
    (asked,) = (action for action in cluster.log if isinstance(action, EnsureCertificate))
    assert (asked.secret, asked.usage) == ("cdi-upload-a", "server")
    assert asked.hosts == ("cdi-upload-a.default.svc", "cdi-upload-a.default.svc.cluster.local")
    assert asked.owner["uid"] == cluster.get("services", "cdi-upload-a")["metadata"]["uid"]


def test_a_long_name_is_a_service_s_name_still():
    name = "a" * 200
    cluster = Cluster(dv("local", source=UPLOAD))
    body = cluster.get("datavolumes", "a")
    cluster.remove("datavolumes", "a")
    body["metadata"] |= {"name": name}
    body["metadata"].pop("deletionTimestamp")
    cluster.create(body)
    cluster.key = ("default", name)
    until(cluster, lambda: any(isinstance(action, StartWorker) for action in cluster.log))
    (service,) = cluster.names("services")
    assert len(service) <= 63
    assert {action.hosts[0] for action in cluster.log if isinstance(action, EnsureCertificate)} == {
        f"{service}.default.svc"
    }


def test_somebody_else_s_service_is_left_alone_and_named():
    cluster = upload("local")
    cluster.create(
        {
            "kind": "Service",
            "metadata": {"name": "cdi-upload-a", "namespace": "default"},
            "spec": {"selector": {"mine": "yes"}},
        }
    )
    cluster.run()
    assert not cluster.names(PODS)
    assert "Service default/cdi-upload-a belongs to another controller" in cluster.condition("Running")["message"]
    assert cluster.get("services", "cdi-upload-a")["spec"]["selector"] == {"mine": "yes"}
    cluster.remove("services", "cdi-upload-a")
    assert cluster.run().content == COMPLETE


def test_a_service_that_somebody_took_away_is_made_anew():
    cluster = phase("UploadReady")(upload("local"))
    cluster.remove("services", "cdi-upload-a")
    plan = cluster.step()
    assert [action.body["kind"] for action in plan.actions if isinstance(action, CreateObject)] == ["Service"]
    assert cluster.run().content == COMPLETE


def test_a_worker_that_lacks_scratch_space_gets_it():
    cluster = Cluster(dv("local", source=UPLOAD), script=[failing("ScratchNeeded", Retry.ON_CHANGE)]).run()
    assert cluster.content == COMPLETE
    assert cluster.annotations["storage.import.requiresScratch"] == "true"
    assert cluster.status["restartCount"] == 1
    assert cluster.names(CLAIMS) == {"a"}


def test_nobody_is_told_to_upload_between_two_pods():
    cluster = Cluster(dv("local", source=UPLOAD), script=[failing()])
    for _ in range(60):
        plan = cluster.step()
        running = [one for one in cluster.all(PODS) if one["status"]["phase"] == "Running"]
        assert running or cluster.status["phase"] != "UploadReady"
        cluster.nature()
        cluster.now += (plan.requeue_after or 0) + 0.5
    assert cluster.content == COMPLETE


# --- claims without a DataVolume ----------------------------------------------------------------------------------


def test_a_claim_that_virtctl_makes_is_filled():
    cluster = Cluster(claim=pvc("csi", annotations={**TARGET, "cdi.kubevirt.io/storage.contentType": "archive"}))
    start = started(cluster)
    assert Job.from_json(start.pod["metadata"]["annotations"]["cdi.kubevirt.io/job"]).content_type == "archive"
    cluster.run()
    assert (cluster.content, cluster.annotations["storage.pod.phase"]) == (COMPLETE, "Succeeded")
    assert not cluster.names(PODS) | cluster.names("services") | cluster.names("secrets")


def source(**spec):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "VolumeUploadSource",
        "metadata": {"name": "u", "namespace": "default"}, "spec": spec,
    }  # fmt: skip


def test_a_claim_that_names_an_upload_source_waits_for_it_and_follows_it():
    cluster = Cluster(claim=pvc("csi", ref="u", kind="VolumeUploadSource")).run()
    assert not cluster.names(PODS)
    assert "VolumeUploadSource default/u does not exist" in cluster.annotations["storage.condition.bound.message"]
    cluster.create(source(contentType="archive", preallocation=True))
    job = Job.from_json(started(cluster).pod["metadata"]["annotations"]["cdi.kubevirt.io/job"])
    assert (job.content_type, job.policy.preallocation) == ("archive", True)
    assert cluster.annotations["storage.upload.target"] == ""
    assert cluster.run().content == COMPLETE


def test_an_upload_continues_when_its_upload_source_is_deleted():
    cluster = Cluster(
        claim=pvc("csi", ref="u", kind="VolumeUploadSource"),
        bodies=[source(contentType="archive", preallocation=True)],
    )
    until(cluster, lambda: len(cluster.names(CLAIMS)) == 2)
    assert not cluster.names(PODS)
    cluster.remove("volumeuploadsources", "u")
    job = Job.from_json(started(cluster).pod["metadata"]["annotations"]["cdi.kubevirt.io/job"])
    assert (job.content_type, job.policy.preallocation) == ("archive", True)
    cluster.remove(PODS, pod(cluster)["metadata"]["name"])
    assert cluster.run().content == COMPLETE


WITHDRAWABLE = {
    "by hand": (lambda: Cluster(claim=pvc("local", annotations=TARGET)), "a"),
    "populated by hand": (lambda: Cluster(claim=pvc("csi", ref="u", kind="VolumeUploadSource"), bodies=[source()]), "prime"),
    "direct": (lambda: upload("local"), "a"),
    "populated": (lambda: upload("csi"), "prime"),
    "populated, by the target": (lambda: upload("csi"), "a"),
}  # fmt: skip


@pytest.mark.parametrize("way", WITHDRAWABLE)
def test_removing_the_upload_annotation_ends_the_upload_server_until_it_is_set_again(way):
    begin, name = WITHDRAWABLE[way]
    cluster = begin()
    until(cluster, lambda: cluster.annotations.get("storage.pod.ready") == "true")
    claim = next(body for body in cluster.all(CLAIMS) if body["metadata"]["name"].startswith(name))
    del claim["metadata"]["annotations"]["cdi.kubevirt.io/storage.upload.target"]
    cluster.run()
    assert not cluster.names(PODS) | cluster.names("services") | cluster.names("secrets")
    assert "cdi.kubevirt.io/storage.upload.target" not in claim["metadata"]["annotations"]
    assert cluster.annotations["storage.pod.ready"] == "false"
    assert (
        "accepts no upload" in cluster.annotations["storage.condition.running.message"]
        or not cluster.annotations["storage.condition.running.message"]
    )
    claim["metadata"]["annotations"] |= TARGET
    assert cluster.run().content == COMPLETE


def test_a_finished_upload_does_not_change_when_its_annotation_is_removed():
    cluster = Cluster(claim=pvc("local", annotations=TARGET)).run()
    del cluster.get(CLAIMS, "a")["metadata"]["annotations"]["cdi.kubevirt.io/storage.upload.target"]
    before = cluster.annotations
    assert cluster.run().annotations == before


def test_an_upload_that_an_older_version_began_is_not_ended():
    """Its prime PVC has none of the annotations of an upload."""
    cluster = phase("UploadReady")(upload("csi"))
    prime = next(body for body in cluster.all(CLAIMS) if body["metadata"]["name"] != "a")
    for name in ("storage.upload.target", "uploadClientName"):
        del prime["metadata"]["annotations"][f"cdi.kubevirt.io/{name}"]
    cluster.step()
    assert cluster.status["phase"] == "UploadReady"
    assert cluster.run().content == COMPLETE


def test_a_datavolume_may_name_an_upload_source():
    body = dv("csi")
    del body["spec"]["source"]
    body["spec"]["storage"]["dataSourceRef"] = {
        "apiGroup": "cdi.kubevirt.io", "kind": "VolumeUploadSource", "name": "u",
    }  # fmt: skip
    cluster = Cluster(body, bodies=[source()]).run()
    assert list(dict.fromkeys(cluster.phases)) == ["Pending", "UploadScheduled", "UploadReady", "Succeeded"]


def test_what_a_client_of_one_machine_writes_means_nothing_in_a_cluster():
    request = {"cdi.kubevirt.io/storage.upload.request": '{"id": "x", "path": "/etc/passwd"}'}
    start = started(Cluster(claim=pvc("local", annotations={**TARGET, **request})))
    assert "/etc/passwd" not in start.pod["metadata"]["annotations"]["cdi.kubevirt.io/job"]


@pytest.mark.parametrize(
    ("metadata", "spec", "expected"),
    [
        ({"annotations": TARGET}, {}, True),
        ({}, {"dataSourceRef": {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeUploadSource", "name": "u"}}, True),
        ({}, {"dataSourceRef": {"apiGroup": "example.com", "kind": "VolumeUploadSource", "name": "u"}}, False),
        ({}, {"dataSourceRef": {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeImportSource", "name": "u"}}, False),
        ({"annotations": None}, None, False),
    ],
)
def test_targets_are_told_by_what_claims_say(metadata, spec, expected):
    assert is_upload_target({"metadata": metadata, "spec": spec}) is expected
