"""Tests of the choice of a default storage class."""

from __future__ import annotations

import pytest

from cdi.reconcile.storage.classes import StorageClass, default_class, named_or_default, scratch_class

DEFAULT = "storageclass.kubernetes.io/is-default-class"
VIRT = "storageclass.kubevirt.io/is-default-virt-class"


def klass(name: str, *annotations: str, created: str = "2026-01-01T00:00:00Z") -> StorageClass:
    return StorageClass.read({
        "metadata": {
            "name": name, "uid": f"uid-{name}", "creationTimestamp": created,
            "annotations": dict.fromkeys(annotations, "true"),
        },
        "provisioner": "csi.example",
        "parameters": {"type": "fast"},
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    })  # fmt: skip


def name_of(one: StorageClass | None) -> str | None:
    return one.name if one is not None else None


def test_an_object_of_the_api_is_read():
    assert klass("a", VIRT) == StorageClass(
        name="a", uid="uid-a", provisioner="csi.example", created="2026-01-01T00:00:00Z",
        parameters={"type": "fast"}, annotations={VIRT: "true"}, wait_for_first_consumer=True, allow_expansion=True,
    )  # fmt: skip


def test_an_object_with_nothing_in_it_is_read():
    assert StorageClass.read({}) == StorageClass(name="", provisioner="")


def test_the_default_for_virtualization_goes_before_that_of_kubernetes():
    classes = [klass("k8s", DEFAULT, created="2026-05-05T00:00:00Z"), klass("virt", VIRT), klass("plain")]
    assert name_of(default_class(classes)) == "virt"


def test_archives_take_the_default_of_kubernetes():
    classes = [klass("k8s", DEFAULT), klass("virt", VIRT)]
    assert name_of(default_class(classes, virtualization=False)) == "k8s"


def test_without_a_default_for_virtualization_that_of_kubernetes_counts():
    assert name_of(default_class([klass("k8s", DEFAULT), klass("plain")])) == "k8s"


@pytest.mark.parametrize("order", [1, -1])
def test_the_newest_default_counts(order: int):
    classes = [klass("old", VIRT), klass("new", VIRT, created="2026-02-01T00:00:00Z")][::order]
    assert name_of(default_class(classes)) == "new"


@pytest.mark.parametrize("order", [1, -1])
def test_of_equally_old_defaults_the_first_by_name_counts(order: int):
    assert name_of(default_class([klass("a", DEFAULT), klass("b", DEFAULT)][::order])) == "a"


def test_an_annotation_that_says_false_makes_no_default():
    one = StorageClass(name="a", provisioner="p", annotations={DEFAULT: "false", VIRT: "yes"})
    assert default_class([one]) is None


def test_a_class_that_is_named_is_that_one_or_none():
    classes = [klass("a"), klass("k8s", DEFAULT)]
    assert name_of(named_or_default("a", classes)) == "a"
    assert named_or_default("gone", classes) is None
    assert name_of(named_or_default(None, classes)) == "k8s"


def test_the_empty_name_asks_for_no_class():
    assert named_or_default("", [klass("k8s", DEFAULT)]) is None


@pytest.mark.parametrize(("configured", "chosen"), [("a", "a"), ("gone", None), (None, None), ("", None)])
def test_scratch_space_takes_the_configured_class_if_it_exists(configured, chosen):
    classes = [klass("a"), klass("virt", VIRT), klass("k8s", DEFAULT)]
    assert scratch_class(configured, classes) == chosen
