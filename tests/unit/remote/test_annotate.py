"""Tests of the preconditions with which annotations are written."""

from __future__ import annotations

import pytest

from cdi.api.errors import Conflict, NotFound
from cdi.remote.backend import Cluster


class Calls:
    """A client that records patches, and whose API server rejects all of them."""

    def __init__(self):
        self.client, self.patches = self, []

    def patch(self, resource, namespace, name, body):
        self.patches.append((resource.plural, namespace, name, body))

    def run(self, call):
        raise Conflict("the object has been modified")


@pytest.mark.parametrize(
    ("version", "error", "metadata"),
    [(None, NotFound, {"uid": "u"}), ("7", Conflict, {"uid": "u", "resourceVersion": "7"})],
)
def test_a_conflict_is_one_of_versions_only_if_a_version_was_required(version, error, metadata):
    calls = Calls()
    with pytest.raises(error):
        Cluster(calls, patience=0).annotate("dic", "images", "fedora", {"a": "b", "c": None}, uid="u", version=version)
    body = {"metadata": {"annotations": {"a": "b", "c": None}, **metadata}}
    assert calls.patches == [("dataimportcrons", "images", "fedora", body)]
