"""Channels: which version each further DataSource offers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.dataimportcron import ChannelStatus, ProofStatus
from cdi.reconcile.actions import DeleteObject
from cdi.reconcile.dataimportcron.channels import plan_channels
from cdi.reconcile.dataimportcron.versions import History
from tests.unit.reconcile.dataimportcron.stored_objects import (
    DAY,
    MANAGED,
    NAMESPACE,
    NOW,
    StoredObjects,
    context,
    data_source,
    digest,
    imported,
    name,
)
from tests.unit.reconcile.dataimportcron.test_versions import OPERATIONS, apply


def plan(history, rules, before=(), objects=None, *, now=NOW, problem="", **settings):
    settings["channels"] = json.dumps(rules)
    given = context(objects, settings, now=now, problem=problem)
    offered = history.offered(given.settings).version
    channels = [ChannelStatus(name=key, version=version) for key, version in dict(before).items()]
    return plan_channels(given, history, offered, channels)


def offers(result):
    return {one.name: one.version for one in result.channels}


def one(history, rule, before=None, **settings):
    result = plan(history, {"c": rule}, {"c": before} if before else {}, **settings)
    return offers(result)["c"]


def test_a_channel_by_age_follows_when_the_newer_version_has_been_offered_long_enough():
    history = imported(1, 2, now=NOW - 9 * DAY, apart=7 * DAY)
    assert one(history, {"after": "168h"}) == name(1)
    result = plan(history, {"c": {"after": "168h"}}, {"c": name(1)})
    assert offers(result) == {"c": name(1)}
    assert result.requeue_after == pytest.approx(5 * DAY + 20)
    assert one(history, {"after": "168h"}, name(1), now=NOW + 6 * DAY) == name(2)


def test_a_channel_behind_offers_the_version_before_the_newest():
    assert one(imported(1, 2, 3), {"behind": 1}) == name(2)
    assert one(imported(1, 2, 3).revoke(name(2), "bad"), {"behind": 1}, name(2)) == name(1)
    # After a rollback the distance is counted from what is offered.
    assert one(imported(1, 2, 3).rolled_back(name(2)), {"behind": 1}, name(2)) == name(1)


def test_a_channel_of_proven_versions_offers_only_those_that_booted():
    history = imported(1)
    history = history.found(digest(2), NOW).succeeded(name(2), NOW, proof=True)
    history = (
        history.proven(name(2), ProofStatus(booted=True)).found(digest(3), NOW).succeeded(name(3), NOW, proof=False)
    )
    assert one(history, {"proven": True}) == name(2)


def test_a_rule_that_nothing_satisfies_keeps_what_the_channel_had():
    assert one(imported(1, 2), {"after": "80000h"}, name(1)) == name(1)
    assert one(imported(1), {"behind": 5}, name(1)) == name(1)


def test_a_manual_channel_changes_by_promotion_only():
    assert one(imported(1, 2, 3), {"manual": True}, name(1)) == name(1)
    assert one(imported(1, 2, 3), {"manual": True}) is None
    # A rollback of the managed DataSource does not concern it.
    assert one(imported(1, 2, 3).rolled_back(name(1)), {"manual": True}, name(2)) == name(2)


def test_a_version_promoted_by_hand_stays_until_the_rule_chooses_a_newer_one():
    history = imported(1, 2, 3, now=NOW - 20 * DAY, apart=9 * DAY)
    assert one(history, {"after": "168h"}) == name(2)
    assert one(history, {"after": "168h"}, name(3)) == name(3)


@pytest.mark.parametrize("rule", [{"manual": True}, {"after": "1s"}, {"behind": 1}])
@pytest.mark.parametrize("settings", [{}, {"hold": "true"}])
def test_a_revoked_version_leaves_every_channel_at_once_and_the_next_best_takes_its_place(rule, settings):
    history = imported(1, 2, 3).revoke(name(2), "bad")
    result = plan(history, {"c": rule}, {"c": name(2)}, **settings)
    assert offers(result)["c"] in (name(1), name(3))
    assert result.events[0].reason == "ChannelMoved"


def test_a_channel_without_any_usable_version_is_emptied_and_says_why():
    result = plan(imported(1).revoke(name(1), "bad"), {"c": {"manual": True}}, {"c": name(1)})
    assert offers(result) == {"c": None}
    assert result.events[0].reason == "ChannelEmpty"
    assert 'channel "c" offers no version' in result.problems[0]


def test_a_rolled_back_version_leaves_the_channels_that_follow_a_rule():
    history = imported(1, 2, 3).rolled_back(name(1))
    assert one(history, {"after": "1s"}, name(3)) == name(1)


def test_hold_stops_channels_that_follow_a_rule():
    assert one(imported(1, 2, 3), {"behind": 1}, name(1), hold="true") == name(1)


def test_a_channel_removed_from_the_settings_is_deleted_with_its_data_source():
    objects = StoredObjects(data_sources=[data_source("old", name(1)), data_source("stranger", name(1), ours=False)])
    result = plan(imported(1), {}, {"old": name(1), "stranger": name(1), MANAGED: name(1)}, objects)
    assert result.actions == (DeleteObject(plural="datasources", namespace=NAMESPACE, name="old", uid="ds-old"),)
    assert result.to_status() is None


def test_invalid_settings_neither_delete_nor_move_a_channel():
    objects = StoredObjects(data_sources=[data_source("c", name(1))])
    result = plan(imported(1, 2), {}, {"c": name(1)}, objects, problem="bad")
    assert (offers(result), result.actions) == ({"c": name(1)}, ())


def test_a_data_source_of_others_never_becomes_a_channel():
    foreign = data_source("c", name(1), ours=False)
    other = foreign.model_copy(deep=True)
    other.metadata.labels["cdi.kubevirt.io/dataImportCron"] = "other-cron"
    for found, text in ((foreign, "was not created for it"), (other, '"other-cron"')):
        result = plan(imported(1), {"c": {"manual": True}}, objects=StoredObjects(data_sources=[found]))
        assert result.channels == ()
        assert text in result.problems[0]


def test_the_managed_data_source_cannot_be_a_channel():
    assert "managed DataSource itself" in plan(imported(1), {MANAGED: {"behind": 1}}).problems[0]


def test_a_channel_whose_label_was_removed_is_not_reported():
    objects = StoredObjects(data_sources=[data_source("c", name(1), ours=False)])
    result = plan(imported(1), {"c": {"after": "1s"}}, {"c": name(1)}, objects)
    assert result.problems == ()


RULES = {"age": {"after": "3s"}, "behind": {"behind": 1}, "proven": {"proven": True}, "hand": {"manual": True}}


@given(OPERATIONS, st.sampled_from([{}, {"hold": "true"}, {"pin": name(2)}]))
def test_no_channel_ever_offers_a_version_that_is_bad_removed_or_withheld(operations, settings):
    history = History(data_source="fedora")
    before: dict[str, str | None] = {}
    offered_ever: set[str] = set()
    for step, (operation, number) in enumerate(operations):
        history = apply(history, operation, number, NOW + step)
        version = history.offered(context(annotations=settings).settings).version
        if version is not None:
            history = history.offering(version.name, NOW + step)
            offered_ever.add(version.name)
        if operation == "succeeded" and (history.get(name(number)) or version) is not None:
            before["hand"] = name(number) if history.get(name(number)) is not None else None
        result = plan(history, RULES, before, now=NOW + step, **settings)
        before = offers(result)
        assert before.keys() == RULES.keys()
        for channel, chosen in before.items():
            if chosen is None:
                continue
            version = history.get(chosen)
            assert version.state == "Available"
            assert channel == "hand" or not version.withheld
            again = plan(history, RULES, before, now=NOW + step, **settings)
            assert offers(again) == before
            assert again.events == ()
