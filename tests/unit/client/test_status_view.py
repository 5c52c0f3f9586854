"""Tests of the status derived from a stored object."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from cdi.api.errors import Retry, SourceUnreachable
from cdi.client.status_view import failure_of, raise_failure


def test_why_an_object_is_not_understood_can_be_read_of_it() -> None:
    conditions = [
        {"type": "Ready", "status": "False", "reason": "InvalidManifest", "message": "spec.source: not an object"},
        {"type": "Running", "status": "False", "reason": "Error", "message": "spec.source: not an object"},
    ]
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "d", "namespace": "ns"},
        "spec": {"source": "x"},
        "status": {"phase": "Pending", "conditions": conditions},
    }
    failure = failure_of(body)
    assert failure is not None
    assert (failure.code, failure.message, failure.retry) == (
        "InvalidManifest", "spec.source: not an object", Retry.NEVER,
    )  # fmt: skip


@pytest.mark.parametrize(("phase", "ends"), [("UploadReady", True), ("UploadScheduled", False)])
def test_an_upload_that_only_its_client_can_repeat_is_not_waited_for(phase: str, ends: bool) -> None:  # noqa: FBT001
    conditions = [
        {"type": "Ready", "status": "False", "reason": "SourceUnreachable", "message": "reading failed"},
        {"type": "Running", "status": "False", "reason": "Error", "message": "reading failed"},
    ]
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "d", "namespace": "ns"},
        "spec": {"source": {"upload": {}}},
        "status": {"phase": phase, "conditions": conditions},
    }
    raise_failure(body, patient=True)
    with pytest.raises(SourceUnreachable) if ends else nullcontext():
        raise_failure(body, patient=False)
