"""Long courses of golden images: crashes at every write, many bad versions, flipping tags and clocks that jump."""

from __future__ import annotations

import contextlib
import random

import pytest

from cdi.reconcile.dataimportcron.reconcile import reconcile_cron
from cdi.reconcile.storage.profiles import SnapshotClass
from tests.unit.reconcile.dataimportcron.world import START, Killed, World, cron_body, digest

DAY = 86_400.0
KINDS_OF_FAILURE = (
    "ChecksumMismatch",
    "SignatureInvalid",
    "SignatureMissing",
    "ImageTruncated",
    "ImageInvalid",
    "ArchitectureMismatch",
    "ImageTooLarge",
    "SourceNotFound",
    "SourceForbidden",
    "DigestMismatch",
    "WorkerOutOfMemory",
    "CertificateUntrusted",
)


def wanted(number: int) -> str:
    return digest(f"{number:012x}")


def name(number: int) -> str:
    return f"fedora-{number:012x}"


def world(form: str, **spec) -> World:
    made = World(cron_body(importsToKeep=1, **spec))
    made.use_class("fast", format=form)
    made.classes_of_snapshots = [SnapshotClass(name="snap", driver="csi.example", default=True)]
    return made


def check_no_leftovers(made: World, current: str, form: str) -> None:
    """Assert that only the current version is left, in its format."""
    kept = "persistentvolumeclaims" if form == "pvc" else "volumesnapshots"
    assert made.names(kept) == [current]
    others = {"pvc": ("volumesnapshots",), "snapshot": ("datavolumes", "persistentvolumeclaims")}[form]
    for plural in others:
        assert made.names(plural) == []


def settle(made: World, *kills: int) -> None:
    """Settle, and start again from the objects after each crash; `kills` are numbers of writes after a crash."""
    left = list(kills)
    while True:
        try:
            made.settle()
        except Killed:
            if left:
                made.kill_at = made.writes + left.pop()
            continue
        return


def course(made: World, *kills: int) -> None:
    """Import three versions, of which the second one is bad, one after the other."""
    settle(made, *kills)
    for number in (1, 2, 3):
        made.outcomes[name(2)] = "Failed"
        made.desire(wanted(number))
        made.now += 60
        settle(made, *kills)


@pytest.mark.parametrize("form", ["pvc", "snapshot"])
def test_a_controller_killed_at_any_write_converges(form):
    whole = world(form)
    course(whole)
    for kill_at in range(1, whole.writes + 1):
        made = world(form)
        made.kill_at = kill_at
        course(made)
        assert made.offered == whole.offered, kill_at
        # Nothing is offered twice, and nothing that is bad.
        assert made.offers == whole.offers, kill_at
        assert [one["state"] for one in made.status["versions"]] == [one["state"] for one in whole.status["versions"]]
        check_no_leftovers(made, name(3), form)
        assert made.condition("UpToDate") == whole.condition("UpToDate")


@pytest.mark.parametrize("form", ["pvc", "snapshot"])
def test_a_controller_killed_at_any_two_writes_converges(form):
    whole = world(form)
    course(whole)
    for first in range(1, whole.writes + 1):
        for second in (1, 3):
            made = world(form)
            made.kill_at = first
            course(made, second)
            assert made.offers == whole.offers, (first, second)
            check_no_leftovers(made, name(3), form)


@pytest.mark.parametrize("form", ["pvc", "snapshot"])
def test_of_a_hundred_versions_the_bad_ones_are_never_offered(form):
    made = world(form)
    choice = random.Random(60)
    bad = dict.fromkeys(choice.sample(range(1, 101), 60), "")
    for index, number in enumerate(bad):
        bad[number] = KINDS_OF_FAILURE[index % len(KINDS_OF_FAILURE)]
        made.outcomes[name(number)] = "Failed"
    for number in range(1, 101):
        made.desire(wanted(number))
        made.now += DAY / 2
        made.settle()
        if number in bad:
            assert made.version(wanted(number))["state"] == "Failed"
    form_of = "pvc" if form == "pvc" else "snapshot"
    good = [number for number in range(1, 101) if number not in bad]
    assert len(good) == 40
    assert made.offers == [f"{form_of}/{name(number)}" for number in good]
    assert len(made.status["versions"]) == 100
    # Volumes of the newest failures stay for a diagnosis; all others are gone.
    assert len(made.names("datavolumes")) <= 5


