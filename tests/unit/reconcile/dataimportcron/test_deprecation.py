"""Annotations by which clones know what a version is."""

from __future__ import annotations

from dataclasses import replace

from cdi.api.annotations import GOLDEN_DEPRECATED, GOLDEN_END_OF_LIFE, GOLDEN_ORIGIN, GOLDEN_REVOKED
from cdi.api.datavolume import DataVolume
from cdi.api.golden import Origin
from cdi.reconcile.actions import DeleteObject, PatchObject
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.dataimportcron.deprecation import plan_annotations
from tests.unit.reconcile.dataimportcron.stored_objects import (
    CRON,
    NAMESPACE,
    NOW,
    OURS,
    StoredObjects,
    context,
    digest,
    imported,
    name,
    volume,
)


def test_every_object_of_a_version_is_annotated_once():
    metadata = {"name": name(1), "namespace": NAMESPACE, "uid": "dv", "labels": OURS}
    kept = Snapshot(namespace=NAMESPACE, name=name(2), uid="snap")
    objects = StoredObjects(
        [volume(name(1))], [kept], data_volumes=[DataVolume.model_validate({"metadata": metadata, "spec": {}})]
    )
    actions = plan_annotations(context(objects), imported(1, 2))
    assert [(action.plural, action.name) for action in actions] == [
        ("volumesnapshots", name(2)),
        ("persistentvolumeclaims", name(1)),
    ]
    origin = Origin(namespace=NAMESPACE, cron=CRON, version=name(1), digest=digest(1))
    assert actions[-1].annotations == {GOLDEN_ORIGIN.key: origin.to_json()}
    claim = volume(name(1), origin=origin.to_json())
    assert plan_annotations(context(StoredObjects([claim])), imported(1)) == ()


def test_a_data_volume_shows_the_dates_of_its_version():
    metadata = {"name": name(1), "namespace": NAMESPACE, "uid": "dv", "labels": OURS}
    objects = StoredObjects(data_volumes=[DataVolume.model_validate({"metadata": metadata, "spec": {}})])
    history = imported(1).deprecate(name(1), "2027-01-01T00:00:00Z", None)
    (patch,) = plan_annotations(context(objects), history)
    assert (patch.plural, patch.annotations) == ("datavolumes", {GOLDEN_DEPRECATED.key: "2027-01-01T00:00:00Z"})


def test_dates_and_a_revocation_follow_the_version():
    history = imported(1).deprecate(name(1), "2027-01-01T00:00:00Z", "2027-06-01T00:00:00Z")
    history = history.revoke(name(1), "Revoked: backdoor")
    objects = StoredObjects([volume(name(1))])
    (patch,) = plan_annotations(context(objects), history)
    assert patch.annotations[GOLDEN_DEPRECATED.key] == "2027-01-01T00:00:00Z"
    assert patch.annotations[GOLDEN_END_OF_LIFE.key] == "2027-06-01T00:00:00Z"
    assert patch.annotations[GOLDEN_REVOKED.key] == "Revoked: backdoor"
    objects.claims[NAMESPACE, name(1)] = volume(name(1), origin=patch.annotations[GOLDEN_ORIGIN.key], deprecated="x")
    (back,) = plan_annotations(context(objects), imported(1))
    assert isinstance(back, PatchObject)
    assert back.annotations == {GOLDEN_DEPRECATED.key: None}


def test_objects_that_are_being_deleted_and_removed_versions_are_left_alone():
    leaving = StoredObjects([replace(volume(name(1)), deleting=True), volume(name(2))])
    history = imported(1, 2).removed(name(2), "Outdated", "", NOW)
    assert plan_annotations(context(leaving), history) == ()


def test_an_object_that_the_plan_deletes_is_not_patched():
    objects = StoredObjects([volume(name(1)), volume(name(2))])
    deletion = DeleteObject(plural="persistentvolumeclaims", namespace=NAMESPACE, name=name(1), uid="u")
    actions = plan_annotations(context(objects), imported(1, 2), (deletion,))
    assert [action.name for action in actions] == [name(2)]
