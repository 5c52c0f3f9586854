"""What an upload in a cluster needs beside what every worker does: a pod that can be reached, and whom it believes.

    Service ``cdi-upload-<claim>``  headless; the upload proxy finds the pod by its name
    Secret  ``cdi-upload-<claim>``  the pod's certificate, and who signs those of its clients; it goes with the Service
    Pod     ``cdi-upload-<claim>``  waits for an image, refuses those that do not fit, and ends with the one that does

The claim is the one that is filled.  All three go when the volume is done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cdi.api.names import (
    ANN_CREATED_BY_CONTROLLER,
    ANN_UPLOAD_CLIENT_NAME,
    ANN_UPLOAD_TARGET,
    COMMON_LABELS,
    COMPONENT_UPLOAD_SERVER,
    LABEL_COMPONENT,
    LABEL_UPLOAD_TARGET,
    upload_pod,
    upload_service,
)
from cdi.api.phases import EventReason, Phase, Reason
from cdi.api.upload_protocol import CLIENT_NAME
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, EventFact, ProvideCertificate
from cdi.reconcile.clone.copy_pods import with_certificate
from cdi.reconcile.decision import Decision, operation_of
from cdi.reconcile.origin import Wait
from cdi.reconcile.pod import PORT, claim_owner
from cdi.reconcile.status import no

if TYPE_CHECKING:
    from cdi.reconcile.world import Claim, Service, Worker, World

PROGRAM: Final = "upload"


def takes_upload(world: World) -> bool:
    """It is filled by a pod that clients upload to."""
    return world.platform.cluster and operation_of(world.datavolume) == "Upload"


# --- what there is to be --------------------------------------------------------------------------------------------


def build_service(filled: Claim) -> dict[str, Any]:
    """By which the pod of a claim is found."""
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


def server_pod(filled: Claim, pod: dict[str, Any]) -> dict[str, Any]:
    """An importer's pod as one that waits for an upload."""
    made = with_certificate(pod, upload_pod(filled.name))
    made["metadata"]["labels"][LABEL_UPLOAD_TARGET] = filled.uid
    container = made["spec"]["containers"][0]
    container["args"] = [PROGRAM]
    container["readinessProbe"] = {
        "httpGet": {"path": "/healthz", "port": PORT, "scheme": "HTTPS"},
        "periodSeconds": 1,
        "timeoutSeconds": 5,
        # It is busy with an image, which is no reason to send its client away.
        "failureThreshold": 30,
    }
    return made


def certificate(namespace: str, claim: str, service: Service) -> ProvideCertificate:
    """Of the pod that fills a claim, for exactly the names that its Service is reached by."""
    name = f"{service.name}.{namespace}.svc"
    return ProvideCertificate(
        namespace=namespace,
        secret=upload_pod(claim),
        name=name,
        hosts=(name, f"{name}.cluster.local"),
        usage="server",
        owner={"apiVersion": "v1", "kind": "Service", "name": service.name, "uid": service.uid},
    )


# --- what there is to do --------------------------------------------------------------------------------------------


def service_of(world: World, filled: Claim) -> Service | None:
    """The Service, if it is this very claim's."""
    service = world.service
    return service if service is not None and service.claim == filled.uid and not service.deleting else None


def unreachable(world: World, filled: Claim | None) -> Wait | None:
    """A Service of that name that is not this claim's keeps a pod from being found."""
    service = world.service
    if not takes_upload(world) or filled is None or service is None or service_of(world, filled) is not None:
        return None
    where = f"Service {filled.namespace}/{service.name}"
    if service.deleting or not service.foreign:
        return Wait(reason=Reason.PENDING, message=f"{where} of an earlier volume is being removed")
    return Wait(
        reason=EventReason.ERR_STARTING_POD,
        message=f"{where} is somebody else's, and the upload would need that name. Try: delete it",
        event=EventReason.ERR_STARTING_POD,
    )


def before_server(world: World, filled: Claim) -> tuple[tuple[Action, ...], bool]:
    """What must be there before the pod is, and whether the pod can follow at once."""
    service = service_of(world, filled)
    if service is None:
        return (CreateObject(body=build_service(filled)),), False
    return (certificate(filled.namespace, filled.name, service),), True


def service_kept(world: World, filled: Claim | None) -> tuple[Action, ...]:
    """While the pod is there: its Service, if somebody took it away."""
    if not takes_upload(world) or filled is None or world.service is not None:
        return ()
    return (CreateObject(body=build_service(filled)),)


def withdrawn(world: World, filled: Claim | None) -> tuple[Action, ...]:
    """Once nobody is to upload any more."""
    service = service_of(world, filled) if filled is not None else None
    if service is None or filled is None:
        return ()
    return (DeleteObject(plural="services", namespace=filled.namespace, name=service.name, uid=service.uid),)


def ready_for_upload(world: World, claim: Claim, worker: Worker, decision: Decision) -> Decision:
    """A decision about a worker that runs, in the words of uploads: it is ready once its pod is, and stays so."""
    pod = worker.pod
    if not takes_upload(world) or pod is None:
        return decision
    if not pod.started or pod.hold is not None or not pod.ready:
        return replace(decision, state=replace(decision.state, phase=Phase.UPLOAD_SCHEDULED))
    state = replace(decision.state, phase=Phase.UPLOAD_READY)
    refused = worker.refused
    if refused is not None:
        text = f"{refused.message} Upload it again"
        told = EventFact(type="Warning", reason=EventReason.UPLOAD_FAILED, message=f"[{refused.code}] {text}")
        return replace(decision, state=replace(state, ready=no(refused.code, text)), events=(told,))
    if worker.progress is not None and worker.progress.done:
        return replace(decision, state=state)
    message = f"waits for: cdi upload -n {claim.namespace} {claim.name} FILE"
    return replace(decision, state=replace(state, ready=no(Reason.PENDING, message)))


def upload_marks() -> dict[str, str | None]:
    """Annotations of a claim that others look for."""
    return {ANN_UPLOAD_TARGET: "", ANN_UPLOAD_CLIENT_NAME: CLIENT_NAME}
