"""Assembly of the world of one volume in a cluster."""

from __future__ import annotations

from dataclasses import replace

from cdi.api.names import importer_pod, scratch_claim, upload_pod, upload_service
from cdi.reconcile.binding import filled_claim
from cdi.reconcile.clone.facts import CloneFacts
from cdi.reconcile.clone.record import stand_in, stands_in_for
from cdi.reconcile.synthesis import leaving, synthesise
from cdi.reconcile.world import Claim, Config, Objects, Platform, Refusal, Retries, World


def observe(
    objects: Objects,
    namespace: str,
    name: str,
    *,
    now: float,
    config: Config,
    retries: Retries,
    platform: Platform,
    admitted: bool = True,
    turn: str = "",
    refusal: Refusal | None = None,
    clones: CloneFacts | None = None,
) -> World | None:
    """Return the world for the DataVolume and PVC of this name; None if neither needs anything.

    A PVC that is being deleted is included whatever it is, so that its worker is stopped and does not delay the
    deletion; prime and scratch PVCs are then reconciled under their own names.
    """
    data_volume, claim = objects.data_volume(namespace, name), objects.claim(namespace, name)
    synthetic = data_volume is None
    if data_volume is None:
        if claim is None:
            return None
        if claim.deleting:
            data_volume = leaving(claim)
        elif claim.controller_kind in ("DataVolume", "PersistentVolumeClaim"):
            # Its DataVolume is deleted, and it will be garbage-collected; or it is a prime PVC itself.
            return None
        else:
            data_volume = synthesise(claim, objects)
        if data_volume is None:
            return None
    world = World(
        now=now,
        datavolume=data_volume,
        objects=objects,
        worker=None,
        layout=None,
        config=config,
        retries=retries,
        platform=platform,
        admitted=admitted,
        turn=turn,
        synthetic=synthetic,
        refusal=refusal,
        clones=clones,
    )
    return world if claim is None else _with_helpers(world, claim)


def _with_helpers(world: World, claim: Claim) -> World:
    """Add the prime PVC, the scratch PVC and the worker, if they belong to exactly this PVC."""
    objects, namespace = world.objects, claim.namespace
    prime = objects.claim(*stand_in(claim))
    if prime is not None and stands_in_for(prime, claim):
        world = replace(world, prime=prime)
    filled = filled_claim(world, claim)
    if filled is None:
        return world
    scratch = objects.claim(namespace, scratch_claim(filled.name))
    taking = objects.worker(namespace, upload_pod(filled.name))
    # For a PVC that is being deleted the source may not be known any more, so look for both kinds of pods.
    worker = taking if taking is not None else objects.worker(namespace, importer_pod(filled.name))
    return replace(
        world,
        service=objects.service(namespace, upload_service(filled.name)),
        scratch=scratch if scratch is not None and scratch.controller_uid == filled.uid else None,
        worker=worker if worker is not None and worker.pod is not None and worker.pod.claim == filled.uid else None,
    )
