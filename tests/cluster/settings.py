"""Tests that change the cluster-wide configuration, and its restoration afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.kubectl import Document, Kubectl

CONFIG = "config"
"""Name of the only effective CDIConfig."""


@contextmanager
def kept_config(kubectl: Kubectl, name: str = CONFIG) -> Iterator[None]:
    """Restore the CDIConfig afterwards, or delete it if it did not exist.

    The controller copies the settings of a CDI object into the CDIConfig, which outlives the CDI object if it was not
    created for it. The controller must have ended before this context does.
    """
    before = _spec(kubectl, name)
    try:
        yield
    finally:
        if before is None:
            kubectl.delete("cdiconfig", name)
        elif _spec(kubectl, name) is None:
            kubectl.apply(
                {
                    "apiVersion": "cdi.kubevirt.io/v1beta1",
                    "kind": "CDIConfig",
                    "metadata": {"name": name},
                    "spec": before,
                }
            )
        else:
            change = [{"op": "add", "path": "/spec", "value": before}]
            kubectl.run("patch", "cdiconfig", name, "--type=json", f"--patch={json.dumps(change)}")


def _spec(kubectl: Kubectl, name: str) -> Document | None:
    """Return the spec, or None if there is no such object or it is being deleted."""
    for each in kubectl.get_all("cdiconfigs"):
        if each["metadata"]["name"] == name and "deletionTimestamp" not in each["metadata"]:
            spec: Document = each.get("spec") or {}
            return spec
    return None
