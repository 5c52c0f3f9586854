"""The course of a golden image through its reconciler, and what clients of KubeVirt's CDI see of it."""

from __future__ import annotations

import pytest

from cdi.api.errors import QemuMissing, QuotaExceeded
from cdi.api.job import Failure
from cdi.api.proof import ProofResult
from cdi.reconcile.dataimportcron.context import CloneRight
from cdi.reconcile.dataimportcron.deletion import plan_deletion
from cdi.reconcile.storage.profiles import SnapshotClass
from tests.unit.reconcile.dataimportcron.world import NAMESPACE, Killed, World, cron_body, digest

A, B, C = digest("a"), digest("b"), digest("c")
NAME_A, NAME_B, NAME_C = (f"fedora-{letter * 12}" for letter in "abc")
CRON_LABEL = "cdi.kubevirt.io/dataImportCron"
CLEANUP_LABEL = "cdi.kubevirt.io/dataImportCron.cleanup"
LAST_USE = "cdi.kubevirt.io/storage.import.lastUseTime"
CLASS = "cdi.kubevirt.io/storage.import.storageClass"


def world(**spec):
    made = World(cron_body(**spec))
    made.use_class("fast")
    return made


def imported(*wanted: str, **spec):
    made = world(**spec)
    for one in wanted:
        made.desire(one)
        made.settle()
        made.now += 60
    return made


def labels(made: World, plural: str, name: str) -> dict[str, str]:
    return made.get(plural, name)["metadata"].get("labels") or {}


def annotations(made: World, plural: str, name: str) -> dict[str, str]:
    return made.get(plural, name)["metadata"].get("annotations") or {}


def snapshots(**options):
    made = world(**options)
    made.use_class("fast", format="snapshot")
    made.classes_of_snapshots = [SnapshotClass(name="snap", driver="csi.example", default=True)]
    return made


# --- the import ---------------------------------------------------------------------------------------------------


def test_the_data_source_is_created_before_any_import():
    made = world()
    made.settle()
    assert made.get("datasources", "fedora")["spec"]["source"] == {}
    assert labels(made, "datasources", "fedora")[CRON_LABEL] == "fedora-cron"
    assert made.condition("Progressing") == ("False", "NoImport", "No current import")
    assert made.condition("UpToDate") == ("False", "NoDigest", "No source digest")
    assert made.names("datavolumes") == []


def test_an_import_is_named_by_its_digest_and_offered_after_it_succeeded():
    made = world()
    made.outcomes[NAME_A] = ""
    made.desire(A)
    made.settle()
    assert made.status["currentImports"] == [{"DataVolumeName": NAME_A, "Digest": A}]
    assert made.offered is None
    made.outcomes.clear()
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"
    assert made.status["lastImportedPVC"] == {"namespace": NAMESPACE, "name": NAME_A}
    assert made.status["lastImportTimestamp"] == "2023-11-14T22:13:20Z"
    assert made.status["sourceFormat"] == "pvc"
    # It names the newest wanted import, not one in progress.
    assert made.status["currentImports"] == [{"DataVolumeName": NAME_A, "Digest": A}]


def test_the_data_volume_is_pinned_to_the_digest():
    made = imported(A, annotations={"cdi.kubevirt.io/storage.pod.retainAfterCompletion": "true", "other": "x"})
    body = made.get("datavolumes", NAME_A)
    assert body["spec"]["source"]["registry"]["url"] == f"docker://registry.example/fedora@{A}"
    found = annotations(made, "datavolumes", NAME_A)
    assert {name: text for name, text in found.items() if "/golden." not in name} == {
        "cdi.kubevirt.io/storage.bind.immediate.requested": "true",
        "cdi.kubevirt.io/storage.pod.retainAfterCompletion": "true",
        LAST_USE: "2023-11-14T22:13:20.000000000Z",
    }
    assert "ownerReferences" not in body["metadata"]


@pytest.mark.parametrize(
    ("url", "pinned"),
    [
        ("docker://r.example/fedora:40", f"docker://r.example/fedora@{A}"),
        ("docker://r.example:5000/os/fedora", f"docker://r.example:5000/os/fedora@{A}"),
        (f"docker://r.example/fedora@{B}", f"docker://r.example/fedora@{A}"),
        (f"docker://r.example/fedora:40@{B}", f"docker://r.example/fedora@{A}"),
    ],
)
def test_a_tag_or_another_digest_is_replaced(url, pinned):
    made = imported(A, source={"registry": {"url": url}})
    assert made.get("datavolumes", NAME_A)["spec"]["source"]["registry"]["url"] == pinned


