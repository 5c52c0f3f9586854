"""Tests of the choice of a clone strategy, and of the reasons given for a fallback."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.clone.strategy import PreferredStrategy, Source, Target, choose_strategy

MIB = 1 << 20
CLAIM = Source(
    kind="PersistentVolumeClaim", volume_mode="Block", size=64 * MIB, driver="csi.example", snapshot_class="fast"
)
SNAPSHOT = Source(kind="VolumeSnapshot", volume_mode="Block", size=64 * MIB, driver="csi.example")
TARGET = Target(storage_class="gold", provisioner="csi.example", volume_mode="Block", size=64 * MIB)
ALL = tuple(CloneStrategy)


def wish(strategy):
    return PreferredStrategy(strategy=CloneStrategy(strategy), why="a test")


@pytest.mark.parametrize(
    ("override", "profile", "expected"),
    [
        ("copy", CloneStrategy.CSI_CLONE, "copy"),
        ("csi-clone", None, "csi-clone"),
        (None, CloneStrategy.CSI_CLONE, "csi-clone"),
        ("nonsense", CloneStrategy.COPY, "copy"),
        (None, None, "snapshot"),
    ],
)
def test_the_override_goes_before_the_profile_and_that_before_snapshot(override, profile, expected):
    assert PreferredStrategy.find(override, profile).strategy == expected


@pytest.mark.parametrize("strategy", ALL)
def test_what_is_wished_is_done_where_nothing_stands_in_its_way(strategy):
    choice = choose_strategy(CLAIM, TARGET, wish(strategy))
    assert choice.strategy is strategy
    assert choice.fallback is None
    assert choice.snapshot_class == ("fast" if strategy == "snapshot" else None)


@pytest.mark.parametrize(
    ("source", "target", "strategy", "reason"),
    [
        (replace(CLAIM, snapshot_class=None), TARGET, "snapshot", "NoVolumeSnapshotClass"),
        (CLAIM, replace(TARGET, provisioner="other"), "snapshot", "IncompatibleProvisioners"),
        (CLAIM, replace(TARGET, provisioner="other"), "csi-clone", "IncompatibleProvisioners"),
        (CLAIM, replace(TARGET, populated=False), "csi-clone", "NoPopulator"),
        (CLAIM, replace(TARGET, volume_mode="Filesystem"), "csi-clone", "IncompatibleVolumeModes"),
        (CLAIM, replace(TARGET, size=65 * MIB), "snapshot", "NoVolumeExpansion"),
        (SNAPSHOT, replace(TARGET, provisioner="other"), "snapshot", "NoProvisionerMatch"),
        (SNAPSHOT, replace(TARGET, volume_mode="Filesystem"), "csi-clone", "IncompatibleVolumeModes"),
        (replace(SNAPSHOT, driver=""), TARGET, "snapshot", "NoProvisionerMatch"),
    ],
)
def test_each_obstacle_has_its_reason(source, target, strategy, reason):
    choice = choose_strategy(source, target, wish(strategy))
    assert choice.strategy == "copy"
    assert choice.fallback is not None
    assert choice.fallback.reason == reason
    assert choice.fallback.message in choice.sentence
    assert strategy in choice.sentence


def test_a_larger_target_grows_where_the_class_lets_it():
    choice = choose_strategy(CLAIM, replace(TARGET, size=65 * MIB, expands=True), wish("csi-clone"))
    assert choice.strategy == "csi-clone"
    assert choice.grows


def test_a_smaller_target_takes_the_sources_size():
    """The request is a minimum, and the storage makes no volume smaller than the source."""
    choice = choose_strategy(CLAIM, replace(TARGET, size=MIB), wish("snapshot"))
    assert choice.strategy == "snapshot"
    assert not choice.grows


def test_a_snapshot_that_does_not_say_its_mode_is_taken_at_its_word():
    assert choose_strategy(replace(SNAPSHOT, volume_mode=""), TARGET, wish("snapshot")).fallback is None


def test_of_a_snapshot_volumes_are_made_whatever_the_strategy_is_called():
    choice = choose_strategy(SNAPSHOT, TARGET, wish("csi-clone"))
    assert choice.strategy == "snapshot"
    assert choice.snapshot_class is None


def test_a_strategy_that_failed_is_not_tried_again():
    choice = choose_strategy(CLAIM, TARGET, wish("csi-clone"), failed=frozenset({"csi-clone"}))
    assert choice.strategy == "copy"
    assert choice.fallback is not None
    assert choice.fallback.reason == "CloneStrategyFailed"


@given(
    source=st.builds(
        Source,
        kind=st.sampled_from(["PersistentVolumeClaim", "VolumeSnapshot"]),
        volume_mode=st.sampled_from(["Block", "Filesystem", ""]),
        size=st.sampled_from([None, MIB, 2 * MIB]),
        driver=st.sampled_from(["csi.example", "other", ""]),
        snapshot_class=st.sampled_from([None, "fast"]),
    ),
    target=st.builds(
        Target,
        storage_class=st.just("gold"),
        provisioner=st.sampled_from(["csi.example", "other"]),
        volume_mode=st.sampled_from(["Block", "Filesystem"]),
        size=st.sampled_from([None, MIB, 2 * MIB]),
        populated=st.booleans(),
        expands=st.booleans(),
    ),
    strategy=st.sampled_from(ALL),
    failed=st.sets(st.sampled_from(["snapshot", "csi-clone"])).map(frozenset),
)
def test_the_storage_clones_only_what_it_holds_itself_in_the_same_mode(source, target, strategy, failed):
    choice = choose_strategy(source, target, wish(strategy), failed=failed)
    if choice.strategy is not CloneStrategy.COPY:
        assert source.driver == target.provisioner
        assert target.populated
        assert source.volume_mode in ("", target.volume_mode)
        assert choice.strategy not in failed
        assert choice.strategy != "snapshot" or source.kind == "VolumeSnapshot" or choice.snapshot_class
        assert not choice.grows or target.expands
    assert (choice.strategy is CloneStrategy.COPY) == (choice.fallback is not None or strategy is CloneStrategy.COPY)


def test_every_reason_is_one_of_the_contract():
    reasons = set()
    for source, modes, expands, populated in itertools.product(
        (CLAIM, replace(CLAIM, snapshot_class=None), replace(CLAIM, driver="x"), replace(SNAPSHOT, driver="x")),
        ("Block", "Filesystem"), (True, False), (True, False),
    ):  # fmt: skip
        target = replace(TARGET, volume_mode=modes, expands=expands, populated=populated, size=128 * MIB)
        reasons |= {one.reason for one in choose_strategy(source, target, wish("snapshot")).fallback_reasons}
    assert reasons == {
        "NoVolumeSnapshotClass",
        "NoPopulator",
        "IncompatibleProvisioners",
        "IncompatibleVolumeModes",
        "NoVolumeExpansion",
        "NoProvisionerMatch",
    }
