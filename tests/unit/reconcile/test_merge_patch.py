"""Tests of how patches change objects."""

from __future__ import annotations

from cdi.reconcile.actions import PatchObject
from cdi.reconcile.merge_patch import apply_patch


def test_the_last_annotation_can_be_removed():
    body = {"metadata": {"name": "x", "annotations": {"a": "1"}}}
    apply_patch(
        body, PatchObject(plural="dataimportcrons", namespace="default", name="x", uid="", annotations={"a": None})
    )
    assert body == {"metadata": {"name": "x"}}