def test_an_image_stream_becomes_the_image_that_it_refers_to():
    reference = "cdi.kubevirt.io/storage.import.imageStreamDockerRef"
    source = {"registry": {"imageStream": "fedora", "pullMethod": "node"}}
    made = imported(A, source=source, annotations={reference: f"r.example/fedora@{A}"})
    assert made.get("datavolumes", NAME_A)["spec"]["source"]["registry"] == {
        "url": f"docker://r.example/fedora@{A}",
        "pullMethod": "node",
    }


def test_policies_are_copied_to_the_data_volume():
    made = imported(A, annotations={"cdi.kubevirt.io/policy.bandwidth": "10M"})
    assert annotations(made, "datavolumes", NAME_A)["cdi.kubevirt.io/policy.bandwidth"] == "10M"


def test_imports_are_read_write_once_where_the_storage_profile_says_so():
    made = world()
    made.use_class("fast", **{"cdi.kubevirt.io/useReadWriteOnceForDataImportCron": "true"})
    made.desire(A)
    made.settle()
    assert made.get("datavolumes", NAME_A)["spec"]["storage"]["accessModes"] == ["ReadWriteOnce"]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("md5:abcdefabcdef", "Digest has no supported prefix"),
        ("sha256:abc", "Digest is too short"),
        ("sha256:../../../../etc/passwd", "is not sha256: and lower case hexadecimal digits"),
        (f"sha256:{'0' * 100}", "is not sha256: and lower case hexadecimal digits"),
        ("uid:FD83EA4C-7EF1", "is not uid: and lower case hexadecimal digits"),
    ],
)
def test_an_unusable_digest_is_reported_and_not_imported(wanted, problem):
    made = imported(A)
    made.desire(wanted)
    made.settle()
    assert made.names("datavolumes") == [NAME_A]
    assert problem in made.condition("GoldenSettings")[2]
    assert made.offered == f"pvc/{NAME_A}"


def test_a_uid_is_a_digest():
    made = imported(
        "uid:fd83ea4c-7ef1-4a5e-9a5c-111111111111", source={"pvc": {"namespace": NAMESPACE, "name": "gold"}}
    )
    assert made.offered == "pvc/fedora-fd83ea4c-7ef"


@pytest.mark.parametrize(
    ("phase", "condition"),
    [
        ("ImportScheduled", ("False", "ImportScheduled", "Import is scheduled")),
        ("ImportInProgress", ("True", "ImportProgressing", "Import is progressing")),
        ("Pending", ("False", "Pending", "Import DataVolume phase Pending")),
        ("PVCBound", ("False", "PVCBound", "Import DataVolume phase PVCBound")),
        ("", ("False", "", "Import DataVolume phase ")),
    ],
)
def test_progress_is_reported_as_by_kubevirt(phase, condition):
    made = world()
    made.outcomes[NAME_A] = ""
    made.desire(A)
    made.settle()
    made.get("datavolumes", NAME_A)["status"] = {"phase": phase}
    made.settle()
    assert made.condition("Progressing") == condition
    assert made.condition("UpToDate") == ("False", "ImportProgressing", "Import is progressing")


def test_the_reconcile_that_creates_an_import_reports_outdated():
    made = imported(A)
    made.desire(B)
    made.reconcile()
    assert made.names("datavolumes") == [NAME_A, NAME_B]
    assert made.condition("UpToDate") == ("False", "Outdated", "Source digest updated since last import")
    assert made.offered == f"pvc/{NAME_A}"


def test_success_is_reported_as_by_kubevirt():
    made = imported(A)
    assert made.condition("Progressing") == ("False", "NoImport", "No current import")
    assert made.condition("UpToDate") == ("True", "UpToDate", "Latest import is up to date")


def test_a_running_import_of_an_older_digest_is_finished_first():
    made = world()
    made.outcomes[NAME_A] = ""
    made.desire(A)
    made.settle()
    made.desire(B)
    made.settle()
    assert made.names("datavolumes") == [NAME_A]
    assert made.condition("UpToDate") == ("False", "Outdated", "Source digest updated since last import")
    made.outcomes.clear()
    made.settle()
    assert made.offers == [f"pvc/{NAME_A}", f"pvc/{NAME_B}"]


