"""The life of versions through the whole reconciler: commands, channels, retention and lineage in one cluster."""

from __future__ import annotations

import json
import random

import pytest

from cdi.api.annotations import GOLDEN_ORIGIN
from cdi.api.golden import Origin
from tests.unit.reconcile.dataimportcron.world import NAMESPACE, Killed, World, cron_body

CRON = "fedora-cron"


def digest(number):
    return f"sha256:{number:02x}{'0' * 61}a"


def name(number):
    return f"fedora-{number:02x}0000000000"


def world(*numbers, annotations=None, **options):
    """Return a cluster in which these versions were found, imported and offered in this order."""
    own = {f"cdi.kubevirt.io/golden.{key}": text for key, text in (annotations or {}).items()}
    made = World(cron_body(CRON, annotations=own, **options))
    made.use_class()
    for number in numbers:
        find(made, number)
    return made


def find(made, number):
    made.now += 3600
    made.desire(digest(number))
    made.settle()


def command(made, **annotations):
    made.annotate(**{f"golden_{key}": text for key, text in annotations.items()})


def pvc(number):
    return f"pvc/{name(number)}"


def source_of(made, data_source):
    source = made.get("datasources", data_source)["spec"]["source"]
    return next((place["name"] for place in source.values()), None)


def annotations(made):
    return made.cron_now["metadata"]["annotations"]


@pytest.mark.parametrize("reference", ["previous", name(2), digest(2)])
def test_a_rollback_takes_one_reconcile_and_survives_three_polls(reference):
    made = world(1, 2, 3)
    command(made, rollback=reference)
    made.reconcile()
    assert made.offered == pvc(2)
    assert "cdi.kubevirt.io/golden.rollback" not in annotations(made)
    writes = len([event for event in made.events if event.reason == "VersionOffered"])
    for _ in range(3):
        find(made, 3)
        assert made.offered == pvc(2)
    assert len([event for event in made.events if event.reason == "VersionOffered"]) == writes
    assert made.names("datavolumes") == [name(1), name(2), name(3)]
    find(made, 4)
    assert made.offered == pvc(4)


def test_a_tag_that_flips_back_after_a_rollback_changes_nothing():
    made = world(1, 2, 3)
    command(made, rollback=name(1))
    made.settle()
    for number in (2, 3, 2, 3):
        find(made, number)
        assert made.offered == pvc(1)


def test_a_pinned_version_stays_offered_and_is_kept_while_newer_ones_are_imported():
    made = world(1, annotations={"pin": name(1)}, importsToKeep=1)
    for number in (2, 3, 4):
        find(made, number)
        assert made.offered == pvc(1)
    assert made.names("persistentvolumeclaims") == [name(1), name(4)]
    del annotations(made)["cdi.kubevirt.io/golden.pin"]
    made.settle()
    assert made.offered == pvc(4)


def test_hold_imports_and_changes_nothing_until_it_is_removed():
    made = world(1)
    command(made, hold="true")
    find(made, 2)
    assert (made.offered, made.names("datavolumes")) == (pvc(1), [name(1)])
    del annotations(made)["cdi.kubevirt.io/golden.hold"]
    made.settle()
    assert made.offered == pvc(2)


def test_a_revoked_version_leaves_every_data_source_in_one_reconcile():
    made = world(1, 2, annotations={"channels": json.dumps({"stable": {"manual": True}})})
    command(made, promote=f"stable={name(2)}")
    made.settle()
    assert source_of(made, "stable") == name(2)
    made.put({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": "machine",
            "namespace": "vms",
            "annotations": {
                GOLDEN_ORIGIN.key: Origin(namespace=NAMESPACE, cron=CRON, version=name(2), digest=digest(2)).to_json()
            },
        },
    })  # fmt: skip
    command(made, revoke=f"{name(2)}: backdoor")
    made.reconcile()
    assert (made.offered, source_of(made, "stable")) == (pvc(1), name(1))
    assert any("vms/machine" in event.message for event in made.events)
    find(made, 2)
    assert made.offered == pvc(1)
    marks = made.get("persistentvolumeclaims", name(2))["metadata"]["annotations"]
    assert "backdoor" in marks["cdi.kubevirt.io/golden.revoked"]


def test_the_only_version_leaves_its_data_source_when_it_is_revoked():
    made = world(1)
    command(made, revoke=name(1))
    made.settle()
    assert made.offered is None
    assert made.condition("GoldenSettings") is not None
    find(made, 2)
    assert made.offered == pvc(2)


def test_every_version_carries_its_origin():
    made = world(1)
    origin = made.get("persistentvolumeclaims", name(1))["metadata"]["annotations"][GOLDEN_ORIGIN.key]
    assert Origin.from_json(origin) == Origin(namespace=NAMESPACE, cron=CRON, version=name(1), digest=digest(1))


def test_a_version_is_kept_while_it_is_cloned_and_removed_afterwards():
    made = world(1, importsToKeep=1)
    made.clones[name(1)] = ("vms/machine",)
    for number in (2, 3):
        find(made, number)
    assert made.offered == pvc(3)
    assert name(1) in made.names("persistentvolumeclaims")
    made.clones.clear()
    made.settle()
    assert made.names("persistentvolumeclaims") == [name(3)]
    assert "VersionRemoved" in [event.reason for event in made.events]


def test_a_removed_version_is_imported_again_for_a_rollback():
    made = world(1, 2, importsToKeep=1)
    assert made.names("persistentvolumeclaims") == [name(2)]
    command(made, rollback=name(1))
    made.settle()
    assert made.offered == pvc(1)
    assert made.offers == [pvc(1), pvc(2), pvc(1)]


def test_a_failed_version_is_retried_when_asked():
    made = world(1)
    made.outcomes[name(2)] = "Failed"
    find(made, 2)
    assert (made.offered, made.version(digest(2))["state"]) == (pvc(1), "Failed")
    del made.outcomes[name(2)]
    made.settle()
    assert made.version(digest(2))["state"] == "Failed"
    command(made, retry=name(2))
    made.settle()
    assert made.offered == pvc(2)
    assert "cdi.kubevirt.io/golden.retry" not in annotations(made)


def test_of_a_hundred_versions_only_the_good_ones_are_offered_in_their_order():
    bad = set(random.Random(7).sample(range(1, 101), 60))
    made = world(importsToKeep=3)
    for number in range(1, 101):
        if number in bad:
            made.outcomes[name(number)] = "Failed"
        find(made, number)
    assert made.offers == [pvc(number) for number in range(1, 101) if number not in bad]


@pytest.mark.parametrize(
    ("commands", "managed", "stable"),
    [
        ({"rollback": "previous"}, 2, 1),
        ({"rollback": "previous", "hold": "true"}, 2, 1),
        ({"promote": f"stable={name(3)}"}, 3, 3),
        ({"revoke": name(3)}, 2, 1),
        ({"rollback": "previous", "revoke": name(3)}, 2, 1),
    ],
)
def test_a_command_interrupted_at_any_write_takes_effect_once(commands, managed, stable):
    channels = json.dumps({"stable": {"manual": True}})
    for kill_at in range(1, 12):
        made = world(1, 2, 3, annotations={"channels": channels, "promote": f"stable={name(1)}"})
        command(made, promote=f"stable={name(1)}")
        made.settle()
        command(made, **commands)
        made.kill_at = made.writes + kill_at
        try:
            made.settle()
        except Killed:
            made.settle()
        assert (made.offered, source_of(made, "stable")) == (pvc(managed), name(stable))
        assert not {"rollback", "promote", "revoke"} & {one.rpartition(".")[2] for one in annotations(made)}
