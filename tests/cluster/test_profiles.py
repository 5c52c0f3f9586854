"""Storage profiles and configuration on a real API server, which stores exactly what the reconcilers write."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdi.api.installation import CDI
from cdi.api.validation import parse
from cdi.reconcile.actions import CreateObject, DeleteObject, PatchObject
from cdi.reconcile.cdi.config import ConfigFacts, problems, reconcile_config, resolve_config
from cdi.reconcile.cdi.installation import Installed, reconcile_installation
from cdi.reconcile.storage.capabilities import ObservedVolume
from cdi.reconcile.storage.claim_defaults import default_claim, storage_defaults
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.storage.profiles import ProfileFacts, SnapshotClass, reconcile_orphan, reconcile_storage_profile
from tests.cluster.cdi import controller
from tests.cluster.kubectl import Document, Kubectl, KubectlError

ROOT = Path(__file__).parents[2]
UNKNOWN = "unknown.cdi.test"


@pytest.fixture(scope="module", autouse=True)
def definitions(cluster):
    """Install the definitions of this checkout."""
    cluster.kubectl.run("apply", "--server-side", "--force-conflicts", f"--filename={ROOT / 'crds'}")
    cluster.kubectl.run("wait", "--for=condition=Established", "--timeout=150s", f"--filename={ROOT / 'crds'}")


@pytest.fixture()
def kubectl(cluster) -> Kubectl:
    return cluster.kubectl


@pytest.fixture()
def name(kubectl: Kubectl) -> Iterator[str]:
    """Yield the name of a StorageClass for this test; the class, its profile and volumes are deleted at the end."""
    made = f"f-{secrets.token_hex(4)}"
    yield made
    kubectl.delete("storageclass", made)
    kubectl.delete("persistentvolume", made, wait=False)
    kubectl.delete("storageprofile", made)


def storage_class(name: str, provisioner: str, **parameters: str) -> Document:
    return {
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": provisioner, "parameters": parameters,
    }  # fmt: skip


def found(kubectl: Kubectl, kind: str, name: str) -> Document | None:
    try:
        return kubectl.get(kind, name)
    except KubectlError:
        return None


def facts(kubectl: Kubectl, name: str) -> ProfileFacts:
    volumes = [body for body in kubectl.get_all("persistentvolumes") if body["spec"].get("storageClassName") == name]
    return ProfileFacts(
        volumes=tuple(
            ObservedVolume(
                access_modes=tuple(body["spec"]["accessModes"]), volume_mode=body["spec"]["volumeMode"],
                phase=body["status"]["phase"],
            )
            for body in volumes
        ),
        snapshot_classes=tuple(SnapshotClass.read(body) for body in kubectl.get_all("volumesnapshotclasses")),
    )  # fmt: skip


def settle(kubectl: Kubectl, name: str) -> Document:
    """Reconcile and execute until there is nothing to do; return the profile."""
    for _ in range(5):
        known = StorageClass.read(kubectl.get("storageclass", name))
        body = found(kubectl, "storageprofile", name)
        plan = reconcile_storage_profile(
            known, None if body is None else parse(body), facts(kubectl, name), time.time()
        )
        if not plan.actions and plan.status is None:
            assert body is not None
            return body
        for action in plan.actions:
            match action:
                case CreateObject():
                    kubectl.create(dict(action.body))
                case PatchObject():
                    metadata = {"annotations": dict(action.annotations), "labels": dict(action.labels)}
                    kubectl.merge("storageprofile", name, {"metadata": metadata})
                case _:
                    raise AssertionError(action)
        if plan.status is not None:
            patch = json.dumps({"status": plan.status})
            kubectl.run("patch", "storageprofile", name, "--subresource=status", "--type=merge", f"--patch={patch}")
    raise AssertionError(f"there is always something to be done: {plan}")


def recognized(profile: Document) -> tuple[str, str, str]:
    (condition,) = profile["status"]["conditions"]
    return condition["status"], condition["reason"], condition["message"]


def test_a_known_provisioner_and_its_least_size(kubectl: Kubectl, name: str):
    kubectl.create(storage_class(name, "ebs.csi.aws.com", type="io2"))
    profile = settle(kubectl, name)
    assert recognized(profile)[:2] == ("True", "RecognizedProvisioner")
    assert profile["metadata"]["annotations"] == {"cdi.kubevirt.io/minimumSupportedPvcSize": "4Gi"}
    assert profile["status"]["claimPropertySets"] == [
        {"accessModes": ["ReadWriteMany"], "volumeMode": "Block"},
        {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block"},
        {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"},
    ]


def test_the_command_of_an_unknown_provisioner_works_as_it_is_told(kubectl: Kubectl, name: str):
    kubectl.create(storage_class(name, UNKNOWN))
    status, reason, message = recognized(settle(kubectl, name))
    assert (status, reason) == ("False", "UnrecognizedProvisioner")
    program, *arguments = shlex.split(message[message.index("kubectl ") :])
    assert program == "kubectl"
    kubectl.run(*arguments)
    profile = settle(kubectl, name)
    assert profile["status"]["claimPropertySets"] == [{"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}]


def use(namespace: Kubectl, storage_class: str, volume: str, access_mode: str, volume_mode: str) -> None:
    """Create a volume of the class and a claim that is bound to it."""
    namespace.create(
        {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume},
            "spec": {
                "accessModes": [access_mode], "volumeMode": volume_mode, "capacity": {"storage": "1Gi"},
                "storageClassName": storage_class, "persistentVolumeReclaimPolicy": "Retain",
                "csi": {"driver": UNKNOWN, "volumeHandle": volume},
            },
        },
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": volume},
            "spec": {
                "accessModes": [access_mode], "volumeMode": volume_mode, "storageClassName": storage_class,
                "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}},
            },
        },
    )  # fmt: skip
    namespace.wait("persistentvolume", volume, "bound", lambda body: body.get("status", {}).get("phase") == "Bound")


def test_an_unknown_provisioner_is_learned_from_a_volume_that_is_bound(kubectl: Kubectl, namespace: Kubectl, name: str):
    kubectl.create(storage_class(name, UNKNOWN))
    assert "claimPropertySets" not in settle(kubectl, name)["status"]
    use(namespace, name, name, "ReadWriteMany", "Block")
    profile = settle(kubectl, name)
    assert profile["status"]["claimPropertySets"] == [{"accessModes": ["ReadWriteMany"], "volumeMode": "Block"}]
    assert "ReadWriteMany Block" in recognized(profile)[2]


def test_what_is_learned_later_does_not_change_what_a_disk_becomes(kubectl: Kubectl, namespace: Kubectl, name: str):
    kubectl.create(storage_class(name, UNKNOWN))
    settle(kubectl, name)
    file = {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}
    device = {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block"}
    use(namespace, name, name, "ReadWriteOnce", "Filesystem")
    assert settle(kubectl, name)["status"]["claimPropertySets"] == [file]
    other = f"{name}-2"
    try:
        use(namespace, name, other, "ReadWriteOnce", "Block")
        assert settle(kubectl, name)["status"]["claimPropertySets"] == [file, device]
        kubectl.delete("persistentvolume", name, wait=False)
        namespace.delete("persistentvolumeclaim", name)
        kubectl.run("wait", "--for=delete", f"persistentvolume/{name}", "--timeout=150s")
        profile = settle(kubectl, name)
    finally:
        kubectl.delete("persistentvolume", other, wait=False)
    assert profile["status"]["claimPropertySets"] == [file, device]
    learned = "{.metadata.annotations['cdi\\.kubevirt\\.io/learnedClaimPropertySets']}"
    shown = kubectl.run("get", "storageprofile", name, f"--output=jsonpath={learned}")
    assert shown == "ReadWriteOnce Filesystem, ReadWriteOnce Block"


def test_a_class_with_snapshots_is_cloned_by_them(kubectl: Kubectl, cluster):
    if "csi" not in {body["metadata"]["name"] for body in kubectl.get_all("storageclasses")}:
        pytest.skip("another cluster, with other classes")
    known = StorageClass.read(kubectl.get("storageclass", "csi"))
    plan = reconcile_storage_profile(known, parse({
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "StorageProfile", "metadata": {"name": "csi"}, "spec": {},
    }), facts(kubectl, "csi"), time.time())  # fmt: skip
    assert plan.status is not None
    assert plan.status["cloneStrategy"] == "snapshot"
    assert plan.status["snapshotClass"]


def test_a_profile_goes_after_its_class(kubectl: Kubectl, name: str):
    kubectl.create(storage_class(name, "topolvm.io"))
    profile = settle(kubectl, name)
    kubectl.delete("storageclass", name)
    (action,) = reconcile_orphan(parse(profile)).actions
    assert action == DeleteObject(plural="storageprofiles", namespace="", name=name, uid=profile["metadata"]["uid"])


def test_a_claim_is_completed_as_kubernetes_takes_it(kubectl: Kubectl, namespace: Kubectl, name: str):
    kubectl.create(storage_class(name, "ebs.csi.aws.com", type="io2"))
    profile = settle(kubectl, name)
    given = storage_defaults(
        name, StorageClass.read(kubectl.get("storageclass", name)), parse(profile), resolve_config(None, None)
    )
    spec = default_claim(
        {"volumeMode": "FromStorageProfile", "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": name},
        given,
    )
    (claim,) = namespace.create(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": spec}
    )
    assert claim["spec"]["volumeMode"] == "Block"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "4Gi"


# --- Configuration (cluster-scoped names, so nothing is stored) -----------------------------------------------------


def stored(kubectl: Kubectl, document: Document) -> Document:
    """Return the object as the API server would store it: validated and without unknown fields."""
    answer = kubectl.run("create", "--dry-run=server", "--output=json", "--filename=-", given=json.dumps(document))
    body: Document = json.loads(answer)
    return body


SPEC = {
    "importProxy": {"HTTPProxy": "http://p:1", "noProxy": "x"},
    "filesystemOverhead": {"global": "0.1", "storageClass": {"csi": "0.2"}},
    "podResourceRequirements": {"limits": {"cpu": 2}, "requests": {"memory": "1G"}},
    "featureGates": ["HonorWaitForFirstConsumer", "Wings"],
    "imagePullSecrets": [{"name": "x"}],
    "insecureRegistries": ["r:5000"],
    "logVerbosity": 3,
    "preallocation": True,
    "scratchSpaceStorageClass": "gone",
    "tlsSecurityProfile": {"type": "Modern", "modern": {}},
    "uploadProxyURLOverride": "https://up",
    "webhookPvcRendering": "Disabled",
}


def installation(name: str) -> Document:
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDI", "metadata": {"name": name}, "spec": {"config": SPEC},
    }  # fmt: skip


def test_the_api_server_keeps_the_configuration_as_it_is_written(kubectl: Kubectl):
    classes = tuple(StorageClass.read(body) for body in kubectl.get_all("storageclasses"))
    cdi = parse(stored(kubectl, installation("f-config")))
    assert isinstance(cdi, CDI)
    seen = ConfigFacts(storage_classes=classes)
    made = reconcile_config(cdi, None, seen).create
    assert made is not None
    made = {**made, "metadata": {**made["metadata"], "name": "f-config"}}
    kept = parse(stored(kubectl, made))
    again = reconcile_config(cdi, kept, seen)
    assert (again.create, again.update) == (None, None)
    assert kept.status.filesystem_overhead.global_ == "0.1"
    told = {problem.field for problem in problems(cdi, kept, classes)}
    assert {"spec.config.scratchSpaceStorageClass", "spec.config.featureGates"} <= told


def test_the_api_server_keeps_the_installation_s_status(kubectl: Kubectl):
    cdi = parse(stored(kubectl, installation("f-status")))
    assert isinstance(cdi, CDI)
    installed = Installed(version="1.2")
    plan = reconcile_installation(cdi, active=True, installed=installed, found=problems(cdi, None), now=time.time())
    assert plan.status is not None
    kept = parse(stored(kubectl, {**installation("f-status"), "status": dict(plan.status)}))
    assert isinstance(kept, CDI)
    again = reconcile_installation(kept, active=True, installed=installed, found=problems(kept, None), now=time.time())
    assert again.status is None


# --- The controller itself ------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_the_controller_keeps_a_profile_for_every_class(cluster, kubectl: Kubectl, namespace: Kubectl, name: str):
    with controller(cluster, namespace, everywhere=True) as running:
        kubectl.create(storage_class(name, UNKNOWN))

        def known(body: Document) -> bool:
            return bool(body.get("status", {}).get("conditions"))

        profile = kubectl.wait("storageprofile", name, "known", known)
        message = recognized(profile)[2]
        kubectl.run(*shlex.split(message[message.index("kubectl ") :])[1:])
        kubectl.wait("storageprofile", name, "complete", lambda body: "claimPropertySets" in body["status"])
        classes = {body["metadata"]["name"] for body in kubectl.get_all("storageclasses")}
        profiles = {body["metadata"]["name"] for body in kubectl.get_all("storageprofiles")}
        assert classes <= profiles
        status, text = running.get("/metrics")
        assert status == 200
        assert (
            f'kubevirt_cdi_storageprofile_info{{complete="true",default="false",degraded="true",provisioner="{UNKNOWN}"'
            in text
        )
        assert (
            kubectl.get("cdiconfig", "config")["status"]["defaultPodResourceRequirements"]["limits"]["memory"] == "600M"
        )
        # A profile with a spec of the user outlives the class; without one it is deleted with the class.
        kubectl.delete("storageclass", name)
        kubectl.merge("storageprofile", name, {"spec": {"claimPropertySets": None}})
        kubectl.wait_gone("storageprofile", name)
