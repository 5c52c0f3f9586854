"""Import of a bundle's golden images: DataVolume, record of origin, DataSource and, if asked for, DataImportCron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import GOLDEN_BUNDLE_DIGEST, GOLDEN_RECORD
from cdi.api.errors import AlreadyExists, Conflict, NotFound
from cdi.api.kinds import DATA_SOURCES, DATA_VOLUMES
from cdi.api.names import ANN_IMMEDIATE_BINDING, LABEL_DATA_IMPORT_CRON, cron_import
from cdi.api.phases import Phase
from cdi.api.policy import CHECKSUM, COSIGN_KEYS, INSECURE
from cdi.bundle.contents import Bundle, BundledImage, verify_records
from cdi.bundle.selection import portable_cron, portable_labels
from cdi.client.backend import Backend
from cdi.client.locate import locate
from cdi.client.request import Access, Request
from cdi.image.sizes import kubernetes_quantity
from cdi.source.registry.resolve import ResolvedImage
from cdi.store.base import Object

_VERIFICATION: Final = (CHECKSUM, COSIGN_KEYS, INSECURE, GOLDEN_BUNDLE_DIGEST.key)
"""Annotations of a DataVolume that decide which content it accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A golden image of a bundle whose documents, and record if a key was given, were verified."""

    image: BundledImage
    resolved: ResolvedImage
    key: str | None = None
    """Id of the key that signed its record."""

    @property
    def volume(self) -> str:
        """Name of the DataVolume."""
        return cron_import(self.image.name, self.image.document.version.digest)


def check(bundle: Bundle, name: str, record_key: bytes | None) -> Checked:
    """Verify a golden image down to the digests of its layers, which are verified when they are read.

    Raises what `Bundle.image`, `Bundle.resolve` and `verify_records` raise.
    """
    image = bundle.image(name)
    resolved = bundle.resolve(image)
    key = None
    if record_key is not None:
        verified = verify_records(image, resolved, record_key, f"{bundle.path}, {name}")
        # A record that the key did not sign must not reach the volume, where it would be taken for a verified one.
        image, key = replace(image, record=verified.record), verified.key
    return Checked(image=image, resolved=resolved, key=key)


def request_of(path: Path, checked: Checked) -> Request:
    """Return the request that imports an image of the bundle at `path`, pinned to the digest that was verified."""
    return Request(
        place=locate(f"oci-archive:{path.absolute()}:{checked.image.name}"),
        access=Access(architecture=checked.image.document.version.architecture),
        checksum=str(checked.resolved.digest),
    )


def data_volume(
    path: Path, checked: Checked, namespace: str, size: int, *, cosign_keys: str | None, storage_class: str | None
) -> Object:
    """Return the DataVolume of one machine that imports from the bundle."""
    architecture = checked.image.document.version.architecture
    registry: dict[str, Any] = {"url": f"oci-archive:{path.absolute()}:{checked.image.name}"}
    if architecture is not None:
        registry["platform"] = {"architecture": architecture}
    annotations = {CHECKSUM: str(checked.resolved.digest)}
    if cosign_keys is not None:
        annotations[COSIGN_KEYS] = cosign_keys
    return _data_volume(checked, namespace, size, annotations, {"registry": registry}, storage_class)


def upload_volume(checked: Checked, namespace: str, size: int, *, storage_class: str | None) -> Object:
    """Return the DataVolume of a cluster that receives the image as an upload."""
    annotations = {ANN_IMMEDIATE_BINDING: "", **GOLDEN_BUNDLE_DIGEST.write(str(checked.resolved.digest))}
    return _data_volume(checked, namespace, size, annotations, {"upload": {}}, storage_class)


def find_earlier(backend: Backend, wanted: Object) -> Object | None:
    """Return the DataVolume of an earlier import of the same content with the same verification; None if there is none.

    Raises:
        AlreadyExists: The DataVolume has another source or another verification than `wanted`, so that its content is
            not known to be that of the bundle.
    """
    metadata = wanted["metadata"]
    try:
        body = backend.get("dv", metadata["namespace"], metadata["name"])
    except NotFound:
        return None
    present = annotations_of(body)
    differing = [name for name in _VERIFICATION if present.get(name) != metadata["annotations"].get(name)]
    if body["spec"].get("source") != wanted["spec"]["source"]:
        differing.insert(0, "spec.source")
    if differing:
        raise AlreadyExists(
            f"DataVolume {metadata['namespace']}/{metadata['name']} of this version already exists with another source"
            f" or verification: {', '.join(differing)}",
            remedy=f"use it as it is, or delete it: cdi delete dv/{metadata['name']}",
        )
    return body


def is_uploaded(backend: Backend, checked: Checked, namespace: str) -> bool:
    """Return whether an earlier upload of this image succeeded; raise what `find_earlier` raises."""
    # The size does not matter here; that of the disk is known only after the conversion.
    earlier = find_earlier(backend, upload_volume(checked, namespace, 1, storage_class=None))
    return earlier is not None and (earlier.get("status") or {}).get("phase") == Phase.SUCCEEDED


def _data_volume(
    checked: Checked,
    namespace: str,
    size: int,
    annotations: Mapping[str, str],
    source: Mapping[str, Any],
    storage_class: str | None,
) -> Object:
    storage: Object = {"resources": {"requests": {"storage": kubernetes_quantity(size)}}}
    if storage_class is not None:
        storage["storageClassName"] = storage_class
    return {
        "apiVersion": DATA_VOLUMES.api_version,
        "kind": "DataVolume",
        "metadata": {"name": checked.volume, "namespace": namespace, "annotations": dict(annotations)},
        "spec": {"source": dict(source), "storage": storage},
    }


def require_free(backend: Backend, checked: Checked, namespace: str, *, with_cron: bool) -> None:
    """Raise `Conflict` if a DataImportCron manages the DataSource, or would be changed itself."""
    name = checked.image.name
    cron = checked.image.document.cron
    if with_cron and cron is not None and _exists(backend, "dataimportcron", namespace, cron["metadata"]["name"]):
        raise Conflict(
            f"DataImportCron {namespace}/{cron['metadata']['name']} already exists", remedy="import without --with-cron"
        )
    try:
        body = backend.get("datasource", namespace, name)
    except NotFound:
        return
    manager = (body["metadata"].get("labels") or {}).get(LABEL_DATA_IMPORT_CRON)
    if manager and _exists(backend, "dataimportcron", namespace, manager):
        raise Conflict(
            f"DataSource {namespace}/{name} is managed by DataImportCron {manager}",
            remedy=f"import into another namespace with -n, or delete DataImportCron {manager}",
        )


def _exists(backend: Backend, kind: str, namespace: str, name: str) -> bool:
    try:
        backend.get(kind, namespace, name)
    except NotFound:
        return False
    return True


def offer(backend: Backend, checked: Checked, namespace: str, *, with_cron: bool) -> list[str]:
    """Write the record of the imported volume, then the DataSource; return ``kind/name action`` of each object."""
    name, document = checked.image.name, checked.image.document
    claim = backend.get("pvc", namespace, checked.volume)["metadata"]
    present = GOLDEN_RECORD.read(claim.get("annotations") or {})
    # With a key, the record that an earlier import without one wrote is removed unless the key signed it.
    wanted = present if checked.image.record is None and checked.key is None else checked.image.record
    if wanted != present:
        backend.annotate("pvc", namespace, checked.volume, {GOLDEN_RECORD.key: wanted}, uid=claim["uid"])
    source: Object = {
        "apiVersion": DATA_SOURCES.api_version,
        "kind": "DataSource",
        "metadata": {"name": name, "namespace": namespace, "labels": portable_labels(document.labels)},
        "spec": {"source": {"pvc": {"namespace": namespace, "name": checked.volume}}},
    }
    manifests = [source]
    if with_cron and document.cron is not None:
        # Without a schedule: it would poll a source that this side cannot reach.
        cron = portable_cron(dict(document.cron))
        manifests.append({**cron, "metadata": {**cron["metadata"], "namespace": namespace}})
    return [f"{one.kind.lower()}/{one.name} {one.action}" for one in backend.apply(manifests, namespace=namespace)]
