"""Commands of users, given as annotations of a DataImportCron."""

from __future__ import annotations

import pytest

from cdi.api.dataimportcron import ProofStatus
from cdi.api.datavolume import DataVolume
from cdi.api.names import LABEL_DATA_IMPORT_CRON
from cdi.reconcile.actions import DeleteObject
from cdi.reconcile.dataimportcron.commands import MAX_DESCENDANT_EVENTS, apply_commands
from tests.unit.reconcile.dataimportcron.stored_objects import (
    CRON,
    NAMESPACE,
    NOW,
    StoredObjects,
    clone_of,
    context,
    digest,
    imported,
    name,
    volume,
)

PREFIX = "cdi.kubevirt.io/golden."


def run(history, objects=None, *, cron=None, **commands):
    return apply_commands(context(objects, commands, **(cron or {})), history)


def offered(result, **settings):
    version = result.history.offered(context(annotations=settings).settings).version
    return version.name if version is not None else None


def reasons(result):
    return [event.reason for event in result.events]


def failed_volume(phase: str = "Failed", deleting: str | None = None) -> DataVolume:
    metadata = {"name": name(2), "namespace": NAMESPACE, "uid": "dv", "labels": {LABEL_DATA_IMPORT_CRON: CRON}}
    if deleting:
        metadata["deletionTimestamp"] = deleting
    return DataVolume.model_validate({"metadata": metadata, "spec": {}, "status": {"phase": phase}})


@pytest.mark.parametrize("reference", [name(1), digest(1), digest(1)[:12], digest(1)[7:14], "previous"])
def test_a_rollback_offers_an_older_version_without_a_download(reference):
    result = run(imported(1, 2), rollback=reference)
    assert offered(result) == name(1)
    assert result.actions == ()
    assert result.annotations == {f"{PREFIX}rollback": None}
    assert (reasons(result), result.problems) == (["RolledBack"], ())
    assert name(2) in result.events[0].message


def test_a_rollback_to_the_previous_version_is_not_repeated_if_only_the_data_source_was_switched():
    history = imported(1, 2, 3)
    first = run(history, rollback="previous", hold="true")
    # The DataSource was switched, but the status was not written: the next reconcile starts from the old history.
    again = run(history, rollback="previous", hold="true")
    assert offered(first, hold="true") == offered(again, hold="true") == name(2)


def test_a_rollback_from_the_oldest_version_is_refused_with_the_candidates():
    result = run(imported(1), rollback="previous")
    assert result.annotations == {}
    assert "no previous version" in result.problems[0]
    assert name(1) in result.problems[0]


@pytest.mark.parametrize("command", ["rollback", "revoke", "retry", "release"])
def test_a_wrong_name_changes_nothing_and_names_the_candidates(command):
    history = imported(1, 2)
    result = run(history, **{command: "fedora-nonesuch"})
    assert (result.history, result.annotations, result.actions) == (history, {}, ())
    assert reasons(result) == ["InvalidGoldenCommand"]
    assert result.refused
    for text in (result.problems[0], result.events[0].message):
        assert f"{PREFIX}{command}" in text
        assert name(1) in text
        assert name(2) in text


def test_a_refused_command_is_reported_by_one_event_only():
    problem = run(imported(1), rollback="fedora-nonesuch").problems[0]
    status = {"conditions": [{"type": "GoldenSettings", "status": "False", "message": f"first; {problem}"}]}
    again = run(imported(1), cron={"status": status}, rollback="fedora-nonesuch")
    assert (again.problems, again.events) == ((problem,), ())


def test_an_unreadable_command_does_not_stop_the_others():
    result = run(imported(1, 2), deprecate="what", rollback=name(1))
    assert offered(result) == name(1)
    assert result.annotations == {f"{PREFIX}rollback": None}
    assert f"{PREFIX}deprecate" in result.problems[0]


