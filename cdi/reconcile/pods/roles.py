"""Roles of pods, and what all pods have in common.

A role is one line of the table below, plus the labels, annotations, inputs and volumes that only its own pods have. All
pods comply with the restricted Pod Security Standard and hold no API credentials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cdi.api import annotations as state
from cdi.api.copy import TARGETS
from cdi.api.names import (
    COMMON_LABELS,
    COMPONENT_CLONER,
    COMPONENT_IMPORTER,
    COMPONENT_PROOF,
    COMPONENT_UPLOAD_SERVER,
    LABEL_COMPONENT,
)
from cdi.reconcile.cdi.config import DEFAULT_RESOURCES
from cdi.reconcile.settings import ResolvedConfig, WorkerPodConfig

ANN_JOB = state.JOB.key
ANN_LIMITS = state.LIMITS.key

CONTAINER = "importer"
ARCHITECTURE = "kubernetes.io/arch"
"""Label of nodes."""
USER = 107
"""UID and GID of qemu, which virtual machines run as."""
PORT = 8443
GRACE_PERIOD = 30
"""Seconds that a worker has for writing its journal after SIGTERM."""

DISK, DIRECTORY, DEVICE = "/data/disk.img", "/data", "/dev/cdi-block-volume"
STATE = "/var/run/cdi/state"
ANNOTATIONS = "/var/run/cdi/pod"
TMP_MOUNT = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 - the pod's own
_WORKER = ("cdi-worker",)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRole:
    """What distinguishes the pods of one role from others."""

    component: str = ""
    """Value of their label `LABEL_COMPONENT`; empty if other labels identify them."""
    container: str = CONTAINER
    command: tuple[str, ...] = _WORKER
    args: tuple[str, ...] = ()
    """The worker's command, which the arguments of the single pod follow."""
    files: Mapping[str, str] | None = None
    """Fields of the pod that the container reads as files: field paths by file name; None for no such volume."""
    state: bool = False
    """Whether there is a directory for state that outlives the container."""
    tmp: bool = False
    home: bool = True
    """Whether the container's home is the directory for state."""
    metrics: bool = True
    """Whether the container declares its metrics port."""
    restarts: bool = False
    """Whether the kubelet restarts a failed container, which is then the next attempt."""
    read_only: bool = False
    """Whether the volume is mounted read-only."""
    user: bool = True
    """Whether the pod runs as qemu's user; otherwise as that of its image or of the cluster's policy."""
    group: bool = True
    """Whether its volumes are made accessible to qemu's group."""
    grace: int = 0
    """Termination grace period in seconds."""
    resources: Mapping[str, Any] | None = None
    """Resource requirements of the container; None for those of CDIConfig."""


_JOB = {"job": state.JOB.field_path}
_LIMITED_JOB = {**_JOB, "limits": state.LIMITS.field_path}
_SMALL = {"requests": {"cpu": "10m", "memory": "8M"}, "limits": {"cpu": "100m", "memory": "64M"}}

