"""Contents of a bundle, read from untrusted files: what is in it, and what belongs to each golden image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import pydantic

from cdi.api.dataimportcron import GoldenVersion
from cdi.api.digest import Digest
from cdi.api.errors import (
    BundleInvalid,
    ChecksumInvalid,
    ChecksumMismatch,
    NotFound,
    SignatureInvalid,
    SignatureMissing,
    VerifyError,
)
from cdi.api.json_document import parse_json
from cdi.api.names import GROUP
from cdi.api.origin import (
    BUILDER_ID,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    canonical,
    parse_record,
    parse_statement,
    public_reference,
    subject_digests,
)
from cdi.source.registry.archive import Archive
from cdi.source.registry.manifest import Descriptor, Manifest, parse_manifest
from cdi.source.registry.open import open_layout
from cdi.source.registry.resolve import ResolvedImage
from cdi.verify.dsse import verify

GOLDEN_TYPE: Final = "application/vnd.kubevirt.cdi.golden-image.v1+json"
"""Artifact type of a `GoldenDocument`."""
GOLDEN, RECORD, STATEMENT = "_golden", "_record", "_bundle"
"""Suffixes of the names of what belongs to a golden image."""
MAX_DOCUMENT: Final = 256 << 10
"""Maximum size in bytes of a `GoldenDocument`."""
MAX_IMAGES: Final = 200
_BUNDLE_BUILD: Final = f"https://{GROUP}/golden-bundle/v1"
"""Build type of a `bundle_statement`."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,126}[a-z0-9])?")
_REMEDY = "write the bundle again with cdi bundle create"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenDocument:
    """What a machine without a network needs, besides the image, to offer a golden image."""

    name: str
    """Name of the DataSource."""
    version: GoldenVersion
    original: bool
    """Whether the image is that of the registry; else it was made from the volume, and has a digest of its own."""
    size: int | None = None
    """Size of the disk in bytes."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the DataSource."""
    cron: Mapping[str, Any] | None = None
    """Manifest of the DataImportCron."""

    def to_json(self) -> bytes:
        document: dict[str, Any] = {
            "name": self.name,
            "version": self.version.model_dump(by_alias=True, exclude_none=True, mode="json"),
            "original": self.original,
            "labels": dict(self.labels),
        }
        if self.size is not None:
            document["size"] = self.size
        if self.cron is not None:
            document["dataImportCron"] = self.cron
        return canonical(document)

    @classmethod
    def from_json(cls, body: bytes, where: str) -> Self:
        """Parse a document; raise `BundleInvalid`."""
        if len(body) > MAX_DOCUMENT:
            raise BundleInvalid(
                f"the description has {len(body)} bytes; the limit is {MAX_DOCUMENT}", where=where, remedy=_REMEDY
            )
        try:
            document = parse_json(body, unique_fields=True)
            version = GoldenVersion.model_validate(document["version"])
            Digest.parse(version.digest)
            name, original, size = document["name"], document["original"], document.get("size")
            labels, cron = document.get("labels", {}), document.get("dataImportCron")
            well_formed = (
                isinstance(name, str)
                and _NAME.fullmatch(name) is not None
                and isinstance(original, bool)
                and (size is None or (type(size) is int and 0 < size < 1 << 60))
                and isinstance(labels, dict)
                and all(isinstance(text, str) for text in labels.values())
                and (cron is None or _is_cron(cron))
            )
        except (ValueError, TypeError, KeyError, pydantic.ValidationError, ChecksumInvalid) as error:
            raise _invalid(where) from error
        if not well_formed:
            raise _invalid(where)
        return cls(name=name, version=version, original=original, size=size, labels=labels, cron=cron)


def _is_cron(body: Any) -> bool:
    """Return whether a document has the shape of a DataImportCron; its fields are validated when it is applied."""
    if not isinstance(body, dict) or body.get("kind") != "DataImportCron":
        return False
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return False
    parts = (body.get("spec"), metadata.get("labels") or {}, metadata.get("annotations") or {})
    return all(isinstance(part, dict) for part in parts)


