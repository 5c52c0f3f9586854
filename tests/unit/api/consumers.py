"""Objects as the clients around KubeVirt write them, including Go's empty fields."""

from typing import Any

from tests.unit.api.manifests import GROUP

ANN = "cdi.kubevirt.io"


def _obj(
    kind: str, name: str, spec: Any, *, annotations: dict | None = None, labels: dict | None = None, **more: Any
) -> dict:
    # Go serializes an unset time as null and an unset status as {}.
    metadata: dict = {"name": name, "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": GROUP, "kind": kind, "metadata": metadata | more, "spec": spec, "status": {}}


def _size(text: str) -> dict:
    return {"resources": {"requests": {"storage": text}}}


CONSUMERS = {
    "virtctl image-upload dv": _obj(
        "DataVolume",
        "upload",
        {"source": {"upload": {}}, "storage": {**_size("1Gi"), "accessModes": ["ReadWriteMany"], "volumeMode": "Block"}},
        annotations={f"{ANN}/storage.bind.immediate.requested": ""},
        labels={"instancetype.kubevirt.io/default-instancetype": "u1.medium"},
    ),
    "virtctl image-upload of an archive": _obj(
        "DataVolume", "archive", {"source": {"upload": {}}, "storage": _size("1Gi"), "contentType": "archive"}
    ),
    "virt-controller from a dataVolumeTemplate": _obj(
        "DataVolume",
        "vm-root",
        {"source": {"http": {"url": "https://images.example.org/disk.qcow2"}},
         "storage": {"storageClassName": "fast", **_size("30Gi")}},
        annotations={f"{ANN}/allowClaimAdoption": "true"},
        labels={"kubevirt.io/created-by": "c4e5"},
        ownerReferences=[{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "vm", "uid": "c4e5",
                          "controller": True, "blockOwnerDeletion": True}],
    ),
    "virt-controller from a DataSource, in its own form": _obj(
        "DataVolume",
        "vm-clone",
        {"source": {"pvc": {"namespace": "golden", "name": "fedora"}}, "storage": {"resources": {}}},
        annotations={f"{ANN}/storage.deleteAfterCompletion": "false"},
    ),
    "Forklift, cold, from vSphere": _obj(
        "DataVolume",
        "mtv-disk",
        {
            "source": {"vddk": {"url": "https://vcenter.example.org/sdk", "uuid": "4215", "thumbprint": "AA:BB",
                                "backingFile": "[store] vm/vm-000001.vmdk", "secretRef": "plan-vm-1", "initImageURL":
                                "registry.example.org/vddk:8", "extraArgs": "vddk-conf"}},
            "storage": {**_size("16Gi"), "storageClassName": "ceph"},
        },
        annotations={f"{ANN}/storage.bind.immediate.requested": "true", f"{ANN}/storage.usePopulator": "false",
                     "forklift.konveyor.io/disk-source": "[store] vm/vm.vmdk"},
    ),
    "Forklift, warm": _obj(
        "DataVolume",
        "mtv-warm",
        {
            "source": {"vddk": {"url": "https://vcenter.example.org/sdk", "uuid": "4215", "thumbprint": "AA:BB",
                                "backingFile": "[store] vm/vm.vmdk", "secretRef": "plan-vm-1"}},
            "pvc": {"accessModes": ["ReadWriteOnce"], **_size("16Gi"), "volumeMode": "Block", "storageClassName": "ceph"},
            "checkpoints": [{"previous": "", "current": "snapshot-1"}],
            "finalCheckpoint": False,
        },
    ),
    "Forklift, from oVirt": _obj(
        "DataVolume",
        "mtv-ovirt",
        {"source": {"imageio": {"url": "https://engine.example.org/ovirt-engine/api", "diskId": "d1", "secretRef": "s",
                                "certConfigMap": "c"}}, "storage": _size("16Gi")},
    ),
    "Forklift, over HTTP with a secret header": _obj(
        "DataVolume",
        "mtv-http",
        {"source": {"http": {"url": "https://host.example.org/export/disk", "secretExtraHeaders": ["token"],
                             "certConfigMap": "ca"}}, "storage": _size("16Gi")},
    ),
    "OpenShift console, a boot source": _obj(
        "DataVolume",
        "rhel9-violet",
        {"sourceRef": {"kind": "DataSource", "name": "rhel9", "namespace": "openshift-virtualization-os-images"},
         "storage": _size("30Gi")},
    ),
    "OpenShift console, a blank disk": _obj(
        "DataVolume", "blank", {"preallocation": False, "source": {"blank": {}}, "storage": _size("30Gi")},
    ),
    "Harvester, an image": _obj(
        "DataVolume",
        "image-x7b",
        {"source": {"http": {"url": "http://mirror.example.org/opensuse.qcow2", "checksum": ""}},
         "pvc": {"accessModes": ["ReadWriteMany"], "volumeMode": "Block", "storageClassName": "longhorn-image",
                 **_size("10Gi"), "dataSource": None, "dataSourceRef": None}},
    ),
    "Harvester, an upload": _obj(
        "DataVolume",
        "upload-x7b",
        {"source": {"upload": {}}, "pvc": {"accessModes": ["ReadWriteOnce"], **_size("10485760")}},
    ),
    "kcli": _obj(
        "DataVolume",
        "vm1-vm1-disk0",
        {"pvc": {"volumeMode": "Filesystem", "accessModes": ["ReadWriteOnce"], **_size("11Gi")},
         "source": {"registry": {"url": "docker://registry.example.org/containerdisks/fedora:40"}}},
        labels={"kcli/disk": "vm1"},
    ),
    "Ansible": _obj(
        "DataVolume",
        "testdv",
        {"source": {"s3": {"url": "https://s3.example.org/bucket/disk.img", "secretRef": "key"}},
         "storage": {"accessModes": ["ReadWriteOnce"], **_size("5Gi")}},
    ),
    "a node's pull of an image stream": _obj(
        "DataVolume",
        "stream",
        {"source": {"registry": {"imageStream": "rhel9-guest", "pullMethod": "node"}}, "storage": _size("30Gi")},
    ),
    "a golden image of HCO": _obj(
        "DataImportCron",
        "centos-stream9-image-cron",
        {
            "garbageCollect": "Outdated",
            "importsToKeep": 3,
            "managedDataSource": "centos-stream9",
            "schedule": "8 2/12 * * *",
            "template": {
                "metadata": {"creationTimestamp": None, "annotations": {f"{ANN}/storage.usePopulator": "true"}},
                "spec": {
                    "source": {"registry": {"url": "docker://registry.example.org/containerdisks/centos-stream:9",
                                            "platform": {"architecture": "amd64"}}},
                    "storage": _size("30Gi"),
                },
                "status": {},
            },
        },
        annotations={f"{ANN}/storage.bind.immediate.requested": "true"},
        labels={"instancetype.kubevirt.io/default-preference": "centos.stream9"},
    ),
    "the DataSource of a DataImportCron": _obj(
        "DataSource", "centos-stream9", {"source": {"snapshot": {"namespace": "images", "name": "centos-stream9-8f1"}}}
    ),
    "a populator of a claim made by hand": _obj(
        "VolumeImportSource", "my-source", {"source": {"http": {"url": "http://mirror.example.org/disk.img"}}, "preallocation": True}
    ),
    "an upload source": _obj("VolumeUploadSource", "my-upload", {"contentType": "kubevirt"}),
    "a clone source": {
        "apiVersion": GROUP,
        "kind": "VolumeCloneSource",
        "metadata": {"name": "my-clone", "creationTimestamp": None},
        "spec": {"source": {"kind": "PersistentVolumeClaim", "name": "golden"}, "preallocation": False},
    },
}  # fmt: skip
"""Objects by the client that writes them."""
