"""Parsing of manifests, indexes and configs from untrusted JSON, without fetching anything.

Follows the OCI image specification 1.1 and Docker's image manifest version 2, schema 2. The content determines the kind
of a document. A content type that contradicts it is rejected, as is a document that could be parsed as two kinds
(CVE-2021-41190).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cdi.api.digest import Digest
from cdi.api.errors import (
    CdiError,
    EncryptionRefused,
    NestedTooDeep,
    SourceNotAnImage,
    SourceNotSupported,
    SourceProtocolError,
)
from cdi.api.json_document import parse_json
from cdi.source.registry.platform import ANY_PLATFORM, Platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
ACCEPT = f"{OCI_INDEX}, {DOCKER_INDEX}, {OCI_MANIFEST}, {DOCKER_MANIFEST}"

MANIFEST_LIMIT = 4 << 20
"""The maximum size in bytes of a manifest, an index or a config; registries accept no larger ones."""
_ENTRIES = 1000
_LAYERS = 1000
_ENVIRONMENT = 1000
_MAX_SIZE = 1 << 53
_BOOTABLE_LABELS = ("containers.bootc", "ostree.bootable")
_FOREIGN = ("foreign", "nondistributable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A reference to content by media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform = ANY_PLATFORM
    name: str | None = None
    """The tag, in the index of an OCI layout."""
    is_attestation: bool = False
    """Whether it is an attestation about another entry, not an image."""
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def index(self) -> bool:
        return self.media_type in INDEX_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    entries: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]
    """The layers from lowest to top, without non-distributable ones."""
    withheld: int = 0
    """The number of non-distributable layers."""
    artifact_type: str = ""
    subject: Digest | None = None
    """The digest of what it refers to, such as a signed image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    platform: Platform
    env: tuple[str, ...]
    bootable: bool = False
    """Whether the image is an operating system for bootc or ostree, whose files are no disk."""


def parse_manifest(body: bytes, content_type: str | None, where: str) -> Index | Manifest:
    """Parse a manifest or an index; raise `SourceProtocolError`, `SourceNotSupported` or `EncryptionRefused`."""
    document = _document(body, where)
    declared = document.get("mediaType")
    if declared is not None and not isinstance(declared, str):
        _malformed("mediaType is not a string", where)
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise SourceNotSupported(
            "the image has a manifest of Docker's schema 1, which cannot be verified",
            where=where,
            remedy="push the image again with a current tool",
        )
    shapes = {"index" for key in ("manifests",) if key in document}
    shapes |= {"manifest" for key in ("layers", "config") if key in document}
    if len(shapes) != 1:
        _malformed("the manifest is neither an index nor an image, or both", where)
    index = shapes == {"index"}
    for stated in (declared, (content_type or "").partition(";")[0].strip().lower()):
        if stated in (MANIFEST_TYPES if index else INDEX_TYPES):
            _malformed(f"the manifest does not match its media type {stated}", where)
    if index:
        return Index(entries=_descriptors(document["manifests"], "manifests", _ENTRIES, where))
    layers = _descriptors(document.get("layers", []), "layers", _LAYERS, where)
    for layer in layers:
        if layer.media_type.endswith("+encrypted"):
            raise EncryptionRefused(
                "a layer of the image is encrypted", where=where, remedy="push the image without encryption"
            )
    held = tuple(layer for layer in layers if not any(word in layer.media_type for word in _FOREIGN))
    artifact_type = document.get("artifactType")
    return Manifest(
        config=_descriptor(document.get("config"), "config", where),
        layers=held,
        withheld=len(layers) - len(held),
        artifact_type=artifact_type if isinstance(artifact_type, str) else "",
        subject=_subject(document.get("subject")),
    )


def parse_config(body: bytes, where: str) -> Config:
    """Parse an image's config, of which missing parts are empty; raise `SourceProtocolError`."""
    document = _document(body, where)
    inner = document.get("config")
    env = inner.get("Env") if isinstance(inner, dict) else None
    variables = [e for e in env if isinstance(e, str)] if isinstance(env, list) else []
    labels = inner.get("Labels") if isinstance(inner, dict) else None
    bootable = isinstance(labels, dict) and any(labels.get(name) == "1" for name in _BOOTABLE_LABELS)
    return Config(platform=_platform(document), env=tuple(variables[:_ENVIRONMENT]), bootable=bootable)


def _subject(value: Any) -> Digest | None:
    """Return the digest of a subject; None if there is none, or a malformed one, which concerns no image."""
    digest = value.get("digest") if isinstance(value, dict) else None
    try:
        return Digest.parse(digest) if isinstance(digest, str) else None
    except CdiError:
        return None


def _document(body: bytes, where: str) -> dict[str, Any]:
    try:
        document = parse_json(body)
    except ValueError as error:
        if body.lstrip()[:1] == b"<":
            raise SourceNotAnImage("a web page was served instead of a manifest", where=where) from error
        raise SourceProtocolError("the manifest is not JSON", where=where, remedy=_REMEDY) from error
    if not isinstance(document, dict):
        _malformed("the manifest is not a JSON object", where)
    return document


_REMEDY = "push the image again; the registry's content is damaged or not an image"


def _malformed(what: str, where: str) -> NoReturn:
    raise SourceProtocolError(what, where=where, remedy=_REMEDY)


def _descriptors(value: Any, name: str, most: int, where: str) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        _malformed(f"{name} is not a list", where)
    if len(value) > most:
        raise NestedTooDeep(
            f"the manifest has {len(value)} {name}, at most {most} are accepted",
            where=where,
            remedy="build the image with fewer of them",
        )
    return tuple(_descriptor(entry, f"{name}[{number}]", where) for number, entry in enumerate(value))


def _descriptor(value: Any, name: str, where: str) -> Descriptor:
    if not isinstance(value, dict):
        _malformed(f"{name} is not a descriptor", where)
    media_type, size, digest = value.get("mediaType", ""), value.get("size"), value.get("digest")
    if not isinstance(media_type, str) or len(media_type) > 255:
        _malformed(f"{name} has no valid mediaType", where)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < _MAX_SIZE:
        _malformed(f"{name} has no valid size", where)
    if not isinstance(digest, str):
        _malformed(f"{name} has no digest", where)
    try:
        parsed = Digest.parse(digest)
    except CdiError as error:
        raise SourceProtocolError(f"{name}: {error.what}", where=where, remedy=_REMEDY) from error
    if parsed.algorithm not in ("sha256", "sha512", "sha384"):
        _malformed(f"{name} uses a weak digest, {parsed.algorithm}", where)
    platform = value.get("platform")
    annotations = value.get("annotations")
    notes = annotations if isinstance(annotations, dict) else {}
    tag = notes.get("org.opencontainers.image.ref.name")
    artifact_type = value.get("artifactType")
    return Descriptor(
        media_type=media_type,
        digest=parsed,
        size=size,
        platform=_platform(platform) if isinstance(platform, dict) else ANY_PLATFORM,
        name=tag if isinstance(tag, str) else None,
        is_attestation="vnd.docker.reference.type" in notes,
        artifact_type=artifact_type if isinstance(artifact_type, str) else "",
        annotations={key: text for key, text in notes.items() if isinstance(text, str)},
    )


def _platform(value: dict[str, Any]) -> Platform:
    def text(key: str) -> str:
        content = value.get(key)
        return content[:64] if isinstance(content, str) else ""

    return Platform.from_manifest(text("architecture"), text("os"), text("variant"))
