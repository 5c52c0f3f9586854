"""Update of the CA bundle and path in webhook configurations, and of the CA bundle in the APIService."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cdi.api.errors import Conflict, InvalidManifest, NotFound
from cdi.api.kinds import API_SERVICES, MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS
from cdi.kube.client import Client
from cdi.logs import fields
from cdi.server.hooks import HOOKS, Installation
from cdi.server.informers import Observed

LOG = logging.getLogger(__name__)


async def publish(client: Client, installation: Installation, observed: Observed, bundle: str, word: str) -> None:
    """Write `bundle` and the secret path into each of our webhook configurations that exists and differs.

    The path is never written for a Service that is not this server's. A configuration that changes concurrently is
    written again once the change has been observed. Raises any other error of the API server.
    """
    wanted = base64.b64encode(bundle.encode()).decode()
    for hook in HOOKS:
        name = installation.configuration(hook)
        body = observed.webhooks(hook.kind, name)
        patch = _patch(body, installation, wanted, f"/{word}{hook.path}") if body is not None else []
        if not patch:
            continue
        resource = VALIDATING_WEBHOOKS if hook.kind == "validating" else MUTATING_WEBHOOKS
        try:
            await client.patch(resource, None, name, patch, kind="json")
        except (Conflict, NotFound, InvalidManifest) as error:
            # The patch's test failed (422): the object has changed since it was read.
            LOG.info(
                "a webhook configuration changed in the meantime, retrying",
                exc_info=error,
                extra=fields(configuration=name),
            )
        else:
            LOG.info("updated the CA bundle and path of a webhook configuration", extra=fields(configuration=name))


async def publish_service(client: Client, installation: Installation, observed: Observed, bundle: str) -> None:
    """Write `bundle` into the APIService if it refers to this server's Service."""
    wanted = base64.b64encode(bundle.encode()).decode()
    body = observed.api_service()
    service = ((body or {}).get("spec") or {}).get("service") or {}
    if body is None or (service.get("namespace"), service.get("name")) != (
        installation.namespace,
        installation.service,
    ):
        return
    if body["spec"].get("caBundle") == wanted:
        return
    name = body["metadata"]["name"]
    patch = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": body["metadata"].get("resourceVersion")},
        {"op": "add", "path": "/spec/caBundle", "value": wanted},
    ]
    try:
        await client.patch(API_SERVICES, None, name, patch, kind="json")
    except (Conflict, NotFound, InvalidManifest) as error:
        # Updates of its status change its version as well; the current version is observed soon.
        LOG.info("an APIService changed in the meantime, retrying", exc_info=error, extra=fields(service=name))
    else:
        LOG.info("updated the CA bundle of an APIService", extra=fields(service=name))


def _patch(body: dict[str, Any], installation: Installation, bundle: str, path: str) -> list[dict[str, Any]]:
    """Return a JSON patch for the webhooks that differ, valid only for the version that was read."""
    changes = [
        {"op": "add", "path": f"/webhooks/{index}/clientConfig/{member}", "value": value}
        for index, hook in enumerate(body["webhooks"])
        for member, value in _changes(hook["clientConfig"], installation, bundle, path)
    ]
    if not changes:
        return []
    version = body["metadata"].get("resourceVersion")
    return [{"op": "test", "path": "/metadata/resourceVersion", "value": version}, *changes]


def _changes(there: dict[str, Any], installation: Installation, bundle: str, path: str) -> Iterator[tuple[str, str]]:
    service = there["service"]
    if service and (service["namespace"], service["name"]) != (installation.namespace, installation.service):
        return
    if there["caBundle"] != bundle:
        yield "caBundle", bundle
    if service and service["path"] != path:
        yield "service/path", path
    if there["url"]:
        url = urlunsplit(urlsplit(there["url"])._replace(path=path))
        if there["url"] != url:
            yield "url", url
