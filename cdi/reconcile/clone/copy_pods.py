"""The manifests of the two pods of a copy."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from cdi.api.copy import TARGETS, TICKET_PREFIX, CopySourceJob, Ticket
from cdi.api.job import Limits
from cdi.api.names import (
    ANN_CREATED_BY_CONTROLLER,
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
from cdi.reconcile.actions import ProvideCertificate
from cdi.reconcile.clone.record import ANN_SOURCE_UID, ANN_TARGET, LABEL_TEMPORARY
from cdi.reconcile.pod import (
    ANN_JOB,
    ANN_LIMITS,
    ANNOTATIONS,
    GRACE,
    STATE,
    restricted,
    worker_container,
)

if TYPE_CHECKING:
    from cdi.reconcile.clone.facts import Reader
    from cdi.reconcile.clone.source import Found
    from cdi.reconcile.world import Claim, World

SOURCE: Final = "/var/run/cdi/clone/source"
"""Where a reader has a file system."""
DEVICE: Final = "/dev/cdi-clone-source"
TLS: Final = "/var/run/cdi/tls"


def with_certificate(pod: dict[str, Any], secret: str) -> dict[str, Any]:
    """An importer's pod as one that takes a clone: another program, and a certificate by which it is known."""
    made = copy.deepcopy(pod)
    made["metadata"]["name"] = secret
    made["metadata"]["labels"][LABEL_COMPONENT] = COMPONENT_UPLOAD_SERVER
    container = made["spec"]["containers"][0]
    container["args"] = ["clone-target"]
    container["volumeMounts"].append({"name": "tls", "mountPath": TLS, "readOnly": True})
    made["spec"]["volumes"].append(_tls(secret))
    return made


def certificate_of(pod: str, reader: Reader, namespace: str, ticket: Ticket, name: str) -> ProvideCertificate:
    """By which one pod that fills, and no other, knows its reader.  It goes with the reader's pod, which waits for the
    first of them.
    """
    return ProvideCertificate(
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
    world: World, target: Claim, found: Found, job: CopySourceJob, name: str, ticket: Ticket
) -> dict[str, Any]:
    """A pod that reads the source, which it has read-only, and sends it: to `target` first."""
    pods = world.config.pods
    given = {**(world.datavolume.metadata.annotations or {}), **target.annotations}
    block = found.volume_mode == "Block"
    mounts = [
        {"name": "pod", "mountPath": ANNOTATIONS, "readOnly": True},
        {"name": "state", "mountPath": STATE},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
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
        **restricted(grace=GRACE),
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
                    # Which targets there are changes while it runs.
                    + [{"path": TARGETS.rpartition("/")[2], "fieldRef": {"fieldPath": "metadata.annotations"}}]
                },
            },
            {"name": "state", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            _tls(name),
        ],
        **{
            part: pods.placement[part]
            for part in ("nodeSelector", "tolerations", "affinity")
            if pods.placement.get(part)
        },
    }
    if pods.pull_secrets:
        spec["imagePullSecrets"] = [{"name": one} for one in pods.pull_secrets]
    priority = world.datavolume.spec.priority_class_name or target.annotations.get(ANN_PRIORITY_CLASS)
    if priority:
        spec["priorityClassName"] = priority
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": found.namespace,
        "labels": {
            **target.labels,
            **world.config.labels,
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
