"""What a transfer is decided from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cdi.api.transfer import ObjectTransfer
from cdi.reconcile.transfer.record import ANN_TRANSFER, TransferRecord, lock
from cdi.reconcile.world import Claim, Objects, Refusal


class TransferFacts(Protocol):
    """What else is observed for transfers; looking something up does no I/O."""

    def claim_body(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """The whole claim as the API has it."""

    def data_volume_body(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """The whole DataVolume as the API has it."""

    def holders(self, namespace: str, claim: str) -> tuple[str, ...]:
        """Pods, ours and everybody's, that have the volume of a claim or are about to: they have not ended."""

    def unfinished(self, uid: str) -> str:
        """The name of the ObjectTransfer with this uid while it has not ended; empty for any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferWorld:
    """Everything that decides what becomes of one ObjectTransfer."""

    now: float
    """Seconds since the epoch."""
    transfer: ObjectTransfer
    objects: Objects
    facts: TransferFacts
    refusal: Refusal | None = None
    """Set only for the reconcile right after a plan of this very world that could not be carried out."""

    @property
    def uid(self) -> str:
        return self.transfer.metadata.uid or ""

    @property
    def phase(self) -> str:
        """As it was written last; empty for a new one."""
        return (self.transfer.status.phase if self.transfer.status is not None else None) or ""

    @property
    def record(self) -> TransferRecord | None:
        """What was written down when it began."""
        return TransferRecord.read(self.transfer.status.data if self.transfer.status is not None else None)

    @property
    def source(self) -> tuple[str, str]:
        """Namespace and name."""
        source = self.transfer.spec.source
        return source.namespace, source.name

    @property
    def target(self) -> tuple[str, str]:
        """Namespace and name; of the two what is not given is the source's."""
        target, (namespace, name) = self.transfer.spec.target, self.source
        return target.namespace or namespace, target.name or name

    @property
    def claim(self) -> Claim | None:
        """The source, or the source DataVolume's."""
        return self.objects.claim(*self.source)

    @property
    def moves_data_volume(self) -> bool:
        return self.transfer.spec.source.kind == "DataVolume"

    def is_ours(self, annotations: Mapping[str, str] | None) -> bool:
        """Whether something at the target's place was made for this very transfer."""
        return (annotations or {}).get(ANN_TRANSFER) == self.uid

    def holds(self, claim: Claim) -> bool:
        """Whether this very transfer keeps a claim from going, and other transfers away from it."""
        return lock(self.uid) in claim.finalizers


def place(where: tuple[str, str]) -> str:
    """``namespace/name``."""
    return "/".join(where)
