"""What the controller works on: one key for each thing that a reconciler decides about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cdi.kube.resources import Object

Kind = Literal["volume", "snapshot", "reader", "source", "cron", "transfer", "profile", "config", "installation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A volume is the DataVolume and the claim of one name; a profile is a StorageClass and its StorageProfile.
    A snapshot is one that clones made for themselves, a reader the pod that reads the source of one.
    """

    kind: Kind
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}".rstrip()


CONFIG = Key(kind="config", name="config")
"""The CDIConfig."""


def volume(namespace: str, name: str) -> Key:
    return Key(kind="volume", namespace=namespace, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What the controller acts on where it is not alone in a cluster."""

    namespaces: tuple[str, ...] = ()
    """Only in these; empty for all."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Only on objects with these labels."""

    @property
    def alongside(self) -> bool:
        """Somebody else acts on the rest, and on what belongs to the whole cluster."""
        return bool(self.namespaces or self.selector)

    def covers(self, namespace: str) -> bool:
        return not self.namespaces or namespace in self.namespaces

    def selects(self, body: Object) -> bool:
        """Whether an object has the labels."""
        if not self.selector:
            return True
        labels: Mapping[str, Any] = body["metadata"].get("labels") or {}
        return all(labels.get(name) == text for name, text in self.selector.items())