@pytest.mark.parametrize("reason", ["Error", "ImagePullFailed"])
def test_a_failing_import_makes_way_for_a_newer_digest(reason):
    made = imported(A)
    made.outcomes[NAME_B] = ""
    made.desire(B)
    made.settle()
    made.get("datavolumes", NAME_B)["status"] = {
        "phase": "ImportInProgress",
        "conditions": [{"type": "Running", "status": "False", "reason": reason, "message": "refused"}],
    }
    made.settle()
    assert NAME_B in made.names("datavolumes")
    assert made.version(B)["state"] == "Importing"
    made.desire(C)
    made.settle()
    assert made.names("datavolumes") == [NAME_A, NAME_C]
    assert made.version(B)["state"] == "Failed"
    assert made.version(B)["reason"] == "Superseded"
    assert made.version(B)["message"].endswith("it was failing: refused")
    assert made.offered == f"pvc/{NAME_C}"
    # It had not failed finally, so it is imported once the source offers it again.
    made.outcomes.clear()
    made.desire(B)
    made.settle()
    assert made.offered == f"pvc/{NAME_B}"


def test_a_failed_version_stays_is_named_and_is_not_tried_again():
    made = imported(A)
    made.outcomes[NAME_B] = "Failed"
    made.desire(B)
    made.settle()
    assert made.condition("Progressing") == ("False", "Failed", "Import DataVolume phase Failed")
    assert made.version(B)["state"] == "Failed"
    assert (made.version(B)["reason"], made.version(B)["message"]) == ("ChecksumMismatch", "the checksum differs")
    assert made.offered == f"pvc/{NAME_A}"
    assert [one.reason for one in made.events if one.type == "Warning"] == ["ImportFailed"]
    made.now += 10_000
    made.settle()
    assert [one.reason for one in made.events if one.type == "Warning"] == ["ImportFailed"]


def test_a_failed_import_is_tried_again_once_its_data_volume_was_deleted():
    made = world()
    made.outcomes[NAME_A] = "Failed"
    made.desire(A)
    made.settle()
    made.outcomes.clear()
    made.remove("datavolumes", NAME_A)
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"
    assert made.version(A)["state"] == "Available"


def test_a_controller_that_ends_while_a_failed_import_begins_again_offers_it():
    made = world()
    made.outcomes[NAME_A] = "Failed"
    made.desire(A)
    made.settle()
    made.outcomes.clear()
    made.remove("datavolumes", NAME_A)
    made.kill_at = made.writes + 1
    with pytest.raises(Killed):
        made.settle()
    assert made.names("datavolumes") == [NAME_A]
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"
    assert made.version(A)["state"] == "Available"


def test_a_failed_digest_that_returns_is_imported_again_only_on_request():
    made = imported(A)
    made.outcomes[NAME_B] = "Failed"
    for wanted in (B, A, B, A, B):
        made.desire(wanted)
        made.settle()
        made.now += 60
    refused = [one.message for one in made.events if one.type == "Warning"]
    assert "could not be imported" in refused[0]
    # One event each time that the source changes back to it.
    assert len(refused) == 3
    for message in (*refused[1:], made.condition("UpToDate")[2]):
        assert (
            "not imported again until annotation cdi.kubevirt.io/golden.retry names it: the checksum differs" in message
        )
    assert made.condition("UpToDate")[:2] == ("False", "Failed")
    assert made.names("datavolumes") == [NAME_A]
    assert made.offers == [f"pvc/{NAME_A}"]
    made.outcomes.clear()
    made.annotate(golden_retry=NAME_B)
    made.settle()
    assert made.offered == f"pvc/{NAME_B}"
    assert made.condition("UpToDate")[:2] == ("True", "UpToDate")


def test_a_deleted_import_is_imported_again_under_its_name():
    made = imported(A)
    made.remove("datavolumes", NAME_A)
    plan = made.reconcile()
    assert made.condition("Progressing") == ("False", "NoImport", "No current import")
    assert plan is not None
    made.settle()
    assert made.names("datavolumes") == [NAME_A]
    assert made.offered == f"pvc/{NAME_A}"


def test_a_digest_that_returns_is_not_downloaded_again():
    made = imported(A, B)
    uid = made.get("datavolumes", NAME_A)["metadata"]["uid"]
    used = annotations(made, "persistentvolumeclaims", NAME_A)[LAST_USE]
    made.desire(A)
    made.settle()
    assert made.get("datavolumes", NAME_A)["metadata"]["uid"] == uid
    assert made.offered == f"pvc/{NAME_A}"
    assert made.status["currentImports"] == [{"DataVolumeName": NAME_A, "Digest": A}]
    assert annotations(made, "persistentvolumeclaims", NAME_A)[LAST_USE] > used
    assert (
        annotations(made, "persistentvolumeclaims", NAME_A)[LAST_USE]
        > annotations(made, "persistentvolumeclaims", NAME_B)[LAST_USE]
    )


