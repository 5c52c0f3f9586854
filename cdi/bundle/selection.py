"""Selection of what a bundle contains: from the name of a DataSource or volume to a version of a golden image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import GOLDEN_RECORD
from cdi.api.dataimportcron import GoldenVersion
from cdi.api.errors import CdiError, NotFound
from cdi.api.golden import COMMANDS, HOLD, PIN
from cdi.api.golden import PREFIX as GOLDEN_PREFIX
from cdi.api.image_facts import ImageFacts
from cdi.api.kinds import DATA_IMPORT_CRONS
from cdi.api.names import GROUP
from cdi.api.origin import public_reference
from cdi.api.policy import PREFIX as POLICY_PREFIX
from cdi.client.backend import Reader
from cdi.client.locate import Place, PlaceKind, locate
from cdi.store.base import Key, Object

_MAX_CHAIN: Final = 8
_KEPT_LABELS = "kubevirt.io/"
_OBJECT_STORES: Final[tuple[PlaceKind, ...]] = ("s3", "gcs")
FindVolume = Callable[[str, str], Object | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A golden image as the store knows it; `source` is the member of a DataVolume's ``spec.source``."""

    name: str
    namespace: str
    volume: str
    """Name of the PVC, or of the VolumeSnapshot, that the DataSource offers."""
    version: GoldenVersion
    """Its digest is empty if nothing identifies the content, such as that of an upload; its source has no credentials.
    """
    url: str | None = None
    """URL of its source as the import used it, which may contain credentials and must not get into a bundle."""
    source: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, str] = field(default_factory=dict)
    """Annotations ``policy.*`` of its import."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Annotations of the PVC or VolumeSnapshot."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the DataSource (else of the PVC) with a meaning elsewhere."""
    cron: Object | None = None

    @property
    def record(self) -> str | None:
        """The record of origin."""
        return GOLDEN_RECORD.read(self.annotations)

    @property
    def image(self) -> ImageFacts:
        """Facts that the import recorded about the image."""
        return ImageFacts.read(self.annotations)

    @property
    def is_registry(self) -> bool:
        return "registry" in self.source

    @property
    def place(self) -> Place | None:
        """The location of its source; None if it has no URL. Raise `SourceUrlInvalid`."""
        if not self.url:
            return None
        for kind in _OBJECT_STORES:
            if kind in self.source:
                # The URL may be one of the service with https://.
                return Place(kind=kind, text=self.url)
        return locate(self.url)


def select(store: Reader, find_volume: FindVolume, namespace: str, name: str) -> Selection:
    """Find the version that a DataSource offers, or the volume of that name.

    Args:
        store: The objects.
        find_volume: Returns a PVC, or else a VolumeSnapshot, by namespace and name (`Backend.version_object`).
        namespace: Namespace of the DataSource or volume.
        name: Its name.

    Raises:
        NotFound: There is neither, or the DataSource refers to nothing.
    """
    data_source = _find(store, "datasources", namespace, name)
    where, volume = (namespace, name) if data_source is None else _volume(store, data_source, namespace)
    claim = find_volume(where, volume)
    if claim is None and data_source is None:
        raise NotFound(
            f"there is no DataSource and no volume {namespace}/{name}", remedy="list them: cdi get datasource,pvc"
        )
    cron = _cron_of(store, where, volume)
    annotations = annotations_of(claim)
    source, policy = _import(store, where, volume, cron)
    version = _version(cron, volume, annotations, source)
    labels = ((data_source or claim or {}).get("metadata") or {}).get("labels") or {}
    return Selection(
        name=name,
        namespace=where,
        volume=volume,
        version=version.model_copy(update={"source": public_reference(version.source or "") or None}),
        url=version.source,
        source=source,
        policy=policy,
        annotations=annotations,
        labels=portable_labels(labels),
        cron=None if cron is None else portable_cron(cron),
    )


def portable_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels with a meaning elsewhere: those of KubeVirt, except for CDI's own."""
    return {key: text for key, text in labels.items() if _KEPT_LABELS in key and not key.startswith(f"{GROUP}/")}


