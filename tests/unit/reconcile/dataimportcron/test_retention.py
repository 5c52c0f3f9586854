"""Retention: what is removed, and what never is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.annotations import LAST_USE
from cdi.api.dataimportcron import ChannelStatus
from cdi.api.datavolume import DataVolume
from cdi.reconcile.actions import DeleteObject
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.dataimportcron.channels import plan_channels
from cdi.reconcile.dataimportcron.retention import MAX_FAILED, plan_retention
from cdi.reconcile.dataimportcron.versions import History
from tests.unit.reconcile.dataimportcron.stored_objects import (
    DAY,
    MANAGED,
    NAMESPACE,
    NOW,
    OURS,
    StoredObjects,
    context,
    data_source,
    digest,
    imported,
    name,
    volume,
)
from tests.unit.reconcile.dataimportcron.test_versions import OPERATIONS, apply


def used(claim, day):
    moment = f"2026-01-{day:02}T00:00:00.000000000Z"
    return replace(claim, annotations={**claim.annotations, LAST_USE.key: moment})


def volumes(*numbers, **options):
    """Return PVCs of versions that were used in this order."""
    return [used(volume(name(number), **options), day) for day, number in enumerate(numbers, start=1)]


def snapshot(number, day):
    moment = f"2026-01-{day:02}T00:00:00.000000000Z"
    return Snapshot(
        namespace=NAMESPACE,
        name=name(number),
        uid=f"snap-{number}",
        labels=OURS,
        annotations={LAST_USE.key: moment},
    )


def run(history, objects, *, channels=(), cron=None, **settings):
    cron = {"importsToKeep": 1, **(cron or {})}
    given = context(objects, settings, **cron)
    offered = history.offered(given.settings).version
    return plan_retention(given, history, offered, [ChannelStatus(name="c", version=one) for one in channels])


def removed(plan):
    return {action.name for action in plan.actions if isinstance(action, DeleteObject)}


def test_outdated_versions_are_removed_with_a_record_and_an_event():
    plan = run(imported(1, 2, 3), StoredObjects(volumes(1, 2, 3)))
    assert removed(plan) == {name(1), name(2)}
    version = plan.history.get(name(1))
    assert (version.state, version.reason) == ("Removed", "Outdated")
    assert "importsToKeep is 1" in version.message
    assert "2026-01-01T00:00:00Z" in version.message
    assert {event.reason for event in plan.events} == {"VersionRemoved"}
    assert any(name(1) in event.message for event in plan.events)


@pytest.mark.parametrize(("keep", "count"), [(None, 3), (0, 1), (1, 1), (2, 2), (9, 5)])
def test_the_number_of_versions_kept(keep, count):
    cron = {} if keep is None else {"importsToKeep": keep}
    given = context(StoredObjects(volumes(1, 2, 3, 4, 5)), **cron)
    history = imported(1, 2, 3, 4, 5)
    plan = plan_retention(given, history, history.versions[0], ())
    assert len(removed(plan)) == 5 - count
    assert name(5) not in removed(plan)


def test_those_used_last_are_kept_whenever_they_were_imported():
    claims = volumes(2, 3, 1, 4)
    plan = run(imported(1, 2, 3, 4), StoredObjects(claims), cron={"importsToKeep": 2})
    assert removed(plan) == {name(2), name(3)}


def test_nothing_is_removed_if_garbage_collection_is_off():
    history = imported(1, 2, 3)
    plan = run(history, StoredObjects(volumes(1, 2, 3)), cron={"garbageCollect": "Never"})
    assert (plan.actions, plan.events, plan.history) == ((), (), history)


def test_a_data_volume_is_deleted_instead_of_its_volume():
    metadata = {"name": name(1), "namespace": NAMESPACE, "uid": "dv", "labels": OURS}
    dv = DataVolume.model_validate({"metadata": metadata, "spec": {}, "status": {"phase": "Succeeded"}})
    plan = run(imported(1, 2), StoredObjects(volumes(1, 2), data_volumes=[dv]))
    assert [(action.plural, action.uid) for action in plan.actions] == [("datavolumes", "dv")]


def test_snapshots_are_counted_separately():
    objects = StoredObjects(volumes(1, 2), [snapshot(3, 3), snapshot(4, 4)])
    plan = run(imported(1, 2, 3, 4), objects)
    assert {(action.plural, action.name) for action in plan.actions} == {
        ("persistentvolumeclaims", name(1)),
        ("volumesnapshots", name(3)),
    }


def test_a_version_with_two_forms_stays_available_while_one_of_them_is_kept():
    objects = StoredObjects(volumes(1, 2), [snapshot(1, 1)])
    plan = run(imported(1, 2), objects)
    assert [action.plural for action in plan.actions] == ["persistentvolumeclaims"]
    assert plan.history.get(name(1)).state == "Available"
    assert plan.events == ()


@pytest.mark.parametrize(
    "protection",
    [
        {"pin": name(1)},
        {"pin": digest(1)[:12]},
        {"pin": "fedora-0"},
        {"channels": [name(1)]},
        {"objects": {"clones": {f"{NAMESPACE}/{name(1)}": ("vms/machine",)}}},
        {"objects": {"data_sources": [data_source(MANAGED, name(1))]}},
        {"cron": {"status": {"currentImports": [{"DataVolumeName": name(1), "Digest": digest(1)}]}}},
    ],
)
def test_a_version_in_use_is_never_removed(protection):
    protection = dict(protection)
    objects = StoredObjects(volumes(1, 2, 3), **protection.pop("objects", {}))
    plan = run(imported(1, 2, 3), objects, **protection)
    assert name(1) not in removed(plan)
    assert name(3) not in removed(plan)


def test_after_a_rollback_neither_the_offered_nor_the_newest_version_is_removed():
    plan = run(imported(1, 2, 3).rolled_back(name(1)), StoredObjects(volumes(1, 2, 3)))
    assert removed(plan) == {name(2)}


def test_the_last_good_version_is_kept_although_newer_ones_failed():
    history = imported(1)
    for number in (2, 3):
        history = history.found(digest(number), NOW).failed(name(number), "X", "x")
    plan = run(history, StoredObjects(volumes(1, 2, 3)))
    assert removed(plan) == set()


def test_failed_versions_are_counted_apart_and_bounded():
    history = imported(1, 2)
    numbers = range(3, 9)
    for number in numbers:
        history = history.found(digest(number), NOW).failed(name(number), "X", "x")
    plan = run(history, StoredObjects(volumes(1, 2, *numbers)), cron={"importsToKeep": 2})
    assert removed(plan) == {name(number) for number in list(numbers)[:-MAX_FAILED]}
    version = plan.history.get(name(3))
    assert (version.state, version.removed is not None) == ("Failed", True)


def test_the_volume_of_a_revoked_version_is_left_to_the_administrator():
    plan = run(imported(1, 2, 3).revoke(name(1), "bad"), StoredObjects(volumes(1, 2, 3)))
    assert removed(plan) == {name(2)}


def test_a_version_is_kept_for_a_time_after_its_import():
    history = imported(1, 2, 3, now=NOW - 10 * DAY, apart=4 * DAY)
    plan = run(history, StoredObjects(volumes(1, 2, 3)), keepFor="168h")
    assert removed(plan) == {name(1)}
    assert plan.requeue_after == pytest.approx(DAY + 10)


def test_a_version_is_kept_for_a_time_after_its_last_clone():
    claims = [
        volume(name(1), lastCloned="2027-01-14T00:00:00Z"),
        volume(name(2), lastCloned="2026-06-01T00:00:00Z"),
        volume(name(3)),
    ]
    plan = run(imported(1, 2, 3), StoredObjects(claims), keepUnusedFor="168h")
    assert removed(plan) == {name(2)}


def test_a_volume_that_is_not_the_crons_is_never_removed():
    stranger = used(volume("backup"), 1)
    unlabelled = used(volume(name(1), labels={}), 1)
    plan = run(imported(1, 2), StoredObjects([stranger, unlabelled, *volumes(2)]))
    assert plan.actions == ()


@given(OPERATIONS, st.sampled_from([{}, {"hold": "true"}, {"pin": name(2)}]), st.integers(0, 2))
def test_what_is_offered_in_a_channel_or_pinned_always_keeps_its_volume(operations, settings, keep):
    history = History(data_source="fedora")
    rules = {"channels": json.dumps({"age": {"after": "2s"}, "behind": {"behind": 1}}), **settings}
    objects = StoredObjects()
    channels: tuple[ChannelStatus, ...] = ()
    for step, (operation, number) in enumerate(operations):
        if operation == "removed":
            objects.claims.pop((NAMESPACE, name(number)), None)
        history = apply(history, operation, number, NOW + step)
        for version in history.versions:
            if version.removed is None and version.state != "Importing":
                objects.claims.setdefault((NAMESPACE, version.name), used(volume(version.name), step % 28 + 1))
        given_context = context(objects, rules, now=NOW + step, importsToKeep=keep)
        offered = history.offered(given_context.settings).version
        if offered is not None:
            history = history.offering(offered.name, NOW + step)
        channels = plan_channels(given_context, history, offered, channels).channels
        available = [one for one in history.versions if one.state == "Available"]
        plan = plan_retention(given_context, history, offered, channels)
        gone = removed(plan)
        assert gone <= {one.name for one in history.versions}
        assert offered is None or offered.name not in gone
        assert not gone & {one.version for one in channels}
        assert name(2) not in gone or "pin" not in settings
        assert not available or available[0].name not in gone
        assert {one.name for one in plan.history.versions if one.removed} >= gone
        for one in gone:
            del objects.claims[NAMESPACE, one]
        history = plan.history
        assert plan_retention(given_context, history, offered, channels).actions == ()
