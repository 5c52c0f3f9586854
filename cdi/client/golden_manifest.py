"""Conversion of a command-line request into a DataImportCron with its inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cdi.api import golden
from cdi.api.annotation_types import annotations_of
from cdi.api.errors import AlreadyExists, CdiError, NotFound, UsageError
from cdi.api.kinds import DATA_IMPORT_CRONS
from cdi.api.names import ANN_IMMEDIATE_BINDING
from cdi.client.backend import Backend
from cdi.client.request import Request
from cdi.client.request_to_manifests import build_manifests, owned

Objects = dict[str, Any]
_POLLED = ("http", "s3", "gcs", "registry")
"""Kinds of sources that can be polled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRequest:
    """A golden image to be kept up to date."""

    name: str
    """Name of the DataImportCron."""
    data_source: str
    """Name of the managed DataSource."""
    source: Request
    size: int
    """Bytes."""
    schedule: str
    keep: int | None = None
    storage_class: str | None = None
    retention: str | None = None
    """All or None."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Annotations ``golden.*`` and ``policy.*`` by their full names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenManifests:
    """A DataImportCron, and the objects it refers to, which become its dependents."""

    cron: Objects
    inputs: tuple[Objects, ...] = ()


def default_schedule(namespace: str, name: str) -> str:
    """Return a schedule of two polls a day, at times that depend on the name alone.

    They spread the polls of many images, and stay the same when a command is repeated.
    """
    number = int.from_bytes(hashlib.sha256(f"{namespace}/{name}".encode()).digest()[:8])
    return f"{number % 60} {number // 60 % 12}/12 * * *"


def channels_annotation(channels: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the annotation for the rules of channels by name, None if there are no channels."""
    return json.dumps(channels, separators=(",", ":")) if channels else None


def build_golden(request: GoldenRequest, namespace: str, *, local: bool) -> GoldenManifests:
    """Return the DataImportCron for a request, and its inputs.

    Raises:
        UsageError: The source cannot be polled, or an option does not apply to an image that changes.
        InvalidManifest: A setting is invalid.
    """
    source = request.source
    if source.place.member.value not in _POLLED:
        raise UsageError(
            "only http(s)://, s3://, gs:// and docker:// sources can be polled",
            where=source.place.location,
            remedy="serve the image over HTTP, or push it to a registry",
        )
    if source.checksum is not None:
        raise UsageError(
            "--checksum allows one content only, and a golden image changes",
            remedy="omit it; a SHA256SUMS file beside the image is checked for every version",
        )
    if source.content_type != "kubevirt":
        raise UsageError("a golden image is a disk, not an archive", remedy="omit --content-type")
    wanted = build_manifests(source, namespace, request.name, request.size, local=local)
    spec = wanted.datavolume["spec"]
    if request.storage_class is not None:
        spec["storage"]["storageClassName"] = request.storage_class
    annotations = dict(annotations_of(wanted.datavolume))
    annotations.pop(ANN_IMMEDIATE_BINDING, None)  # the controller sets it for every import
    annotations |= request.settings
    golden.parse_golden_settings(annotations)
    metadata: Objects = {"name": request.name, "namespace": namespace}
    if annotations:
        metadata["annotations"] = annotations
    cron_spec: Objects = {
        "schedule": request.schedule,
        "managedDataSource": request.data_source,
        "template": {"spec": spec},
    }
    if request.keep is not None:
        cron_spec["importsToKeep"] = request.keep
    if request.retention is not None:
        cron_spec["retentionPolicy"] = request.retention
    cron = {
        "apiVersion": DATA_IMPORT_CRONS.api_version,
        "kind": "DataImportCron",
        "metadata": metadata,
        "spec": cron_spec,
    }
    return GoldenManifests(cron=cron, inputs=wanted.inputs)


def add_golden(backend: Backend, manifests: GoldenManifests) -> bool:
    """Write a DataImportCron and its inputs; return False if the same one exists.

    Raises:
        AlreadyExists: A DataImportCron of this name has another spec, or another object has the name of an input.
        InvalidManifest: The DataImportCron is invalid.
    """
    metadata = manifests.cron["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    before = _stored(backend, "dataimportcron", namespace, name)
    if before is not None and before["spec"] != manifests.cron["spec"]:
        raise AlreadyExists(
            f"DataImportCron {namespace}/{name} already exists with another spec",
            remedy=f"choose another --name, or delete it first with cdi delete dic/{name}",
        )
    uid = None if before is None else before["metadata"]["uid"]
    for body in manifests.inputs:
        there = _stored(backend, body["kind"], namespace, body["metadata"]["name"])
        owners = [] if there is None else there["metadata"].get("ownerReferences") or []
        if there is not None and not any(one.get("uid") == uid for one in owners):
            raise AlreadyExists(
                f"{body['kind']} {namespace}/{body['metadata']['name']} already exists and belongs to another object"
            )
    backend.apply([*manifests.inputs, manifests.cron], dry_run=True)
    backend.apply([manifests.cron])
    if manifests.inputs:
        try:
            owner = backend.get("dataimportcron", namespace, name)
            backend.apply([owned(body, owner) for body in manifests.inputs])
        except CdiError:
            if before is None:
                backend.delete("dataimportcron", namespace, name)
            raise
    return before is None


def _stored(backend: Backend, kind: str, namespace: str, name: str) -> Objects | None:
    try:
        return backend.get(kind, namespace, name)
    except NotFound:
        return None
