"""Assembly of the context of one volume in a cluster."""

from __future__ import annotations

from dataclasses import replace

from cdi.api.names import importer_pod, scratch_claim, upload_pod, upload_service
from cdi.reconcile.clone.lister import CloneLister
from cdi.reconcile.clone.plan_annotation import is_temporary_for, temporary_pvc
from cdi.reconcile.context import Lister, ReconcileContext, Rejection
from cdi.reconcile.datavolume.annotated_claims import data_volume_for_claim, placeholder_for_deletion
from cdi.reconcile.datavolume.provisioning import worker_claim
from cdi.reconcile.settings import Platform, ResolvedConfig, Retries
from cdi.reconcile.types import PVC


def build_context(
    objects: Lister,
    namespace: str,
    name: str,
    *,
    now: float,
    config: ResolvedConfig,
    retries: Retries,
    platform: Platform,
    admitted: bool = True,
    turn: str = "",
    refusal: Rejection | None = None,
    clones: CloneLister | None = None,
) -> ReconcileContext | None:
    """Return the context for the DataVolume and PVC of this name; None if neither needs anything.

    A PVC that is being deleted is included whatever it is, so that its worker is stopped and does not delay the
    deletion; prime and scratch PVCs are then reconciled under their own names.
    """
    data_volume, claim = objects.data_volume(namespace, name), objects.claim(namespace, name)
    synthetic = data_volume is None
    if data_volume is None:
        if claim is None:
            return None
        if claim.deleting:
            data_volume = placeholder_for_deletion(claim)
        elif claim.controller_kind in ("DataVolume", "PersistentVolumeClaim"):
            # Its DataVolume is deleted, and it will be garbage-collected; or it is a prime PVC itself.
            return None
        else:
            data_volume = data_volume_for_claim(claim, objects)
        if data_volume is None:
            return None
    context = ReconcileContext(
        now=now,
        datavolume=data_volume,
        objects=objects,
        worker=None,
        layout=None,
        config=config,
        retries=retries,
        platform=platform,
        has_worker_slot=admitted,
        queue_message=turn,
        synthetic=synthetic,
        refusal=refusal,
        clones=clones,
    )
    return context if claim is None else _with_worker_objects(context, claim)


def _with_worker_objects(context: ReconcileContext, claim: PVC) -> ReconcileContext:
    """Add the prime PVC, the scratch PVC and the worker, if they belong to exactly this PVC."""
    objects, namespace = context.objects, claim.namespace
    prime = objects.claim(*temporary_pvc(claim))
    if prime is not None and is_temporary_for(prime, claim):
        context = replace(context, prime=prime)
    filled = worker_claim(context, claim)
    if filled is None:
        return context
    scratch = objects.claim(namespace, scratch_claim(filled.name))
    taking = objects.worker(namespace, upload_pod(filled.name))
    # For a PVC that is being deleted the source may not be known any more, so look for both kinds of pods.
    worker = taking if taking is not None else objects.worker(namespace, importer_pod(filled.name))
    return replace(
        context,
        service=objects.service(namespace, upload_service(filled.name)),
        scratch=scratch if scratch is not None and scratch.controller_uid == filled.uid else None,
        worker=worker if worker is not None and worker.pod is not None and worker.pod.claim == filled.uid else None,
    )
