"""Tests of labels from the environment of a containerDisk."""

import pytest

from cdi.source.registry.labels import labels_of


@pytest.mark.parametrize(
    ("entry", "label"),
    [
        ("KUBEVIRT_IO_TEST=v", {"kubevirt.io/test": "v"}),
        ("KUBEVIRT_IO_TEST_TEST=v", {"kubevirt.io/test-test": "v"}),
        ("TEST_KUBEVIRT_IO_TEST=v", {"test.kubevirt.io/test": "v"}),
        ("TEST_TEST_KUBEVIRT_IO_TEST=v", {"test.test.kubevirt.io/test": "v"}),
        (
            "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=fedora",
            {"instancetype.kubevirt.io/default-preference": "fedora"},
        ),
        ("KUBEVIRT_IO_A=", {"kubevirt.io/a": ""}),
        ("KUBEVIRT_IO_A=b=c", {}),
        ("KUBEVIRT_IO_A", {}),
        ("PATH=/bin", {}),
        ("KUBEVIRT_IO_=v", {}),
        ("__KUBEVIRT_IO_A=v", {}),
        ("KUBEVIRT_IO_A=not a label", {}),
        ("KUBEVIRT_IO_A=" + "x" * 64, {}),
        ("KUBEVIRT_IO_A=" + "x" * 100_000, {}),
        ("A" * 300 + "_KUBEVIRT_IO_A=v", {}),
    ],
)
def test_variables_become_labels(entry, label):
    assert labels_of([entry]) == label


def test_a_flood_is_cut_off():
    assert len(labels_of(f"KUBEVIRT_IO_A{number}=v" for number in range(1000))) == 64