def test_the_time_of_the_last_poll_is_shown():
    made = imported(A, annotations={"cdi.kubevirt.io/storage.import.lastCronTime": "2026-01-02T03:04:05Z"})
    assert made.status["lastExecutionTimestamp"] == "2026-01-02T03:04:05Z"


# --- labels -------------------------------------------------------------------------------------------------------


def test_labels_flow_from_the_cron_to_every_object():
    given = {
        "instancetype.kubevirt.io/default-preference": "fedora",
        "kubevirt.io/dynamic-credentials-support": "true",
        "template.kubevirt.io/architecture": "amd64",
        "private": "no",
    }
    made = snapshots(labels=given)
    made.desire(A)
    made.settle()
    for plural, name in (("volumesnapshots", NAME_A), ("datasources", "fedora")):
        found = labels(made, plural, name)
        assert {key: text for key, text in given.items() if key != "private"}.items() <= found.items()
        assert found["app.kubernetes.io/managed-by"] == "cdi-controller"
        assert found["app.kubernetes.io/component"] == "storage"
        assert found[CRON_LABEL] == "fedora-cron"
        assert "private" not in found
        assert CLEANUP_LABEL not in found
    assert labels(made, "volumesnapshots", NAME_A)["app"] == "containerized-data-importer"
    assert labels(made, "volumesnapshots", NAME_A)["cdi.kubevirt.io"] == ""


def test_labels_of_the_image_reach_the_data_source():
    made = imported(A)
    made.get("persistentvolumeclaims", NAME_A)["metadata"]["labels"][
        "instancetype.kubevirt.io/default-instancetype"
    ] = "u1"
    made.settle()
    assert labels(made, "datasources", "fedora")["instancetype.kubevirt.io/default-instancetype"] == "u1"


def test_retention_none_marks_everything_for_deletion():
    made = imported(A, retentionPolicy="None")
    for plural, name in (("datavolumes", NAME_A), ("persistentvolumeclaims", NAME_A), ("datasources", "fedora")):
        assert labels(made, plural, name)[CLEANUP_LABEL] == "true"


def test_labels_that_a_volume_lost_are_restored():
    made = imported(A)
    made.get("persistentvolumeclaims", NAME_A)["metadata"]["labels"] = {}
    made.settle()
    assert labels(made, "persistentvolumeclaims", NAME_A)[CRON_LABEL] == "fedora-cron"


# --- the DataSource -----------------------------------------------------------------------------------------------


def test_a_deleted_data_source_is_created_again():
    made = imported(A)
    made.remove("datasources", "fedora")
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"


def test_an_edited_data_source_is_put_right():
    made = imported(A)
    made.get("datasources", "fedora")["spec"]["source"] = {"pvc": {"namespace": NAMESPACE, "name": "else"}}
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"


@pytest.mark.parametrize("given", [{}, {CRON_LABEL: "of-a-deleted-cron"}])
def test_a_data_source_without_the_label_is_left_alone_while_imports_go_on(given):
    made = imported(A)
    made.get("datasources", "fedora")["metadata"]["labels"] = dict(given)
    made.desire(B)
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"
    assert made.names("datavolumes") == [NAME_A, NAME_B]
    assert made.condition("UpToDate") == ("True", "UpToDate", "Latest import is up to date")
    made.get("datasources", "fedora")["metadata"]["labels"] = {CRON_LABEL: "fedora-cron"}
    made.settle()
    assert made.offered == f"pvc/{NAME_B}"


def test_a_data_source_of_another_cron_stops_the_reconcile():
    made = World(cron_body("second"))
    made.put(cron_body("first"))
    made.put(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "DataSource",
            "metadata": {"name": "fedora", "labels": {CRON_LABEL: "first"}},
            "spec": {"source": {}},
        }
    )
    made.desire(A)
    made.settle()
    message = "DataSource fedora is already managed by DataImportCron first"
    assert {(one.type, one.reason, one.message) for one in made.events} == {
        ("Warning", "ErrDataSourceAlreadyManaged", message)
    }
    assert made.names("datavolumes") == []
    assert made.condition("GoldenSettings")[1] == "ErrDataSourceAlreadyManaged"
    made.remove("dataimportcrons", "first")
    made.get("datasources", "fedora")["metadata"]["labels"] = {CRON_LABEL: "second"}
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"
    assert made.condition("GoldenSettings") is None


