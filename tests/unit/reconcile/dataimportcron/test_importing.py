"""Imports get the content of their version, and count as complete only when they are."""

from __future__ import annotations

import pytest

from cdi.api.proof import ProofResult
from cdi.reconcile.dataimportcron.context import ImageStream
from cdi.reconcile.storage.profiles import SnapshotClass
from tests.unit.reconcile.dataimportcron.world import DESIRED, URL, World, cron_body, digest

A, B, C = digest("a"), digest("b"), digest("c")
NAME_A, NAME_B, NAME_C = (f"fedora-{letter * 12}" for letter in "abc")
REFERENCE = "cdi.kubevirt.io/storage.import.imageStreamDockerRef"
NEXT_POLL = "cdi.kubevirt.io/storage.import.nextCronTime"
STREAM = {"registry": {"imageStream": "fedora", "pullMethod": "node"}}


def world(**spec):
    made = World(cron_body(**spec))
    made.use_class("fast")
    return made


def publish(made: World, wanted: str, reference: str) -> None:
    """Make an image the newest of the stream, and poll it."""
    item = {"image": wanted, "dockerImageReference": reference}
    made.image_streams["fedora"] = ImageStream(body={"status": {"tags": [{"tag": "40", "items": [item]}]}})
    made.cron_now["metadata"]["annotations"].pop(NEXT_POLL, None)
    made.settle()
    made.now += 60


def pulled(made: World, name: str) -> str:
    return made.get("datavolumes", name)["spec"]["source"]["registry"]["url"]


def test_every_image_of_an_image_stream_is_imported_under_its_own_digest():
    made = world(source=STREAM, schedule="0 * * * *")
    publish(made, A, f"r.example/fedora@{A}")
    publish(made, B, f"r.example/fedora@{B}")
    assert pulled(made, NAME_A) == f"docker://r.example/fedora@{A}"
    assert pulled(made, NAME_B) == f"docker://r.example/fedora@{B}"
    assert made.offered == f"pvc/{NAME_B}"


def test_the_image_of_an_image_stream_is_pinned_to_the_digest_in_place_of_its_tag():
    made = world(source=STREAM, schedule="0 * * * *")
    publish(made, A, "r.example:5000/fedora:40")
    assert pulled(made, NAME_A) == f"docker://r.example:5000/fedora@{A}"


def test_a_rollback_of_an_image_stream_imports_the_older_image_again_from_its_repository():
    made = world(source=STREAM, schedule="0 * * * *")
    publish(made, A, f"r.example/fedora@{A}")
    publish(made, B, f"other.example/fedora@{B}")
    made.remove("datavolumes", NAME_A)
    made.settle()
    made.annotate(golden_rollback=NAME_A)
    made.settle()
    assert pulled(made, NAME_A) == f"docker://r.example/fedora@{A}"
    assert made.offered == f"pvc/{NAME_A}"


def test_an_image_stream_without_a_reference_is_not_imported_unpinned():
    made = world(source=STREAM, annotations={DESIRED: A})
    made.settle()
    assert made.names("datavolumes") == []
    assert made.condition("Progressing")[1] == "ImageReferenceUnknown"
    made.cron_now["metadata"]["annotations"][REFERENCE] = "r.example/fedora:40"
    made.settle()
    assert pulled(made, NAME_A) == f"docker://r.example/fedora@{A}"


# --- PVCs without a DataVolume ------------------------------------------------------------------------------------

POD_PHASE = "cdi.kubevirt.io/storage.pod.phase"
DIRECT = {"cdi.kubevirt.io/storage.usePopulator": "false"}


def orphaned(**annotations: str) -> World:
    """Return a world whose newest version has a bound PVC, and whose DataVolume was deleted during its import."""
    made = world()
    made.desire(A)
    made.settle()
    made.now += 60
    made.outcomes[NAME_B] = ""
    made.desire(B)
    made.settle()
    made.objects.pop(("datavolumes", "golden", NAME_B))
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": NAME_B, "annotations": annotations},
        "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "6Gi"}}},
        "status": {"phase": "Bound"},
    }
    made.put(claim)
    made.reconcile()
    return made