IMPORTER: Final = PodRole(
    component=COMPONENT_IMPORTER,
    files={**_LIMITED_JOB, "journal": state.JOURNAL.field_path},
    state=True,
    tmp=True,
    restarts=True,
    grace=GRACE_PERIOD,
)
UPLOADER: Final = replace(IMPORTER, component=COMPONENT_UPLOAD_SERVER, args=("upload",), restarts=False)
CLONE_TARGET: Final = replace(UPLOADER, args=("clone-target",))
CLONE_SOURCE: Final = PodRole(
    component=COMPONENT_CLONER,
    args=("clone-source",),
    # The list of targets, one annotation each, changes while the pod runs.
    files={**_LIMITED_JOB, TARGETS.rpartition("/")[2]: "metadata.annotations"},
    state=True,
    tmp=True,
    read_only=True,
    grace=GRACE_PERIOD,
)
PREPARATION: Final = PodRole(
    component="cdi-clone-preparation",
    container="prepare",
    command=("python3", "-c", "pass"),
    metrics=False,
    group=False,
    resources=_SMALL,
)
SIZE_DETECTION: Final = PodRole(component="cdi-clone-measurement", args=("measure",), read_only=True)
POLL: Final = PodRole(
    container="cdi-source-update-poller",
    args=("poll",),
    files=_JOB,
    state=True,
    tmp=True,
    metrics=False,
    user=False,
    group=False,
)
NODE_POLL: Final = PodRole(container="init", args=("poll-program",), metrics=False, group=False)
PROOF: Final = PodRole(
    component=COMPONENT_PROOF,
    args=("prove",),
    files=_JOB,
    tmp=True,
    home=False,
    metrics=False,
    read_only=True,
    grace=10,
)
# Its group makes the key readable: Secrets are owned by root.
RECORD_SIGNING: Final = PodRole(component="cdi-record-signer", args=("sign-record",))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataMount:
    """The PVC that a pod opens."""

    claim: str
    block: bool = False
    directory: str = DIRECTORY
    """Mount path of a filesystem volume."""
    device: str = DEVICE
    """Path of a block volume."""


def pod_spec(
    role: PodRole,
    pods: WorkerPodConfig,
    *,
    owner: str,
    args: Iterable[str] = (),
    data: DataMount | None = None,
    mounts: Iterable[Mapping[str, Any]] = (),
    volumes: Iterable[Mapping[str, Any]] = (),
    tmp_limit: int | None = None,
    resources: Mapping[str, Any] | None = None,
    priority: str | None = None,
    account: str | None = None,
    placement: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the spec of a pod.

    Args:
        role: The role.
        pods: The settings of worker pods.
        owner: UID of the object that the pod works for.
        args: Arguments after those of the role.
        data: The PVC to open, if any.
        mounts: Further mounts of the container.
        volumes: Further volumes, which they mount.
        tmp_limit: Maximum size in bytes of the directory for temporary files.
        resources: Resource requirements that only this pod has.
        priority: Its priority class.
        account: Its service account.
        placement: Where it may run; None for any node that the administrator's placement allows.

    """
    container = _container(role, pods, owner=owner, args=tuple(args))
    if resources is not None:
        container["resources"] = resources
    mounted = [*_mounts(role), *mounts]
    if data is not None and data.block:
        container["volumeDevices"] = [{"name": "data", "devicePath": data.device}]
    elif data is not None:
        read_only = {"readOnly": True} if role.read_only else {}
        mounted.append({"name": "data", "mountPath": data.directory, **read_only})
    if mounted:
        container["volumeMounts"] = mounted
    return {
        "restartPolicy": "OnFailure" if role.restarts else "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": role.grace,
        "securityContext": _pod_security(role),
        "containers": [container],
        "volumes": [*_volumes(role, data, tmp_limit), *volumes],
        **({"priorityClassName": priority} if priority else {}),
        **({"serviceAccountName": account} if account else {}),
        **(any_node(pods) if placement is None else placement),
        **({"imagePullSecrets": [{"name": name} for name in pods.pull_secrets]} if pods.pull_secrets else {}),
    }


def build_pod(
    role: PodRole,
    config: ResolvedConfig,
    spec: Mapping[str, Any],
    *,
    namespace: str,
    name: str,
    annotations: Mapping[str, str],
    inherited: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    owner: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the manifest of a pod.

    Args:
        role: The role.
        config: The resolved CDIConfig.
        spec: The result of `pod_spec`.
        namespace: Its namespace.
        name: Its name.
        annotations: All of its annotations.
        inherited: Labels that CDI's own ones override.
        labels: Labels besides those of all pods of the role.
        owner: The reference to its owner; None for a pod that is deleted otherwise.

    """
    component = {LABEL_COMPONENT: role.component} if role.component else {}
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "labels": {**(inherited or {}), **config.labels, **COMMON_LABELS, **component, **(labels or {})},
        "annotations": dict(annotations),
    }
    if owner is not None:
        metadata["ownerReferences"] = [owner]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def any_node(pods: WorkerPodConfig, *, architecture: str | None = None) -> dict[str, Any]:
    """Return the administrator's placement of a pod, on nodes of `architecture` if that is given."""
    placement = pods.placement
    spec = {part: placement[part] for part in ("nodeSelector", "tolerations", "affinity") if placement.get(part)}
    if architecture:
        spec["nodeSelector"] = {**spec.get("nodeSelector", {}), ARCHITECTURE: architecture}
    return spec