# --- formats ------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_offered_once_it_is_ready_and_its_volume_deleted_then():
    made = snapshots()
    made.snapshots_ready = False
    made.desire(A)
    made.settle()
    assert made.offered is None
    assert made.names("datavolumes") == [NAME_A]
    assert made.condition("UpToDate") == (
        "False",
        "ImportProgressing",
        "Snapshot of imported data is progressing",
    )
    made.snapshots_ready = True
    made.settle()
    assert made.offers == [f"snapshot/{NAME_A}"]
    assert made.names("datavolumes") == made.names("persistentvolumeclaims") == []
    assert made.status["sourceFormat"] == "snapshot"
    assert made.status["lastImportedPVC"]["name"] == NAME_A
    assert made.condition("UpToDate") == ("True", "UpToDate", "Latest import is up to date")
    assert made.version(A)["state"] == "Available"


def test_the_data_source_keeps_the_old_snapshot_until_the_new_one_is_ready():
    made = snapshots()
    made.desire(A)
    made.settle()
    made.snapshots_ready = False
    made.desire(B)
    made.settle()
    assert made.offered == f"snapshot/{NAME_A}"
    made.snapshots_ready = True
    made.settle()
    assert made.offers == [f"snapshot/{NAME_A}", f"snapshot/{NAME_B}"]


def test_a_snapshot_has_the_annotations_that_restores_need():
    made = snapshots()
    made.desire(A)
    made.settle()
    found = annotations(made, "volumesnapshots", NAME_A)
    assert found["cdi.kubevirt.io/storage.import.sourceVolumeMode"] == "Filesystem"
    assert found["cdi.kubevirt.io/storage.import.advisedRestoreSize"] == "5Gi"
    assert LAST_USE in found
    made.get("volumesnapshots", NAME_A)["status"]["restoreSize"] = "8Gi"
    made.settle()
    assert annotations(made, "volumesnapshots", NAME_A)["cdi.kubevirt.io/storage.import.advisedRestoreSize"] == "8Gi"


@pytest.mark.parametrize(
    ("annotation", "classes", "chosen", "message"),
    [
        ("images", ["snap"], "images", "VolumeSnapshotClass selected according to StorageProfile images"),
        (None, ["b", "a*"], "a", "Default VolumeSnapshotClass selected a"),
        (None, ["b", "a"], "a", "First VolumeSnapshotClass selected a"),
        (None, [], None, None),
    ],
)
def test_the_snapshot_class_is_chosen(annotation, classes, chosen, message):
    made = snapshots()
    extra = {"cdi.kubevirt.io/snapshotClassForDataImportCron": annotation} if annotation else {}
    made.use_class("fast", format="snapshot", **extra)
    made.classes_of_snapshots = [
        SnapshotClass(name=one.rstrip("*"), driver="csi.example", default=one.endswith("*")) for one in classes
    ] + [SnapshotClass(name="0", driver="other.example", default=True)]
    made.desire(A)
    made.settle()
    assert made.get("volumesnapshots", NAME_A)["spec"].get("volumeSnapshotClassName") == chosen
    told = [(one.name, one.event.reason, one.event.message) for one in made.object_events]
    assert told == ([(NAME_A, "VolumeSnapshotClassSelected", message)] if message else [])


def test_a_change_to_snapshots_needs_no_download():
    made = imported(A)
    made.use_class("fast", format="snapshot")
    made.classes_of_snapshots = [SnapshotClass(name="snap", driver="csi.example")]
    made.settle()
    assert made.offers == [f"pvc/{NAME_A}", f"snapshot/{NAME_A}"]
    assert made.names("datavolumes") == made.names("persistentvolumeclaims") == []


def test_a_change_to_volumes_imports_again_and_offers_the_snapshot_until_then():
    made = snapshots()
    made.desire(A)
    made.settle()
    made.use_class("fast", format="pvc")
    made.outcomes[NAME_A] = ""
    made.settle()
    assert made.offered == f"snapshot/{NAME_A}"
    made.outcomes.clear()
    made.settle()
    assert made.offers == [f"snapshot/{NAME_A}", f"pvc/{NAME_A}"]
    assert made.names("volumesnapshots") == []
    assert made.status["sourceFormat"] == "pvc"


def test_a_volume_is_not_deleted_while_it_is_being_cloned():
    made = imported(A)
    made.clones[NAME_A] = ("vms/disk",)
    made.use_class("fast", format="snapshot")
    made.settle()
    assert made.offered == f"snapshot/{NAME_A}"
    assert made.names("datavolumes") == [NAME_A]
    made.clones.clear()
    made.settle()
    assert made.names("datavolumes") == []


# --- the storage class --------------------------------------------------------------------------------------------


def test_the_storage_class_is_remembered():
    made = imported(A)
    assert annotations(made, "dataimportcrons", "fedora-cron")[CLASS] == "fast"


