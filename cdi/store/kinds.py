"""The kinds of object that a store holds, and every name a person may call them by."""

from __future__ import annotations

from dataclasses import dataclass

from cdi.api.errors import NotFound

CDI_V1BETA1 = "cdi.kubevirt.io/v1beta1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind, as an API server lists it."""

    name: str
    """CamelCase, as in a manifest."""
    plural: str
    """Lower case; the store's key."""
    singular: str
    short_names: tuple[str, ...] = ()
    api_version: str = CDI_V1BETA1
    namespaced: bool = True
    has_status: bool = True
    """Status is written apart from the rest."""
    confidential: bool = False
    """Only its owner may read it where it lies."""


KINDS = (
    Kind(name="DataVolume", plural="datavolumes", singular="datavolume", short_names=("dv", "dvs")),
    Kind(name="DataSource", plural="datasources", singular="datasource", short_names=("das",)),
    Kind(name="DataImportCron", plural="dataimportcrons", singular="dataimportcron", short_names=("dic", "dics")),
    Kind(name="StorageProfile", plural="storageprofiles", singular="storageprofile", namespaced=False),
    Kind(name="CDIConfig", plural="cdiconfigs", singular="cdiconfig", namespaced=False),
    Kind(name="CDI", plural="cdis", singular="cdi", short_names=("cdi", "cdis"), namespaced=False),
    Kind(
        name="PersistentVolumeClaim",
        plural="persistentvolumeclaims",
        singular="persistentvolumeclaim",
        short_names=("pvc",),
        api_version="v1",
    ),
    Kind(
        name="Secret",
        plural="secrets",
        singular="secret",
        api_version="v1",
        has_status=False,
        confidential=True,
    ),
    Kind(
        name="ConfigMap",
        plural="configmaps",
        singular="configmap",
        short_names=("cm",),
        api_version="v1",
        has_status=False,
    ),
    Kind(
        name="Event",
        plural="events",
        singular="event",
        short_names=("ev",),
        api_version="v1",
        has_status=False,
    ),
)

_BY_WORD = {word.lower(): kind for kind in KINDS for word in (kind.name, kind.plural, kind.singular, *kind.short_names)}


def kind_of(word: str) -> Kind:
    """The kind that `word` names: its kind, plural, singular or a short name, in any case; raises `NotFound`."""
    kind = _BY_WORD.get(word.strip().lower())
    if kind is None:
        known = ", ".join(k.plural for k in KINDS)
        raise NotFound(f"no kind is called {word[:60]!r}", remedy=f"one of {known}")
    return kind
