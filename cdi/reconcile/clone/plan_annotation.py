"""The plan of a clone, stored in an annotation of its target.

It is written before any object is created, so that later reconciles continue with the same strategy, and so that shared
objects are kept while any clone needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from cdi.api.annotations import CLONE_PLAN, CLONE_SNAPSHOT_REQUEST, CLONE_SOURCE_UID, CLONE_TARGET
from cdi.api.names import ANN_CLONE_REQUEST, ANN_CLONE_TYPE, ANN_OWNER_UID, GROUP, prime_claim, temporary_claim
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import PatchObject
from cdi.reconcile.clone.strategy import FALLBACK_SENTENCES, ClonePlan, Fallback
from cdi.reconcile.clone.types import CloneSource
from cdi.reconcile.types import PVC

ANNOTATION: Final = CLONE_PLAN.key
ANN_SNAPSHOT_REQUEST: Final = CLONE_SNAPSHOT_REQUEST.key
"""Annotation of the target: ``namespace/name`` of its source VolumeSnapshot, like `ANN_CLONE_REQUEST` for a PVC."""
ANN_TARGET: Final = CLONE_TARGET.key
"""Annotation of temporary objects that the target cannot own: ``namespace/name`` of the target."""
ANN_SOURCE_UID: Final = CLONE_SOURCE_UID.key
"""Annotation of temporary objects with the UID of their source.

For a snapshot this is its source PVC; for a PVC through which a snapshot is read, that snapshot.
"""
LABEL_TEMPORARY: Final = f"{GROUP}/storage.clone.temporary"
"""Label with the value ``true`` on objects that are deleted once no clone needs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClonePlanRecord:
    """The plan of one clone."""

    source: str
    """UID of the source PVC or snapshot."""
    strategy: CloneStrategy
    namespace: str
    """The source's namespace."""
    reason: str = ""
    """Reason of the fallback; empty if there was none."""
    message: str = ""
    snapshot: str = ""
    """Name of the temporary snapshot that it is created from, in the source's namespace."""
    restored: str = ""
    """Name of the temporary PVC through which a source snapshot is copied, in the snapshot's namespace."""
    begun: float = 0.0
    """Start of the strategy, in seconds since the epoch."""
    failed: tuple[str, ...] = ()
    """Strategies that timed out."""
    fallbacks: tuple[Fallback, ...] = ()
    """All reasons against the preferred strategy; `reason` is that of the decisive one."""
    size: int | None = None
    """Size in bytes of the source volume; None if unknown."""
    requested: str = ""
    """Strategy that the PVC's annotation ``cloneType`` requested before the plan was made; empty if none.

    Afterwards that annotation has the strategy in use.
    """

    @classmethod
    def read(cls, claim: PVC) -> Self | None:
        """Parse the PVC's annotation; return None if it is missing or invalid."""
        return CLONE_PLAN.read(cls, claim.annotations)

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Parse the annotation's text; return None if it is empty or invalid."""
        return CLONE_PLAN.parse(cls, text)

    @classmethod
    def of(
        cls, choice: ClonePlan, found: CloneSource, *, snapshot: str, restored: str, now: float, requested: str
    ) -> Self:
        """Return the record of a choice; `snapshot` and `restored` are used only if the chosen strategy needs them."""
        fallback = choice.fallback
        return cls(
            source=found.uid,
            namespace=found.namespace,
            strategy=choice.strategy,
            reason=fallback.reason if fallback is not None else "",
            message=choice.sentence,
            snapshot=snapshot if choice.snapshot_class is not None else "",
            restored=restored if choice.strategy is CloneStrategy.COPY else "",
            begun=now,
            fallbacks=choice.fallback_reasons,
            size=found.size,
            requested=requested,
        )

    @property
    def fallback_sentence(self) -> str:
        """The sentence about the decisive reason; empty if there was no fallback."""
        return FALLBACK_SENTENCES.get(self.reason, self.reason)

    def write(self) -> str:
        return CLONE_PLAN.format(self)

    def annotations(self) -> dict[str, str]:
        """Return the annotations of the target that store the plan and show its strategy."""
        return {ANNOTATION: self.write(), ANN_CLONE_TYPE: self.strategy.value}

    def is_outdated(self, prime: PVC) -> bool:
        """Return whether the temporary PVC was created for a strategy that is no longer used."""
        return prime.annotations.get(ANN_CLONE_TYPE, CloneStrategy.COPY.value) != self.strategy

    def fell_back(self, fallback: Fallback, *, restored: str, now: float) -> Self:
        """Return the record of the fallback to copying; a snapshot is then read through the PVC `restored`."""
        return replace(
            self,
            strategy=CloneStrategy.COPY,
            reason=fallback.reason,
            message=f"{CloneStrategy.COPY} instead of {self.strategy}: {fallback.message}",
            snapshot="",
            restored=restored,
            begun=now,
            failed=(*self.failed, self.strategy.value),
            fallbacks=(*self.fallbacks, fallback),
        )


def store_plan(claim: PVC, record: ClonePlanRecord | None, others: Mapping[str, str] | None = None) -> PatchObject:
    """Return the patch that stores a plan with its strategy; without one, the PVC has the requested strategy again."""
    removed = {ANNOTATION: None, ANN_CLONE_TYPE: requested_strategy(claim) or None}
    annotations = record.annotations() if record is not None else removed
    return PatchObject.of_claim(claim, {**annotations, **(others or {})}, version=claim.version)


def requested_strategy(claim: PVC) -> str:
    """Return the strategy that a user requested with the PVC's annotation ``cloneType``; empty if none."""
    record = ClonePlanRecord.read(claim)
    return record.requested if record is not None else claim.annotations.get(ANN_CLONE_TYPE, "")


def by_storage(claim: PVC) -> ClonePlanRecord | None:
    """Return the record of a clone made by the storage; None for any other."""
    record = ClonePlanRecord.read(claim)
    return record if record is not None and record.strategy is not CloneStrategy.COPY else None


def requested_source(annotations: Mapping[str, str]) -> tuple[str, str, bool] | None:
    """Return namespace and name of a target's source, and whether it is a snapshot; None if no annotation names one."""
    for annotation, snapshot in ((ANN_SNAPSHOT_REQUEST, True), (ANN_CLONE_REQUEST, False)):
        text = annotations.get(annotation)
        if text:
            namespace, _, name = text.partition("/")
            return namespace, name, snapshot
    return None


def is_temporary_for(prime: PVC, claim: PVC) -> bool:
    """Return whether `prime` was created for exactly this PVC."""
    if prime.namespace == claim.namespace:
        return prime.controller_uid == claim.uid
    return (
        prime.labels.get(LABEL_TEMPORARY) == "true"
        and prime.annotations.get(ANN_OWNER_UID) == claim.uid
        and prime.annotations.get(ANN_TARGET) == f"{claim.namespace}/{claim.name}"
    )


def temporary_pvc(claim: PVC) -> tuple[str, str]:
    """Return namespace and name of the prime or temporary PVC that is filled in place of `claim`.

    Storage clones only within a namespace, so the temporary PVC is in the source's namespace.
    """
    record = ClonePlanRecord.read(claim)
    if record is not None and record.strategy is not CloneStrategy.COPY and record.namespace != claim.namespace:
        return record.namespace, temporary_claim(claim.uid)
    return claim.namespace, prime_claim(claim.uid)
