"""The schema of ``images.yaml``: what is common to all images, and one entry for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import StrictBool, StrictInt, StrictStr, ValidationError

from cdi.api.claims import ClaimSpec, StorageSpec
from cdi.api.datavolume import SourceRef
from cdi.api.document import json_type, plain
from cdi.api.errors import InvalidManifest
from cdi.api.model import Amount, Model, unknown_fields
from cdi.api.rules.problems import Problem, shown
from cdi.api.rules.shape import shape_problems
from cdi.api.sources import DataVolumeSource

M = TypeVar("M", bound=Model)


class Common(Model):
    """What may stand in ``defaults`` as well as in an image's own entry."""

    namespace: str | None = None
    """Where the volume is made."""
    size: Amount | None = None
    """Of the disk; the image's virtual size where none is given."""
    content_type: str | None = None
    """kubevirt (the default) or archive."""
    storage: StorageSpec | None = None
    """The volume's other wishes, such as its storage class."""
    pvc: ClaimSpec | None = None
    """The claim as it is, instead of storage."""
    preallocation: bool | None = None
    """Give every block of the disk its place in advance."""
    secret_ref: str | None = None
    """A Secret for the image's url."""
    cert_config_map: str | None = None
    """A ConfigMap with certificates for the image's url."""
    labels: dict[str, str] | None = None
    """Of the DataVolume; those of defaults and image together."""
    annotations: dict[str, str] | None = None
    """Likewise."""
    policy: dict[str, StrictStr | StrictBool | StrictInt] | None = None
    """How the import is done: engine, connections, bandwidth and so on."""


class Image(Common):
    """One image."""

    name: str
    """The volume's name."""
    url: str | None = None
    """Where the image is; its scheme says what kind of source that is."""
    source: DataVolumeSource | None = None
    """Instead of url: a DataVolume's source with all its fields."""
    source_ref: SourceRef | None = None
    """Instead of url: a DataSource."""
    checksum: str | None = None
    """What the content must be, `algorithm:hex`."""


class ImagesFile(Model):
    """The whole file."""

    defaults: Common | None = None
    """For every image that does not say otherwise."""
    images: list[Image]
    """The images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One image of a file."""

    path: str
    """Its field, such as ``images[3]``."""
    image: Image
    """With what the defaults say."""
    own: frozenset[str]
    """The attributes that it sets itself."""


def is_images_file(body: object) -> bool:
    """Whether a document means to be one."""
    return isinstance(body, Mapping) and "kind" not in body and bool({"images", "defaults"} & body.keys())


def read_images_file(body: Mapping[str, Any], problems: list[Problem]) -> list[Entry]:
    """The images that are in order; what is wrong with the others, or with the whole, is added to `problems`."""
    try:
        document = plain(body)
    except InvalidManifest as error:
        problems.append(Problem(field=error.where or "", message=error.what))
        return []
    problems += [Problem(field=shown(name), message="no such field") for name in document if name not in _TOP]
    common = _read(Common, document.get("defaults") or {}, "defaults", problems)
    entries = document.get("images")
    if not isinstance(entries, list) or not entries:
        problems.append(Problem(field="images", message="a list of images is wanted"))
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
    """Mappings of names to texts are joined, everything else of the image's own counts before the default."""
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
"""They are for sources that are given by their url alone."""
