"""Discovery of an image's signatures in its repository: which documents to read, and within which limits.

Like `cdi.source.registry.resolve`, the search is a generator that asks for documents, so that the client and
the archive share it. cosign stores signatures in two places: under the tag ``sha256-<hex>.sig``, and as referrers
of the image (OCI distribution specification 1.1, "Listing Referrers"), for which the tag ``sha256-<hex>`` is the
fallback in registries without that API.

All documents come from the registry and may be hostile. One that cannot be read is skipped: a good signature next to it
still counts, and without one the image is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from cdi.api.digest import Digest
from cdi.api.errors import CdiError, ChecksumMismatch, SourceNotFound, SourceProtocolError
from cdi.api.image_signature import MAX_SIGNATURE_DOCUMENT, MAX_SIGNATURES, SignatureDocument, SignatureVerifier
from cdi.source.registry.manifest import MANIFEST_LIMIT, OCI_INDEX, Descriptor, Index, Manifest, parse_manifest
from cdi.source.registry.resolve import ResolvedImage, check_document

_KIND = "kind"
_KIND_OF_IMAGES = frozenset({"", "dev.cosignproject.cosign/image", "dev.cosignproject.cosign/imageIndex"})
"""Values of the annotation `_KIND`, which `cosign save` writes, of entries of a layout that are images."""
_KIND_OF_SIGNATURES = "dev.cosignproject.cosign/sigs"
_TAG = re.compile(r"(?:.*:)?sha(?:256-[0-9a-f]{64}|384-[0-9a-f]{96}|512-[0-9a-f]{128})(?:\.(?:sig|att|sbom))?")
_SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE_ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
UNUSABLE = (ChecksumMismatch, SourceNotFound, SourceProtocolError)
"""Errors that concern one document only, so that the search continues without it."""
_BUNDLE = "application/vnd.dev.sigstore.bundle"
"""Prefix of the media types of all versions of bundles."""
_UNKNOWN_ARTIFACTS = frozenset({"", "application/vnd.oci.empty.v1+json"})
"""Artifact types of entries whose manifest has to be read: some registries list none, or the type of the config."""
_SIGNATURE = "dev.cosignproject.cosign/signature"
_CERTIFICATE = "dev.sigstore.cosign/certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRequest:
    """The manifest or index with a tag."""

    tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferrersRequest:
    """The lists of what refers to a digest."""

    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRequest:
    """A manifest or blob by its digest, of the size in its descriptor."""

    descriptor: Descriptor
    manifest: bool


SignatureRequest = TagRequest | ReferrersRequest | ContentRequest
SignatureSearch = Generator[SignatureRequest, tuple[bytes, ...], None]


def signature_tag(digest: Digest) -> str:
    """Return the tag of cosign's signatures of a digest."""
    return f"{digest.algorithm}-{digest.hex}.sig"


def referrers_tag(digest: Digest) -> str:
    """Return the tag of the list of referrers in registries without the referrers API."""
    return f"{digest.algorithm}-{digest.hex}"


def is_signature(entry: Descriptor) -> bool:
    """Return whether an entry in the index of a layout is a signature or another supplement, not an image."""
    return (
        _is_signature_type(entry.artifact_type)
        or entry.annotations.get(_KIND, "") not in _KIND_OF_IMAGES
        or (entry.name is not None and _TAG.fullmatch(entry.name) is not None)
    )


def may_be_signature(entry: Descriptor) -> bool:
    """Return whether an entry in a list of referrers, or in the index of a layout, may be a signature's manifest."""
    if entry.index or entry.platform.known:
        return False
    kind = entry.annotations.get(_KIND, "")
    if kind:
        return kind == _KIND_OF_SIGNATURES
    return entry.artifact_type in _UNKNOWN_ARTIFACTS or _is_signature_type(entry.artifact_type)


def is_kept_by_cosign(entry: Descriptor) -> bool:
    """Return whether `cosign save` marked an entry of a layout as signatures; their manifests name no subject."""
    return entry.annotations.get(_KIND) == _KIND_OF_SIGNATURES


