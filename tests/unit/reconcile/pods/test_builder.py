from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cdi.api.errors import InvalidManifest
from cdi.api.job import Job
from cdi.local.launcher import write_mounts
from cdi.reconcile.actions import Mount, ObjectRef, StartWorker
from cdi.reconcile.settings import WorkerPodConfig
from tests.unit.reconcile.cluster_simulation import CONFIG, NS, PODS, Cluster, dv

HTTP = {"http": {"url": "http://server/x"}}


def pod_of(body=None, *, config=CONFIG, inputs=(), steps=40):
    cluster = Cluster(body or dv("local"), config=config)
    for kind, name, keys, namespace in inputs:
        cluster.add_input(kind, name, *keys, namespace=namespace)
    for _ in range(steps):
        cluster.step()
        if cluster.names(PODS):
            return next(action.pod for action in cluster.log if isinstance(action, StartWorker)), cluster
        cluster.nature()
    raise AssertionError(cluster.status)


def test_it_keeps_to_the_restricted_standard():
    spec = pod_of()[0]["spec"]
    container = spec["containers"][0]
    assert spec["restartPolicy"] == "OnFailure"
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert [spec["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")] == [107] * 3
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} == {
        "persistentVolumeClaim", "downwardAPI", "emptyDir",
    }  # fmt: skip
    assert "serviceAccountName" not in spec


def test_it_is_known_by_its_names():
    pod, cluster = pod_of()
    metadata = pod["metadata"]
    assert metadata["name"] == "importer-a"
    assert metadata["labels"]["app"] == "containerized-data-importer"
    assert metadata["labels"]["cdi.kubevirt.io"] == "importer"
    assert metadata["labels"]["prometheus.cdi.kubevirt.io"] == "true"
    owner = metadata["ownerReferences"][0]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("PersistentVolumeClaim", "a", True)
    container = pod["spec"]["containers"][0]
    assert container["name"] == "importer"
    assert container["command"] == ["cdi-worker"]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert container["ports"] == [{"name": "metrics", "containerPort": 8443, "protocol": "TCP"}]
    uid = cluster.claim(NS, "a").uid
    assert {"name": "OWNER_UID", "value": uid} in container["env"]


def test_the_job_crosses_as_an_annotation_that_is_shown_as_a_file():
    pod, cluster = pod_of()
    annotations = pod["metadata"]["annotations"]
    assert Job.from_json(annotations["cdi.kubevirt.io/job"]).id == cluster.claim(NS, "a").uid
    shown = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "pod")["downwardAPI"]["items"]
    assert {one["path"]: one["fieldRef"]["fieldPath"] for one in shown} == {
        "job": "metadata.annotations['cdi.kubevirt.io/job']",
        "limits": "metadata.annotations['cdi.kubevirt.io/limits']",
        "journal": "metadata.annotations['cdi.kubevirt.io/journal']",
    }


def test_resources_are_the_usual_ones_or_what_the_configuration_says():
    usual = pod_of()[0]["spec"]["containers"][0]["resources"]
    assert usual == {
        "limits": {"cpu": "750m", "memory": "600M"},
        "requests": {"cpu": "100m", "memory": "60M"},
    }
    config = replace(CONFIG, pods=replace(CONFIG.pods, resources={"limits": {"memory": "1Gi"}}))
    resources = pod_of(config=config)[0]["spec"]["containers"][0]["resources"]
    assert resources["limits"] == {"cpu": "750m", "memory": "1Gi"}


def test_placement_secrets_and_images_come_from_the_configuration():
    placement = {
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "storage", "operator": "Exists"}],
        "affinity": {"podAffinity": {}},
    }
    pods = WorkerPodConfig(
        image="r/cdi:2", pull_policy="Always", pull_secrets=("pull",), placement=placement, verbosity=3
    )
    spec = pod_of(config=replace(CONFIG, pods=pods))[0]["spec"]
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert spec["tolerations"] == placement["tolerations"]
    assert spec["affinity"] == {"podAffinity": {}}
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert (spec["containers"][0]["image"], spec["containers"][0]["imagePullPolicy"]) == ("r/cdi:2", "Always")


def test_whose_it_is_comes_from_the_data_volume():
    spec = pod_of(dv("local", priorityClassName="gold", serviceAccountName="puller"))[0]["spec"]
    assert (spec["priorityClassName"], spec["serviceAccountName"]) == ("gold", "puller")
    assert spec["automountServiceAccountToken"] is False


