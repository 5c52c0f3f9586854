"""One DataImportCron for several architectures."""

from __future__ import annotations

import json

import pytest

from cdi.api.poll import PollResult
from cdi.reconcile.dataimportcron.poll_record import PollRecord
from tests.unit.reconcile.dataimportcron.world import DESIRED, NAMESPACE, World, cron_body, digest

ARCHITECTURES = "cdi.kubevirt.io/golden.architectures"


def world(architectures="amd64,arm64", annotations=None, **options):
    made = World(cron_body(annotations={ARCHITECTURES: architectures, **(annotations or {})}, **options), outcomes={})
    made.use_class()
    return made


def children(made):
    return [name for name in made.names("dataimportcrons") if name != "fedora-cron"]


def child_world(made, architecture):
    """Return a view of the same objects in which the child is reconciled."""
    child = made.get("dataimportcrons", f"fedora-cron-{architecture}")
    view = World(child, objects=made.objects)
    view.storage_classes, view.profiles = made.storage_classes, made.profiles
    return view


def settle(made, wanted=digest("a")):
    made.settle()
    for name in children(made):
        view = child_world(made, name.rpartition("-")[2])
        view.desire(wanted)
        view.settle()
    made.settle()


def test_each_architecture_is_imported_into_a_data_source_of_its_own():
    made = world(labels={"instancetype.kubevirt.io/default-preference": "fedora"})
    settle(made)
    assert children(made) == ["fedora-cron-amd64", "fedora-cron-arm64"]
    assert made.names("datavolumes") == ["fedora-amd64-aaaaaaaaaaaa", "fedora-arm64-aaaaaaaaaaaa"]
    body = made.get("datavolumes", "fedora-arm64-aaaaaaaaaaaa")
    assert body["spec"]["source"]["registry"]["platform"] == {"architecture": "arm64"}
    for architecture in ("amd64", "arm64"):
        source = made.get("datasources", f"fedora-{architecture}")
        assert source["spec"]["source"]["pvc"]["name"] == f"fedora-{architecture}-aaaaaaaaaaaa"
        assert source["metadata"]["labels"]["template.kubevirt.io/architecture"] == architecture
        child = made.get("dataimportcrons", f"fedora-cron-{architecture}")
        assert child["metadata"]["labels"] == {
            "instancetype.kubevirt.io/default-preference": "fedora",
            "template.kubevirt.io/architecture": architecture,
            "cdi.kubevirt.io/storage.import.datasource-name": "fedora",
        }
        assert child["spec"]["managedDataSource"] == f"fedora-{architecture}"
    pointer = made.get("datasources", "fedora")
    assert pointer["spec"]["source"] == {"dataSource": {"namespace": NAMESPACE, "name": "fedora-amd64"}}
    assert made.condition("UpToDate") == ("True", "UpToDate", "Latest import is up to date")


def test_the_parent_imports_nothing_itself():
    made = world()
    made.desire(digest("b"))
    made.settle()
    assert made.names("datavolumes") == []
    assert "versions" not in made.status


def test_the_children_go_with_their_owner():
    made = world()
    settle(made)
    (owner,) = made.get("dataimportcrons", "fedora-cron-amd64")["metadata"]["ownerReferences"]
    assert (owner["name"], owner["uid"], owner["controller"]) == ("fedora-cron", "uid-fedora-cron", True)
    made.delete_cron()
    assert children(made) == []


def test_the_parent_shows_the_first_architecture_that_is_behind():
    made = world()
    made.settle()
    assert made.condition("UpToDate") == ("False", "NoDigest", "amd64: No source digest")
    view = child_world(made, "amd64")
    view.desire(digest("a"))
    view.settle()
    made.settle()
    assert made.condition("UpToDate")[2].startswith("arm64: ")


def test_an_architecture_that_the_index_lacks_is_a_condition():
    made = world("amd64,s390x")
    made.settle()
    found = PollRecord(found=PollResult(id="x", digest=digest("a"), architectures=("amd64", "arm64")))
    made.get("dataimportcrons", "fedora-cron-s390x")["metadata"]["annotations"].update(found.write())
    made.settle()
    status, _, message = made.condition("GoldenSettings")
    assert status == "False"
    assert "no architecture s390x, only amd64, arm64" in message


