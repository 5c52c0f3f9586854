"""Manifest of a worker pod.

The pod complies with the restricted Pod Security Standard, has no API credentials, and is owned by the PVC that it
fills. The `Job` is passed as an annotation, which a downwardAPI volume shows as a file; Secrets and ConfigMaps are
projected below `INPUTS`, under the names that `cdi.local.launcher.write_mounts` gives them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cdi.api import annotations as state
from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest
from cdi.api.job import Job, Limits, StreamSourceSpec
from cdi.api.names import (
    ANN_CREATED_BY_CONTROLLER,
    ANN_OWNER_UID,
    ANN_POD_RETAIN,
    ANN_PRIORITY_CLASS,
    ANN_SERVICE_ACCOUNT,
    COMMON_LABELS,
    COMPONENT_IMPORTER,
    LABEL_COMPONENT,
    LABEL_PROMETHEUS,
    MAX_NAME,
    POD_ANNOTATION_DEFAULTS,
    POD_ANNOTATIONS,
    importer_pod,
    joined,
    scratch_claim,
)
from cdi.api.quantity import human
from cdi.reconcile.actions import MirrorObject, Mount, ObjectRef, Work
from cdi.reconcile.cdi.configuration import DEFAULT_RESOURCES
from cdi.reconcile.context import InputLister, Lister
from cdi.reconcile.pods.types import VolumeLayout
from cdi.reconcile.settings import ResolvedConfig, WorkerPodConfig
from cdi.reconcile.types import PVC

ANN_JOB = state.JOB.key
ANN_LIMITS = state.LIMITS.key
ANN_JOURNAL = state.JOURNAL.key
"""Pod annotation with the journal of an earlier attempt."""
ANN_ATTEMPT = state.ATTEMPT.key
ANN_FINGERPRINT = state.FINGERPRINT.key
ANN_UPLOAD = state.UPLOAD.key
ANN_SPEC = state.SPEC_DIGEST.key
"""Pod annotation with the digest of the pod's template, to detect that the template has changed."""
ANN_STORED_JOURNAL = state.STORED_JOURNAL.key
"""Annotation of the filled PVC with the newest journal, if the volume cannot keep one itself."""

CONTAINER = "importer"
ARCHITECTURE = "kubernetes.io/arch"
"""Label of nodes."""
USER = 107
"""UID and GID of qemu, which virtual machines run as."""
PORT = 8443
GRACE_PERIOD = 30
"""Seconds that a worker has for writing its journal after SIGTERM."""
MAX_JOB = 200 * 1024
"""Maximum size in bytes; all annotations of an object together are limited to 256 KiB."""
_MAX_JOURNAL = 40 * 1024

DISK, DIRECTORY, DEVICE = "/data/disk.img", "/data", "/dev/cdi-block-volume"
SCRATCH = "/scratch"
STATE = "/var/run/cdi/state"
INPUTS = "/var/run/cdi/inputs"
ANNOTATIONS = "/var/run/cdi/pod"
TMP_MOUNT = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 - the pod's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The attempt that a pod is created for."""

    number: int
    """Number of the attempt, from 1."""
    work: Work
    mounts: tuple[Mount, ...]
    fingerprint: str
    limits: Limits
    upload: str = ""


def pod_layout(claim: PVC, *, scratch: bool) -> VolumeLayout:
    """Return the paths used by a worker in a pod."""
    block = claim.volume_mode == "Block"
    return VolumeLayout(
        disk=DEVICE if block else DISK,
        directory=DIRECTORY,
        journal=f"{STATE}/journal" if block else f"{DIRECTORY}/.cdi/journal",
        scratch=SCRATCH if scratch else None,
        inputs=INPUTS,
    )


def build_pod(
    dv: DataVolume,
    target: PVC,
    filled: PVC,
    attempt: Attempt,
    config: ResolvedConfig,
    objects: Lister,
    *,
    scratch: bool,
) -> dict[str, Any]:
    """Build the pod's manifest.

    Args:
        dv: The DataVolume.
        target: Its PVC.
        filled: The PVC to write into: the target or its prime PVC.
        attempt: The attempt to run.
        config: The resolved CDIConfig.
        objects: The observed objects.
        scratch: Whether to mount scratch space.

    Raises:
        InvalidManifest: The job is too large for an annotation.

    """
    job = attempt.work.to_json()
    if len(job.encode()) > MAX_JOB:
        raise InvalidManifest(
            f"the import's job document has {human(len(job.encode()))}, more than the {human(MAX_JOB)} that a "
            "worker accepts",
            remedy="shorten the extra headers or the URL",
        )
    spec = {
        **restricted_pod_spec(grace=GRACE_PERIOD),
        "restartPolicy": "OnFailure" if _restarts(attempt.work) else "Never",
        "containers": [_container(target, filled, attempt, config.pods, scratch=scratch)],
        "volumes": [
            *_volumes(filled, scratch=scratch),
            *input_volumes(attempt.mounts, objects, partial(mirrored_ref, filled=filled), mode=0o440),
        ],
        **_service_account(dv, target, config.pods),
        **_placement(filled.selected_node or target.selected_node, config.pods.placement),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": importer_pod(filled.name),
            "namespace": filled.namespace,
            "labels": {
                **config.labels,
                **COMMON_LABELS,
                LABEL_COMPONENT: COMPONENT_IMPORTER,
                LABEL_PROMETHEUS: "true",
            },
            "annotations": {**_annotations(dv, target, filled, attempt, job), ANN_SPEC: spec_digest(spec)},
            "ownerReferences": [claim_owner(filled)],
        },
        "spec": spec,
    }