def portable_cron(cron: Object) -> Object:
    """Return the manifest of a DataImportCron for another cluster: without commands, schedule, and credentials.

    Secrets and certificates that it refers to exist only here, and are needed there once it gets a schedule.
    """
    metadata = cron["metadata"]
    settings = {
        key: text
        for key, text in (metadata.get("annotations") or {}).items()
        if key.startswith((GOLDEN_PREFIX, POLICY_PREFIX)) and key not in (*COMMANDS, PIN, HOLD)
    }
    kept: Object = {"name": metadata["name"]}
    if settings:
        kept["annotations"] = settings
    labels = portable_labels(metadata.get("labels") or {})
    if labels:
        kept["labels"] = labels
    return {
        "apiVersion": DATA_IMPORT_CRONS.api_version,
        "kind": "DataImportCron",
        "metadata": kept,
        "spec": {**_without_credentials(cron["spec"]), "schedule": ""},
    }


def _without_credentials(spec: Mapping[str, Any]) -> Object:
    """Return a DataImportCron's spec without user and query in the source's URL, and without headers."""
    found: Object = copy.deepcopy(dict(spec))
    source: Any = found
    for name in ("template", "spec", "source"):
        source = source.get(name) if isinstance(source, dict) else None
    for member in source.values() if isinstance(source, dict) else ():
        if not isinstance(member, dict):
            continue
        for headers in ("extraHeaders", "secretExtraHeaders"):
            member.pop(headers, None)
        if "url" in member:
            member["url"] = public_reference(str(member["url"]))
    return found


def _find(store: Reader, plural: str, namespace: str, name: str) -> Object | None:
    try:
        return store.get(Key.of(plural, namespace, name))
    except NotFound:
        return None


def _volume(store: Reader, data_source: Object, namespace: str) -> tuple[str, str]:
    body = data_source
    for _ in range(_MAX_CHAIN):
        source = (body.get("spec") or {}).get("source") or {}
        found = source.get("pvc") or source.get("snapshot")
        own = body["metadata"].get("namespace") or namespace
        if found:
            return str(found.get("namespace") or own), str(found["name"])
        following = source.get("dataSource")
        if not following:
            break
        body = store.get(Key.of("datasources", following.get("namespace") or own, following["name"]))
    raise NotFound(
        f"DataSource {namespace}/{data_source['metadata']['name']} refers to no volume",
        remedy="wait for its first import: cdi describe datasource",
    )


def _cron_of(store: Reader, namespace: str, volume: str) -> Object | None:
    try:
        crons = store.list("dataimportcrons", namespace)
    except CdiError:
        return None
    for cron in crons:
        if any(one.get("name") == volume for one in (cron.get("status") or {}).get("versions") or ()):
            return cron
        current = (cron.get("status") or {}).get("currentImports") or ()
        if any(one.get("DataVolumeName") == volume for one in current):
            return cron
    return None


def _import(
    store: Reader, namespace: str, volume: str, cron: Object | None
) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return source and policy annotations of a volume's DataVolume, else of its DataImportCron."""
    body = _find(store, "datavolumes", namespace, volume) or cron or {}
    spec = body.get("spec") or {}
    spec = spec.get("template", {}).get("spec") or {} if body is cron else spec
    source = spec.get("source") or {}
    annotations = annotations_of(body)
    policy = {name: text for name, text in annotations.items() if name.startswith(POLICY_PREFIX)}
    return (source if isinstance(source, Mapping) else {}), policy


def _version(
    cron: Object | None, volume: str, annotations: Mapping[str, str], source: Mapping[str, Any]
) -> GoldenVersion:
    image = ImageFacts.read(annotations)
    members = [member for member in source.values() if isinstance(member, Mapping)]
    url = next((str(member["url"]) for member in members if member.get("url")), None)
    status = (cron or {}).get("status") or {}
    for body in status.get("versions") or ():
        if body.get("name") == volume:
            version = GoldenVersion.model_validate(body)
            return version if version.source else version.model_copy(update={"source": url})
    current = [one for one in status.get("currentImports") or () if one.get("DataVolumeName") == volume]
    digest = current[0].get("Digest") if current else None
    if digest is None and "registry" in source:
        # The validator of a registry's image is the digest that its tag named.
        digest = image.validator
    digest = digest or image.digest or ""
    return GoldenVersion(name=volume, digest=str(digest), state="Available", source=url)