def test_a_change_of_the_default_class_imports_the_newest_version_again():
    made = imported(A, B)
    made.use_class("slow")
    made.settle()
    assert made.get("persistentvolumeclaims", NAME_B)["spec"]["storageClassName"] == "slow"
    assert made.get("persistentvolumeclaims", NAME_A)["spec"]["storageClassName"] == "fast"
    assert annotations(made, "dataimportcrons", "fedora-cron")[CLASS] == "slow"
    assert made.offered == f"pvc/{NAME_B}"
    # An older version is offered meanwhile, rather than none.
    assert made.offers[2:] == [f"pvc/{NAME_A}", f"pvc/{NAME_B}"]


def test_a_version_that_is_being_cloned_is_not_moved_to_another_class():
    made = imported(A)
    made.clones[NAME_A] = ("vms/disk",)
    made.use_class("slow")
    made.settle()
    assert made.get("persistentvolumeclaims", NAME_A)["spec"]["storageClassName"] == "fast"
    made.clones.clear()
    made.settle()
    assert made.get("persistentvolumeclaims", NAME_A)["spec"]["storageClassName"] == "slow"


def test_a_removed_class_changes_nothing():
    made = snapshots()
    made.desire(A)
    made.settle()
    made.storage_classes, made.profiles = [], {}
    made.settle()
    assert made.offered == f"snapshot/{NAME_A}"
    assert made.names("volumesnapshots") == [NAME_A]
    assert made.names("datavolumes") == []


def test_a_pending_volume_of_another_class_is_deleted_before_a_class_is_remembered():
    made = world()
    made.storage_classes = []
    made.outcomes[NAME_A] = ""
    made.desire(A)
    made.settle()
    pending = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": {"storageClassName": "gone"}}
    made.put({**pending, "metadata": {"name": NAME_A, "labels": {CRON_LABEL: "fedora-cron"}}})
    made.use_class("fast")
    made.reconcile()
    assert made.names("persistentvolumeclaims") == []


def test_without_any_class_the_import_stays_pending():
    made = world()
    made.storage_classes = []
    made.outcomes[NAME_A] = ""
    made.desire(A)
    made.settle()
    assert made.names("datavolumes") == [NAME_A]
    assert CLASS not in annotations(made, "dataimportcrons", "fedora-cron")


