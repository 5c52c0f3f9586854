"""Index of the objects that belong to a DataImportCron, by its labels, and of the volumes that descend from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cdi.api.annotations import read_origin
from cdi.api.kinds import (
    CLAIMS,
    CRON_JOBS,
    DATA_SOURCES,
    DATA_VOLUMES,
    JOBS,
    PODS,
    VOLUME_SNAPSHOTS,
    Object,
    Resource,
)
from cdi.api.names import LABEL_DATA_IMPORT_CRON, LABEL_DATA_IMPORT_CRON_NAMESPACE
from cdi.controller.indexer import Indexer
from cdi.controller.request import Request
from cdi.kube.reflector import WatchEvent

JOB_NAME: Final = "batch.kubernetes.io/job-name"
"""Label that Kubernetes sets on the pods of a Job."""
OWNED: Final = frozenset({CLAIMS, CRON_JOBS, DATA_SOURCES, DATA_VOLUMES, JOBS, PODS, VOLUME_SNAPSHOTS})
_Cron = tuple[str, str]
"""Namespace and name of a DataImportCron."""
_Member = tuple[str, str]
"""Namespace and name of an object."""


def cron_of(body: Object | None) -> Request | None:
    """Return the DataImportCron that an object's labels name; None without such labels.

    Objects outside of its namespace have a label with the namespace.
    """
    if body is None:
        return None
    labels = body["metadata"].get("labels") or {}
    name = labels.get(LABEL_DATA_IMPORT_CRON)
    if not name:
        return None
    namespace = labels.get(LABEL_DATA_IMPORT_CRON_NAMESPACE) or body["metadata"].get("namespace") or ""
    return Request(kind="cron", namespace=namespace, name=name)


class CronIndex:
    """Objects of each DataImportCron."""

    def __init__(self) -> None:
        self._owned: dict[Resource, Indexer[_Cron, _Member]] = {resource: Indexer() for resource in OWNED}
        self._descendants: Indexer[_Cron, _Member] = Indexer()
        self._pods: Indexer[_Member, str] = Indexer()
        """Names of pods by namespace and name of their Job."""

    def changed(self, resource: Resource, change: WatchEvent) -> None:
        """Update the index; must be called for every change."""
        owned = self._owned.get(resource)
        if owned is None:
            return
        metadata = change.object["metadata"]
        member = metadata["namespace"], metadata["name"]
        cron = cron_of(change.new)
        owned.update(member, (cron.namespace, cron.name) if cron is not None else None)
        if resource == PODS:
            job = ((change.new or {}).get("metadata", {}).get("labels") or {}).get(JOB_NAME)
            self._pods.update(metadata["name"], (metadata["namespace"], job) if job else None)
        if resource == CLAIMS:
            self._descendants.update(member, _ancestor(change.new))

    def owned(self, resource: Resource, namespace: str, cron: str) -> Iterator[_Member]:
        """Yield namespace and name of the objects whose labels name a DataImportCron, by name."""
        yield from sorted(self._owned[resource].by_index((namespace, cron)))

    def descendants(self, namespace: str, cron: str) -> Iterator[_Member]:
        """Yield namespace and name of the PVCs that descend from a version of a DataImportCron."""
        yield from sorted(self._descendants.by_index((namespace, cron)))

    def job_pods(self, namespace: str, job: str) -> Iterator[str]:
        """Yield the names of a Job's pods."""
        yield from sorted(self._pods.by_index((namespace, job)))

    def orphaned(self) -> Iterator[Request]:
        """Yield every DataImportCron that labels name, whether or not it exists."""
        for owned in self._owned.values():
            for namespace, name in owned.indexed():
                yield Request(kind="cron", namespace=namespace, name=name)


def _ancestor(body: Object | None) -> _Cron | None:
    origin = read_origin(body)
    return (origin.namespace, origin.cron) if origin is not None else None
