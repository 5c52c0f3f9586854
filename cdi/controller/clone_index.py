"""Index of unfinished clones by their source."""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api.annotation_types import annotations_of
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, Object, Resource
from cdi.api.names import ANN_POD_PHASE
from cdi.api.phases import TERMINAL_PHASES
from cdi.controller.indexer import Indexer
from cdi.controller.request import Request, datavolume
from cdi.kube.reflector import WatchEvent
from cdi.reconcile.clone.plan_annotation import requested_source

Source = tuple[str, str, bool]
"""Namespace and name of a source, and whether it is a snapshot instead of a volume."""
_ANY: Source = ("", "", False)
"""Entry for clones from a DataSource, which may refer to any source."""
_Member = tuple[Resource, str, str]


class PendingCloneIndex:
    """Unfinished clones among the objects in the watch caches."""

    def __init__(self) -> None:
        self._index: Indexer[Source, _Member] = Indexer()

    def changed(self, resource: Resource, change: WatchEvent) -> None:
        """Update the index; must be called for every change."""
        if resource not in (CLAIMS, DATA_VOLUMES):
            return
        metadata = change.object["metadata"]
        member = resource, metadata["namespace"], metadata["name"]
        self._index.update(member, None if change.new is None else pending_source(resource, change.new))

    def clones_of(self, namespace: str, name: str, *, snapshot: bool = False) -> Iterator[Request]:
        """Yield the unfinished clones of a source, and all those from DataSources, as they may refer to it."""
        for origin in ((namespace, name, snapshot), _ANY):
            for _, space, each in self._index.by_index(origin):
                yield datavolume(space, each)


def pending_source(resource: Resource, body: Object) -> Source | None:
    """Return the source of an unfinished clone; None if the object is no clone or has ended.

    Namespace and name are empty for a clone from a DataSource.
    """
    if resource == CLAIMS:
        annotations = annotations_of(body)
        return None if annotations.get(ANN_POD_PHASE) in TERMINAL_PHASES else requested_source(annotations)
    if (body.get("status") or {}).get("phase") in TERMINAL_PHASES:
        return None
    spec = body.get("spec") or {}
    if spec.get("sourceRef"):
        # The DataSource may refer to the object whose change is handled.
        return _ANY
    for kind in ("pvc", "snapshot"):
        source = (spec.get("source") or {}).get(kind)
        if source:
            return source.get("namespace") or "", source.get("name") or "", kind == "snapshot"
    return None
