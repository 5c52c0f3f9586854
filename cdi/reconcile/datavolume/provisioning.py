"""Provisioning of a PVC in a cluster, and what it waits for.

A PVC is filled in one of two ways. *Populated*: its dataSourceRef names a VolumeImportSource, so the provisioner
ignores it; another PVC, the prime, is filled instead, and its volume is then rebound. *Direct*: the worker writes into
the PVC itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdi.api.datavolume import ContentType, DataVolume
from cdi.api.names import ANN_IMMEDIATE_BINDING, ANN_PROVISIONER, ANN_PROVISIONER_BEFORE, ANN_USE_POPULATOR
from cdi.api.phases import EventReason, Phase, Reason
from cdi.reconcile.context import Lister, ReconcileContext
from cdi.reconcile.datavolume.annotated_claims import names_populator
from cdi.reconcile.settings import Platform
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.types import PVC, Pending


def is_populated(platform: Platform, claim: PVC) -> bool:
    """Return whether a prime PVC is filled in place of this one."""
    return platform.cluster and names_populator(claim.data_ref)


def worker_claim(context: ReconcileContext, claim: PVC) -> PVC | None:
    """Return the PVC that the worker writes into; None if it is yet to be created."""
    return context.prime if is_populated(context.platform, claim) else claim


def uses_populator(dv: DataVolume, storage_class: StorageClass | None, objects: Lister) -> bool:
    """Return whether a new PVC of this class uses the populator.

    A PVC that selects its volume by name or by labels does not, since that volume exists already.
    """
    spec = dv.spec.claim
    return (
        storage_class is not None
        and objects.csi_driver(storage_class.provisioner)
        and (dv.metadata.annotations or {}).get(ANN_USE_POPULATOR) != "false"
        and not (spec is not None and (spec.volume_name or spec.selector is not None))
    )


def provisioner_annotations(storage_class: StorageClass | None, objects: Lister) -> dict[str, str]:
    """Return the annotations of a new PVC that name its provisioner.

    Kubernetes would write them itself a moment later, from the one controller that binds all volumes of the cluster;
    that is limited to twenty writes per second, and these would take one in four of its writes for our PVCs. For
    classes with WaitForFirstConsumer Kubernetes writes them only once there is a consumer, and so it stays.
    """
    if (
        storage_class is None
        or storage_class.wait_for_first_consumer
        or not objects.csi_driver(storage_class.provisioner)
    ):
        return {}
    return dict.fromkeys((ANN_PROVISIONER, ANN_PROVISIONER_BEFORE), storage_class.provisioner)


def class_of(dv: DataVolume, objects: Lister) -> StorageClass | None:
    """Return the class for a new PVC; None if there is none.

    ``storage`` uses the default class for virtual machines; ``pvc`` is used unchanged, and so gets the class that
    Kubernetes would choose.
    """
    wanted = dv.spec.claim
    if wanted is not None and wanted.storage_class_name is not None:
        return objects.storage_class(wanted.storage_class_name)
    return objects.default_storage_class(virtualization=uses_virt_default_class(dv))


def uses_virt_default_class(dv: DataVolume) -> bool:
    """Return whether the default class for virtual machines is preferred."""
    return dv.spec.pvc is None and dv.spec.content_type != ContentType.ARCHIVE


def requests_immediate_binding(dv: DataVolume, claim: PVC) -> bool:
    """Return whether immediate binding is requested, without waiting for a consumer."""
    return ANN_IMMEDIATE_BINDING in {**(dv.metadata.annotations or {}), **claim.annotations}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningBlocker:
    """The reason why nothing can be written to a volume yet."""

    phase: Literal[Phase.PENDING, Phase.WAIT_FOR_FIRST_CONSUMER, Phase.PENDING_POPULATION]
    wait: Pending


def provisioning_blocker(context: ReconcileContext, claim: PVC) -> ProvisioningBlocker | None:
    """Return what blocks the start of a worker on the unbound PVC `claim`; None if one can start.

    For a PVC with a populator None means that the prime can be created, or that a worker can be started on it.
    """
    storage_class = context.objects.storage_class(claim.storage_class) if claim.storage_class else None
    populated = is_populated(context.platform, claim)
    if storage_class is None and (populated or not claim.volume_name):
        return ProvisioningBlocker(phase=Phase.PENDING, wait=_without_class(claim))
    waits = storage_class is not None and storage_class.wait_for_first_consumer
    if waits and not requests_immediate_binding(context.datavolume, claim) and not (populated and claim.selected_node):
        phase: Literal[Phase.PENDING_POPULATION, Phase.WAIT_FOR_FIRST_CONSUMER]
        phase = Phase.PENDING_POPULATION if populated else Phase.WAIT_FOR_FIRST_CONSUMER
        text = (
            f"StorageClass {claim.storage_class} has volumeBindingMode WaitForFirstConsumer, and no pod uses PVC "
            f"{claim.name} "
            f"yet. Try: start a pod or virtual machine that uses it, or set the annotation {ANN_IMMEDIATE_BINDING}"
        )
        return ProvisioningBlocker(phase=phase, wait=Pending(reason=phase.value, message=text))
    if waits:
        # The scheduler triggers provisioning once the worker's pod exists.
        return None
    waiting = context.prime if populated else claim
    if waiting is None or waiting.phase == "Bound":
        return None
    provisioner = storage_class.provisioner if storage_class is not None else "its administrator"
    message = waiting.provisioning_message or f"waiting for a volume to be provisioned by {provisioner}"
    return ProvisioningBlocker(phase=Phase.PENDING, wait=Pending(reason=Reason.PENDING, message=message))


def _without_class(claim: PVC) -> Pending:
    if claim.storage_class:
        text = f"StorageClass {claim.storage_class} does not exist. Try: create it; the import starts automatically"
    elif claim.storage_class is None:
        text = (
            f"PVC {claim.name} names no StorageClass and there is no default StorageClass. "
            "Try: mark a StorageClass as the default"
        )
    else:
        text = (
            f"PVC {claim.name} requests a PersistentVolume without a StorageClass, and no available one "
            "matches. Try: create one"
        )
    return Pending(reason=Reason.ERR_CLAIM_NOT_VALID, message=text, event=EventReason.ERR_CLAIM_NOT_VALID)
