"""The words of the API that programs compare, each observed on a cluster: phases, reasons, Events, annotations, names.

Tables map each word to the scenario that produces it. All scenarios run at once before the first test; each test checks
one word. Clones and uploads have tests of their own.
"""

from __future__ import annotations

import json
import re
import secrets
import ssl
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import pytest
import trustme

from tests.cluster.cdi import controller
from tests.cluster.event_log import Chronicle, following
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import is_phase
from tests.cluster.reader import pod_of_many
from tests.cluster.servers import secret
from tests.cluster.volumes import IMMEDIATE, MIB, conditions, data_volume, disk, qcow2, sha256
from tests.faults.server import Fault, FaultServer
from tests.vmdk_writer import needs_qemu

Document = dict[str, Any]
GROUP = "cdi.kubevirt.io/"
TIMEOUT = 300.0
MARK = secrets.token_hex(3)
"""Part of the names of cluster-scoped objects."""
NODE, PRIORITY, POLICY, VOLUME = f"full-{MARK}", f"golden-{MARK}", f"primes-{MARK}", f"foreign-{MARK}"
REFUSED_SIZE = "33Mi"
"""Size of prime PVCs that a policy rejects."""
NETWORKS = {
    "k8s.v1.cni.cncf.io/networks": "storage-net",
    "v1.multus-cni.io/default-network": "default/storage-net",
    "sidecar.istio.io/inject": "true",
}

# --- Words --------------------------------------------------------------------------------------------------------

PHASES = {
    "Pending": "slow-csi",
    "PVCBound": "no-secret",
    "WaitForFirstConsumer": "waits-local",
    "PendingPopulation": "waits-csi",
    "ImportScheduled": "unmountable",
    "ImportInProgress": "slow-csi",
    "Succeeded": "slow-csi",
    "Failed": "checksum",
}
BOUND = {
    "Pending": "slow-csi",
    "NotFound": "unsupported",
    "ClaimLost": "lost",
    "CreatingScratchSpace": "scratch-csi",
    "ErrExceededQuota": "quota",
    "ErrClaimNotValid": "no-class",
}
RUNNING = {
    "Completed": "slow-csi",
    "Error": "not-found",
    "ImagePullFailed": "pull",
    "Unschedulable": "full",
    "ChecksumError": "checksum",
    "ContainerCreating": "unmountable",
}
EVENTS = {
    "ImportScheduled": "unmountable",
    "ImportInProgress": "slow-csi",
    "ImportSucceeded": "slow-csi",
    "ImportFailed": "checksum",
    "Error": "not-found",
    "ImportTargetInUse": "in-use",
    "ErrImportFailed": "unauthorized",
    "ErrResourceExists": "exists",
    "ErrClaimLost": "lost",
    "ErrClaimNotValid": "no-class",
    "ErrExceededQuota": "quota",
    "ErrStartingPod": "no-account",
    "CreatedPVCPrimeSuccessfully": "slow-csi",
    "ErrCreatingPVCPrime": "no-prime",
    "ClaimMisbound": "misbound",
}
OF_CLAIMS = {("in-use", "ImportTargetInUse"), ("unauthorized", "ErrImportFailed")}
"""Events about the claim instead of the DataVolume."""
WRITTEN = (  # annotations of claims: the key, the scenario, and the successive values
    # A pod of an idle node can run before the controller observes that it is pending; one that cannot mount waits.
    ("storage.pod.phase", "unmountable", ["Pending"]),
    ("storage.pod.phase", "slow-csi", ["Running", "Succeeded"]),
    ("storage.pod.ready", "unmountable", ["false"]),
    ("storage.pod.ready", "slow-csi", ["true", "false"]),
    ("storage.pod.restarts", "unauthorized", ["0", "[1-9]"]),
    ("storage.pod.schedulable", "full", ["false"]),
    ("storage.import.fatalError", "checksum", ["true"]),
    ("storage.import.importPodName", "slow-local", ["importer-slow-local"]),
    ("storage.import.requiresScratch", "scratch-csi", ["true"]),
    ("storage.condition.running", "unmountable", ["false"]),
    ("storage.condition.running", "slow-csi", ["true", "false"]),
    ("storage.condition.running.message", "slow-csi", ["Import Complete"]),
    ("storage.condition.running.reason", "slow-csi", ["Pod is running", "Completed"]),
    ("storage.condition.bound", "slow-csi", ["false", "true"]),
    ("storage.condition.bound.message", "slow-csi", ["PVC slow-csi Pending", "PVC slow-csi Bound"]),
    ("storage.condition.bound.reason", "slow-csi", ["Pending", "Bound"]),
    ("storage.populator.progress", "named", ["N/A", r"100\.0%"]),
    ("storage.populator.pvcPrime", "slow-csi", ["prime-UID"]),
    ("storage.usePopulator", "slow-csi", ["true"]),
    ("storage.preallocation", "preallocated", ["true"]),
    ("storage.preallocation.requested", "preallocated", ["true"]),
    ("storage.contentType", "slow-csi", ["kubevirt"]),
    ("storage.createdByController", "slow-csi", ["yes"]),
    ("createdForDataVolume", "slow-csi", ["UID-OF-THE-DATAVOLUME"]),
    ("storage.populatedFor", "adopted", ["adopted"]),
    ("storage.pod.priorityclassname", "chosen", [PRIORITY]),
)
OBEYED = {  # annotations that users set: the scenario, and its final phase
    "storage.bind.immediate.requested": ("at-once", "Succeeded"),
    "storage.usePopulator": ("declined", "Succeeded"),
    "storage.pod.retainAfterCompletion": ("chosen", "Succeeded"),
    "allowClaimAdoption": ("adopted", "Succeeded"),
    "storage.prePopulated": ("prepopulated", "Succeeded"),
    "storage.populatedFor": ("populated-for", "Succeeded"),
    "storage.checkStaticVolume": ("static", "Succeeded"),
    "externalPopulation": ("external", "Succeeded"),
}
BY_HAND = {  # annotations of claims without a DataVolume
    "by-hand": (
        "source", "endpoint", "secretName", "certConfigMap", "checksum", "extraHeaders.0", "secretExtraHeaders.0",
    ),
    "by-hand-insecure": ("source", "endpoint", "insecureSkipVerify"),
}  # fmt: skip
LABELS = {  # labels: kind, pattern of the name, value
    "app": ("pods", "importer-.*", "containerized-data-importer"),
    "cdi.kubevirt.io": ("pods", "importer-.*", "importer"),
    "prometheus.cdi.kubevirt.io": ("pods", "importer-.*", "true"),
    "alerts.k8s.io/KubePersistentVolumeFillingUp": ("persistentvolumeclaims", "slow-csi", "disabled"),
    "velero.io/exclude-from-backup": ("persistentvolumeclaims", "prime-.*", "true"),
}


