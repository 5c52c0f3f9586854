"""The pod that a worker runs in: a manifest out of what was decided, and nothing else.

The pod keeps to the restricted Pod Security Standard, holds no API credentials, and belongs to the claim that it
fills.  The `Job` crosses as an annotation, which a downwardAPI volume shows as a file; Secrets and ConfigMaps are
projected below `INPUTS`, under the names that `cdi.runtime.launcher.write_mounts` gives them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest
from cdi.api.job import Limits
from cdi.api.names import (
    ANN_CREATED_BY_CONTROLLER,
    ANN_OWNER_UID,
    ANN_POD_RETAIN,
    ANN_PRIORITY_CLASS,
    ANN_SERVICE_ACCOUNT,
    COMMON_LABELS,
    COMPONENT_IMPORTER,
    GROUP,
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
from cdi.reconcile.actions import CopyInput, InputRef, Mount, Work
from cdi.reconcile.configuration import DEFAULT_RESOURCES
from cdi.reconcile.world import Claim, Config, Layout, Objects, Pods

ANN_JOB = f"{GROUP}/job"
ANN_LIMITS = f"{GROUP}/limits"
ANN_JOURNAL = f"{GROUP}/journal"
"""Of the pod: what an earlier attempt left."""
ANN_ATTEMPT = f"{GROUP}/attempt"
ANN_FINGERPRINT = f"{GROUP}/fingerprint"
ANN_UPLOAD = f"{GROUP}/upload"
ANN_SPEC = f"{GROUP}/specDigest"
"""Of the pod: what it was made from, so that one can be told that would be made otherwise now."""
ANN_STORED_JOURNAL = f"{GROUP}/storage.journal"
"""Of the filled claim: the newest journal of a volume that cannot keep one itself."""

CONTAINER = "importer"
USER = 107
"""qemu's own uid and gid, which virtual machines run as."""
PORT = 8443
GRACE = 30
"""Seconds that a worker has to leave its journal when it is asked to stop."""
LARGEST_JOB = 200 * 1024
"""Bytes; all annotations of an object together may have 256 KiB."""
_LARGEST_JOURNAL = 40 * 1024

DISK, DIRECTORY, DEVICE = "/data/disk.img", "/data", "/dev/cdi-block-volume"
SCRATCH = "/scratch"
STATE = "/var/run/cdi/state"
INPUTS = "/var/run/cdi/inputs"
ANNOTATIONS = "/var/run/cdi/pod"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one pod is made for."""

    number: int
    """Counts from 1."""
    work: Work
    mounts: tuple[Mount, ...]
    fingerprint: str
    limits: Limits
    upload: str = ""


def pod_layout(claim: Claim, *, scratch: bool) -> Layout:
    """Where a worker in a pod finds its things."""
    block = claim.volume_mode == "Block"
    return Layout(
        disk=DEVICE if block else DISK,
        directory=DIRECTORY,
        journal=f"{STATE}/journal" if block else f"{DIRECTORY}/.cdi/journal",
        scratch=SCRATCH if scratch else None,
        inputs=INPUTS,
    )


def build_pod(
    dv: DataVolume, target: Claim, filled: Claim, attempt: Attempt, config: Config, objects: Objects, *, scratch: bool
) -> dict[str, Any]:
    """The manifest.  `filled` is the target itself, or the claim that is filled in its place.

    Raises `InvalidManifest` where the job is too large for an annotation.
    """
    job = attempt.work.to_json()
    if len(job.encode()) > LARGEST_JOB:
        raise InvalidManifest(
            f"the import's description has {human(len(job.encode()))}, and at most {human(LARGEST_JOB)} reach a worker",
            remedy="shorten the extra headers or the URL",
        )
    spec = {
        **restricted(grace=GRACE),
        "containers": [_container(target, filled, attempt, config.pods, scratch=scratch)],
        "volumes": [*_volumes(filled, scratch=scratch), *_inputs(attempt.mounts, filled, objects)],
        **_identity(dv, target, config.pods),
        **_place(filled.selected_node or target.selected_node, config.pods.placement),
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
            "annotations": {**_annotations(dv, target, filled, attempt, job), ANN_SPEC: _digest(spec)},
            "ownerReferences": [claim_owner(filled)],
        },
        "spec": spec,
    }


def _digest(spec: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]


def claim_owner(claim: Claim) -> dict[str, Any]:
    """An owner reference: what belongs to a claim goes with it."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "name": claim.name,
        "uid": claim.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def retains(dv: DataVolume, target: Claim) -> bool:
    """A worker that has ended stays, to be looked at."""
    return "true" in (target.annotations.get(ANN_POD_RETAIN), (dv.metadata.annotations or {}).get(ANN_POD_RETAIN))


