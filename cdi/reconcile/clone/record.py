"""What was decided of a clone, kept in an annotation of its target.

It is written before anything is made of it, so that whoever comes later goes on with the same strategy, and so that
what clones share is kept for as long as one of them needs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from cdi.api.decode import DecodeError, decode
from cdi.api.names import ANN_CLONE_REQUEST, ANN_OWNER_UID, GROUP, prime_claim, temporary_claim
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.clone.plan import Choice, Fallback

if TYPE_CHECKING:
    from cdi.reconcile.clone.source import Found
    from cdi.reconcile.world import Claim

ANNOTATION: Final = f"{GROUP}/storage.clone.record"
ANN_SNAPSHOT_REQUEST: Final = f"{GROUP}/storage.clone.snapshotRequest"
"""Of the target: ``namespace/name`` of the VolumeSnapshot that it is cloned from, as `ANN_CLONE_REQUEST` of a claim."""
ANN_TARGET: Final = f"{GROUP}/storage.clone.target"
"""Of what a clone made for itself where the target cannot own it: ``namespace/name`` of the target."""
ANN_SOURCE_UID: Final = f"{GROUP}/storage.clone.sourceUID"
"""Of a temporary snapshot: the uid of the claim that it was taken of; of a temporary claim that a snapshot is read
through: the uid of that snapshot."""
LABEL_TEMPORARY: Final = f"{GROUP}/storage.clone.temporary"
"""``true`` on what goes once no clone needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneRecord:
    """One clone's course."""

    source: str
    """The uid of the claim or snapshot that is cloned."""
    strategy: CloneStrategy
    namespace: str
    """The source's."""
    reason: str = ""
    """Of a fallback."""
    message: str = ""
    snapshot: str = ""
    """The temporary snapshot that it is made of, in the source's namespace."""
    restored: str = ""
    """The temporary claim that the source, a snapshot, is read through to be copied; in the source's namespace."""
    begun: float = 0.0
    """Seconds since the epoch."""
    failed: tuple[str, ...] = ()
    """Strategies that were given up."""
    fallbacks: tuple[Fallback, ...] = ()
    """Everything that was in the way of what was wished; `reason` is of the one that counted."""
    size: int | None = None
    """Bytes of the source's volume; None where nobody knows."""

    @classmethod
    def read(cls, claim: Claim) -> Self | None:
        """None where there is none, or where somebody has altered it beyond reading."""
        return cls.parse(claim.annotations.get(ANNOTATION))

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """From the annotation's text."""
        if not text:
            return None
        try:
            return decode(cls, text)
        except DecodeError:
            return None

    @classmethod
    def of(cls, choice: Choice, found: Found, *, snapshot: str, restored: str, now: float) -> Self:
        """`snapshot` and `restored` count where the choice has a use for them."""
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
            fallbacks=choice.obstacles,
            size=found.size,
        )

    def write(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def gave_up(self, fallback: Fallback, *, restored: str, now: float) -> Self:
        """It is copied instead, a snapshot through the claim `restored`."""
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


def by_storage(claim: Claim) -> CloneRecord | None:
    """The record of a clone that the storage makes."""
    record = CloneRecord.read(claim)
    return record if record is not None and record.strategy is not CloneStrategy.COPY else None


def pinned(annotations: Mapping[str, str]) -> tuple[str, str, bool] | None:
    """Namespace and name of what a target is cloned from, and whether it is a snapshot; None where nothing is said."""
    for annotation, snapshot in ((ANN_SNAPSHOT_REQUEST, True), (ANN_CLONE_REQUEST, False)):
        text = annotations.get(annotation)
        if text:
            namespace, _, name = text.partition("/")
            return namespace, name, snapshot
    return None


def stands_in_for(prime: Claim, claim: Claim) -> bool:
    """Whether `prime` was made for this very claim."""
    if prime.namespace == claim.namespace:
        return prime.controller_uid == claim.uid
    return (
        prime.labels.get(LABEL_TEMPORARY) == "true"
        and prime.annotations.get(ANN_OWNER_UID) == claim.uid
        and prime.annotations.get(ANN_TARGET) == f"{claim.namespace}/{claim.name}"
    )


def stand_in(claim: Claim) -> tuple[str, str]:
    """Namespace and name of the claim that is filled in the place of `claim`.

    Storage clones within a namespace only: where the source is in another, so is what is made of it.
    """
    record = CloneRecord.read(claim)
    if record is not None and record.strategy is not CloneStrategy.COPY and record.namespace != claim.namespace:
        return record.namespace, temporary_claim(claim.uid)
    return claim.namespace, prime_claim(claim.uid)
