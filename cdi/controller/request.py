"""Requests, the keys of the work queue: one for each thing that a reconciler decides about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cdi.api.kinds import Object


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Kind and name of what is reconciled.

    A ``volume`` is the DataVolume and the PVC of one name, a ``profile`` a StorageClass and its StorageProfile, a
    ``snapshot`` a temporary snapshot of a clone, and a ``reader`` the source pod of a clone.
    """

    kind: str
    """Name of the reconciler (`cdi.controller.reconcilers.registry`)."""
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}".rstrip()


CONFIG = Request(kind="config", name="config")
"""The request of the CDIConfig."""


def datavolume(namespace: str, name: str) -> Request:
    """Return the request of a volume."""
    return Request(kind="volume", namespace=namespace, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Objects that this controller handles if it shares the cluster with another one."""

    namespaces: tuple[str, ...] = ()
    """Handled namespaces; empty for all."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels that handled objects have."""

    @property
    def is_restricted(self) -> bool:
        """Return whether another controller handles the other objects and the cluster-scoped ones."""
        return bool(self.namespaces or self.selector)

    def includes_namespace(self, namespace: str) -> bool:
        return not self.namespaces or namespace in self.namespaces

    def matches(self, body: Object) -> bool:
        """Return whether an object has the labels."""
        if not self.selector:
            return True
        labels: Mapping[str, Any] = body["metadata"].get("labels") or {}
        return all(labels.get(name) == text for name, text in self.selector.items())
