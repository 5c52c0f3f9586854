"""Kinds of objects in a store, and all their accepted names."""

from __future__ import annotations

from dataclasses import dataclass

from cdi.api import kinds
from cdi.api.errors import NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of object, as an API server's discovery lists it."""

    name: str
    """Name in CamelCase, as in a manifest."""
    plural: str
    """Plural in lower case; used in the store's keys."""
    singular: str
    short_names: tuple[str, ...] = ()
    api_version: str
    namespaced: bool = True
    has_status: bool = True
    """Whether the status is written separately from the rest."""
    confidential: bool = False
    """Whether only the file's owner may read the stored object."""


_WITHOUT_STATUS = ("Secret", "ConfigMap", "DataImportCron")
"""Kinds without a status, and DataImportCron, whose metadata and status are written by one request."""

KINDS = (
    *(
        Kind(
            name=kind.name,
            plural=kind.plural,
            singular=kind.singular,
            short_names=kind.short_names,
            api_version=kind.api_version,
            namespaced=kind.namespaced,
            has_status=kind.name not in _WITHOUT_STATUS,
            confidential=kind.name == "Secret",
        )
        for kind in kinds.KINDS
    ),
    Kind(name="Event", plural="events", singular="event", short_names=("ev",), api_version="v1", has_status=False),
)

_BY_WORD = {word.lower(): kind for kind in KINDS for word in (kind.name, kind.plural, kind.singular, *kind.short_names)}


def kind_of(word: str) -> Kind:
    """Return the kind for a name, plural, singular or short name in any case; raise `NotFound` if unknown."""
    kind = _BY_WORD.get(word.strip().lower())
    if kind is None:
        known = ", ".join(k.plural for k in KINDS)
        raise NotFound(f"unknown kind {word[:60]!r}", remedy=f"one of {known}")
    return kind
