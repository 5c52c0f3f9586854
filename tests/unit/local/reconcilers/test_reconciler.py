"""Tests of what the changes of a poll mean for other objects."""

from __future__ import annotations

import pytest

from cdi.local.reconcilers.reconciler import ChangeTracker
from cdi.store.base import Change, Key


def change(plural, *, kind="MODIFIED", name="a", status=None, **metadata):
    body = {"metadata": {"name": name, "uid": f"uid-{name}", **metadata}, "status": status or {}}
    return Change(type=kind, key=Key(plural, "default", name), body=body)


@pytest.mark.parametrize("plural", ["datavolumes", "persistentvolumeclaims"])
def test_progress_of_a_volume_affects_no_other_object(plural):
    tracker = ChangeTracker()
    assert tracker.track([change(plural, status={"phase": "A", "progress": "1%"})]).affects_references
    assert not tracker.track([change(plural, status={"phase": "A", "progress": "2%"})]).affects_references
    assert tracker.track([change(plural, status={"phase": "B", "progress": "2%"})]).affects_references


def test_a_deleted_volume_affects_what_refers_to_it_once():
    tracker = ChangeTracker()
    tracker.track([change("datavolumes")])
    assert tracker.track([change("datavolumes", kind="DELETED")]).affects_references
    assert not tracker.track([change("datavolumes", kind="DELETED")]).affects_references
    assert tracker._visible == {}


def test_every_change_of_a_poll_is_remembered():
    tracker = ChangeTracker()
    poll = [change("datavolumes", name=name, status={"phase": "A"}) for name in "ab"]
    assert tracker.track(poll).affects_references
    assert not tracker.track(poll).affects_references


@pytest.mark.parametrize("plural", ["datasources", "dataimportcrons"])
def test_a_changed_source_affects_references_only(plural):
    changes = ChangeTracker().track([change(plural)])
    assert (changes.affects_references, changes.affects_all) == (True, False)


@pytest.mark.parametrize("plural", ["secrets", "configmaps", "storageprofiles", "cdiconfigs", "cdis"])
def test_a_changed_input_affects_all_objects(plural):
    changes = ChangeTracker().track([change("events"), change(plural)])
    assert (changes.affects_references, changes.affects_all) == (False, True)


def test_an_event_affects_no_object():
    changes = ChangeTracker().track([change("events", name="e")])
    assert (changes.affects_references, changes.affects_all) == (False, False)
    assert changes.keys("events") == {Key("events", "default", "e")}