def _invalid(where: str) -> BundleInvalid:
    return BundleInvalid("the description of a golden image is malformed", where=where, remedy=_REMEDY)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledImage:
    """A golden image in a bundle."""

    name: str
    document: GoldenDocument
    digest: Digest
    """Digest of the document that the name refers to: an index, or a manifest."""
    records: tuple[bytes, ...] = ()
    """Its record of origin, and the statement about the image in the bundle, as far as they exist."""
    record: str | None = None
    """The record of origin."""
    signatures: int = 0
    """Number of cosign signatures' manifests by tag."""


class Bundle:
    """An open bundle, whose images are readable until `close`."""

    def __init__(self, path: Path) -> None:
        """Open a tar or a directory.

        Raises what `cdi.source.registry.archive.Archive` raises, and `BundleInvalid`.
        """
        self.path = path
        self.layout: Archive = open_layout(str(path))
        try:
            self._entries = self._named()
        except BaseException:
            self.layout.close()
            raise

    def close(self) -> None:
        self.layout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the golden images, sorted."""
        return tuple(sorted(name.removesuffix(GOLDEN) for name in self._entries if name.endswith(GOLDEN)))

    def image(self, name: str) -> BundledImage:
        """Read what the bundle says of a golden image; raise `NotFound`, or `BundleInvalid`."""
        if name not in self.names:
            listed = ", ".join(self.names[:20]) or "none"
            raise NotFound(f"the bundle has no golden image {name!r}; it has {listed}", where=str(self.path))
        image = self._entries.get(name)
        if image is None:
            raise BundleInvalid(f"the bundle describes {name!r} without its image", where=str(self.path))
        where = f"{self.path}, {name}"
        document = GoldenDocument.from_json(self._artifact(name + GOLDEN), where)
        if document.name != name:
            raise BundleInvalid(f"the description belongs to {document.name!r}", where=where, remedy=_REMEDY)
        records = [self._artifact(name + suffix) for suffix in (RECORD, STATEMENT) if name + suffix in self._entries]
        for text in records:
            parse_statement(parse_record(text).payload)
        has_record = name + RECORD in self._entries
        tag = f"{image.digest.algorithm}-{image.digest.hex}.sig"
        return BundledImage(
            name=name,
            document=document,
            digest=image.digest,
            records=tuple(records),
            record=records[0].decode("utf-8", "replace") if has_record else None,
            signatures=1 if tag in self._entries else 0,
        )

    def resolve(self, image: BundledImage) -> ResolvedImage:
        """Read and verify the documents of an image down to the digests of its layers.

        Raises what `Archive.resolve` raises, and `ChecksumMismatch` if a registry's image is not the version that the
        description names.
        """
        found = self.layout.resolve(image.name, image.document.version.architecture)
        version = image.document.version.digest
        if image.document.original and version not in (str(found.digest), str(found.manifest_digest)):
            raise ChecksumMismatch(
                f"digest mismatch: the version has {version}, the image in the bundle {found.digest}",
                where=f"{self.path}, {image.name}",
                remedy=_REMEDY,
            )
        for layer in found.layers:
            self.layout.layer(layer)  # which must exist, with the listed size
        return found

    def _named(self) -> dict[str, Descriptor]:
        found: dict[str, Descriptor] = {}
        for entry in self.layout.index().entries:
            if entry.name is None:
                continue
            if entry.name in found:
                raise BundleInvalid(
                    f"the bundle has two entries named {entry.name[:140]!r}", where=str(self.path), remedy=_REMEDY
                )
            found[entry.name] = entry
        names = [name for name in found if name.endswith(GOLDEN)]
        if len(names) > MAX_IMAGES:
            raise BundleInvalid(f"the bundle has {len(names)} images; the limit is {MAX_IMAGES}", where=str(self.path))
        if not names:
            raise BundleInvalid(
                "the file is an OCI image layout, but not a bundle",
                where=str(self.path),
                remedy="cdi import oci-archive:PATH:TAG imports an image of it",
            )
        return found

    def _artifact(self, name: str) -> bytes:
        where = f"{self.path}, {name}"
        entry = self._entries[name]
        manifest = parse_manifest(self.layout.small_blob(entry, where), entry.media_type, where)
        if not isinstance(manifest, Manifest) or len(manifest.layers) != 1:
            raise BundleInvalid("the artifact does not have exactly one layer", where=where, remedy=_REMEDY)
        return self.layout.small_blob(manifest.layers[0], where)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRecords:
    """Result of `verify_records`."""

    key: str
    """Id of the key."""
    record: str | None
    """The record of origin, if it is one of those that the key signed."""


def verify_records(image: BundledImage, resolved: ResolvedImage, key: bytes, where: str) -> VerifiedRecords:
    """Require a signed record of exactly this image, which agrees with the description.

    Raises:
        SignatureMissing: The bundle has no record that is about this image.
        SignatureInvalid: No record was signed by the key, or a signed one is about another version or DataSource than
            the description.
        SigningKeyInvalid: The key is unusable.
    """
    digests = {str(resolved.digest), str(resolved.manifest_digest)}
    refusal: VerifyError | None = None
    found: VerifiedRecords | None = None
    other = ""
    for text in image.records:
        envelope = parse_record(text)
        statement = parse_statement(envelope.payload)
        subjects = subject_digests(statement)
        if not subjects & digests:
            other = min(subjects, default="nothing")
            continue
        try:
            signer = verify(envelope, key, where=where)
        except (SignatureInvalid, SignatureMissing) as error:
            refusal = refusal if isinstance(refusal, SignatureInvalid) else error
            continue
        _require_same_identity(image.document, statement, subjects, where)
        record = image.record if image.record is not None and image.record.encode() == text else None
        found = VerifiedRecords(key=signer, record=record or (found.record if found else None))
    if found is not None:
        return found
    if refusal is not None:
        raise refusal
    if not other:
        raise SignatureMissing("the bundle has no record of this image", where=where, remedy="import it without a key")
    raise SignatureMissing(
        f"no record is about the image in the bundle, {resolved.digest}; one is about {other}",
        where=where,
        remedy="an image made from a volume has a new digest; create the bundle with --sign-key",
    )


def _require_same_identity(
    document: GoldenDocument, statement: Mapping[str, Any], subjects: frozenset[str], where: str
) -> None:
    """Raise `SignatureInvalid` if a signed statement is about another DataSource or version than the description.

    The description itself is not signed, so it could give a signed image the name or version of another one.
    """
    definition = statement["predicate"].get("buildDefinition")
    stated = definition if isinstance(definition, dict) else {}
    if stated.get("buildType") == _BUNDLE_BUILD:
        expected = _build_definition(document)
        differing = [name for name, value in expected.items() if stated.get(name) != value]
    else:
        differing = [] if document.version.digest in subjects else ["subject"]
    if differing:
        raise SignatureInvalid(
            f"the description of {document.name!r}, version {document.version.digest}, contradicts the signed"
            f" statement about the image: {', '.join(differing)}",
            where=where,
            remedy="get the bundle again from the maker of the statement; its description was altered",
        )


def bundle_statement(document: GoldenDocument, image: Mapping[str, Any]) -> bytes:
    """Return the statement about the image in the bundle, which a key signs when the bundle is created."""
    algorithm, _, value = str(image["digest"]).partition(":")
    return canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": document.name, "digest": {algorithm: value}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": _build_definition(document),
                "runDetails": {"builder": {"id": BUILDER_ID}},
            },
        }
    )


def _build_definition(document: GoldenDocument) -> dict[str, Any]:
    """Return what identifies the golden image in a `bundle_statement`."""
    algorithm, _, content = document.version.digest.rpartition(":")
    dependency = {"name": document.version.name, "digest": {algorithm or "sha256": content}}
    reference = public_reference(document.version.source or "")
    return {
        "buildType": _BUNDLE_BUILD,
        "externalParameters": {"dataSource": document.name},
        "resolvedDependencies": [dependency | ({"uri": reference} if reference else {})],
    }