@pytest.mark.parametrize("state", ["Failed", "Unproven", "Revoked"])
def test_a_rollback_to_a_bad_version_is_refused(state):
    history = imported(1, 2).found(digest(3), NOW)
    if state == "Failed":
        history = history.failed(name(3), "X", "x")
    elif state == "Revoked":
        history = history.revoke(name(3), "x")
    else:
        proof = ProofStatus(booted=False)
        history = history.succeeded(name(3), NOW, proof=True).unproven(name(3), proof, "X", "x")
    result = run(history, rollback=name(3))
    assert offered(result) == name(2)
    assert state in result.problems[0]


def test_a_rollback_to_a_removed_version_imports_it_again_and_then_offers_it():
    history = imported(1, 2, 3).removed(name(1), "Outdated", "", NOW)
    started = run(history, rollback=name(1))
    assert started.history.get(name(1)).state == "Importing"
    assert (offered(started), started.annotations) == (name(3), {})
    assert reasons(started) == ["ImportingAgain"]
    waiting = run(started.history, rollback=name(1))
    assert (waiting.history, waiting.annotations, waiting.events) == (started.history, {}, ())
    assert not waiting.refused
    done = run(waiting.history.succeeded(name(1), NOW, proof=False), rollback=name(1))
    assert (offered(done), done.annotations) == (name(1), {f"{PREFIX}rollback": None})


@pytest.mark.parametrize("source", [{"http": {"url": "http://server/image"}}, {"pvc": {"namespace": "a", "name": "b"}}])
def test_a_removed_version_of_a_source_without_versions_cannot_be_imported_again(source):
    history = imported(1, 2).removed(name(1), "Outdated", "", NOW)
    result = run(history, cron={"source": source}, rollback=name(1))
    assert result.history == history
    assert "current content only" in result.problems[0]
    assert name(2) in result.problems[0]


def test_a_removed_version_whose_digest_is_incomplete_cannot_be_imported_again():
    history = imported(2).adopted([name(1)], NOW).removed(name(1), "Outdated", "", NOW)
    assert "whole digest is unknown" in run(history, rollback=name(1)).problems[0]


def test_a_rollback_says_that_a_pin_takes_precedence():
    result = run(imported(1, 2), rollback=name(1), pin=name(2))
    assert result.annotations == {f"{PREFIX}rollback": None}
    assert f"{PREFIX}pin" in result.events[0].message


def test_a_promotion_moves_the_channel():
    result = run(imported(1, 2), channels='{"fedora-stable": {"manual": true}}', promote=f"fedora-stable={name(1)}")
    assert [(one.name, one.version) for one in result.channels] == [("fedora-stable", name(1))]
    assert result.annotations == {f"{PREFIX}promote": None}


@pytest.mark.parametrize(
    ("channels", "promote", "text"),
    [
        ('{"stable": {"manual": true}}', f"table={name(1)}", '"stable"'),
        ('{"stable": {"manual": true}}', "stable=fedora-x", name(1)),
        ('{"stable": {"behind": 1}}', f"stable={name(1)}", "distance of 1"),
        ('{"stable": {"manual": true}}', f"stable={name(3)}", "Revoked"),
        ('{"stable": {"manual": true}}', f"stable={name(4)}", "withheld"),
    ],
)
def test_a_wrong_promotion_is_refused_with_the_remedy(channels, promote, text):
    history = imported(1, 2, 3, 4).revoke(name(3), "bad").rolled_back(name(2))
    result = run(history, channels=channels, promote=promote)
    assert (result.channels, result.annotations) == ((), {})
    assert text in result.problems[0]


def test_a_revoked_version_is_not_offered_and_its_descendants_are_named():
    objects = StoredObjects(
        claims=[
            volume(name(2), origin="{}"),
            clone_of(name(2), "vm-b"),
            clone_of(name(2), "vm-a"),
            clone_of(name(1), "x"),
        ]
    )
    result = run(imported(1, 2), objects, revoke=f"{name(2)}: backdoor in sshd")
    assert offered(result) == name(1)
    assert result.history.get(name(2)).message == "Revoked: backdoor in sshd. 2 volumes descend from it"
    assert reasons(result) == ["VersionRevoked", "DescendsFromRevokedVersion"]
    assert "backdoor in sshd" in result.events[0].message
    assert result.events[1].message.endswith("vms/vm-a, vms/vm-b")


