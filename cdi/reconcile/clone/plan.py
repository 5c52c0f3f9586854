"""How a volume is cloned: by the storage itself where that can be, or else by copying.

    the CDI object's cloneStrategyOverride ── the storage profile's cloneStrategy ── snapshot

is what is wanted; what stands in its way is a `Fallback` with a reason of its own.  The choice is data: an event and an
annotation tell it, ``cdi explain`` shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cdi.api.phases import EventReason
from cdi.api.quantity import human
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.clone.facts import SourceKind

STRATEGY_FAILED: Final = "CloneStrategyFailed"
"""Reason of a fallback from a strategy that did not come to its end in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is cloned."""

    kind: SourceKind
    volume_mode: str
    """Empty where nobody knows: of a snapshot that says nothing."""
    size: int | None
    """Of a volume made of it, bytes; None where nobody knows."""
    driver: str
    """The provisioner or snapshot driver; empty where nobody knows."""
    snapshot_class: str | None = None
    """The VolumeSnapshotClass by which a snapshot of it can be taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the clone goes."""

    storage_class: str
    provisioner: str
    volume_mode: str
    size: int | None
    """What is asked for, bytes; None for the source's."""
    populated: bool = True
    """Its volume may be made as that of another claim, and be given to it then."""
    expands: bool = False
    """Its class lets volumes grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Which strategy is to be taken, and who says so."""

    strategy: CloneStrategy
    why: str

    @classmethod
    def find(cls, override: str | None, profile: CloneStrategy | None) -> Wish:
        if override in set(CloneStrategy) and override is not None:
            return cls(strategy=CloneStrategy(override), why="the CDI object's cloneStrategyOverride")
        if profile is not None:
            return cls(strategy=profile, why="the StorageProfile's cloneStrategy")
        return cls(strategy=CloneStrategy.SNAPSHOT, why="what is done where nobody says otherwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """Why a volume is copied although the storage was to clone it."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is done."""

    strategy: CloneStrategy
    wish: Wish
    fallback: Fallback | None = None
    """The first thing in the way of what was wished; None where that is done."""
    grows: bool = False
    """The volume is made in the source's size and enlarged then."""
    snapshot_class: str | None = None
    """By which a snapshot is taken first."""
    obstacles: tuple[Fallback, ...] = field(default=())
    """Everything that is in the way."""

    @property
    def sentence(self) -> str:
        """For people."""
        if self.fallback is None:
            return f"{self.strategy}: {self.wish.why}"
        return f"{self.strategy} instead of {self.wish.strategy}: {self.fallback.message}"


def choose(source: Source, target: Target, wish: Wish, *, failed: frozenset[str] = frozenset()) -> Choice:
    """`failed` are the strategies that were tried and given up."""
    if wish.strategy is CloneStrategy.COPY:
        return Choice(strategy=CloneStrategy.COPY, wish=wish)
    found = tuple(_obstacles(source, target, wish.strategy, failed))
    if found:
        return Choice(strategy=CloneStrategy.COPY, wish=wish, fallback=found[0], obstacles=found)
    # Of a snapshot a volume is made in one way only, whatever the strategy is called.
    strategy = CloneStrategy.SNAPSHOT if source.kind == "VolumeSnapshot" else wish.strategy
    return Choice(
        strategy=strategy,
        wish=wish,
        grows=_grows(source, target),
        snapshot_class=source.snapshot_class
        if strategy is CloneStrategy.SNAPSHOT and source.kind == "PersistentVolumeClaim"
        else None,
    )


def _obstacles(source: Source, target: Target, strategy: CloneStrategy, failed: frozenset[str]) -> Iterator[Fallback]:
    snapshot = source.kind == "VolumeSnapshot"
    if not snapshot and strategy is CloneStrategy.SNAPSHOT and source.snapshot_class is None:
        yield Fallback(
            reason=EventReason.NO_VOLUME_SNAPSHOT_CLASS,
            message=f"there is no VolumeSnapshotClass for volumes of {source.driver or 'the source'}",
        )
    if not source.driver or source.driver != target.provisioner:
        held = source.driver or "storage that nobody names"
        yield Fallback(
            reason=EventReason.NO_PROVISIONER_MATCH if snapshot else EventReason.INCOMPATIBLE_PROVISIONERS,
            message=f"the source is held by {held}, and volumes of StorageClass {target.storage_class} "
            f"by {target.provisioner}",
        )
    elif not target.populated:
        yield Fallback(
            reason=EventReason.INCOMPATIBLE_PROVISIONERS,
            message=f"{target.provisioner} has no CSIDriver object, or the claim is filled in place",
        )
    if source.volume_mode and source.volume_mode != target.volume_mode:
        yield Fallback(
            reason=EventReason.INCOMPATIBLE_VOLUME_MODES,
            message=f"the source is {source.volume_mode} and the target {target.volume_mode}",
        )
    if _grows(source, target) and not target.expands:
        assert source.size is not None
        assert target.size is not None
        yield Fallback(
            reason=EventReason.NO_VOLUME_EXPANSION,
            message=f"the target is larger ({human(target.size)}) than the source ({human(source.size)}), "
            f"and StorageClass {target.storage_class} does not let volumes grow (allowVolumeExpansion)",
        )
    if strategy in failed or (snapshot and CloneStrategy.SNAPSHOT in failed):
        yield Fallback(reason=STRATEGY_FAILED, message=f"{strategy} did not come to its end in time")


def _grows(source: Source, target: Target) -> bool:
    return source.size is not None and target.size is not None and target.size > source.size
