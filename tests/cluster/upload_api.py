"""The API of upload tokens, which a cluster has once: whoever of the tests has it keeps it for as long as it is used."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator

from cdi.server.aggregated_documents import API_SERVICE
from tests.cluster.kubectl import Kubectl, KubectlError
from tests.cluster.layout import Layout
from tests.cluster.test_cluster import service_outside

SERVICE = "cdi-api"
PATIENCE = 1800
"""Seconds for a test that may have to wait for another's turn."""


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Until then no other process of these tests has it: it leads to one place only."""
    directory = Layout.default().base
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "upload-api.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def led_here(kubectl: Kubectl, address: str, port: int) -> Iterator[None]:
    """The APIService, for as long as somebody answers: one that leads nowhere keeps every namespace from going."""
    with turn():
        service, endpoints = service_outside(SERVICE, address, 443, port)
        kubectl.create(service, endpoints)
        kubectl.apply(
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": API_SERVICE},
                "spec": {
                    "group": "upload.cdi.kubevirt.io",
                    "version": "v1beta1",
                    "groupPriorityMinimum": 1000,
                    "versionPriority": 15,
                    "service": {"namespace": kubectl.namespace, "name": SERVICE, "port": 443},
                },
            }
        )
        try:
            yield
        finally:
            kubectl.run("delete", "apiservice", API_SERVICE, "--ignore-not-found", "--wait=false")


def available(kubectl: Kubectl) -> bool:
    conditions = kubectl.get("apiservice", API_SERVICE).get("status", {}).get("conditions", [])
    return any(one["type"] == "Available" and one["status"] == "True" for one in conditions)


def discovered(kubectl: Kubectl) -> bool:
    with contextlib.suppress(KubectlError):
        return "uploadtokenrequests" in kubectl.run("api-resources", "--api-group=upload.cdi.kubevirt.io")
    return False


def token(kubectl: Kubectl, claim: str) -> str:
    """By which the claim is uploaded to, as virtctl asks for it."""
    request = {
        "apiVersion": "upload.cdi.kubevirt.io/v1beta1",
        "kind": "UploadTokenRequest",
        "metadata": {"name": "token-for-virtctl", "namespace": kubectl.namespace},
        "spec": {"pvcName": claim},
    }
    # It is stored nowhere, so all that there is of it is the answer.
    made = json.loads(kubectl.run("create", "--filename=-", "--output=json", given=json.dumps(request)))
    found: str = made["status"]["token"]
    return found
