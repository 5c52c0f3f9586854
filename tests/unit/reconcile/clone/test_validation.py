"""Tests of clones whose target is smaller than its source."""

from __future__ import annotations

import pytest

from tests.unit.reconcile.clone.clone_simulation import GOLDEN
from tests.unit.reconcile.clone.test_laws import cloning
from tests.unit.reconcile.cluster_simulation import CLAIMS, DVS

WORDS = "target resources requests storage size is smaller than the source"


def small(form, mode="Filesystem"):
    cluster = cloning(size="512Mi", mode=mode)(mode=mode)
    if form == "storage":
        spec = cluster.get(DVS, "a")["spec"]
        spec["storage"] = spec.pop("pvc")
    return cluster


def test_a_file_system_that_is_too_small_is_a_claim_that_waits():
    cluster = small("storage")
    cluster.run()
    assert cluster.status["phase"] == "CloneScheduled"
    assert cluster.annotations["clonePhase"] == "Error"
    words = f"{WORDS} 569083167 < 1073741824: "  # with the overhead of the file system
    assert cluster.annotations["cloneError"].startswith(words)
    told = {one.reason: one.message for one in cluster.events}
    assert told["ErrIncompatiblePVC"].startswith(words)
    assert told["CloneValidationFailed"] == "The clone doesn't meet the validation requirements"
    assert cluster.names(CLAIMS) == {"a", "fedora"}
    cluster.get(CLAIMS, "a")["metadata"]["annotations"]["cdi.kubevirt.io/permissiveClone"] = "true"
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.content == GOLDEN
    assert "cloneError" not in cluster.annotations


@pytest.mark.parametrize(("form", "mode"), [("pvc", "Filesystem"), ("pvc", "Block"), ("storage", "Block")])
def test_elsewhere_a_target_that_is_too_small_waits_without_a_claim(form, mode):
    cluster = small(form, mode)
    cluster.run()
    assert cluster.status["phase"] == "Pending"
    assert cluster.names(CLAIMS) == {"fedora"}
    (told,) = {one.message for one in cluster.events if one.reason == "CloneValidationFailed"}
    assert told.startswith(f"The clone doesn't meet the validation requirements: {WORDS} 536870912 < 1073741824: ")