def local_input(ref: InputRef, filled: Claim) -> InputRef:
    """The object that a pod beside the claim can use for `ref`: itself, or its copy in the claim's namespace."""
    if ref.namespace == filled.namespace:
        return ref
    return replace(ref, namespace=filled.namespace, name=joined(f"{ref.name}-for", filled.name, MAX_NAME))


def copies(mounts: Iterable[Mount], filled: Claim) -> tuple[CopyInput, ...]:
    """What must be there before the pod is: copies of what lies in other namespaces."""
    foreign = dict.fromkeys(ref for mount in mounts for ref in mount.inputs if ref.namespace != filled.namespace)
    owner = claim_owner(filled)
    return tuple(CopyInput(source=ref, copy=local_input(ref, filled), owner=owner) for ref in foreign)


# --- parts --------------------------------------------------------------------------------------------------------


def _annotations(dv: DataVolume, target: Claim, filled: Claim, attempt: Attempt, job: str) -> dict[str, str]:
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
    annotations[ANN_JOURNAL] = journal if len(journal) <= _LARGEST_JOURNAL else ""
    if retains(dv, target):
        annotations[ANN_POD_RETAIN] = "true"
    return annotations


def _container(target: Claim, filled: Claim, attempt: Attempt, pods: Pods, *, scratch: bool) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [
        {"name": "pod", "mountPath": ANNOTATIONS, "readOnly": True},
        {"name": "state", "mountPath": STATE},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
    ]
    if scratch:
        mounts.append({"name": "scratch", "mountPath": SCRATCH})
    mounts += [
        {"name": f"input-{number}", "mountPath": mount.directory, "readOnly": True}
        for number, mount in enumerate(attempt.mounts)
    ]
    container = worker_container(pods, owner=target.uid)
    if filled.volume_mode == "Block":
        container["volumeDevices"] = [{"name": "data", "devicePath": DEVICE}]
    else:
        mounts.append({"name": "data", "mountPath": DIRECTORY})
    container["volumeMounts"] = mounts
    return container


def resources_of(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Of a worker's container: what CDIConfig says, else the usual."""
    resources = {part: {**usual, **(wanted.get(part) or {})} for part, usual in DEFAULT_RESOURCES.items()}
    if wanted.get("claims"):
        resources["claims"] = wanted["claims"]
    return resources


def _volumes(filled: Claim, *, scratch: bool) -> list[dict[str, Any]]:
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


def _inputs(mounts: Iterable[Mount], filled: Claim, objects: Objects) -> Iterable[dict[str, Any]]:
    for number, mount in enumerate(mounts):
        sources = []
        for ref in mount.inputs:
            source: dict[str, Any] = {"name": local_input(ref, filled).name}
            if len(mount.inputs) > 1:
                # Names of their own, or two objects with a key of the same name would be in each other's way.
                found = objects.input(ref)
                keys = sorted(found.keys) if found is not None else []
                source["items"] = [{"key": key, "path": f"{ref.kind.lower()}-{ref.name}-{key}"[-200:]} for key in keys]
            sources.append({"secret" if ref.kind == "Secret" else "configMap": source})
        yield {"name": f"input-{number}", "projected": {"defaultMode": 0o440, "sources": sources}}


def _identity(dv: DataVolume, target: Claim, pods: Pods) -> dict[str, Any]:
    """Whose pod it is, where somebody says so."""
    priority = dv.spec.priority_class_name or target.annotations.get(ANN_PRIORITY_CLASS)
    account = dv.spec.service_account_name or target.annotations.get(ANN_SERVICE_ACCOUNT)
    spec: dict[str, Any] = {}
    if priority:
        spec["priorityClassName"] = priority
    if account:
        spec["serviceAccountName"] = account
    if pods.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in pods.pull_secrets]
    return spec


def _place(node: str, placement: Mapping[str, Any]) -> dict[str, Any]:
    """The administrator's placement, or the node that the volume's first consumer will run on.

    That node is asked for by affinity: ``nodeName`` would go past the scheduler, which has the volume made for it.
    """
    spec = {name: placement[name] for name in ("nodeSelector", "tolerations") if placement.get(name)}
    affinity = dict(placement.get("affinity") or {})
    if node:
        fields = [{"key": "metadata.name", "operator": "In", "values": [node]}]
        # The volume is bound to this node: where the administrator would rather have workers no longer matters.
        spec.pop("nodeSelector", None)
        affinity["nodeAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": fields}]}
        }
    if affinity:
        spec["affinity"] = affinity
    return spec


def restricted(*, grace: int, opens_volume: bool = True) -> dict[str, Any]:
    """What the spec of each of our pods has in common: it ends by itself, has no rights on the cluster, and keeps to
    the restricted Pod Security Standard.  `grace` is in seconds.
    """
    # An archive that an earlier attempt unpacked in part has many files.
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


def worker_container(pods: Pods, *, owner: str) -> dict[str, Any]:
    """What every worker's container has in common, whatever it does for the claim with the uid `owner`."""
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
