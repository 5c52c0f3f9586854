"""The configuration that all of a cluster has in common, lent to a test that changes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.kubectl import Document, Kubectl

CONFIG = "config"
"""The one CDIConfig that counts."""


@contextmanager
def kept_config(kubectl: Kubectl, name: str = CONFIG) -> Iterator[None]:
    """What the CDIConfig says before is what it says afterwards; one that was not there is gone.

    A CDI object has its settings copied into the CDIConfig, which outlives it where somebody else had made it.  The
    controller that copies them must have ended by the end.
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
    """None where there is no such object, or it is about to go."""
    for each in kubectl.get_all("cdiconfigs"):
        if each["metadata"]["name"] == name and "deletionTimestamp" not in each["metadata"]:
            spec: Document = each.get("spec") or {}
            return spec
    return None