@pytest.mark.parametrize("annotations", [{POD_PHASE: "Running"}, {**DIRECT, POD_PHASE: "Failed"}, DIRECT])
def test_a_half_written_volume_whose_data_volume_was_deleted_is_not_offered(annotations):
    made = orphaned(**annotations)
    assert made.offered == f"pvc/{NAME_A}"
    assert made.version(B)["state"] == "Importing"
    # Once the garbage collector has deleted it, the version is imported again.
    made.remove("persistentvolumeclaims", NAME_B)
    made.outcomes.clear()
    made.settle()
    assert made.offered == f"pvc/{NAME_B}"


@pytest.mark.parametrize("annotations", [{}, {**DIRECT, POD_PHASE: "Succeeded"}])
def test_a_complete_volume_without_a_data_volume_is_offered(annotations):
    assert orphaned(**annotations).offered == f"pvc/{NAME_B}"


def test_a_failed_volume_whose_data_volume_was_deleted_makes_way_for_a_newer_digest():
    made = orphaned(**{POD_PHASE: "Failed"})
    made.desire(C)
    made.settle()
    assert made.offered == f"pvc/{NAME_C}"
    assert made.version(B)["reason"] == "Superseded"


# --- sources that provide their current content only --------------------------------------------------------------

UNPINNED = [
    {"http": {"url": "http://server.example/fedora.qcow2"}},
    {"s3": {"url": "http://server.example/bucket/fedora.qcow2"}},
    {"gcs": {"url": "gs://bucket/fedora.qcow2"}},
    {"pvc": {"namespace": "golden", "name": "source"}},
]


@pytest.mark.parametrize("source", UNPINNED)
def test_a_retry_of_a_version_that_the_source_no_longer_has_is_refused(source):
    made = world(source=source)
    made.outcomes[NAME_A] = "Failed"
    for wanted in (A, B):
        made.desire(wanted)
        made.settle()
        made.now += 60
    made.outcomes.clear()
    made.annotate(golden_retry=NAME_A)
    made.settle()
    assert made.version(A)["state"] == "Failed"
    assert made.names("datavolumes") == [NAME_B]
    status, reason, message = made.condition("GoldenSettings")
    assert (status, reason) == ("False", "CommandRefused")
    assert f'current content only, which is that of "{NAME_B}"' in message
    assert "restore the version's content at the source" in message


def test_a_retry_of_the_version_that_the_source_has_imports_it_again():
    made = world(source=UNPINNED[0])
    made.outcomes[NAME_A] = "Failed"
    made.desire(A)
    made.settle()
    made.outcomes.clear()
    made.annotate(golden_retry=NAME_A)
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"


@pytest.mark.parametrize("source", UNPINNED)
def test_an_older_version_without_a_volume_does_not_get_the_newest_content(source):
    made = world(source=source)
    for wanted in (A, B):
        made.desire(wanted)
        made.settle()
        made.now += 60
    made.remove("datavolumes", NAME_A)
    # Its import had been started when the source changed.
    made.version(A)["state"] = "Importing"
    made.settle()
    assert made.names("datavolumes") == [NAME_B]
    assert (made.version(A)["state"], made.version(A)["reason"]) == ("Failed", "Superseded")
    made.desire(A)
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"


def converted(source: dict[str, object], annotations: dict[str, str]) -> World:
    """Return a world with a version of which only a snapshot is left, and whose storage now prefers PVCs."""
    made = world(source=source)
    made.use_class("fast", format="snapshot")
    made.classes_of_snapshots = [SnapshotClass(name="snap", driver="csi.example", default=True)]
    made.desire(A)
    made.settle()
    assert (made.names("datavolumes"), made.names("volumesnapshots")) == ([], [NAME_A])
    made.cron_now["metadata"]["annotations"].update(annotations)
    made.settle()
    made.use_class("fast", format="pvc")
    return made