def test_networks_and_meshes():
    annotations = pod_of()[0]["metadata"]["annotations"]
    assert annotations["sidecar.istio.io/inject"] == "false"
    assert annotations["linkerd.io/inject"] == "disabled"
    given = {
        "k8s.v1.cni.cncf.io/networks": "storage",
        "v1.multus-cni.io/default-network": "storage/net",
        "sidecar.istio.io/inject": "true",
    }
    annotations = pod_of(dv("local", annotations=given))[0]["metadata"]["annotations"]
    assert {name: annotations[name] for name in given} == given


def test_a_block_volume_is_a_device():
    pod = pod_of(dv("csi", mode="Block"))[0]
    container = pod["spec"]["containers"][0]
    assert container["volumeDevices"] == [{"name": "data", "devicePath": "/dev/cdi-block-volume"}]
    assert "/data" not in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_a_job_that_is_too_large_is_refused():
    source = {"http": {"url": "http://server/x", "extraHeaders": ["X-A: " + "a" * 250_000]}}
    cluster = Cluster(dv("local", source=source)).run()
    assert cluster.status["phase"] == "Failed"
    assert cluster.detail["reason"] == InvalidManifest.__name__
    assert "200Ki" in cluster.detail["message"]


# --- inputs -------------------------------------------------------------------------------------------------------


def _projected(pod, contents):
    """Return the files of each mount, as a kubelet projects them."""
    files = {}
    places = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    for volume in pod["spec"]["volumes"]:
        for source in volume.get("projected", {}).get("sources", ()):
            kind, content = ("Secret", source["secret"]) if "secret" in source else ("ConfigMap", source["configMap"])
            keys = contents[kind, content["name"]]
            paths = {one["key"]: one["path"] for one in content.get("items", ())} or {key: key for key in keys}
            files |= {f"{places[volume['name']]}/{path}": keys[key] for key, path in paths.items()}
    return files


@pytest.mark.parametrize("several", [False, True])
def test_inputs_have_the_same_files_as_on_one_machine(several, tmp_path):
    config = CONFIG
    source = {"http": {"url": "https://server/x", "secretRef": "login", "certConfigMap": "ca"}}
    inputs = [("Secret", "login", ("accessKeyId", "secretKey"), NS), ("ConfigMap", "ca", ("ca.pem",), NS)]
    contents = {
        ("Secret", "login"): {"accessKeyId": b"u", "secretKey": b"p"},
        ("ConfigMap", "ca"): {"ca.pem": b"c"},
        ("ConfigMap", "proxy"): {"ca.pem": b"d"},
    }
    if several:
        config = replace(CONFIG, trusted_ca=ObjectRef(kind="ConfigMap", namespace=NS, name="proxy"))
        inputs.append(("ConfigMap", "proxy", ("ca.pem",), NS))
    pod, cluster = pod_of(dv("local", source=source), config=config, inputs=inputs)
    start = next(action for action in cluster.log if isinstance(action, StartWorker))
    here = [Mount(directory=f"{tmp_path}{mount.directory}", inputs=mount.inputs) for mount in start.mounts]
    write_mounts(here, lambda ref: contents[ref.kind, ref.name])
    written = {
        str(path).removeprefix(str(tmp_path)): path.read_bytes() for path in Path(tmp_path).rglob("*") if path.is_file()
    }
    assert _projected(pod, contents) == written
    assert len(written) == (4 if several else 3)


def test_certificates_of_another_namespace_are_copied_first():
    ca = ObjectRef(kind="ConfigMap", namespace="cdi", name="proxy-ca")
    pod, cluster = pod_of(
        dv("local", source={"http": {"url": "https://server/x"}}),
        config=replace(CONFIG, trusted_ca=ca),
        inputs=[("ConfigMap", "proxy-ca", ("ca.pem",), "cdi")],
    )
    assert "proxy-ca-for-a" in cluster.names("configmaps")
    source = next(volume for volume in pod["spec"]["volumes"] if "projected" in volume)["projected"]["sources"][0]
    assert source == {"configMap": {"name": "proxy-ca-for-a"}}
    assert json.loads(pod["metadata"]["annotations"]["cdi.kubevirt.io/job"])["source"]["tls"]["ca_dir"] == (
        "/var/run/cdi/inputs/certificates"
    )
