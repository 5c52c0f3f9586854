"""The webhooks' configurations learn where to ask and whom to trust, and the APIService of upload tokens the latter."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cdi.api.errors import Conflict, InvalidManifest, NotFound
from cdi.controller.logs import fields
from cdi.kube.client import Client
from cdi.kube.resources import API_SERVICES, MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS
from cdi.server.hooks import HOOKS, Installation
from cdi.server.observed import Observed

LOG = logging.getLogger(__name__)


async def publish(client: Client, installation: Installation, observed: Observed, bundle: str, word: str) -> None:
    """Write `bundle` and the way here into every one of our configurations that is there and does not have them.

    The way is told nobody else: not to a Service that is not this server's.  A configuration that somebody changes
    meanwhile is written when that has been seen.  Raises whatever else the API server answers.
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
            # A test of the patch failed, which is answered as 422: it is not any more what was seen.
            LOG.info("a configuration changed meanwhile", exc_info=error, extra=fields(configuration=name))
        else:
            LOG.info("a configuration has the current authorities and path", extra=fields(configuration=name))


async def publish_service(client: Client, installation: Installation, observed: Observed, bundle: str) -> None:
    """The same for the APIService, if it leads to this server."""
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
        # Its status changes by itself, and so its version: what comes next is seen soon.
        LOG.info("an APIService changed meanwhile", exc_info=error, extra=fields(service=name))
    else:
        LOG.info("an APIService trusts the current authorities", extra=fields(service=name))


def _patch(body: dict[str, Any], installation: Installation, bundle: str, path: str) -> list[dict[str, Any]]:
    """A JSON patch for the webhooks that trust others or ask elsewhere, which holds for exactly what was seen."""
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