def require_signature(image: ResolvedImage, verifier: SignatureVerifier) -> SignatureSearch:
    """Search until the verifier accepts a signature of the image's top document or of its platform's manifest.

    A signature of either pins all that is imported: the top document contains the digest of the manifest, and that the
    digests of the layers. The generator yields requests and is sent the documents, or an empty tuple if there are none.
    Errors of the types in `UNUSABLE` are thrown into it.

    Raises:
        CdiError: `SignatureVerifier.rejection`, if no signature was accepted.
    """
    search = _Search(image, verifier)
    for digest in search.digests:
        if (yield from search.by_tag(digest)) or (yield from search.by_referrers(digest)):
            return
    raise verifier.rejection(f"{image.location}, {image.digest}", tuple(search.unread))


class _Search:
    def __init__(self, image: ResolvedImage, verifier: SignatureVerifier) -> None:
        self.digests = tuple(dict.fromkeys((image.digest, image.manifest_digest)))
        self.unread: list[str] = []
        """The reasons for which documents were not used, at most `MAX_SIGNATURES`."""
        self._verifier = verifier
        self._where = image.location
        self._signatures = MAX_SIGNATURES
        self._manifests = MAX_SIGNATURES

    def by_tag(self, digest: Digest) -> Generator[SignatureRequest, tuple[bytes, ...], bool]:
        for body in (yield from self._ask(TagRequest(tag=signature_tag(digest)))):
            if (yield from self._check_manifest(body)):
                return True
        return False

    def by_referrers(self, digest: Digest) -> Generator[SignatureRequest, tuple[bytes, ...], bool]:
        lists = yield from self._ask(ReferrersRequest(digest=digest))
        for entry in self._referrers(lists):
            self._manifests -= 1
            if self._manifests < 0:
                self._skip(f"more than {MAX_SIGNATURES} signatures are stored")
                return False
            for body in (yield from self._ask(ContentRequest(descriptor=entry, manifest=True))):
                if (yield from self._check_manifest(body)):
                    return True
        return False

    def _referrers(self, lists: tuple[bytes, ...]) -> Iterator[Descriptor]:
        for body in lists:
            try:
                index = parse_manifest(body, OCI_INDEX, self._where)
            except CdiError as error:
                self._skip(error.what)
                continue
            if isinstance(index, Index):
                yield from (entry for entry in index.entries if may_be_signature(entry))

    def _check_manifest(self, body: bytes) -> Generator[SignatureRequest, tuple[bytes, ...], bool]:
        """Check the signatures in a manifest, the newest first: cosign appends them."""
        try:
            manifest = parse_manifest(body, None, self._where)
        except CdiError as error:
            self._skip(error.what)
            return False
        for layer in reversed(manifest.layers if isinstance(manifest, Manifest) else ()):
            simple = layer.media_type == _SIMPLE_SIGNING
            if not simple and not layer.media_type.startswith(_BUNDLE):
                continue
            self._signatures -= 1
            if self._signatures < 0:
                self._skip(f"more than {MAX_SIGNATURES} signatures are stored")
                return False
            for content in (yield from self._ask(ContentRequest(descriptor=layer, manifest=False))):
                document = SignatureDocument(
                    kind="simple-signing" if simple else "bundle",
                    body=content,
                    signature=layer.annotations.get(_SIGNATURE, ""),
                    has_certificate=_CERTIFICATE in layer.annotations,
                )
                if self._verifier.accept(document, self.digests):
                    return True
        return False

    def _ask(self, request: SignatureRequest) -> Generator[SignatureRequest, tuple[bytes, ...], tuple[bytes, ...]]:
        """Return the requested documents; none if they do not exist or are unusable."""
        if isinstance(request, ContentRequest):
            limit = MANIFEST_LIMIT if request.manifest else MAX_SIGNATURE_DOCUMENT
            if request.descriptor.size > limit:
                self._skip(f"a signature of {request.descriptor.size} bytes is too large; the limit is {limit}")
                return ()
        try:
            bodies = yield request
            if isinstance(request, ContentRequest):
                for body in bodies:
                    check_document(request.descriptor, body, self._where)
        except CdiError as error:
            self._skip(error.what)
            return ()
        return bodies

    def _skip(self, reason: str) -> None:
        if len(self.unread) < MAX_SIGNATURES:
            self.unread.append(reason)


def _is_signature_type(artifact_type: str) -> bool:
    return artifact_type == _SIGNATURE_ARTIFACT or artifact_type.startswith(_BUNDLE)
