"""Tests of how a batch follows one import that it started or joined."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cdi.batch.importing import Importing
from cdi.batch.tracking import Finished, Update, track


def datavolume(restarts: int, code: str) -> dict:
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {},
        "status": {
            "phase": "ImportInProgress",
            "restartCount": restarts,
            "conditions": [
                {"type": "Ready", "status": "False", "reason": code, "message": "the server answered 401"},
                {"type": "Running", "status": "False", "reason": "Error", "message": "the server answered 401"},
            ],
        },
    }


def followed(body: dict, before: int | None) -> Update | Finished:
    watch = SimpleNamespace(look=lambda key: (body, None))
    item = SimpleNamespace(key=("DataVolume", "default", "p"), path=None, namespace="default", name="p")
    return track(None, watch, item, Importing(uid="u", before=before))


@pytest.mark.parametrize("before", [1, 2])
def test_failure_of_an_attempt_begun_earlier_is_waited_out(before):
    assert isinstance(followed(datavolume(1, "SourceUnauthorized"), before), Update)


@pytest.mark.parametrize("before", [None, 0])
def test_failure_of_an_attempt_of_this_run_ends_it(before):
    result = followed(datavolume(1, "SourceUnauthorized"), before)
    assert isinstance(result, Finished)
    assert result.failure is not None and result.failure.code == "SourceUnauthorized"
