"""Resolution of a manifest or index to one image: which documents to read, and how to verify them.

A resolution is a generator. It yields a `DocumentRequest` for each document it needs and is sent that document's bytes,
so that the registry client and the archive share every decision and check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass

from cdi.api.digest import Digest
from cdi.api.errors import ChecksumMismatch, DiskNotInImage, NestedTooDeep, SourceProtocolError
from cdi.api.importer_messages import BOOTC, wrong_architecture
from cdi.source.registry.labels import labels_of
from cdi.source.registry.manifest import (
    MANIFEST_LIMIT,
    Descriptor,
    Index,
    Manifest,
    parse_config,
    parse_manifest,
)
from cdi.source.registry.platform import Platform, not_found

_DEPTH = 4
_DOCUMENTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """An image with the digests of its layers; every document read for it was verified."""

    location: str
    digest: Digest
    """The digest of the document that the tag names, possibly an index; pollers compare it and lock files pin it."""
    manifest_digest: Digest
    """The digest of the platform's own manifest."""
    platform: Platform
    """The platform in the config."""
    env: tuple[str, ...]
    layers: tuple[Descriptor, ...]
    """The layers, lowest first, as in the manifest."""

    @property
    def labels(self) -> dict[str, str]:
        """The volume's labels, from the environment."""
        return labels_of(self.env)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A document whose bytes match `digest`."""

    body: bytes
    digest: Digest
    media_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRequest:
    """A document to read; `manifest` says whether a registry serves it as a manifest or as a blob."""

    descriptor: Descriptor
    manifest: bool


Resolution = Generator[DocumentRequest, bytes, ResolvedImage]


def resolve(top: Document, *, architecture: str | None, where: str) -> Resolution:
    """Find the image for a platform (`Platform.parse`) in the document that a tag names.

    Raises `PlatformNotFound`; `SourceProtocolError` and the other errors of `parse_manifest`; `ChecksumMismatch` if a
    document does not match its descriptor; `NestedTooDeep` for deeply nested indexes.
    """
    search = _Search(wanted=Platform.parse(architecture), explicit=architecture is not None, where=where)
    found = yield from search.walk(top, depth=0, checked=False)
    if found is None:
        error = not_found(search.wanted, search.seen, where)
        if not search.indexed and search.seen:
            error.with_upstream(wrong_architecture(search.seen[0].architecture, search.wanted.architecture))
        raise error
    return ResolvedImage(
        location=where,
        digest=top.digest,
        manifest_digest=found.digest,
        platform=found.platform,
        env=found.env,
        layers=found.layers,
    )


def check_document(descriptor: Descriptor, body: bytes, where: str) -> None:
    """Raise `ChecksumMismatch` unless `body` has the size and digest of the descriptor."""
    if len(body) != descriptor.size:
        raise ChecksumMismatch(
            f"size mismatch: the descriptor lists {descriptor.size} bytes, received {len(body)}",
            where=where,
            remedy=_REMEDY,
        )
    check_digest(descriptor.digest, body, where)


def check_digest(digest: Digest, body: bytes, where: str) -> None:
    """Raise `ChecksumMismatch` unless `body` has the digest."""
    actual = hashlib.new(digest.algorithm, body).hexdigest()
    if actual != digest.hex:
        raise ChecksumMismatch(
            f"digest mismatch: expected {digest}, received {digest.algorithm}:{actual}", where=where, remedy=_REMEDY
        )


_REMEDY = "push the image again; the registry's content is damaged, or was altered in transit"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    digest: Digest
    platform: Platform
    env: tuple[str, ...]
    layers: tuple[Descriptor, ...]


class _Search:
    def __init__(self, *, wanted: Platform, explicit: bool, where: str) -> None:
        self.wanted = wanted
        self.explicit = explicit
        self.where = where
        self.seen: list[Platform] = []
        self.indexed = False
        self._budget = _DOCUMENTS

    def walk(
        self, document: Document, *, depth: int, checked: bool
    ) -> Generator[DocumentRequest, bytes, _Found | None]:
        """Find the image in a manifest or, recursively, in an index; return None if no platform matches.

        `checked` says that an index stated the platform, which overrides the config: manually built images, such as
        disks, often have the builder's architecture in the config.
        """
        parsed = parse_manifest(document.body, document.media_type, self.where)
        if isinstance(parsed, Manifest):
            return (yield from self._image(document.digest, parsed, checked=checked, alone=depth == 0))
        self.indexed = True
        if depth == _DEPTH:
            raise NestedTooDeep(
                "the indexes of the image are nested too deeply",
                where=self.where,
                remedy="give the digest of the inner image",
            )
        for entry in self._candidates(parsed):
            known = entry.platform.known
            body = yield from self._read(entry, manifest=True)
            inner = Document(body=body, digest=entry.digest, media_type=entry.media_type)
            found = yield from self.walk(inner, depth=depth + 1, checked=known)
            if found is not None:
                return found
        return None

    def _candidates(self, index: Index) -> list[Descriptor]:
        images = [entry for entry in index.entries if not entry.is_attestation]
        self.seen += [entry.platform for entry in images]
        fitting = [entry for entry in images if entry.platform.known and entry.platform.matches(self.wanted)]
        fitting.sort(key=lambda entry: entry.platform.preference())
        # If no entry states a matching platform, read the manifests of the entries that state none.
        return fitting[:1] or [entry for entry in images if not entry.platform.known]

    def _image(
        self, digest: Digest, manifest: Manifest, *, checked: bool, alone: bool
    ) -> Generator[DocumentRequest, bytes, _Found | None]:
        if not manifest.layers and manifest.withheld:
            raise DiskNotInImage(
                f"all {manifest.withheld} layers of the image are non-distributable: registries do not store them",
                where=self.where,
                remedy="build the image from scratch, or on a base whose layers may be distributed",
            )
        if not manifest.layers:
            raise DiskNotInImage("the image has no layers", where=self.where)
        config = parse_config((yield from self._read(manifest.config, manifest=False)), self.where)
        # A single image need not be for this machine, unless a platform was requested explicitly.
        matters = not checked and (self.explicit or not alone)
        if matters and config.platform.known and not config.platform.matches(self.wanted):
            self.seen.append(config.platform)
            return None
        if config.bootable:
            raise DiskNotInImage(
                "the image is an operating system for bootc, not a disk",
                where=self.where,
                remedy="build a disk of it with bootc-image-builder, and import that disk",
            ).with_upstream(BOOTC)
        return _Found(digest=digest, platform=config.platform, env=config.env, layers=manifest.layers)

    def _read(self, descriptor: Descriptor, *, manifest: bool) -> Generator[DocumentRequest, bytes, bytes]:
        self._budget -= 1
        if self._budget < 0:
            raise NestedTooDeep(
                f"resolving the image takes more than {_DOCUMENTS} documents",
                where=self.where,
                remedy="give its digest",
            )
        if descriptor.size > MANIFEST_LIMIT:
            raise SourceProtocolError(
                f"a manifest or config has {descriptor.size} bytes; the limit is {MANIFEST_LIMIT}",
                where=self.where,
                remedy="push the image again with a current tool",
            )
        body = yield DocumentRequest(descriptor=descriptor, manifest=manifest)
        check_document(descriptor, body, self.where)
        return body
