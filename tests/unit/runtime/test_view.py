"""What a stored object says of its own course."""

from __future__ import annotations

from cdi.api.errors import Retry
from cdi.runtime.view import failure_of


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
