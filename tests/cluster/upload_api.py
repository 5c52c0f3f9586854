"""The API of upload tokens, which exists once in a cluster, so tests use it one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator

from cdi.server.uploadtoken_api.discovery import API_SERVICE
from tests.cluster.kubectl import Kubectl, KubectlError
from tests.cluster.layout import Layout
from tests.cluster.test_cluster import service_outside

SERVICE = "cdi-api"
TIMEOUT = 1800
"""Seconds for a test that may have to wait for others."""


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Hold the lock for the API, whose APIService can refer to only one server."""
    directory = Layout.default().base
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "upload-api.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def led_here(kubectl: Kubectl, address: str, port: int) -> Iterator[None]:
    """Install the APIService while the server answers: one without a server blocks the deletion of every namespace."""
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
    """Return an upload token for the claim, requested as virtctl does."""
    request = {
        "apiVersion": "upload.cdi.kubevirt.io/v1beta1",
        "kind": "UploadTokenRequest",
        "metadata": {"name": "token-for-virtctl", "namespace": kubectl.namespace},
        "spec": {"pvcName": claim},
    }
    # A token request is not stored; only the response contains the token.
    made = json.loads(kubectl.run("create", "--filename=-", "--output=json", given=json.dumps(request)))
    found: str = made["status"]["token"]
    return found