def test_a_flipping_tag_downloads_each_version_once():
    made = World(cron_body(importsToKeep=3))
    made.use_class("fast")
    created = set()
    for turn in range(20):
        made.desire(wanted(1 + turn % 2))
        made.now += 60
        made.settle()
        created |= {body["metadata"]["uid"] for key, body in made.objects.items() if key[0] == "datavolumes"}
        assert made.offered == f"pvc/{name(1 + turn % 2)}"
    assert len(created) == 2
    assert len(made.status["versions"]) == 2


def test_a_tag_that_flips_between_a_good_and_a_bad_version_offers_the_good_one():
    made = world("pvc")
    made.outcomes[name(2)] = "Failed"
    created = set()
    for turn in range(10):
        made.desire(wanted(1 + turn % 2))
        made.now += 60
        made.settle()
        created |= {body["metadata"]["uid"] for key, body in made.objects.items() if key[0] == "datavolumes"}
    assert made.offers == [f"pvc/{name(1)}"]
    assert len(created) == 2, "the bad one is downloaded once too"


@pytest.mark.parametrize("jump", [-10 * 365 * DAY, -DAY, 10 * 365 * DAY])
def test_a_clock_that_jumps_does_no_harm(jump):
    made = world("pvc")
    made.desire(wanted(1))
    made.settle()
    made.now += jump
    made.desire(wanted(2))
    made.settle()
    made.now = START + 120
    made.settle()
    assert made.offers == [f"pvc/{name(1)}", f"pvc/{name(2)}"]
    check_no_leftovers(made, name(2), "pvc")
    made.desire(wanted(3))
    made.settle()
    assert made.offered == f"pvc/{name(3)}"
    check_no_leftovers(made, name(3), "pvc")


@pytest.mark.parametrize("form", ["pvc", "snapshot"])
def test_a_cron_deleted_at_any_write_leaves_nothing(form):
    whole = world(form, retentionPolicy="None")
    course(whole)
    for kill_at in range(1, whole.writes + 1):
        made = world(form, retentionPolicy="None")
        made.kill_at = kill_at
        with contextlib.suppress(Killed):
            made.settle()
            for number in (1, 2, 3):
                made.outcomes[name(2)] = "Failed"
                made.desire(wanted(number))
                made.settle()
        made.delete_cron()
        assert made.objects == {}, kill_at


def test_a_settled_world_is_left_alone():
    made = world("snapshot")
    course(made)
    for later in (0.0, 1.0, DAY, 400 * DAY):
        made.now += later
        plan = reconcile_cron(made.context())
        assert plan.actions == ()
        assert plan.status is None
        assert plan.annotations == {}
        assert plan.events == ()


def test_changes_of_class_and_format_converge_after_a_crash_at_any_write():
    def change(made: World) -> None:
        made.desire(wanted(1))
        settle(made)
        made.use_class("fast", format="snapshot")
        settle(made)
        made.use_class("slow", format="snapshot")
        settle(made)
        made.use_class("slow", format="pvc")
        settle(made)

    whole = world("pvc")
    change(whole)
    assert whole.offered == f"pvc/{name(1)}"
    for kill_at in range(1, whole.writes + 1):
        made = world("pvc")
        made.kill_at = kill_at
        change(made)
        assert made.offered == whole.offered, kill_at
        check_no_leftovers(made, name(1), "pvc")
        assert made.get("persistentvolumeclaims", name(1))["spec"]["storageClassName"] == "slow"
