"""Choice of the clone strategy: by the storage if possible, otherwise by copying.

    the PVC's annotation cloneType ── the CDI object's cloneStrategyOverride
                                   ── the storage profile's cloneStrategy ── snapshot

is the preferred strategy; each reason against it is a `Fallback`. The choice is recorded in an event and an annotation,
and ``cdi explain`` shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from cdi.api.names import ANN_CLONE_TYPE
from cdi.api.phases import EventReason
from cdi.api.quantity import human
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.clone.types import SourceKind

STRATEGY_FAILED: Final = "CloneStrategyFailed"
"""Reason of a fallback from a strategy that timed out."""
FALLBACK_SENTENCES: Final[Mapping[str, str]] = {
    EventReason.NO_VOLUME_SNAPSHOT_CLASS: "No compatible volumesnapshotclass found",
    EventReason.INCOMPATIBLE_VOLUME_MODES: "The volume modes of source and target are incompatible",
    EventReason.NO_VOLUME_EXPANSION: "No volume expansion is possible",
    EventReason.NO_PROVISIONER_MATCH: "The storageclass provisioner does not match the volumesnapshotcontent driver",
    EventReason.INCOMPATIBLE_PROVISIONERS: "Provisioners are incompatible",
    EventReason.NO_POPULATOR: "No populator is used for this PVC",
    STRATEGY_FAILED: "The storage did not complete the clone in time",
}
"""Sentence for each reason.

All but the last two equal those of KubeVirt's CDI to the letter, because programs compare them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The properties of a source."""

    kind: SourceKind
    volume_mode: str
    """Empty if unknown, as for a snapshot without that information."""
    size: int | None
    """Size in bytes of a volume created from it; None if unknown."""
    driver: str
    """The provisioner or snapshot driver; empty if unknown."""
    snapshot_class: str | None = None
    """The VolumeSnapshotClass for snapshots of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The properties of a target."""

    storage_class: str
    provisioner: str
    volume_mode: str
    size: int | None
    """Requested size in bytes; None for the source's size."""
    populated: bool = True
    """Whether its volume may be created for a temporary PVC and then rebound."""
    expands: bool = False
    """Whether its class allows volume expansion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferredStrategy:
    """The preferred strategy and the setting that it comes from."""

    strategy: CloneStrategy
    why: str

    @classmethod
    def find(
        cls, override: str | None, profile: CloneStrategy | None, requested: CloneStrategy | None = None
    ) -> PreferredStrategy:
        """Return the preferred strategy; `requested` is that of the target PVC's own annotation."""
        if requested is not None:
            return cls(strategy=requested, why=f"the PVC's annotation {ANN_CLONE_TYPE}")
        if override in set(CloneStrategy) and override is not None:
            return cls(strategy=CloneStrategy(override), why="the CDI object's cloneStrategyOverride")
        if profile is not None:
            return cls(strategy=profile, why="the StorageProfile's cloneStrategy")
        return cls(strategy=CloneStrategy.SNAPSHOT, why="the default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """The reason why a volume is copied by pods instead of cloned by the storage."""

    reason: str
    message: str
    """The cause in this case, with names and sizes."""

    @property
    def text(self) -> str:
        """The sentence for the reason, and the cause, as the message of an event."""
        return f"{FALLBACK_SENTENCES[self.reason]}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClonePlan:
    """The chosen strategy."""

    strategy: CloneStrategy
    wish: PreferredStrategy
    fallback: Fallback | None = None
    """The first reason against the preferred strategy; None if that is used."""
    grows: bool = False
    """Whether the volume is created in the source's size and then expanded."""
    snapshot_class: str | None = None
    """The VolumeSnapshotClass of the snapshot to take first; None if none is taken."""
    fallback_reasons: tuple[Fallback, ...] = field(default=())
    """All reasons against the preferred strategy."""

    @property
    def sentence(self) -> str:
        """The choice as a text for users."""
        if self.fallback is None:
            return f"{self.strategy}: {self.wish.why}"
        return f"{self.strategy} instead of {self.wish.strategy}: {self.fallback.message}"


def choose_strategy(
    source: Source, target: Target, wish: PreferredStrategy, *, failed: frozenset[str] = frozenset()
) -> ClonePlan:
    """Choose the strategy.

    Args:
        source: The source.
        target: The target.
        wish: The preferred strategy.
        failed: Strategies that were tried and timed out.

    """
    if wish.strategy is CloneStrategy.COPY:
        return ClonePlan(strategy=CloneStrategy.COPY, wish=wish)
    found = tuple(_obstacles(source, target, wish.strategy, failed))
    if found:
        return ClonePlan(strategy=CloneStrategy.COPY, wish=wish, fallback=found[0], fallback_reasons=found)
    # A volume is restored from a snapshot in the same way with either strategy.
    strategy = CloneStrategy.SNAPSHOT if source.kind == "VolumeSnapshot" else wish.strategy
    return ClonePlan(
        strategy=strategy,
        wish=wish,
        grows=_grows(source, target),
        snapshot_class=source.snapshot_class
        if strategy is CloneStrategy.SNAPSHOT and source.kind == "PersistentVolumeClaim"
        else None,
    )


def _obstacles(source: Source, target: Target, strategy: CloneStrategy, failed: frozenset[str]) -> Iterator[Fallback]:
    snapshot = source.kind == "VolumeSnapshot"
    if not target.populated:
        yield Fallback(
            reason=EventReason.NO_POPULATOR,
            message=(
                f"{target.provisioner} has no CSIDriver object, or the PVC is not populated through a temporary one"
            ),
        )
    if not snapshot and strategy is CloneStrategy.SNAPSHOT and source.snapshot_class is None:
        yield Fallback(
            reason=EventReason.NO_VOLUME_SNAPSHOT_CLASS,
            message=f"there is no VolumeSnapshotClass for volumes of {source.driver or 'the source'}",
        )
    if not source.driver or source.driver != target.provisioner:
        held = source.driver or "an unknown provisioner"
        yield Fallback(
            reason=EventReason.NO_PROVISIONER_MATCH if snapshot else EventReason.INCOMPATIBLE_PROVISIONERS,
            message=f"the source is provisioned by {held}, and volumes of StorageClass {target.storage_class} "
            f"by {target.provisioner}",
        )
    if source.volume_mode and source.volume_mode != target.volume_mode:
        yield Fallback(
            reason=EventReason.INCOMPATIBLE_VOLUME_MODES,
            message=f"the source's volumeMode is {source.volume_mode} and the target's is {target.volume_mode}",
        )
    if _grows(source, target) and not target.expands:
        assert source.size is not None
        assert target.size is not None
        yield Fallback(
            reason=EventReason.NO_VOLUME_EXPANSION,
            message=f"the target is larger ({human(target.size)}) than the source ({human(source.size)}), "
            f"and StorageClass {target.storage_class} does not allow expansion (allowVolumeExpansion)",
        )
    if strategy in failed or (snapshot and CloneStrategy.SNAPSHOT in failed):
        yield Fallback(reason=STRATEGY_FAILED, message=f"{strategy} did not finish in time")


def _grows(source: Source, target: Target) -> bool:
    return source.size is not None and target.size is not None and target.size > source.size
