"""How a claim comes to its volume in a cluster, and what it waits for meanwhile.

A claim is filled in one of two ways.  *Populated*: its dataSourceRef names a VolumeImportSource, which keeps the
provisioner away; another claim, the prime, is filled in its place, and then gives it its volume.  *Direct*: the worker
writes into the claim itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdi.api.datavolume import ContentType, DataVolume
from cdi.api.names import ANN_IMMEDIATE_BINDING, ANN_PROVISIONER, ANN_PROVISIONER_BEFORE, ANN_USE_POPULATOR
from cdi.api.phases import EventReason, Phase, Reason
from cdi.reconcile.origin import Wait
from cdi.reconcile.storageclass import StorageClass
from cdi.reconcile.synthesis import names_populator
from cdi.reconcile.world import Claim, Objects, World


def is_populated(world: World, claim: Claim) -> bool:
    """Whether another claim is filled in the place of this one."""
    return world.platform.cluster and names_populator(claim.data_ref)


def filled_claim(world: World, claim: Claim) -> Claim | None:
    """The claim that the worker writes into; None where it is yet to be made."""
    return world.prime if is_populated(world, claim) else claim


def wants_population(dv: DataVolume, storage_class: StorageClass | None, objects: Objects) -> bool:
    """Whether a new claim of this class is to be populated; a volume given by name or by labels is there already."""
    spec = dv.spec.claim
    return (
        storage_class is not None
        and objects.csi_driver(storage_class.provisioner)
        and (dv.metadata.annotations or {}).get(ANN_USE_POPULATOR) != "false"
        and not (spec is not None and (spec.volume_name or spec.selector is not None))
    )


def provisioner_marks(storage_class: StorageClass | None, objects: Objects) -> dict[str, str]:
    """The annotations of a new claim that say who makes its volume.

    Kubernetes would write them itself, a moment later: by the one controller that binds all volumes of the cluster,
    which is allowed twenty writes a second, and spends one in four of ours on this.  Where volumes wait for a consumer
    it writes them only once there is one, and so it stays.
    """
    if storage_class is None or storage_class.waits or not objects.csi_driver(storage_class.provisioner):
        return {}
    return dict.fromkeys((ANN_PROVISIONER, ANN_PROVISIONER_BEFORE), storage_class.provisioner)


def class_of(dv: DataVolume, objects: Objects) -> StorageClass | None:
    """The class that a new claim is made of; None where there is none such.

    Disks of ``storage`` take the default class for virtual machines; ``pvc`` is taken as it is, and so gets the
    class that Kubernetes would give it.
    """
    wanted = dv.spec.claim
    if wanted is not None and wanted.storage_class_name is not None:
        return objects.storage_class(wanted.storage_class_name)
    return objects.default_storage_class(virtualization=for_machines(dv))


def for_machines(dv: DataVolume) -> bool:
    """Whether the default class for virtual machines counts."""
    return dv.spec.pvc is None and dv.spec.content_type != ContentType.ARCHIVE


def binds_at_once(dv: DataVolume, claim: Claim) -> bool:
    """Somebody asked not to wait for a consumer."""
    return ANN_IMMEDIATE_BINDING in {**(dv.metadata.annotations or {}), **claim.annotations}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standstill:
    """Nothing can be written yet."""

    phase: Literal[Phase.PENDING, Phase.WAIT_FOR_FIRST_CONSUMER, Phase.PENDING_POPULATION]
    wait: Wait


def standstill(world: World, claim: Claim) -> Standstill | None:
    """What keeps a worker from being given the volume of `claim` that is not bound; None where one can start.

    For a populated claim None means: the prime can be made, or a worker can be started on it.
    """
    storage_class = world.objects.storage_class(claim.storage_class) if claim.storage_class else None
    populated = is_populated(world, claim)
    if storage_class is None and (populated or not claim.volume_name):
        return Standstill(phase=Phase.PENDING, wait=_without_class(claim))
    waits = storage_class is not None and storage_class.waits
    if waits and not binds_at_once(world.datavolume, claim) and not (populated and claim.selected_node):
        phase: Literal[Phase.PENDING_POPULATION, Phase.WAIT_FOR_FIRST_CONSUMER]
        phase = Phase.PENDING_POPULATION if populated else Phase.WAIT_FOR_FIRST_CONSUMER
        text = (
            f"StorageClass {claim.storage_class} makes volumes for their first consumer, and PVC {claim.name} has none "
            f"yet. Try: start a pod or virtual machine that uses it, or set the annotation {ANN_IMMEDIATE_BINDING}"
        )
        return Standstill(phase=phase, wait=Wait(reason=phase.value, message=text))
    if waits:
        # The scheduler has the volume made once the worker's pod is there.
        return None
    waiting = world.prime if populated else claim
    if waiting is None or waiting.phase == "Bound":
        return None
    provisioner = storage_class.provisioner if storage_class is not None else "its administrator"
    message = waiting.why_pending or f"waits for its volume, which is made by {provisioner}"
    return Standstill(phase=Phase.PENDING, wait=Wait(reason=Reason.PENDING, message=message))


def _without_class(claim: Claim) -> Wait:
    if claim.storage_class:
        text = f"StorageClass {claim.storage_class} does not exist. Try: create it; the import begins by itself"
    elif claim.storage_class is None:
        text = (
            f"PVC {claim.name} names no StorageClass and there is no default one. "
            "Try: mark a StorageClass as the default one"
        )
    else:
        text = f"PVC {claim.name} wants a volume without a StorageClass, and there is none that fits. Try: create one"
    return Wait(reason=Reason.ERR_CLAIM_NOT_VALID, message=text, event=EventReason.ERR_CLAIM_NOT_VALID)
