"""PersistentVolumes by the claim that their claimRef names; kept as things change, as `cdi.controller.waiting` is."""

from __future__ import annotations

from collections.abc import Iterable

from cdi.kube.reflector import Change
from cdi.kube.resources import VOLUMES, Object, Resource

_Claim = tuple[str, str]
"""Namespace and name."""


class Claimed:
    """Of the volumes in the watch caches."""

    def __init__(self) -> None:
        self._volumes: dict[_Claim, set[str]] = {}

    def changed(self, resource: Resource, change: Change) -> None:
        """To be told of every change."""
        if resource != VOLUMES:
            return
        name, before, after = change.object["metadata"]["name"], named(change.old), named(change.new)
        if before == after:
            return
        if before is not None:
            rest = self._volumes[before]
            rest.discard(name)
            if not rest:
                del self._volumes[before]
        if after is not None:
            self._volumes.setdefault(after, set()).add(name)

    def by(self, namespace: str, claim: str) -> Iterable[str]:
        """The names of the volumes that this claim, which need not exist, is given."""
        return tuple(self._volumes.get((namespace, claim), ()))


def named(volume: Object | None) -> _Claim | None:
    """The claim that a PersistentVolume names."""
    ref = ((volume or {}).get("spec") or {}).get("claimRef")
    return (ref.get("namespace") or "", ref.get("name") or "") if ref else None