def _restarts(work: Work) -> bool:
    """Return whether a restart of the container is the next attempt, as with KubeVirt's importer.

    The client of an upload or of a clone would be connected to the container that ended.
    """
    return isinstance(work, Job) and not isinstance(work.source, StreamSourceSpec)


def spec_digest(spec: Mapping[str, Any]) -> str:
    """Return the value of `ANN_SPEC` for a pod's spec."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]


def claim_owner(claim: PVC) -> dict[str, Any]:
    """Return an owner reference to a PVC, so that the object is garbage-collected with it."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "name": claim.name,
        "uid": claim.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def retains_after_completion(dv: DataVolume, target: PVC) -> bool:
    """Return whether worker pods are kept after completion, for debugging."""
    return "true" in (target.annotations.get(ANN_POD_RETAIN), (dv.metadata.annotations or {}).get(ANN_POD_RETAIN))


def mirrored_ref(ref: ObjectRef, filled: PVC) -> ObjectRef:
    """Return the reference to use in a pod of the PVC's namespace: `ref` itself, or its copy in that namespace."""
    if ref.namespace == filled.namespace:
        return ref
    return replace(ref, namespace=filled.namespace, name=joined(f"{ref.name}-for", filled.name, MAX_NAME))


def mirror_actions(mounts: Iterable[Mount], filled: PVC) -> tuple[MirrorObject, ...]:
    """Return the actions that copy inputs from other namespaces before the pod is created."""
    foreign = dict.fromkeys(ref for mount in mounts for ref in mount.inputs if ref.namespace != filled.namespace)
    owner = claim_owner(filled)
    return tuple(MirrorObject(source=ref, copy=mirrored_ref(ref, filled), owner=owner) for ref in foreign)


# --- parts of the manifest ----------------------------------------------------------------------------------------


def _annotations(dv: DataVolume, target: PVC, filled: PVC, attempt: Attempt, job: str) -> dict[str, str]:
    given = {**(dv.metadata.annotations or {}), **target.annotations}
    annotations = dict(POD_ANNOTATION_DEFAULTS)
    annotations |= {name: given[name] for name in POD_ANNOTATIONS if name in given}
    annotations |= {
        ANN_CREATED_BY_CONTROLLER: "yes",
        ANN_OWNER_UID: target.uid,
        ANN_JOB: job,
        ANN_LIMITS: attempt.limits.to_json(),
        ANN_ATTEMPT: str(attempt.number),
        ANN_FINGERPRINT: attempt.fingerprint,
        ANN_UPLOAD: attempt.upload,
    }
    journal = filled.annotations.get(ANN_STORED_JOURNAL, "")
    annotations[ANN_JOURNAL] = journal if len(journal) <= _MAX_JOURNAL else ""
    if retains_after_completion(dv, target):
        annotations[ANN_POD_RETAIN] = "true"
    return annotations


def _container(target: PVC, filled: PVC, attempt: Attempt, pods: WorkerPodConfig, *, scratch: bool) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [
        {"name": "pod", "mountPath": ANNOTATIONS, "readOnly": True},
        {"name": "state", "mountPath": STATE},
        TMP_MOUNT,
    ]
    if scratch:
        mounts.append({"name": "scratch", "mountPath": SCRATCH})
    mounts += input_mounts(attempt.mounts)
    container = worker_container(pods, owner=target.uid)
    if filled.volume_mode == "Block":
        container["volumeDevices"] = [{"name": "data", "devicePath": DEVICE}]
    else:
        mounts.append({"name": "data", "mountPath": DIRECTORY})
    container["volumeMounts"] = mounts
    return container