def test_a_snapshot_stays_while_it_is_unknown_what_the_source_has():
    made = converted(UNPINNED[0], {})
    del made.cron_now["metadata"]["annotations"][DESIRED]
    made.settle()
    assert made.names("datavolumes") == []
    assert made.offered == f"snapshot/{NAME_A}"


def test_a_revoked_snapshot_is_not_imported_again():
    made = converted({"registry": {"url": URL}}, {"cdi.kubevirt.io/golden.revoke": NAME_A})
    made.settle()
    assert made.names("datavolumes") == []
    assert made.version(A)["state"] == "Revoked"


# --- the storage class --------------------------------------------------------------------------------------------


def bad(state: str) -> World:
    """Return a world whose newest version is in this state, and whose volume still exists."""
    made = world(annotations={"cdi.kubevirt.io/golden.proof": "boot"} if state == "Unproven" else None)
    made.desire(A)
    made.settle()
    made.now += 60
    if state == "Unproven":
        made.guests[NAME_B] = ProofResult(id="", booted=False, message="panic", accelerator="tcg", seconds=1)
    made.desire(B)
    made.settle()
    if state == "Revoked":
        made.annotate(golden_revoke=NAME_B)
        made.settle()
    assert made.version(B)["state"] == state
    return made


@pytest.mark.parametrize("state", ["Revoked", "Unproven"])
def test_a_change_of_the_default_class_keeps_a_version_that_is_not_imported_again(state):
    made = bad(state)
    kept = made.get("persistentvolumeclaims", NAME_B)["metadata"]["uid"]
    made.use_class("slow")
    made.settle()
    assert made.get("persistentvolumeclaims", NAME_B)["metadata"]["uid"] == kept
    assert made.version(B)["state"] == state
    assert made.offered == f"pvc/{NAME_A}"
    # The next version is imported into the new class.
    made.desire(C)
    made.settle()
    assert made.get("persistentvolumeclaims", NAME_C)["spec"]["storageClassName"] == "slow"


def test_a_change_of_the_default_class_keeps_a_failed_version_that_is_not_the_current_import():
    made = bad("Revoked")
    # The source went back to a version that had failed, and whose volume is left for a diagnosis.
    made.version(B)["state"] = "Failed"
    made.get("datavolumes", NAME_B)["status"]["phase"] = "Failed"
    made.status["currentImports"] = [{"DataVolumeName": NAME_A, "Digest": A}]
    kept = made.get("persistentvolumeclaims", NAME_B)["metadata"]["uid"]
    made.use_class("slow")
    made.settle()
    assert made.get("persistentvolumeclaims", NAME_B)["metadata"]["uid"] == kept
    assert made.version(B)["state"] == "Failed"


def test_a_change_of_the_default_class_imports_a_failed_version_again():
    made = world()
    made.outcomes[NAME_A] = "Failed"
    made.desire(A)
    made.settle()
    made.outcomes.clear()
    made.use_class("slow")
    made.settle()
    assert made.offered == f"pvc/{NAME_A}"
    assert made.get("persistentvolumeclaims", NAME_A)["spec"]["storageClassName"] == "slow"


def test_a_change_of_the_default_class_keeps_a_version_whose_source_may_not_be_cloned_any_more():
    made = world(source={"pvc": {"namespace": "elsewhere", "name": "source"}})
    made.desire(A)
    made.settle()
    made.allowed = False
    made.use_class("slow")
    made.settle()
    assert made.names("persistentvolumeclaims") == [NAME_A]
    made.allowed = True
    made.settle()
    assert made.get("persistentvolumeclaims", NAME_A)["spec"]["storageClassName"] == "slow"
