"""Manifests of the two pods of a host-assisted clone."""

from __future__ import annotations

import copy
from typing import Any, Final

from cdi.api.copy import TICKET_PREFIX, CopySourceJob, Ticket
from cdi.api.job import Limits
from cdi.api.names import (
    ANN_CREATED_BY_CONTROLLER,
    ANN_OVN_OPEN_DEFAULT_PORTS,
    ANN_OWNER_UID,
    ANN_PRIORITY_CLASS,
    LABEL_COMPONENT,
    LABEL_PROMETHEUS,
    POD_ANNOTATION_DEFAULTS,
    POD_ANNOTATIONS,
)
from cdi.reconcile.actions import EnsureCertificate
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID, ANN_TARGET, LABEL_TEMPORARY
from cdi.reconcile.clone.types import CloneSource, SourcePod
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.pods.roles import (
    ANN_JOB,
    ANN_LIMITS,
    CLONE_SOURCE,
    PORT,
    DataMount,
    PodRole,
    build_pod,
    pod_spec,
)
from cdi.reconcile.types import PVC

SOURCE: Final = "/var/run/cdi/clone/source"
"""Mount path of a filesystem volume in the source pod."""
DEVICE: Final = "/dev/cdi-clone-source"
TLS: Final = "/var/run/cdi/tls"
_OPEN_PORTS: Final = f'[{{"protocol":"tcp","port":{PORT}}}]'


def with_certificate(pod: dict[str, Any], role: PodRole, secret: str) -> dict[str, Any]:
    """Convert an importer pod to a pod of a role that serves clients, with a server certificate."""
    made = copy.deepcopy(pod)
    made["metadata"]["name"] = secret
    made["metadata"]["labels"][LABEL_COMPONENT] = role.component
    # The upload proxy, and the source pod of a clone, may be on another network of OVN-Kubernetes.
    made["metadata"]["annotations"][ANN_OVN_OPEN_DEFAULT_PORTS] = _OPEN_PORTS
    container = made["spec"]["containers"][0]
    container["args"] = list(role.args)
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
    given = {**(context.datavolume.metadata.annotations or {}), **target.annotations}
    spec = pod_spec(
        CLONE_SOURCE,
        context.config.pods,
        owner=found.uid,
        data=DataMount(claim=found.name, block=found.volume_mode == "Block", directory=SOURCE, device=DEVICE),
        mounts=[{"name": "tls", "mountPath": TLS, "readOnly": True}],
        volumes=[_tls(name)],
        priority=context.datavolume.spec.priority_class_name or target.annotations.get(ANN_PRIORITY_CLASS),
    )
    annotations = {
        **POD_ANNOTATION_DEFAULTS,
        **{one: given[one] for one in POD_ANNOTATIONS if one in given},
        ANN_CREATED_BY_CONTROLLER: "yes",
        ANN_OWNER_UID: found.uid,
        ANN_SOURCE_UID: found.uid,
        ANN_TARGET: f"{target.namespace}/{target.name}",
        ANN_JOB: job.to_json(),
        ANN_LIMITS: Limits(bandwidth=job.policy.bandwidth).to_json(),
        f"{TICKET_PREFIX}{target.uid}": ticket.to_json(),
    }
    return build_pod(
        CLONE_SOURCE,
        context.config,
        spec,
        namespace=found.namespace,
        name=name,
        annotations=annotations,
        inherited=target.labels,
        labels={LABEL_PROMETHEUS: "true", LABEL_TEMPORARY: "true"},
    )


def _tls(secret: str) -> dict[str, Any]:
    return {"name": "tls", "secret": {"secretName": secret, "defaultMode": 0o440}}
