"""Input for reconciling ObjectTransfers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cdi.api.annotations import TRANSFER_UID
from cdi.api.transfer import ObjectTransfer
from cdi.reconcile.context import Lister, Rejection
from cdi.reconcile.objecttransfer.record import TransferRecord, lock_finalizer
from cdi.reconcile.types import PVC


class TransferFacts(Protocol):
    """Read-only lookups of facts for transfers, without I/O."""

    def claim_body(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Return the whole PVC as an API object."""

    def data_volume_body(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Return the whole DataVolume as an API object."""

    def pods_using(self, namespace: str, claim: str) -> tuple[str, ...]:
        """Return the names of unfinished pods, including CDI's, that use the volume of a PVC or are about to."""

    def unfinished(self, uid: str) -> str:
        """Return the name of the unfinished ObjectTransfer with this UID; empty if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferWorld:
    """The complete input for reconciling one ObjectTransfer."""

    now: float
    """Seconds since the epoch."""
    transfer: ObjectTransfer
    objects: Lister
    facts: TransferFacts
    refusal: Rejection | None = None
    """The rejected action of the previous plan, set only for the reconcile that follows at once with the same input."""

    @property
    def uid(self) -> str:
        return self.transfer.metadata.uid or ""

    @property
    def phase(self) -> str:
        """The last written phase; empty for a new transfer."""
        return (self.transfer.status.phase if self.transfer.status is not None else None) or ""

    @property
    def record(self) -> TransferRecord | None:
        """The record written at the start of the transfer."""
        return TransferRecord.read(self.transfer.status.data if self.transfer.status is not None else None)

    @property
    def source(self) -> tuple[str, str]:
        """Namespace and name of the source."""
        source = self.transfer.spec.source
        return source.namespace, source.name

    @property
    def target(self) -> tuple[str, str]:
        """Namespace and name of the target; either defaults to the source's."""
        target, (namespace, name) = self.transfer.spec.target, self.source
        return target.namespace or namespace, target.name or name

    @property
    def claim(self) -> PVC | None:
        """The source PVC, or that of the source DataVolume."""
        return self.objects.claim(*self.source)

    @property
    def moves_data_volume(self) -> bool:
        return self.transfer.spec.source.kind == "DataVolume"

    def is_ours(self, annotations: Mapping[str, str] | None) -> bool:
        """Return whether an object with the target's name was created by this very transfer."""
        return TRANSFER_UID.read(annotations or {}) == self.uid

    def holds(self, claim: PVC) -> bool:
        """Return whether this very transfer has its finalizer on a PVC."""
        return lock_finalizer(self.uid) in claim.finalizers


def place(where: tuple[str, str]) -> str:
    """Return ``namespace/name``."""
    return "/".join(where)