def test_the_names_of_many_descendants_are_bounded():
    objects = StoredObjects(claims=[clone_of(name(1), f"machine-{number:04}") for number in range(1000)])
    result = run(imported(1), objects, revoke=name(1))
    assert len(result.events) == 2 + MAX_DESCENDANT_EVENTS
    assert all(len(event.message) <= 1024 for event in result.events)
    named = sum(event.message.count("machine-") for event in result.events)
    assert f"{1000 - named} more volumes" in result.events[-1].message
    assert f"cdi golden describe {CRON}" in result.events[-1].message


def test_revoking_a_version_stops_its_import():
    history = imported(1).found(digest(2), NOW)
    result = run(history, StoredObjects(data_volumes=[failed_volume("ImportInProgress")]), revoke=digest(2))
    assert result.actions == (DeleteObject(plural="datavolumes", namespace=NAMESPACE, name=name(2), uid="dv"),)
    assert not result.history.may_import(digest(2))


def test_dates_are_put_on_a_version_and_taken_back():
    history = run(
        imported(1), deprecate=f"{name(1)} from=2027-01-01T00:00:00Z endOfLife=2027-06-01T00:00:00+02:00"
    ).history
    version = history.get(name(1))
    assert (version.deprecated, version.end_of_life) == ("2027-01-01T00:00:00Z", "2027-05-31T22:00:00Z")
    version = run(history, deprecate=f"{name(1)} from=never").history.get(name(1))
    assert (version.deprecated, version.end_of_life) == (None, None)


def test_a_failed_import_is_retried_once_its_incomplete_volume_is_gone():
    history = imported(1).found(digest(2), NOW).failed(name(2), "X", "x")
    first = run(history, StoredObjects(data_volumes=[failed_volume()], claims=[volume(name(2))]), retry=name(2))
    assert [action.plural for action in first.actions] == ["datavolumes"]
    assert (first.history, first.annotations) == (history, {})
    leaving = StoredObjects(data_volumes=[failed_volume(deleting="2026-01-01T00:00:00Z")], claims=[volume(name(2))])
    second = run(history, leaving, retry=name(2))
    assert (second.actions, second.annotations) == ((), {})
    third = run(history, StoredObjects(), retry=name(2))
    assert third.history.get(name(2)).state == "Importing"
    assert third.annotations == {f"{PREFIX}retry": None}


def test_an_unproven_version_is_proven_again_without_an_import():
    history = imported(1).found(digest(2), NOW).succeeded(name(2), NOW, proof=True)
    history = history.unproven(name(2), ProofStatus(booted=False), "X", "x")
    result = run(history, StoredObjects(claims=[volume(name(2))]), retry=name(2))
    assert (result.actions, result.history.get(name(2)).state) == ((), "Proving")
    # A kept pod of the first proof is recognized by its result.
    assert result.history.get(name(2)).proof == ProofStatus(booted=False)


def test_a_version_that_has_not_failed_is_not_retried():
    assert "has not failed" in run(imported(1), retry=name(1)).problems[0]


@pytest.mark.parametrize("reference", [name(3), "all"])
def test_a_released_version_is_offered_again(reference):
    history = run(imported(1, 2, 3), rollback=name(2)).history
    result = run(history, release=reference)
    assert offered(result) == name(3)
    assert result.annotations == {f"{PREFIX}release": None}


def test_a_version_that_is_not_withheld_is_not_released():
    assert "no version is withheld" in run(imported(1), release=name(1)).problems[0]


def test_there_is_nothing_to_do_without_commands():
    history = imported(1)
    result = run(history, pin=name(1), hold="true")
    assert (result.history, result.events, result.problems, result.annotations) == (history, (), (), {})