def test_settings_reach_the_children_and_leave_them_again():
    channels = json.dumps({"fedora-stable": {"manual": True}})
    made = world(annotations={
        "cdi.kubevirt.io/golden.channels": channels,
        "cdi.kubevirt.io/golden.proof": "boot",
        "cdi.kubevirt.io/policy.connections": "2",
        "cdi.kubevirt.io/golden.pin": "fedora-arm64-aaaaaaaaaaaa",
        "operator-sdk/primary-resource": "x/y",
    })  # fmt: skip
    made.settle()
    annotations = made.get("dataimportcrons", "fedora-cron-arm64")["metadata"]["annotations"]
    assert annotations == {
        "cdi.kubevirt.io/golden.channels": '{"fedora-stable-arm64":{"manual":true}}',
        "cdi.kubevirt.io/golden.proof": "boot",
        "cdi.kubevirt.io/policy.connections": "2",
        "cdi.kubevirt.io/golden.pin": "fedora-arm64-aaaaaaaaaaaa",
    }
    assert (
        "cdi.kubevirt.io/golden.pin" not in made.get("dataimportcrons", "fedora-cron-amd64")["metadata"]["annotations"]
    )
    pointer = made.get("datasources", "fedora-stable")
    assert pointer["spec"]["source"]["dataSource"]["name"] == "fedora-stable-amd64"
    child = made.get("dataimportcrons", "fedora-cron-arm64")
    child["metadata"]["annotations"]["cdi.kubevirt.io/golden.rollback"] = "previous"
    for name in ("channels", "proof"):
        del made.cron_now["metadata"]["annotations"][f"cdi.kubevirt.io/golden.{name}"]
    made.settle()
    annotations = made.get("dataimportcrons", "fedora-cron-arm64")["metadata"]["annotations"]
    assert "cdi.kubevirt.io/golden.proof" not in annotations
    assert annotations["cdi.kubevirt.io/golden.rollback"] == "previous"
    assert made.get("datasources", "fedora-stable") is None


def test_a_command_on_the_parent_is_refused_and_names_the_children():
    made = world(annotations={"cdi.kubevirt.io/golden.rollback": "previous"})
    made.settle()
    _, reason, message = made.condition("GoldenSettings")
    assert reason == "CommandRefused"
    assert 'golden.rollback="previous": ' in message
    assert "fedora-cron-amd64, fedora-cron-arm64" in message
    assert "cdi.kubevirt.io/golden.rollback" in made.cron_now["metadata"]["annotations"]


def test_an_architecture_removed_from_the_settings_is_removed():
    made = world()
    settle(made)
    made.annotate(golden_architectures="amd64")
    made.settle()
    assert children(made) == ["fedora-cron-amd64"]


def test_invalid_settings_remove_no_architecture():
    made = world()
    settle(made)
    made.annotate(golden_architectures="amd64,vax")
    made.settle()
    assert children(made) == ["fedora-cron-amd64", "fedora-cron-arm64"]
    assert made.get("datasources", "fedora")["spec"]["source"]["dataSource"]["name"] == "fedora-amd64"
    assert "vax" in made.condition("GoldenSettings")[2]


def test_the_data_source_keeps_its_volume_until_the_first_architecture_is_imported():
    made = World(cron_body())
    made.use_class()
    made.desire(digest("1"))
    made.settle()
    assert made.offered == "pvc/fedora-111111111111"
    made.annotate(golden_architectures="amd64")
    made.settle()
    assert made.offered == "pvc/fedora-111111111111"
    settle(made)
    assert made.offered == "dataSource/fedora-amd64"


def test_without_the_setting_the_children_go_and_the_data_source_has_a_volume_again():
    made = world()
    settle(made)
    del made.cron_now["metadata"]["annotations"][ARCHITECTURES]
    made.cron_now["metadata"]["annotations"][DESIRED] = digest("c")
    made.settle()
    assert children(made) == []
    assert made.offered == "pvc/fedora-cccccccccccc"


@pytest.mark.parametrize(
    "source",
    [
        {"pvc": {"namespace": NAMESPACE, "name": "x"}},
        {"registry": {"url": "docker://r/i", "platform": {"architecture": "arm64"}}},
    ],
)
def test_a_source_without_an_index_is_imported_as_it_is_and_the_setting_reported(source):
    made = world(source=source)
    made.settle()
    assert children(made) == []
    assert ARCHITECTURES in made.condition("GoldenSettings")[2]


def test_a_data_import_cron_of_another_owner_is_left_alone():
    made = world("amd64")
    made.put({**cron_body("fedora-cron-amd64"), "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataImportCron"})
    made.settle()
    assert "does not belong to this one" in made.condition("GoldenSettings")[2]
    made.annotate(golden_architectures="arm64")
    made.settle()
    assert "fedora-cron-amd64" in children(made)
