"""The kinds of object that a store holds, and every name a person may call them by."""

from __future__ import annotations

from dataclasses import dataclass

from cdi.api import kinds
from cdi.api.errors import NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind, as an API server lists it."""

    name: str
    """CamelCase, as in a manifest."""
    plural: str
    """Lower case; the store's key."""
    singular: str
    short_names: tuple[str, ...] = ()
    api_version: str
    namespaced: bool = True
    has_status: bool = True
    """Status is written apart from the rest."""
    confidential: bool = False
    """Only its owner may read it where it lies."""


_WITHOUT_STATUS = ("Secret", "ConfigMap")

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
    """The kind that `word` names: its kind, plural, singular or a short name, in any case; raises `NotFound`."""
    kind = _BY_WORD.get(word.strip().lower())
    if kind is None:
        known = ", ".join(k.plural for k in KINDS)
        raise NotFound(f"no kind is called {word[:60]!r}", remedy=f"one of {known}")
    return kind