def test_a_snapshot_is_not_made_of_a_volume_of_another_class():
    made = world(storage={"resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "fast"})
    made.desire(A)
    made.settle()
    made.get("persistentvolumeclaims", NAME_A)["spec"]["storageClassName"] = "other"
    made.use_class("fast", format="snapshot")
    made.settle()
    assert made.names("volumesnapshots") == []
    assert made.offered == f"pvc/{NAME_A}"


# --- authorization ------------------------------------------------------------------------------------------------

UID = "uid:fd83ea4c-7ef1-4a5e-9a5c-111111111111"
ELSEWHERE = {"pvc": {"namespace": "sources", "name": "gold"}}


def test_a_source_of_another_namespace_needs_the_right_to_clone():
    made = world(source=ELSEWHERE, serviceAccountName="importer")
    made.allowed = False
    made.desire(UID)
    made.settle()
    assert made.asked[0] == CloneRight(
        namespace=NAMESPACE, service_account="importer", source_namespace="sources", source_name="gold"
    )
    assert made.condition("Progressing") == ("False", "NotAuthorized", "Not authorized to create DataVolume")
    assert made.names("datavolumes") == []
    assert "currentImports" not in made.status
    made.allowed = True
    made.settle()
    assert made.offered == "pvc/fedora-fd83ea4c-7ef"


def test_the_default_service_account_is_asked_about():
    made = imported(UID, source=ELSEWHERE)
    assert made.asked[0].service_account == "default"


def test_a_source_of_the_own_namespace_needs_no_right():
    made = imported(UID, source={"pvc": {"namespace": NAMESPACE, "name": "gold"}})
    assert made.asked == []


# --- boot proofs --------------------------------------------------------------------------------------------------

PROOF = {"cdi.kubevirt.io/golden.proof": "boot"}
PANICKED = ProofResult(id="", message="the kernel panicked: no root", accelerator="tcg", console="no root")


def test_a_version_is_offered_only_after_it_has_booted():
    made = world(annotations=PROOF)
    made.guests[NAME_A] = None
    made.desire(A)
    made.settle()
    assert made.version(A)["state"] == "Proving"
    assert made.offered is None
    assert "lastImportedPVC" not in made.status
    assert made.condition("UpToDate")[:2] == ("False", "ImportProgressing")
    assert made.condition("UpToDate")[2].startswith("Boot proof of imported data is progressing: ")
    made.guests.clear()
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"
    assert made.version(A)["proof"]["booted"] is True
    assert made.condition("UpToDate") == ("True", "UpToDate", "Latest import is up to date")
    assert made.names("pods") == []


def test_a_version_that_does_not_boot_is_never_offered_and_says_why():
    made = imported(A, annotations=PROOF)
    made.guests[NAME_B] = PANICKED
    made.desire(B)
    made.settle()
    assert made.version(B)["state"] == "Unproven"
    assert made.version(B)["reason"] == "BootFailed"
    assert made.offered == f"pvc/{NAME_A}"
    assert made.condition("UpToDate")[:2] == ("False", "Unproven")
    assert "the kernel panicked" in made.condition("UpToDate")[2]
    assert made.names("pods") == []
    # Another digest is tried; the bad one is not tried again.
    made.desire(C)
    made.settle()
    made.desire(B)
    made.settle()
    assert made.offers == [f"pvc/{NAME_A}", f"pvc/{NAME_C}"]


def test_an_unproven_version_is_proven_again_by_request():
    made = imported(A, annotations=PROOF)
    made.guests[NAME_B] = PANICKED
    made.desire(B)
    made.settle()
    made.guests.clear()
    made.now += 60
    made.annotate(golden_retry=NAME_B)
    made.settle()
    assert made.version(B)["state"] == "Available"
    assert made.offered == f"pvc/{NAME_B}"


def test_a_proof_that_cannot_be_made_says_so_and_is_repeated():
    made = world(annotations=PROOF)
    missing = Failure.from_error(QemuMissing("qemu-system-x86_64 is not installed"))
    made.guests[NAME_A] = ProofResult(id="", failure=missing)
    made.desire(A)
    for _ in range(10):
        made.reconcile()
        made.step()
    assert made.condition("UpToDate")[:2] == ("False", "QemuMissing")
    assert "qemu-system-x86_64 is not installed" in made.condition("UpToDate")[2]
    assert made.offered is None
    made.guests.clear()
    made.now += 3600
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"


def test_a_rejected_proof_pod_is_reported_and_tried_again():
    made = world(annotations=PROOF)
    made.refuse["Pod"] = QuotaExceeded("exceeded quota: memory")
    made.desire(A)
    for _ in range(10):
        made.reconcile()
        made.step()
    assert made.condition("UpToDate")[:2] == ("False", "QuotaExceeded")
    assert made.offered is None
    made.refuse.clear()
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"


def test_without_the_setting_a_version_that_waits_for_its_proof_is_available():
    made = world(annotations=PROOF)
    made.guests[NAME_A] = None
    made.desire(A)
    made.settle()
    made.annotate(golden_proof="none")
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"
    assert made.names("pods") == []


def test_invalid_settings_never_make_an_unproven_version_available():
    made = imported(A, annotations=PROOF)
    made.guests[NAME_B] = PANICKED
    made.outcomes[NAME_B] = ""
    made.desire(B)
    made.settle()
    made.annotate(golden_proof="perhaps")
    made.outcomes.clear()
    made.settle()
    assert made.version(B)["state"] == "Importing"
    made.annotate(golden_proof="boot")
    made.settle()
    assert made.version(B)["state"] == "Unproven"
    assert made.offers == [f"pvc/{NAME_A}"]


def test_a_snapshot_is_taken_only_of_a_version_that_has_booted():
    made = snapshots(annotations=PROOF)
    made.guests[NAME_A] = None
    made.desire(A)
    made.settle()
    assert made.names("volumesnapshots") == []
    made.guests.clear()
    made.settle()
    assert made.offered == f"snapshot/{NAME_A}"


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_rejected_data_volume_is_reported_and_tried_again():
    made = imported(A)
    made.refuse["DataVolume"] = QuotaExceeded("exceeded quota: count/datavolumes")
    made.desire(B)
    made.reconcile()
    assert made.condition("Progressing")[:2] == ("False", "QuotaExceeded")
    assert "exceeded quota" in made.condition("Progressing")[2]
    assert [one.reason for one in made.events if one.type == "Warning"] == ["QuotaExceeded"]
    assert made.condition("GoldenSettings") is None
    assert made.status["currentImports"] == [{"DataVolumeName": NAME_A, "Digest": A}]
    assert made.offered == f"pvc/{NAME_A}"
    made.refuse.clear()
    made.settle()
    assert made.offered == f"pvc/{NAME_B}"


def test_a_rejected_snapshot_is_reported_and_the_rest_of_the_plan_carried_out():
    made = snapshots()
    made.refuse["VolumeSnapshot"] = QuotaExceeded("exceeded quota")
    made.desire(A)
    for _ in range(5):
        made.reconcile()
        made.step()
    assert "VolumeSnapshot" in made.condition("GoldenSettings")[2]
    assert made.version(A)["state"] == "Available"
    made.refuse.clear()
    made.settle()
    assert made.offered == f"snapshot/{NAME_A}"
    assert made.condition("GoldenSettings") is None


def test_invalid_settings_hold_everything_and_are_reported():
    made = imported(A)
    made.annotate(golden_proof="perhaps")
    made.desire(B)
    made.settle()
    assert made.names("datavolumes") == [NAME_A]
    assert made.offered == f"pvc/{NAME_A}"
    assert made.condition("GoldenSettings")[:2] == ("False", "NotFollowed")


def test_a_status_of_another_controller_is_continued_without_a_download():
    """The console creates a DataImportCron again with its status and annotations."""
    made = imported(A)
    status = {name: value for name, value in made.status.items() if name not in ("versions", "channels")}
    body = cron_body(annotations=annotations(made, "dataimportcrons", "fedora-cron"))
    body["metadata"]["uid"] = "another"
    made.objects["dataimportcrons", NAMESPACE, "fedora-cron"] = {**body, "status": status}
    uid = made.get("datavolumes", NAME_A)["metadata"]["uid"]
    made.settle()
    assert made.get("datavolumes", NAME_A)["metadata"]["uid"] == uid
    assert made.offered == f"pvc/{NAME_A}"
    assert made.condition("UpToDate") == ("True", "UpToDate", "Latest import is up to date")


@pytest.mark.parametrize("wrong", ["", "md5:1", "sha256:", "sha256:/../x", "x" * 10_000])
def test_a_status_with_an_invalid_digest_is_replaced(wrong):
    made = world()
    made.cron_now["status"] = {"currentImports": [{"DataVolumeName": "whatever", "Digest": wrong}]}
    made.desire(A)
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"


# --- deletion -----------------------------------------------------------------------------------------------------


def test_retention_none_deletes_everything_with_the_cron():
    made = imported(A, B, retentionPolicy="None")
    made.delete_cron()
    assert made.objects == {}


def test_retention_all_leaves_everything_but_the_jobs():
    made = imported(A)
    given = {CRON_LABEL: "fedora-cron", "cdi.kubevirt.io/dataImportCronNs": NAMESPACE}
    for kind in ("Job", "CronJob"):
        made.put({"kind": kind, "metadata": {"name": "poll", "namespace": "cdi", "labels": given}})
    made.delete_cron()
    assert made.names("jobs") == made.names("cronjobs") == []
    assert made.names("persistentvolumeclaims") == made.names("datavolumes") == [NAME_A]
    assert made.offered == f"pvc/{NAME_A}"


@pytest.mark.parametrize("retention", ["All", "None"])
def test_a_running_proof_is_stopped_with_the_cron(retention):
    # A pod keeps a PVC that is being deleted, and would be garbage-collected only with that PVC.
    made = world(retentionPolicy=retention)
    made.annotate(golden_proof="boot")
    made.guests[NAME_A] = None
    made.desire(A)
    made.settle()
    (pod,) = made.names("pods")
    deleted = [one.name for one in plan_deletion(made, NAMESPACE, "fedora-cron").actions if one.plural == "pods"]
    made.delete_cron()
    assert deleted == [pod]
    assert made.names("pods") == []


def test_a_proof_pod_does_not_keep_a_pvc_that_is_being_deleted():
    made = world(annotations=PROOF)
    made.guests[NAME_A] = None
    made.desire(A)
    made.settle()
    del made.objects["datavolumes", NAMESPACE, NAME_A]
    made.get("persistentvolumeclaims", NAME_A)["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    made.reconcile()
    assert made.names("pods") == []


def test_the_import_of_a_deleted_cron_goes_on_with_retention_all():
    made = world()
    made.outcomes[NAME_A] = ""
    made.desire(A)
    made.settle()
    made.delete_cron()
    assert made.names("datavolumes") == [NAME_A]


def test_one_import_to_keep_never_removes_the_current_one():
    made = imported(A, B, C, importsToKeep=0)
    assert made.names("persistentvolumeclaims") == [NAME_C]
    uid = made.get("persistentvolumeclaims", NAME_C)["metadata"]["uid"]
    made.settle()
    assert made.get("persistentvolumeclaims", NAME_C)["metadata"]["uid"] == uid