def chosen_node(pods: WorkerPodConfig, node: str) -> dict[str, Any]:
    """Return the administrator's placement, or node affinity for the node chosen for the volume's first consumer.

    Affinity is used because ``nodeName`` would bypass the scheduler, which triggers provisioning.
    """
    if not node:
        return any_node(pods)
    placement = pods.placement
    # The volume is bound to this node, so the administrator's preference for other nodes is dropped.
    spec = {"tolerations": placement["tolerations"]} if placement.get("tolerations") else {}
    fields = [{"key": "metadata.name", "operator": "In", "values": [node]}]
    affinity = dict(placement.get("affinity") or {})
    affinity["nodeAffinity"] = {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": fields}]}
    }
    return {**spec, "affinity": affinity}


def resources_of(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resource requirements of a worker's container: those of CDIConfig, with defaults for the rest."""
    resources = {part: {**usual, **(wanted.get(part) or {})} for part, usual in DEFAULT_RESOURCES.items()}
    if wanted.get("claims"):
        resources["claims"] = wanted["claims"]
    return resources


# --- parts --------------------------------------------------------------------------------------------------------


def _pod_security(role: PodRole) -> dict[str, Any]:
    user = {"runAsUser": USER, "runAsGroup": USER} if role.user else {}
    # OnRootMismatch: a partly extracted archive has many files, and changing the group of each takes long.
    group = {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"} if role.group else {}
    return {"runAsNonRoot": True, **user, **group, "seccompProfile": {"type": "RuntimeDefault"}}


def _container_security(role: PodRole) -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        **({"runAsUser": USER} if role.user else {}),
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(role: PodRole, pods: WorkerPodConfig, *, owner: str, args: tuple[str, ...]) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": role.container,
        "image": pods.image,
        "imagePullPolicy": pods.pull_policy,
        "command": list(role.command),
        "resources": resources_of(pods.resources) if role.resources is None else dict(role.resources),
        "securityContext": _container_security(role),
    }
    if role.args or args:
        container["args"] = [*role.args, *args]
    if role.metrics:
        container["ports"] = [{"name": "metrics", "containerPort": PORT, "protocol": "TCP"}]
    if role.command == _WORKER:
        container["env"] = [
            {"name": "OWNER_UID", "value": owner},
            {"name": "CDI_VERBOSITY", "value": str(pods.verbosity)},
            *([{"name": "HOME", "value": STATE}] if role.home else []),
        ]
        container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    return container


def _mounts(role: PodRole) -> list[dict[str, Any]]:
    return [
        *([{"name": "pod", "mountPath": ANNOTATIONS, "readOnly": True}] if role.files is not None else []),
        *([{"name": "state", "mountPath": STATE}] if role.state else []),
        *([TMP_MOUNT] if role.tmp else []),
    ]


def _volumes(role: PodRole, data: DataMount | None, tmp_limit: int | None) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = []
    if data is not None:
        read_only = {"readOnly": True} if role.read_only else {}
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": data.claim, **read_only}})
    if role.files is not None:
        items = [{"path": path, "fieldRef": {"fieldPath": field}} for path, field in role.files.items()]
        volumes.append({"name": "pod", "downwardAPI": {"items": items}})
    if role.state:
        volumes.append({"name": "state", "emptyDir": {}})
    if role.tmp:
        volumes.append({"name": "tmp", "emptyDir": {} if tmp_limit is None else {"sizeLimit": str(tmp_limit)}})
    return volumes
