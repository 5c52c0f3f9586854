"""Base classes of the models of the API.

A model checks the shape of an object: its fields and their types. `cdi.api.validation` checks the values, so that
objects already in a cluster can always be read and a rejection has one clear message. Unknown fields are preserved:
they are kept separately, written back, and listed by `unknown_fields`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic.alias_generators import to_camel

from cdi.api.errors import InvalidManifest
from cdi.api.names import GROUP, VERSION
from cdi.api.quantity import PATTERN, Notation, Quantity

# Names in the API that are not the camel case of the attribute.
_SPELLING = {
    "init_image_url": "initImageURL",
    "upload_proxy_url": "uploadProxyURL",
    "upload_proxy_url_override": "uploadProxyURLOverride",
    "upload_proxy_ca": "uploadProxyCA",
    "http_proxy": "HTTPProxy",
    "https_proxy": "HTTPSProxy",
    "trusted_ca_proxy": "trustedCAProxy",
    "data_volume_ttl_seconds": "dataVolumeTTLSeconds",
    "min_tls_version": "minTLSVersion",
    "last_imported_pvc": "lastImportedPVC",
    "data_volume_name": "DataVolumeName",
    "digest": "Digest",
    "global_": "global",
}


def wire_name(attribute: str) -> str:
    """Return the name of an attribute in manifests, such as ``secretRef`` for ``secret_ref``."""
    return _SPELLING.get(attribute) or to_camel(attribute)


Int32 = Annotated[int, Field(ge=-(1 << 31), le=(1 << 31) - 1, json_schema_extra={"format": "int32"})]
Int64 = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1, json_schema_extra={"format": "int64"})]


def _read_amount(value: object) -> Quantity:
    if isinstance(value, Quantity):
        return value
    try:
        return Quantity.parse(value)
    except InvalidManifest as error:
        raise ValueError(error.what) from None


def _write_amount(value: Quantity) -> str | int:
    return value.bytes if value.notation is Notation.NUMBER else value.text


Amount = Annotated[
    Quantity,
    PlainValidator(_read_amount),
    PlainSerializer(_write_amount),
    WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": PATTERN, "x-kubernetes-int-or-string": True}
    ),
]
"""Quantity, parsed from a string or an integer and serialized in its original form."""
FreeForm = dict[str, Any]
"""Object with arbitrary fields that this project does not define."""


class Model(BaseModel):
    """Part of an object, with snake_case names in Python and the API's names in JSON."""

    model_config = ConfigDict(
        alias_generator=wire_name,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
        strict=True,
        extra="allow",
        frozen=True,
        defer_build=True,
        protected_namespaces=(),
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form without unset fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def pruned(self) -> Self:
        """Return a copy without unknown fields, as an API server stores it."""
        known = {
            name: _pruned(getattr(self, name)) for name in type(self).model_fields if name in self.model_fields_set
        }
        return type(self).model_construct(_fields_set=set(known), **known)


def _pruned(value: Any) -> Any:
    match value:
        case Model():
            return value.pruned()
        case list():
            return [_pruned(item) for item in value]
        case dict():
            return {key: _pruned(item) for key, item in value.items()}
        case _:
            return value


def unknown_fields(value: object, path: str = "") -> Iterator[str]:
    """Yield the paths of unknown fields, which usually are typing errors, such as ``spec.source.http.checkum``."""
    match value:
        case Model():
            for name in value.model_extra or {}:
                yield child(path, name)
            for name in type(value).model_fields:
                yield from unknown_fields(getattr(value, name), child(path, wire_name(name)))
        case list():
            for index, item in enumerate(value):
                yield from unknown_fields(item, f"{path}[{index}]")
        case dict():
            for key, item in value.items():
                yield from unknown_fields(item, child(path, str(key)))
        case _:
            return


def child(path: str, name: str) -> str:
    """Return the path of a field for messages, such as ``spec.pvc``."""
    return f"{path}.{name}" if path else name


class Resource(Model):
    """Object with its own kind."""

    group_version: ClassVar[str] = f"{GROUP}/{VERSION}"

    @classmethod
    def kind_name(cls) -> str:
        return cls.__name__

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form including ``apiVersion`` and ``kind``."""
        return {"apiVersion": self.group_version, "kind": self.kind_name(), **super().to_dict()}
