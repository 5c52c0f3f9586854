"""Manifests of the two pods of a host-assisted clone."""

from __future__ import annotations

import copy
from typing import Any, Final

from cdi.api.copy import TARGETS, TICKET_PREFIX, CopySourceJob, Ticket
from cdi.api.job import Limits
from cdi.api.names import (
    ANN_CREATED_BY_CONTROLLER,
    ANN_OVN_OPEN_DEFAULT_PORTS,
    ANN_OWNER_UID,
    ANN_PRIORITY_CLASS,
    COMMON_LABELS,
    COMPONENT_CLONER,
    COMPONENT_UPLOAD_SERVER,
    LABEL_COMPONENT,
    LABEL_PROMETHEUS,
    POD_ANNOTATION_DEFAULTS,
    POD_ANNOTATIONS,
)
from cdi.reconcile.actions import EnsureCertificate
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID, ANN_TARGET, LABEL_TEMPORARY
from cdi.reconcile.clone.types import CloneSource, SourcePod
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.pods.builder import (
    ANN_JOB,
    ANN_LIMITS,
    ANNOTATIONS,
    GRACE_PERIOD,
    PORT,
    STATE,
    TMP_MOUNT,
    restricted_pod_spec,
    scheduling,
    worker_container,
)
from cdi.reconcile.types import PVC

SOURCE: Final = "/var/run/cdi/clone/source"
"""Mount path of a filesystem volume in the source pod."""
DEVICE: Final = "/dev/cdi-clone-source"
TLS: Final = "/var/run/cdi/tls"
_OPEN_PORTS: Final = f'[{{"protocol":"tcp","port":{PORT}}}]'


def with_certificate(pod: dict[str, Any], secret: str) -> dict[str, Any]:
    """Convert an importer pod to the target pod of a clone, with another command and a server certificate."""
    made = copy.deepcopy(pod)
    made["metadata"]["name"] = secret
    made["metadata"]["labels"][LABEL_COMPONENT] = COMPONENT_UPLOAD_SERVER
    # The upload proxy, and the source pod of a clone, may be on another network of OVN-Kubernetes.
    made["metadata"]["annotations"][ANN_OVN_OPEN_DEFAULT_PORTS] = _OPEN_PORTS
    container = made["spec"]["containers"][0]
    container["args"] = ["clone-target"]
    container["volumeMounts"].append({"name": "tls", "mountPath": TLS, "readOnly": True})
    made["spec"]["volumes"].append(_tls(secret))
    return made


def certificate_of(pod: str, reader: SourcePod, namespace: str, ticket: Ticket, name: str) -> EnsureCertificate:
    """Return the action for a client certificate by which exactly one target pod identifies its source pod.

    The certificate is owned by the source pod, which does not start before the first of its certificates exists.
    """
    return EnsureCertificate(
        namespace=namespace,
        secret=pod,
        entry=ticket.id,
        beside=tuple(sorted(one.id for one in reader.tickets.values())),
        name=name,
        hosts=(),
        usage="client",
        owner={"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": reader.uid},
    )


def build_reader(
    context: ReconcileContext, target: PVC, found: CloneSource, job: CopySourceJob, name: str, ticket: Ticket
) -> dict[str, Any]:
    """Build the pod that mounts the source read-only and sends it to its targets, of which `target` is the first."""
    pods = context.config.pods
    given = {**(context.datavolume.metadata.annotations or {}), **target.annotations}
    block = found.volume_mode == "Block"
    mounts = [
        {"name": "pod", "mountPath": ANNOTATIONS, "readOnly": True},
        {"name": "state", "mountPath": STATE},
        TMP_MOUNT,
        {"name": "tls", "mountPath": TLS, "readOnly": True},
    ]
    if not block:
        mounts.append({"name": "data", "mountPath": SOURCE, "readOnly": True})
    container = {
        **worker_container(pods, owner=found.uid),
        "args": ["clone-source"],
        "volumeMounts": mounts,
        **({"volumeDevices": [{"name": "data", "devicePath": DEVICE}]} if block else {}),
    }
    spec: dict[str, Any] = {
        **restricted_pod_spec(grace=GRACE_PERIOD),
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": found.name, "readOnly": True}},
            {
                "name": "pod",
                "downwardAPI": {
                    "items": [
                        {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
                        for path, annotation in (("job", ANN_JOB), ("limits", ANN_LIMITS))
                    ]
                    # The list of targets changes while the pod runs.
                    + [{"path": TARGETS.rpartition("/")[2], "fieldRef": {"fieldPath": "metadata.annotations"}}]
                },
            },
            {"name": "state", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            _tls(name),
        ],
        **scheduling(pods),
    }
    priority = context.datavolume.spec.priority_class_name or target.annotations.get(ANN_PRIORITY_CLASS)
    if priority:
        spec["priorityClassName"] = priority
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": found.namespace,
        "labels": {
            **target.labels,
            **context.config.labels,
            **COMMON_LABELS,
            LABEL_COMPONENT: COMPONENT_CLONER,
            LABEL_PROMETHEUS: "true",
            LABEL_TEMPORARY: "true",
        },
        "annotations": {
            **POD_ANNOTATION_DEFAULTS,
            **{one: given[one] for one in POD_ANNOTATIONS if one in given},
            ANN_CREATED_BY_CONTROLLER: "yes",
            ANN_OWNER_UID: found.uid,
            ANN_SOURCE_UID: found.uid,
            ANN_TARGET: f"{target.namespace}/{target.name}",
            ANN_JOB: job.to_json(),
            ANN_LIMITS: Limits(bandwidth=job.policy.bandwidth).to_json(),
            f"{TICKET_PREFIX}{target.uid}": ticket.to_json(),
        },
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _tls(secret: str) -> dict[str, Any]:
    return {"name": "tls", "secret": {"secretName": secret, "defaultMode": 0o440}}
