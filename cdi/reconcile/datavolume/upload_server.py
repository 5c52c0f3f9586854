"""Objects of an upload in a cluster: a Service, a certificate, and a pod that accepts connections.

    Service ``cdi-upload-<claim>``  headless; the upload proxy finds the pod by its name
    Secret  ``cdi-upload-<claim>``  the pod's certificate and the CA of its clients; owned by the Service
    Pod     ``cdi-upload-<claim>``  waits for an image, rejects invalid ones, and ends with the first valid one

``<claim>`` is the PVC being filled. All three are deleted when the volume is complete.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cdi.api.names import (
    ANN_CREATED_BY_CONTROLLER,
    ANN_UPLOAD_TARGET,
    COMMON_LABELS,
    COMPONENT_UPLOAD_SERVER,
    LABEL_COMPONENT,
    LABEL_UPLOAD_TARGET,
    upload_pod,
    upload_service,
)
from cdi.api.phases import EventReason, Phase, Reason
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, EnsureCertificate, Event
from cdi.reconcile.clone.copy_pods import with_certificate
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.result import Result, operation_of
from cdi.reconcile.datavolume.status import false
from cdi.reconcile.datavolume.upload import is_withdrawn
from cdi.reconcile.pods.builder import claim_owner
from cdi.reconcile.pods.roles import PORT, UPLOADER
from cdi.reconcile.pods.types import Worker
from cdi.reconcile.types import PVC, Pending, Service


def accepts_upload(context: ReconcileContext) -> bool:
    """Return whether the volume is filled by an upload server."""
    return context.platform.cluster and operation_of(context.datavolume) == "Upload"


# --- manifests ------------------------------------------------------------------------------------------------------


def build_service(filled: PVC) -> dict[str, Any]:
    """Build the headless Service through which the PVC's pod is reached."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": upload_service(filled.name),
            "namespace": filled.namespace,
            "labels": {**COMMON_LABELS, LABEL_COMPONENT: COMPONENT_UPLOAD_SERVER},
            "annotations": {ANN_CREATED_BY_CONTROLLER: "yes"},
            "ownerReferences": [claim_owner(filled)],
        },
        "spec": {
            "clusterIP": "None",
            "selector": {LABEL_COMPONENT: COMPONENT_UPLOAD_SERVER, LABEL_UPLOAD_TARGET: filled.uid},
            "ports": [{"name": "https", "port": PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    }


def server_pod(filled: PVC, pod: dict[str, Any]) -> dict[str, Any]:
    """Convert an importer pod to an upload server pod."""
    made = with_certificate(pod, UPLOADER, upload_pod(filled.name))
    made["metadata"]["labels"][LABEL_UPLOAD_TARGET] = filled.uid
    container = made["spec"]["containers"][0]
    container["readinessProbe"] = {
        "httpGet": {"path": "/healthz", "port": PORT, "scheme": "HTTPS"},
        "periodSeconds": 1,
        "timeoutSeconds": 5,
        # A server that is busy with an image must stay ready for its client.
        "failureThreshold": 30,
    }
    return made


def certificate(namespace: str, claim: str, service: Service) -> EnsureCertificate:
    """Return the action for the server certificate of a PVC's pod, valid exactly for the Service's DNS names."""
    name = f"{service.name}.{namespace}.svc"
    return EnsureCertificate(
        namespace=namespace,
        secret=upload_pod(claim),
        name=name,
        hosts=(name, f"{name}.cluster.local"),
        usage="server",
        owner={"apiVersion": "v1", "kind": "Service", "name": service.name, "uid": service.uid},
    )


# --- actions --------------------------------------------------------------------------------------------------------


def service_of(service: Service | None, filled: PVC) -> Service | None:
    """Return the Service if it belongs to exactly this PVC."""
    return service if service is not None and service.claim == filled.uid and not service.deleting else None


def service_conflict(context: ReconcileContext, filled: PVC | None) -> Pending | None:
    """Return what to wait for if the Service's name is in use by another owner; None otherwise."""
    service = context.service
    if (
        not accepts_upload(context)
        or filled is None
        or service is None
        or service_of(context.service, filled) is not None
    ):
        return None
    where = f"Service {filled.namespace}/{service.name}"
    if service.deleting or not service.is_unowned:
        return Pending(reason=Reason.PENDING, message=f"{where} of an earlier volume is being deleted")
    return Pending(
        reason=EventReason.ERR_STARTING_POD,
        message=f"{where} belongs to another controller, and the upload needs that name. Try: delete it",
        event=EventReason.ERR_STARTING_POD,
    )


def before_server(service: Service | None, filled: PVC) -> tuple[tuple[Action, ...], bool]:
    """Return the actions required before the pod, and whether the pod can be created at once."""
    service = service_of(service, filled)
    if service is None:
        return (CreateObject(body=build_service(filled)),), False
    return (certificate(filled.namespace, filled.name, service),), True


def ensure_service(context: ReconcileContext, filled: PVC | None) -> tuple[Action, ...]:
    """Recreate the Service of a running upload server if it was deleted."""
    if not accepts_upload(context) or filled is None or context.service is not None:
        return ()
    return (CreateObject(body=build_service(filled)),)


def delete_service(service: Service | None, filled: PVC | None) -> tuple[Action, ...]:
    """Delete the Service once no more uploads are accepted."""
    service = service_of(service, filled) if filled is not None else None
    if service is None or filled is None:
        return ()
    return (DeleteObject(plural="services", namespace=filled.namespace, name=service.name, uid=service.uid),)


def ready_for_upload(context: ReconcileContext, claim: PVC, worker: Worker, result: Result) -> Result:
    """Convert the result for a running worker to an upload's phases: UploadReady once the pod is ready."""
    pod = worker.pod
    if not accepts_upload(context) or pod is None:
        return result
    if not pod.started or pod.hold is not None or not pod.ready:
        return replace(result, state=replace(result.state, phase=Phase.UPLOAD_SCHEDULED))
    state = replace(result.state, phase=Phase.UPLOAD_READY)
    refused = worker.refused
    if refused is not None:
        text = f"{refused.message} Upload it again"
        told = Event(type="Warning", reason=EventReason.UPLOAD_FAILED, message=f"[{refused.code}] {text}")
        return replace(result, state=replace(state, ready=false(refused.code, text)), events=(told,))
    if worker.progress is not None and worker.progress.done:
        return replace(result, state=state)
    message = f"waiting for: cdi upload -n {claim.namespace} {claim.name} FILE"
    return replace(result, state=replace(state, ready=false(Reason.PENDING, message)))


def is_upload_withdrawn(context: ReconcileContext, claim: PVC, filled: PVC | None) -> bool:
    """Return whether a user has removed the request for an upload from the PVC or from its prime PVC."""
    return accepts_upload(context) and any(is_withdrawn(one.annotations) for one in (claim, filled) if one is not None)


def upload_withdrawn(claim: PVC) -> Pending:
    """Return what a PVC waits for whose request for an upload was removed."""
    return Pending(
        reason=Reason.PENDING,
        message=f"PVC {claim.name} accepts no upload, because its annotation {ANN_UPLOAD_TARGET} was removed. "
        f'Try: set {ANN_UPLOAD_TARGET}: "" again on each PVC that lost it',
    )
