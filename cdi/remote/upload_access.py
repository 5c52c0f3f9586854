"""Uploads into a cluster's volumes: the address of the proxy, and tokens for it."""

from __future__ import annotations

import ssl
import time
from typing import Any

from cdi.api.annotation_types import annotations_of
from cdi.api.configuration import CONFIG_NAME
from cdi.api.errors import AlreadyUploaded, ClusterProtocolError, InvalidManifest, NotFound, UsageError, WaitTimeout
from cdi.api.kinds import CDI_CONFIGS, DATA_VOLUMES, UPLOAD_TOKEN_REQUESTS
from cdi.api.names import ANN_IMMEDIATE_BINDING, GROUP
from cdi.api.phases import Phase
from cdi.client.backend import OnUpdate
from cdi.client.status_view import phase_of, raise_failure, summary
from cdi.client.upload_client import Proxy
from cdi.kube.client import Client
from cdi.remote.backend import Cluster
from cdi.store.base import Key, Object

_WAITING = frozenset({Phase.WAIT_FOR_FIRST_CONSUMER, Phase.PENDING_POPULATION})
_TOKEN_NAME = "token-for-cdi"  # noqa: S105  the object's name


async def ask_token(client: Client, namespace: str, claim: str) -> str:
    """Return a token that permits uploads into a PVC for five minutes; raise `ClusterForbidden` or `NotFound`."""
    body = {
        "apiVersion": UPLOAD_TOKEN_REQUESTS.api_version,
        "kind": UPLOAD_TOKEN_REQUESTS.kind,
        "metadata": {"name": _TOKEN_NAME, "namespace": namespace},
        "spec": {"pvcName": claim},
    }
    answer = await client.create(UPLOAD_TOKEN_REQUESTS, body)
    token = (answer.get("status") or {}).get("token")
    if not isinstance(token, str) or not token:
        raise ClusterProtocolError("the response has no token", where=str(UPLOAD_TOKEN_REQUESTS))
    return token


def token(cluster: Cluster, namespace: str, claim: str) -> str:
    """Return a token with blocking calls; see `ask_token`."""
    return cluster.calls.run(ask_token(cluster.calls.client, namespace, claim))


def find_proxy(cluster: Cluster, *, url: str | None, authority: str | None, insecure: bool) -> Proxy:
    """Return the proxy with the given URL, else the one that CDIConfig names; `authority` is PEM.

    Raises `NotFound` if no proxy is known, `UsageError` for invalid certificates.
    """
    status: dict[str, Any] = {}
    if url is None or authority is None:
        config = cluster.calls.find(CDI_CONFIGS, None, CONFIG_NAME)
        status = (config or {}).get("status") or {}
    url = url or status.get("uploadProxyURL")
    if not url:
        raise NotFound(
            "the cluster does not publish the URL of its upload proxy",
            where="CDIConfig config, status.uploadProxyURL",
            remedy="--uploadproxy-url https://HOST, which kubectl port-forward service/cdi-uploadproxy may open",
        )
    address = url if "://" in url else f"https://{url}"
    return Proxy(url=address, context=_context(authority or status.get("uploadProxyCA"), insecure=insecure))


def _context(authority: str | None, *, insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Clusters' CA certificates often lack extensions that the strict mode of newer Python versions requires.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authority:
        try:
            context.load_verify_locations(cadata=authority)
        except (ssl.SSLError, ValueError) as error:
            raise UsageError("the upload proxy's CA cannot be read", remedy="give certificates in PEM") from error
    return context


def bind_now(cluster: Cluster, namespace: str, name: str) -> None:
    """Request binding of a DataVolume without its first consumer; raise `NotFound`."""
    patch = {"metadata": {"annotations": {ANN_IMMEDIATE_BINDING: ""}}}
    cluster.calls.run(cluster.calls.client.patch(DATA_VOLUMES, namespace, name, patch))


def await_ready(
    cluster: Cluster, namespace: str, name: str, *, timeout: float | None, on_update: OnUpdate | None = None
) -> None:
    """Wait until the volume accepts an upload.

    Raises:
        CdiError: The DataVolume has failed.
        InvalidManifest: It waits for its first consumer.
        WaitTimeout: The timeout has expired.
    """
    key = Key.of("dv", namespace, name)
    deadline = None if timeout is None else time.monotonic() + timeout
    with cluster.courses([key]) as courses:
        while True:
            body, advance = courses.look(key)
            if on_update is not None:
                on_update(body, advance)
            phase = phase_of(body)
            if phase is Phase.UPLOAD_READY:
                return
            _check(body, phase, key)
            left = 5.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout(f"{key} is {summary(body)}")
            courses.pause(min(5.0, left))


def _check(body: Object, phase: Phase, key: Key) -> None:
    raise_failure(body, patient=True)
    if phase is Phase.SUCCEEDED:
        raise AlreadyUploaded(f"{key} already has its image")
    immediate = ANN_IMMEDIATE_BINDING in annotations_of(body)
    if phase in _WAITING and not immediate:
        raise InvalidManifest(
            f"{key} is waiting for its first consumer",
            where="StorageClass with volumeBindingMode WaitForFirstConsumer",
            remedy=f"--force-bind, or set the annotation {GROUP}/storage.bind.immediate.requested",
        )
