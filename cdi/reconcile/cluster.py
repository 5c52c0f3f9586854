"""The world of one volume of a cluster, put together from what was observed."""

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
    """Of the DataVolume and the claim of this name; None where neither wants anything of us.

    A claim of any name that is being deleted is one of these as well, so that no worker holds it back: the prime and
    scratch claims are keys of their own then.
    """
    data_volume, claim = objects.data_volume(namespace, name), objects.claim(namespace, name)
    synthetic = data_volume is None
    if data_volume is None:
        if claim is None:
            return None
        if claim.deleting:
            data_volume = leaving(claim)
        elif claim.controller_kind in ("DataVolume", "PersistentVolumeClaim"):
            # Its DataVolume is gone, and so will it be; or it is itself filled for another.
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
    """With the prime claim, the scratch space and the worker, each only if it is this very claim's."""
    objects, namespace = world.objects, claim.namespace
    prime = objects.claim(*stand_in(claim))
    if prime is not None and stands_in_for(prime, claim):
        world = replace(world, prime=prime)
    filled = filled_claim(world, claim)
    if filled is None:
        return world
    scratch = objects.claim(namespace, scratch_claim(filled.name))
    taking = objects.worker(namespace, upload_pod(filled.name))
    # What a claim that is going away was filled by, nobody may be able to tell any more.
    worker = taking if taking is not None else objects.worker(namespace, importer_pod(filled.name))
    return replace(
        world,
        service=objects.service(namespace, upload_service(filled.name)),
        scratch=scratch if scratch is not None and scratch.controller_uid == filled.uid else None,
        worker=worker if worker is not None and worker.pod is not None and worker.pod.claim == filled.uid else None,
    )
