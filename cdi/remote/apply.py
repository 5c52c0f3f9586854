"""Server-side apply of manifests to a cluster, after validation by our own rules."""

from __future__ import annotations

from collections.abc import Iterable

from cdi.api.errors import NotFound
from cdi.api.kinds import Object, resource_of
from cdi.client.apply import check
from cdi.client.backend import Applied, Reader
from cdi.client.document import Manifest
from cdi.kube.client import Client
from cdi.kube.sync import SyncClient
from cdi.store.base import Key

MANAGER = "cdi-cli"
"""The field manager: fields that the next manifest omits are removed."""
_APPLY = "application/apply-patch+yaml"


def apply_to_cluster(
    calls: SyncClient,
    store: Reader,
    manifests: Iterable[Manifest],
    *,
    namespace: str,
    dry_run: bool = False,
    strict: bool = False,
) -> list[Applied]:
    """Validate all manifests, then write them; the API server validates each again.

    A `dry_run` includes webhooks and quotas. Raises `InvalidManifest` as `cdi.client.apply.apply` does, and the errors
    of the API server.
    """
    applied = []
    for body, unknown in check(store, manifests, namespace=namespace, strict=strict, in_cluster=True):
        before, after = calls.run(_write(calls.client, body, dry_run=dry_run))
        action = "created" if before is None else "unchanged" if _same(before, after) else "configured"
        key = Key.of_object(body)
        applied.append(
            Applied(kind=key.kind.kind, namespace=key.namespace, name=key.name, action=action, unknown=unknown)
        )
    return applied


async def _write(client: Client, body: Object, *, dry_run: bool) -> tuple[Object | None, Object]:
    resource = resource_of(body["apiVersion"], body["kind"])
    namespace, name = body["metadata"].get("namespace"), body["metadata"]["name"]
    try:
        before = await client.get(resource, namespace, name)
    except NotFound:
        before = None
    query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Ignore"}
    if dry_run:
        query["dryRun"] = "All"
    path = resource.path(namespace, name)
    after: Object = await client.request("PATCH", path, body=body, query=query, content_type=_APPLY, idempotent=True)
    return before, after


def _same(before: Object, after: Object) -> bool:
    """Return whether an object is unchanged; status and field managers do not count."""
    return _content(before) == _content(after)


def _content(body: Object) -> Object:
    metadata = {
        name: value
        for name, value in body["metadata"].items()
        if name not in ("managedFields", "resourceVersion", "generation")
    }
    return {**body, "metadata": metadata, "status": None}