def resources_of(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resource requirements of a worker's container: those of CDIConfig, with defaults for the rest."""
    resources = {part: {**usual, **(wanted.get(part) or {})} for part, usual in DEFAULT_RESOURCES.items()}
    if wanted.get("claims"):
        resources["claims"] = wanted["claims"]
    return resources


def _volumes(filled: PVC, *, scratch: bool) -> list[dict[str, Any]]:
    shown = {"job": ANN_JOB, "limits": ANN_LIMITS, "journal": ANN_JOURNAL}
    volumes: list[dict[str, Any]] = [
        {"name": "data", "persistentVolumeClaim": {"claimName": filled.name}},
        {
            "name": "pod",
            "downwardAPI": {
                "items": [
                    {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
                    for path, annotation in shown.items()
                ]
            },
        },
        {"name": "state", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if scratch:
        volumes.append({"name": "scratch", "persistentVolumeClaim": {"claimName": scratch_claim(filled.name)}})
    return volumes


def input_volumes(
    mounts: Iterable[Mount], objects: InputLister, refer: Callable[[ObjectRef], ObjectRef], *, mode: int
) -> Iterable[dict[str, Any]]:
    """Yield a projected volume for each mount, with the names that `input_mounts` gives them.

    Args:
        mounts: What to mount.
        objects: The keys of the Secrets and ConfigMaps.
        refer: Returns the reference to use in the pod's namespace.
        mode: Permissions of the files.

    """
    for number, mount in enumerate(mounts):
        sources = []
        for ref in mount.inputs:
            source: dict[str, Any] = {"name": refer(ref).name}
            if len(mount.inputs) > 1:
                # Prefix the file names, because keys of different objects may be equal.
                found = objects.input(ref)
                keys = sorted(found.keys) if found is not None else []
                source["items"] = [{"key": key, "path": f"{ref.kind.lower()}-{ref.name}-{key}"[-200:]} for key in keys]
            sources.append({"secret" if ref.kind == "Secret" else "configMap": source})
        yield {"name": f"input-{number}", "projected": {"defaultMode": mode, "sources": sources}}


def input_mounts(mounts: Iterable[Mount]) -> list[dict[str, Any]]:
    """Return the container's mounts of `input_volumes`."""
    return [
        {"name": f"input-{number}", "mountPath": mount.directory, "readOnly": True}
        for number, mount in enumerate(mounts)
    ]


def _service_account(dv: DataVolume, target: PVC, pods: WorkerPodConfig) -> dict[str, Any]:
    """Return the priority class, service account and pull secrets of the pod, as far as they are set."""
    priority = dv.spec.priority_class_name or target.annotations.get(ANN_PRIORITY_CLASS)
    account = dv.spec.service_account_name or target.annotations.get(ANN_SERVICE_ACCOUNT)
    spec: dict[str, Any] = {}
    if priority:
        spec["priorityClassName"] = priority
    if account:
        spec["serviceAccountName"] = account
    return {**spec, **_pull_secrets(pods)}


def _pull_secrets(pods: WorkerPodConfig) -> dict[str, Any]:
    return {"imagePullSecrets": [{"name": name} for name in pods.pull_secrets]} if pods.pull_secrets else {}


def scheduling(pods: WorkerPodConfig, *, architecture: str | None = None) -> dict[str, Any]:
    """Return the pull secrets and the administrator's placement of a pod that may run on any node.

    Args:
        pods: The settings of worker pods.
        architecture: Architecture of the nodes that are eligible; None for any.

    """
    placement = pods.placement
    spec = {part: placement[part] for part in ("nodeSelector", "tolerations", "affinity") if placement.get(part)}
    if architecture:
        spec["nodeSelector"] = {**spec.get("nodeSelector", {}), ARCHITECTURE: architecture}
    return {**spec, **_pull_secrets(pods)}


def _placement(node: str, placement: Mapping[str, Any]) -> dict[str, Any]:
    """Return the administrator's placement, or node affinity for the node chosen for the volume's first consumer.

    Affinity is used because ``nodeName`` would bypass the scheduler, which triggers provisioning.
    """
    spec = {name: placement[name] for name in ("nodeSelector", "tolerations") if placement.get(name)}
    affinity = dict(placement.get("affinity") or {})
    if node:
        fields = [{"key": "metadata.name", "operator": "In", "values": [node]}]
        # The volume is bound to this node, so the administrator's preference for other nodes is dropped.
        spec.pop("nodeSelector", None)
        affinity["nodeAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": fields}]}
        }
    if affinity:
        spec["affinity"] = affinity
    return spec


def restricted_pod_spec(*, grace: int, opens_volume: bool = True) -> dict[str, Any]:
    """Return the common part of every pod spec: no API credentials, restricted Pod Security Standard.

    Args:
        grace: Termination grace period in seconds.
        opens_volume: Whether the pod mounts a volume, whose group is then set.

    """
    # OnRootMismatch: a partly extracted archive has many files, and changing the group of each takes long.
    group = {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"} if opens_volume else {}
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            **group,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def worker_container(pods: WorkerPodConfig, *, owner: str) -> dict[str, Any]:
    """Return the common part of every worker's container, whatever it does for the PVC with the UID `owner`."""
    return {
        "name": CONTAINER,
        "image": pods.image,
        "imagePullPolicy": pods.pull_policy,
        "command": ["cdi-worker"],
        "env": [
            {"name": "OWNER_UID", "value": owner},
            {"name": "CDI_VERBOSITY", "value": str(pods.verbosity)},
            {"name": "HOME", "value": STATE},
        ],
        "ports": [{"name": "metrics", "containerPort": PORT, "protocol": "TCP"}],
        "resources": resources_of(pods.resources),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