# --- Scenarios ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    place: Kubectl
    chronicle: Chronicle
    server: FaultServer
    tls: FaultServer
    elsewhere: Chronicle
    """Event log of a namespace whose workers have a missing image."""
    authority: str


def a_claim(name: str, storage_class: str, **more: Any) -> Document:
    annotations = more.pop("annotations", {})
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": storage_class,
        "resources": {"requests": {"storage": "24Mi"}},
        **more,
    }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    }


def named(*names: str) -> dict[str, str]:
    return {f"{GROUP}{name}": "true" for name in names}


def a_volume(
    name: str, storage_class: str, namespace: str, claim: str, *, path_type: str = "DirectoryOrCreate"
) -> Document:
    """Build a PersistentVolume made by hand for this claim; no pod can mount it if `path_type` is ``Directory``."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "24Mi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": claim},
            "hostPath": {"path": f"/tmp/{name}", "type": path_type},
        },
    }


def cluster_wide(namespace: str) -> tuple[Document, ...]:
    """Build a full node, a priority class, and a policy that rejects some prime PVCs of this namespace."""
    taint = {"key": "cdi.test/full", "effect": "NoSchedule"}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["persistentvolumeclaims"]}
    expression = (
        f"!object.metadata.name.startsWith('prime-') || object.spec.resources.requests.storage != '{REFUSED_SIZE}'"
    )
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return (
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"taints": [taint]}},
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": PRIORITY}, "value": 1000},
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": POLICY},
            "spec": {
                "matchConstraints": {"resourceRules": [rule]},
                "validations": [{"expression": expression, "message": "no prime claims of this size"}],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": POLICY},
            "spec": {
                "policyName": POLICY,
                "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector": here},
            },
        },
        a_volume(VOLUME, "csi-wait", namespace, "misbound"),
        a_volume(f"{VOLUME}-static", "csi-wait", namespace, "static"),
        # The directory does not exist: the kubelet keeps the pod in ContainerCreating until the test ends.
        a_volume(f"{VOLUME}-unmountable", "local", namespace, "unmountable", path_type="Directory"),
    )


def begin(play: Play, image: bytes, large_grains: bytes) -> None:
    place, server = play.place, play.server
    good = server.put("/good.qcow2", image)
    slow = server.put("/slow.raw", disk(16 * MIB), always=Fault(drip=(1 << 16, 0.06)))
    right = "Basic " + b64encode(b"u:p").decode()
    private = server.put("/private.qcow2", image, authorization=right)
    once = server.put("/once.vmdk", large_grains, ranges=False)
    secure = play.tls.put("/good.qcow2", image)
    http = {"http": {"url": good}}
    quota = {"local-wait.storageclass.storage.k8s.io/requests.storage": "30Mi"}
    place.create(
        secret("login", accessKeyId="u", secretKey="p"),
        secret("wrong", accessKeyId="u", secretKey="q"),
        secret("headers", one="X-Secret: s3cret"),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.pem": play.authority}},
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "some"}, "spec": {"hard": quota}},
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "VolumeImportSource",
            "metadata": {"name": "fedora"},
            "spec": {"source": {"http": {"url": slow}}},
        },
        a_claim("exists", "local"),
        a_claim("adopted", "local"),
        a_claim("prepopulated", "local"),
        a_claim("populated-for", "local", annotations={f"{GROUP}storage.populatedFor": "populated-for"}),
        a_claim("original", "csi"),
        a_claim("named", "csi", dataSourceRef={"apiGroup": "cdi.kubevirt.io", "kind": "VolumeImportSource", "name": "fedora"}),
        a_claim("in-use", "local", annotations=by_hand(source="http", endpoint=good, secretName="comes-late")),
        a_claim(
            "by-hand", "local",
            annotations=by_hand(
                source="http", endpoint=secure, secretName="login", certConfigMap="ca", checksum=f"sha256:{sha256(image)}",
                **{"extraHeaders.0": "X-Plain: here", "secretExtraHeaders.0": "headers"},
            ),
        ),
        a_claim(
            "by-hand-insecure", "local", annotations=by_hand(source="http", endpoint=secure, insecureSkipVerify="true")
        ),
    )  # fmt: skip
    # A claim created before the quota is in force is not counted.
    place.wait("resourcequota", "some", "in force", lambda it: "used" in it.get("status", {}))
    external = data_volume("external", {}, "csi", annotations=named("externalPopulation"))
    del external["spec"]["source"]
    external["spec"]["pvc"]["dataSourceRef"] = {"kind": "PersistentVolumeClaim", "name": "original"}
    chosen = data_volume(
        "chosen", http, "local", annotations={**named("storage.pod.retainAfterCompletion"), **NETWORKS}
    )
    chosen["spec"] |= {"priorityClassName": PRIORITY, "serviceAccountName": "default"}
    account = data_volume("no-account", http, "local")
    account["spec"]["serviceAccountName"] = "nobody"
    preallocated = data_volume("preallocated", http, "local", mode="Block")
    preallocated["spec"]["preallocation"] = True
    vddk = {"url": "https://vcenter", "uuid": "1", "backingFile": "x", "thumbprint": "x", "secretRef": "x"}
    place.create(
        data_volume("slow-csi", {"http": {"url": slow}}, "csi"),
        data_volume("slow-local", {"http": {"url": slow}}, "local"),
        data_volume("waits-csi", http, "csi-wait"),
        data_volume("waits-local", http, "local-wait"),
        data_volume("at-once", http, "csi-wait", annotations={IMMEDIATE: ""}),
        data_volume("declined", http, "csi", annotations={f"{GROUP}storage.usePopulator": "false"}),
        data_volume("no-secret", {"http": {"url": good, "secretRef": "missing"}}, "local"),
        data_volume("not-found", {"http": {"url": server.url("/nowhere")}}, "csi"),
        data_volume("unauthorized", {"http": {"url": private, "secretRef": "wrong"}}, "local"),
        data_volume("checksum", {"http": {"url": good, "checksum": f"sha256:{'0' * 64}"}}, "csi"),
        data_volume("scratch-csi", {"http": {"url": once}}, "csi"),
        data_volume("quota", http, "local-wait", size="40Mi"),
        data_volume("no-class", http, f"none-{MARK}"),
        data_volume("unsupported", {"vddk": vddk}, "csi"),
        data_volume("lost", http, "local"),
        data_volume("exists", http, "local"),
        data_volume("adopted", http, "local", annotations=named("allowClaimAdoption")),
        data_volume("prepopulated", http, "local", annotations={f"{GROUP}storage.prePopulated": "prepopulated"}),
        data_volume("populated-for", http, "local"),
        data_volume("static", http, "csi-wait", annotations=named("storage.checkStaticVolume")),
        data_volume("no-prime", http, "csi", size=REFUSED_SIZE),
        data_volume("full", http, "csi-wait"),
        data_volume("misbound", http, "csi-wait"),
        data_volume("unmountable", http, "local"),
        external, chosen, account, preallocated,
    )  # fmt: skip


def by_hand(**said: str) -> dict[str, str]:
    return {f"{GROUP}storage.import.{name}": text for name, text in said.items()}


def go_on(play: Play, image: str) -> None:
    """Do what users do while the imports run."""
    place, chronicle = play.place, play.chronicle
    place.create(pod_of_many("user", image, "sleep 1000", {"in-use": "Filesystem"}))
    chronicle.wait_phase("full", "PendingPopulation", patience=TIMEOUT)
    place.merge(
        "persistentvolumeclaim", "full", {"metadata": {"annotations": {"volume.kubernetes.io/selected-node": NODE}}}
    )
    chronicle.wait("pods", "user", "running", is_phase("Running"), TIMEOUT)
    place.create(secret("comes-late", accessKeyId="u", secretKey="p"))
    chronicle.until("the password is refused", lambda: "Error" in chronicle.event_reasons("unauthorized"), TIMEOUT)
    place.apply(secret("wrong", accessKeyId="u", secretKey="p"))
    chronicle.wait_phase("lost", "Succeeded", patience=TIMEOUT)
    # Kubernetes protects a volume that is in use with a finalizer.
    volume = place.get("persistentvolumeclaim", "lost")["spec"]["volumeName"]
    place.delete("persistentvolume", volume, wait=False)
    place.merge("persistentvolume", volume, {"metadata": {"finalizers": None}})


@pytest.fixture(scope="module")
def play(cluster, tmp_path_factory):
    directory = tmp_path_factory.mktemp("images")
    content = disk()
    image, large_grains = qcow2(content, directory), needs_qemu(content)
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(cluster.host_address).configure_cert(context)
    with (
        FaultServer(host=cluster.host_address) as server,
        FaultServer(context, host=cluster.host_address) as tls,
        cluster.namespace("words") as place,
        cluster.namespace("pull") as other,
        following(place) as chronicle,
        following(other) as elsewhere,
        controller(cluster, place),
        controller(cluster, other, image="127.0.0.1:1/cdi/not-there:1"),
    ):
        made = Play(
            place=place,
            chronicle=chronicle,
            elsewhere=elsewhere,
            server=server,
            tls=tls,
            authority=authority.cert_pem.bytes().decode(),
        )
        for_all = cluster_wide(place.namespace)
        place.create(*for_all)
        try:
            begin(made, image, large_grains)
            other.create(data_volume("pull", {"blank": {}}, "local"))
            go_on(made, cluster.image)
            yield made
        finally:
            place.run("delete", "datavolumes", "--all", "--wait=false")
            for document in for_all:
                place.delete(document["kind"], document["metadata"]["name"], wait=False)


def of(play: Play, name: str) -> Chronicle:
    return play.elsewhere if name == "pull" else play.chronicle


# --- DataVolumes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "name"), PHASES.items())
def test_a_phase_is_met(play, phase, name) -> None:
    chronicle = of(play, name)
    chronicle.until(f"{name} is {phase}", lambda: phase in chronicle.phases(name), TIMEOUT)


@pytest.mark.parametrize(("reason", "name"), BOUND.items())
def test_a_reason_of_bound_is_met(play, reason, name) -> None:
    chronicle = of(play, name)
    chronicle.until(f"{name} has {reason}", lambda: reason in chronicle.reasons(name, "Bound"), TIMEOUT)


@pytest.mark.parametrize(("reason", "name"), RUNNING.items())
def test_a_reason_of_running_is_met(play, reason, name) -> None:
    chronicle = of(play, name)
    chronicle.until(f"{name} has {reason}", lambda: reason in chronicle.reasons(name, "Running"), TIMEOUT)


@pytest.mark.parametrize(("reason", "name"), EVENTS.items())
def test_an_event_is_told(play, reason, name) -> None:
    chronicle = of(play, name)

    def there() -> bool:
        kinds = ("DataVolume", "PersistentVolumeClaim")
        return any(reason in chronicle.event_reasons(name, kind) for kind in kinds)

    chronicle.until(f"{name} has an event {reason}", there, TIMEOUT)
    kind = "PersistentVolumeClaim" if (name, reason) in OF_CLAIMS else "DataVolume"
    assert reason in chronicle.event_reasons(name, kind)


def test_ready_is_true_of_what_succeeded_and_of_nothing_else(play) -> None:
    play.chronicle.wait_phase("slow-csi", "Succeeded", patience=TIMEOUT)
    for state in play.chronicle.states("datavolumes"):
        if "status" in state:
            ready = conditions(state)["Ready"]["status"] == "True"
            assert ready == (state["status"]["phase"] == "Succeeded"), state["status"]


def test_progress_has_the_form_that_programs_parse(play) -> None:
    play.chronicle.wait_phase("slow-csi", "Succeeded", patience=TIMEOUT)
    states = play.chronicle.states("datavolumes")
    found = {(state["metadata"]["name"], state["status"]["progress"]) for state in states if "status" in state}
    assert all(re.fullmatch(r"N/A|\d{1,2}\.\d\d%|100\.0%", progress) for _, progress in found), found
    slow = [progress for name, progress in found if name == "slow-csi"]
    assert "100.0%" in slow
    assert any(re.fullmatch(r"[1-9]\d?\.\d\d%", progress) for progress in slow), "it moves on the way"


def test_kubectl_shows_the_usual_columns(play) -> None:
    for short in ("dv", "dvs"):
        head, line = play.place.run("get", short, "slow-csi").splitlines()
        assert head.split() == ["NAME", "PHASE", "PROGRESS", "RESTARTS", "AGE"]
        assert line.split()[0] == "slow-csi"


# --- Claims -------------------------------------------------------------------------------------------------------


def goes_through(values: list[str], wanted: list[str]) -> bool:
    """Return whether the patterns match some of the values in this order."""
    rest = iter(values)
    return all(any(re.fullmatch(pattern, value) for value in rest) for pattern in wanted)


@pytest.mark.parametrize(("annotation", "name", "wanted"), WRITTEN)
def test_an_annotation_is_written(play, annotation, name, wanted) -> None:
    chronicle = play.chronicle
    chronicle.until(f"there is a claim {name}", lambda: chronicle.states("persistentvolumeclaims", name), TIMEOUT)
    uids = {"UID": chronicle.states("persistentvolumeclaims", name)[-1]["metadata"]["uid"]}
    if states := chronicle.states("datavolumes", name):
        uids["UID-OF-THE-DATAVOLUME"] = states[-1]["metadata"]["uid"]
    for mark in sorted(uids, key=len, reverse=True):
        wanted = [pattern.replace(mark, uids[mark]) for pattern in wanted]

    def values() -> list[str]:
        found: list[str] = []
        for state in chronicle.states("persistentvolumeclaims", name):
            value = state["metadata"].get("annotations", {}).get(GROUP + annotation)
            if value is not None and found[-1:] != [value]:
                found.append(value)
        return found

    try:
        chronicle.until("written", lambda: goes_through(values(), wanted), TIMEOUT)
    except AssertionError:
        assert values() == wanted


@pytest.mark.parametrize(("annotation", "name", "end"), [(key, *value) for key, value in OBEYED.items()])
def test_an_annotation_is_obeyed(play, annotation, name, end) -> None:
    chronicle = play.chronicle
    chronicle.wait_phase(name, end, patience=TIMEOUT)
    claim = chronicle.states("persistentvolumeclaims", name)[-1]["metadata"]
    pods = chronicle.names("pods") & {f"importer-{name}", f"importer-prime-{claim['uid']}"}
    match annotation:
        case "storage.bind.immediate.requested":
            assert pods == {f"importer-prime-{claim['uid']}"}
            assert "PendingPopulation" not in chronicle.phases(name)
        case "storage.usePopulator" | "storage.pod.retainAfterCompletion":
            assert pods == {f"importer-{name}"}
        case _:
            assert not pods, "nothing was imported into it"
            assert chronicle.phases(name)[-1] == end
    if annotation == "storage.usePopulator":
        assert claim["annotations"][GROUP + annotation] == "false"
    if annotation == "storage.pod.retainAfterCompletion":
        assert "importer-chosen" in chronicle.present("pods")


def test_a_claim_that_was_there_belongs_to_its_datavolume(play) -> None:
    for name in ("adopted", "prepopulated", "populated-for"):
        play.chronicle.wait_phase(name, "Succeeded", patience=TIMEOUT)
        [owner] = play.place.get("persistentvolumeclaim", name)["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("DataVolume", name, True)


@pytest.mark.parametrize("name", BY_HAND)
def test_annotations_written_by_hand_are_an_import(play, name) -> None:
    def filled(claim: Document) -> bool:
        return claim["metadata"].get("annotations", {}).get(f"{GROUP}storage.pod.phase") == "Succeeded"

    claim = play.chronicle.wait("persistentvolumeclaims", name, "filled", filled, TIMEOUT)
    for part in BY_HAND[name]:
        assert f"{GROUP}storage.import.{part}" in claim["metadata"]["annotations"]
    if name == "by-hand":
        asked = [request for request in play.tls.asked("/good.qcow2") if request.header("X-Plain") == "here"]
        assert asked
        assert {request.header("X-Secret") for request in asked} == {"s3cret"}
        login = "Basic " + b64encode(b"u:p").decode()
        assert {request.header("Authorization") for request in asked} == {login}


# --- Names and labels ---------------------------------------------------------------------------------------------


def test_pods_and_claims_have_the_names_that_programs_look_up(play) -> None:
    chronicle = play.chronicle
    for name in ("slow-csi", "slow-local", "scratch-csi"):
        chronicle.wait_phase(name, "Succeeded", patience=TIMEOUT)
    claims = {
        name: chronicle.states("persistentvolumeclaims", name)[0]["metadata"]["uid"]
        for name in ("slow-csi", "scratch-csi")
    }
    prime, other = f"prime-{claims['slow-csi']}", f"prime-{claims['scratch-csi']}"
    assert {prime, other, f"{other}-scratch"} <= chronicle.names("persistentvolumeclaims")
    assert {f"importer-{prime}", "importer-slow-local"} <= chronicle.names("pods")
    uid = play.place.get("datavolume", "slow-csi")["metadata"]["uid"]
    ref = play.place.get("persistentvolumeclaim", "slow-csi")["spec"]["dataSourceRef"]
    assert (ref["kind"], ref["name"]) == ("VolumeImportSource", f"volume-import-source-{uid}")
    told = chronicle.states("persistentvolumeclaims", prime)[-1]["metadata"]["annotations"]
    assert told[f"{GROUP}storage.populator.kind"] == "VolumeImportSource"
    assert told[f"{GROUP}storage.import.importPodName"] == f"importer-{prime}"
    assert told[f"{GROUP}storage.pod.phase"] in ("Running", "Succeeded")


@pytest.mark.parametrize(("label", "kind", "pattern", "value"), [(key, *rest) for key, rest in LABELS.items()])
def test_a_label_is_there(play, label, kind, pattern, value) -> None:
    play.chronicle.wait_phase("slow-csi", "Succeeded", patience=TIMEOUT)
    found = {
        state["metadata"].get("labels", {}).get(label)
        for state in play.chronicle.states(kind) if re.fullmatch(pattern, state["metadata"]["name"])
    }  # fmt: skip
    assert found == {value}


def test_pods_have_what_was_asked_for_them(play) -> None:
    play.chronicle.wait_phase("chosen", "Succeeded", patience=TIMEOUT)
    chosen = play.chronicle.states("pods", "importer-chosen")[-1]
    assert chosen["spec"]["priorityClassName"] == PRIORITY
    assert chosen["spec"]["serviceAccountName"] == "default"
    assert {name: chosen["metadata"]["annotations"].get(name) for name in NETWORKS} == NETWORKS
    usual = play.chronicle.states("pods", "importer-slow-local")[-1]["metadata"]["annotations"]
    assert (usual["sidecar.istio.io/inject"], usual["linkerd.io/inject"]) == ("false", "disabled")
    uid = play.chronicle.states("persistentvolumeclaims", "chosen")[-1]["metadata"]["uid"]
    assert chosen["metadata"]["annotations"][f"{GROUP}ownerUID"] == uid


def test_a_worker_says_how_it_ended_in_the_usual_fields(play) -> None:
    """The fields of the worker's termination message."""
    play.chronicle.wait_phase("chosen", "Succeeded", patience=TIMEOUT)
    pod = play.place.get("pod", "importer-chosen")
    [container] = pod["status"]["containerStatuses"]
    words = json.loads(container["state"]["terminated"]["message"])
    assert container["name"] == "importer"
    assert words["message"] == "Import Complete"
    assert (words["preallocationApplied"], words["scratchSpaceRequired"]) == (False, False)
