"""Schema of ``images.yaml``: defaults for all images, and one entry for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import StrictBool, StrictInt, StrictStr, ValidationError

from cdi.api.claims import ClaimSpec, StorageSpec
from cdi.api.datavolume import SourceRef
from cdi.api.errors import InvalidManifest
from cdi.api.json_document import json_type, plain
from cdi.api.model import Amount, Model, unknown_fields
from cdi.api.rules.problems import Problem, truncate
from cdi.api.rules.shape import shape_problems
from cdi.api.sources import DataVolumeSource

M = TypeVar("M", bound=Model)


class Common(Model):
    """Fields that are allowed both in ``defaults`` and in an image's entry."""

    namespace: str | None = None
    """The namespace of the volume."""
    size: Amount | None = None
    """The size of the disk; by default the image's virtual size."""
    content_type: str | None = None
    """One of kubevirt (the default) and archive."""
    storage: StorageSpec | None = None
    """Other storage requirements, such as the storage class."""
    pvc: ClaimSpec | None = None
    """The spec of the PVC, instead of storage."""
    preallocation: bool | None = None
    """Allocate all blocks of the disk in advance."""
    secret_ref: str | None = None
    """A Secret for the image's url."""
    cert_config_map: str | None = None
    """A ConfigMap with certificates for the image's url."""
    labels: dict[str, str] | None = None
    """Labels of the DataVolume; those of defaults and image are merged."""
    annotations: dict[str, str] | None = None
    """Annotations of the DataVolume; those of defaults and image are merged."""
    policy: dict[str, StrictStr | StrictBool | StrictInt] | None = None
    """Options of the import: engine, connections, bandwidth and so on."""


class Image(Common):
    """An image."""

    name: str
    """The volume's name."""
    url: str | None = None
    """The location of the image; the scheme determines the kind of source."""
    source: DataVolumeSource | None = None
    """A DataVolume's source with all its fields, instead of url."""
    source_ref: SourceRef | None = None
    """A DataSource, instead of url."""
    checksum: str | None = None
    """The expected checksum, `algorithm:hex`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An image of a file."""

    path: str
    """The path of the field, such as ``images[3]``."""
    image: Image
    """The image with the defaults applied."""
    own: frozenset[str]
    """The attributes that the entry sets itself."""


def is_images_file(body: object) -> bool:
    """Return whether a document is meant to be an images file."""
    return isinstance(body, Mapping) and "kind" not in body and bool({"images", "defaults"} & body.keys())


def read_images_file(body: Mapping[str, Any], problems: list[Problem]) -> list[Entry]:
    """Return the valid images; append the problems of the others and of the file to `problems`."""
    try:
        document = plain(body)
    except InvalidManifest as error:
        problems.append(Problem(field=error.where or "", message=error.what))
        return []
    problems += [Problem(field=truncate(name), message="no such field") for name in document if name not in _TOP]
    common = _read(Common, document.get("defaults") or {}, "defaults", problems)
    entries = document.get("images")
    if not isinstance(entries, list) or not entries:
        problems.append(Problem(field="images", message="a list of images is required"))
        return []
    found = []
    for number, entry in enumerate(entries):
        path = f"images[{number}]"
        image = _read(Image, entry, path, problems)
        if image is not None:
            full = image if common is None else _with_defaults(image, common)
            found.append(Entry(path=path, image=full, own=frozenset(image.model_fields_set)))
    return found


_TOP = ("defaults", "images")


def _read(model: type[M], body: object, path: str, problems: list[Problem]) -> M | None:
    if not isinstance(body, Mapping):
        problems.append(Problem(field=path, message=f"must be of type object, not {json_type(body)}"))
        return None
    try:
        found = model.model_validate(body, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += [replace(one, field=_child(path, one.field)) for one in shape_problems(error)]
        return None
    strange = [Problem(field=name, message="no such field") for name in unknown_fields(found, path)]
    problems += strange
    return None if strange else found


def _child(path: str, field: str) -> str:
    return f"{path}{field}" if field.startswith("[") else f"{path}.{field}"


def _with_defaults(image: Image, common: Common) -> Image:
    """Return an image with defaults: string mappings are merged, any other value of the image takes precedence."""
    values: dict[str, Any] = {}
    for name in common.model_fields_set:
        default, own = getattr(common, name), getattr(image, name)
        if default is None or name in _IN_URL or name in ("storage", "pvc", "size"):
            continue
        if isinstance(default, dict):
            values[name] = {**default, **(own or {})}
        elif own is None:
            values[name] = default
    if image.url is not None:
        values |= {name: getattr(image, name) or getattr(common, name) for name in _IN_URL}
    if image.storage is None and image.pvc is None:
        values |= {"storage": common.storage, "pvc": common.pvc}
    claim = image.pvc or image.storage
    if image.size is None and (claim is None or claim.size is None):
        values["size"] = common.size
    values = {name: value for name, value in values.items() if value is not None}
    return image.model_copy(update=values)


_IN_URL = ("secret_ref", "cert_config_map")
"""These fields apply only to sources that are given by url."""
