"""Valid manifests of every kind, for tests to modify."""

import copy
from typing import Any

GROUP = "cdi.kubevirt.io/v1beta1"
HTTP = {"http": {"url": "http://host/disk.qcow2"}}
STORAGE = {"resources": {"requests": {"storage": "10Gi"}}}
SHA256 = "sha256:" + "0" * 64


def obj(kind: str, spec: Any, name: str = "thing", api_version: str = GROUP, namespace: str | None = "default") -> dict:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


def dv(source: dict | None = HTTP, **spec: Any) -> dict:
    """Return a DataVolume in the storage form; fields given as None are left out."""
    body = {"source": source, "storage": STORAGE} | spec
    return obj("DataVolume", copy.deepcopy({key: value for key, value in body.items() if value is not None}))


def pvc_form(**claim: Any) -> dict:
    """Return a DataVolume in the pvc form."""
    body = {"accessModes": ["ReadWriteOnce"], **copy.deepcopy(STORAGE)} | claim
    return dv(storage=None, pvc={key: value for key, value in body.items() if value is not None})


SOURCES = {
    "http": {"url": "https://user:secret@host:8443/a b/disk.img?sig=1#x", "checksum": SHA256, "extraHeaders": ["A: b"]},
    "s3": {"url": "s3://bucket/key"},
    "gcs": {"url": "gs://bucket/dir/object"},
    "registry": {"url": "docker://host:5000/repo/disk:tag"},
    "pvc": {"namespace": "golden", "name": "fedora.40"},
    "snapshot": {"namespace": "golden", "name": "fedora"},
    "upload": {},
    "blank": {},
    "imageio": {"url": "https://engine/api", "diskId": "1", "secretRef": "s", "certConfigMap": "c"},
    "vddk": {"url": "https://vc", "uuid": "1", "backingFile": "[x] y.vmdk", "thumbprint": "AA", "secretRef": "s"},
}

SOUND = {
    **{f"DataVolume from {kind}": dv({kind: source}) for kind, source in SOURCES.items()},
    "DataVolume in the pvc form": pvc_form(),
    "DataVolume from a DataSource": dv(None, sourceRef={"kind": "DataSource", "name": "fedora"}, storage={}),
    "DataSource": obj("DataSource", {"source": {"pvc": {"namespace": "golden", "name": "fedora"}}}),
    "DataSource without a source": obj("DataSource", {"source": {}}),
    "DataImportCron": obj(
        "DataImportCron",
        {
            "template": {"spec": dv({"registry": SOURCES["registry"]})["spec"]},
            "schedule": "16 12/12 * * *",
            "managedDataSource": "fedora",
            "garbageCollect": "Outdated",
            "retentionPolicy": "None",
            "importsToKeep": 0,
        },
    ),
    "StorageProfile": obj(
        "StorageProfile",
        {
            "claimPropertySets": [{"accessModes": ["ReadWriteMany"], "volumeMode": "Block"}],
            "cloneStrategy": "csi-clone",
            "dataImportCronSourceFormat": "snapshot",
        },
        namespace=None,
    ),
    "VolumeImportSource": obj("VolumeImportSource", {"source": {"http": {"url": "http://host/x"}}}),
    "VolumeUploadSource": obj("VolumeUploadSource", {"contentType": "archive"}),
    "VolumeCloneSource": obj("VolumeCloneSource", {"source": {"kind": "PersistentVolumeClaim", "name": "x"}}),
    "ObjectTransfer": obj(
        "ObjectTransfer",
        {"source": {"kind": "DataVolume", "namespace": "a", "name": "b"}, "target": {"namespace": "c"}},
        namespace=None,
    ),
    "UploadTokenRequest": obj("UploadTokenRequest", {"pvcName": "x"}, api_version="upload.cdi.kubevirt.io/v1beta1"),
    "CDIConfig": obj(
        "CDIConfig",
        {
            "filesystemOverhead": {"global": "0.055", "storageClass": {"fast": "0"}},
            "podResourceRequirements": {"limits": {"cpu": "750m"}, "requests": {"cpu": "100m", "memory": "60M"}},
            "importProxy": {"HTTPProxy": "http://u:p@proxy:3128", "noProxy": "a,b", "trustedCAProxy": "ca"},
            "featureGates": ["HonorWaitForFirstConsumer"],
            "insecureRegistries": ["registry:5000"],
            "tlsSecurityProfile": {"type": "Custom", "custom": {"ciphers": ["x"], "minTLSVersion": "VersionTLS12"}},
            "dataVolumeTTLSeconds": -1,
            "logVerbosity": 3,
        },
        name="config",
        namespace=None,
    ),
    "CDI": obj(
        "CDI",
        {
            "imagePullPolicy": "IfNotPresent",
            "uninstallStrategy": "BlockUninstallIfWorkloadsExist",
            "cloneStrategyOverride": "snapshot",
            "certConfig": {"ca": {"duration": "48h0m0s", "renewBefore": "24h0m0s"}},
            "infra": {"nodeSelector": {"a": "b"}, "apiServerReplicas": 2, "tolerations": [{"operator": "Exists"}]},
            "workload": {
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
                        }
                    }
                }
            },
            "customizeComponents": {
                "patches": [{"resourceName": "a", "resourceType": "Deployment", "patch": "{}", "type": "merge"}]
            },
            "config": {"filesystemOverhead": {"global": "0.1"}},
        },
        namespace=None,
    ),
    "PersistentVolumeClaim": obj(
        "PersistentVolumeClaim", {"accessModes": ["ReadWriteOnce"], **STORAGE}, api_version="v1"
    ),
    "Secret": {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"accessKeyId": "dXNlcg=="},
               "stringData": {"secretKey": "pass word"}, "type": "Opaque"},
    "ConfigMap": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"ca.pem": "x"}},
}  # fmt: skip


def sound(which: str) -> dict:
    return copy.deepcopy(SOUND[which])


def spoilt(which: str, **changes: Any) -> dict:
    """Return a valid manifest with fields of its spec set.

    A double underscore in a name separates levels; None removes the field.
    """
    document = sound(which)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = document["spec"]
        for name in parents:
            place = place.setdefault(name, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return document
