"""Objects as an API server stores them, and watches filled without a server."""

from __future__ import annotations

import itertools
from typing import Any

from cdi.api.kinds import Object, Resource
from cdi.controller.applier import PlanApplier
from cdi.controller.event_recorder import EventRecorder
from cdi.controller.informers import InformerSet, OnChange
from cdi.controller.ownership import Ownership
from cdi.controller.reconcilers.dependencies import Dependencies
from cdi.controller.request import Scope
from cdi.kube.reflector import WatchEvent

_VERSIONS = itertools.count(1)


def body(resource: Resource, name: str, namespace: str = "ns", owner: Object | None = None, **more: Any) -> Object:
    """Return an object; `annotations` and `labels` go into its metadata."""
    metadata: Object = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(next(_VERSIONS))}
    if resource.namespaced:
        metadata["namespace"] = namespace
    for part in ("annotations", "labels", "deletionTimestamp"):
        if part in more:
            metadata[part] = more.pop(part)
    if owner is not None:
        metadata["ownerReferences"] = [
            {
                "apiVersion": owner["apiVersion"],
                "kind": owner["kind"],
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
                "controller": True,
            }
        ]
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **more}


def watches(
    *known: tuple[Resource, Object], scope: Scope | None = None, on_change: OnChange = lambda *_: None
) -> InformerSet:
    """Return caches that hold these objects."""
    made = InformerSet(None, scope or Scope(), on_change=on_change)  # type: ignore[arg-type]
    for resource, each in known:
        made.record_write(resource, each)
    return made


def dependencies(caches: InformerSet, *, client: Any = None, scope: Scope | None = None, **given: Any) -> Dependencies:
    """Return what reconcilers share: what is given, and nothing else but writers to the client."""
    scope, recorder = scope or Scope(), EventRecorder(client)
    others = dict.fromkeys(("lister", "inputs", "clones", "transfers", "uploads", "components"))
    fixed = {
        "client": client,
        "caches": caches,
        "scope": scope,
        "ownership": Ownership(caches, scope),
        "recorder": recorder,
        "applier": PlanApplier(client, caches, None, recorder),  # type: ignore[arg-type]
        "install_namespace": "cdi",
    }
    return Dependencies(**{**others, **fixed, **given})


def added(new: Object) -> WatchEvent:
    return WatchEvent(type="ADDED", old=None, new=new)


def modified(old: Object, new: Object) -> WatchEvent:
    return WatchEvent(type="MODIFIED", old=old, new=new)


def deleted(old: Object) -> WatchEvent:
    return WatchEvent(type="DELETED", old=old, new=None)
