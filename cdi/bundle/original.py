"""Copies of registry images into a bundle, with unchanged manifests, so that digests and signatures stay valid."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from cdi.api.digest import Digest
from cdi.api.errors import CdiError, NestedTooDeep, Retry, SourceError, SourceNotFound, VersionGone
from cdi.api.job import RegistrySourceSpec
from cdi.bundle.layout import REF_NAME, JsonDescriptor, LayoutWriter, OnBytes
from cdi.source.registry.client import RegistryClient
from cdi.source.registry.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Manifest, parse_manifest
from cdi.source.registry.open import open_registry
from cdi.source.registry.reference import Reference
from cdi.source.registry.resolve import Document, DocumentRequest, ResolvedImage, resolve

MAX_REFERRERS: Final = 64
_TAGS = (".sig", ".att")
"""Suffixes of cosign's tags for signatures and attestations."""
_STALL_TIMEOUT = 60.0
_ATTEMPTS = 8


@dataclass(slots=True)
class OriginalCopy:
    """A copied image: the descriptor of its top document, and entries for its signatures and referrers."""

    image: JsonDescriptor
    signatures: list[JsonDescriptor] = field(default_factory=list)


def copy_original(
    writer: LayoutWriter, spec: RegistrySourceSpec, digest: Digest, on_bytes: OnBytes = lambda _: None
) -> OriginalCopy:
    """Copy an image by its digest, with the platform of `spec` only; an index keeps its other entries as references.

    Args:
        writer: The layout.
        spec: The source; its tag is replaced by `digest`.
        digest: The digest of the version.
        on_bytes: Called with the number of bytes of each chunk.

    Raises:
        VersionGone: The registry no longer has the image.
        CdiError: The registry's other errors.
    """
    reference = replace(Reference.parse(spec.url), tag=None, digest=digest)
    pinned = replace(spec, url=str(reference))
    try:
        copied = _documents(writer, pinned, reference)
        with open_registry(pinned, _STALL_TIMEOUT, _pause()) as image:
            for layer in image.layers:
                writer.fetch(layer.digest, layer.size, layer.source, on_bytes)
    except SourceNotFound as error:
        raise VersionGone(
            f"the registry no longer has {digest}: {error.what}",
            where=f"docker://{reference.name}",
            remedy="push the image again, or bundle the volume itself with --from volume",
        ) from error
    return copied


def _pause() -> Callable[[CdiError], None]:
    failures = 0

    def pause(error: CdiError) -> None:
        nonlocal failures
        failures += 1
        if error.retry is not Retry.BACKOFF or failures >= _ATTEMPTS:
            raise error
        time.sleep(min(30.0, 0.5 * 2**failures))

    return pause


def _documents(writer: LayoutWriter, spec: RegistrySourceSpec, reference: Reference) -> OriginalCopy:
    with RegistryClient(spec, _STALL_TIMEOUT, _pause()) as client:
        top = client.document(reference)
        parsed = parse_manifest(top.body, top.media_type, str(reference))
        usual = OCI_INDEX if isinstance(parsed, Index) else OCI_MANIFEST
        copied = OriginalCopy(image=writer.put_as(top.digest, top.body, _media_type(top, usual)))
        resolved = _platform(writer, client, reference, top, spec.architecture)
        for digest in dict.fromkeys((top.digest, resolved.manifest_digest)):
            for suffix in _TAGS:
                _tagged(writer, client, reference, f"{digest.algorithm}-{digest.hex}{suffix}", copied)
            _referrers(writer, client, reference, digest, copied)
        return copied


def _platform(
    writer: LayoutWriter, client: RegistryClient, reference: Reference, top: Document, architecture: str | None
) -> ResolvedImage:
    """Copy the documents below `top` that lead to the image of one platform."""
    resolution = resolve(top, architecture=architecture, where=str(reference))
    try:
        wanted = next(resolution)
        while True:
            body = client.content(reference, wanted)
            writer.put_as(wanted.descriptor.digest, body, wanted.descriptor.media_type)
            wanted = resolution.send(body)
    except StopIteration as stop:
        image: ResolvedImage = stop.value
        return image


def _tagged(writer: LayoutWriter, client: RegistryClient, reference: Reference, tag: str, copied: OriginalCopy) -> None:
    try:
        top = client.document(replace(reference, tag=tag, digest=None))
    except SourceError as error:
        if error.retry is Retry.BACKOFF:
            raise
        return  # most registries say 404, some 401 or 403 for a tag that does not exist
    parsed = parse_manifest(top.body, top.media_type, str(reference))
    if isinstance(parsed, Manifest):
        _blobs(writer, client, reference, parsed)
        entry = writer.put_as(top.digest, top.body, _media_type(top, OCI_MANIFEST))
        copied.signatures.append({**entry, "annotations": {REF_NAME: tag}})


def _referrers(
    writer: LayoutWriter, client: RegistryClient, reference: Reference, digest: Digest, copied: OriginalCopy
) -> None:
    entries: dict[Digest, Descriptor] = {}
    for body in client.referrers(reference, digest):
        index = parse_manifest(body, OCI_INDEX, str(reference))
        if isinstance(index, Index):
            entries |= {entry.digest: entry for entry in index.entries}
    if len(entries) > MAX_REFERRERS:
        raise NestedTooDeep(
            f"{len(entries)} manifests refer to the image; the limit is {MAX_REFERRERS}", where=str(reference)
        )
    known = {entry["digest"] for entry in copied.signatures}
    for entry in entries.values():
        if str(entry.digest) in known or entry.index:
            continue
        manifest_body = client.content(reference, DocumentRequest(descriptor=entry, manifest=True))
        parsed = parse_manifest(manifest_body, entry.media_type, str(reference))
        if not isinstance(parsed, Manifest):
            continue
        _blobs(writer, client, reference, parsed)
        more = {"artifactType": parsed.artifact_type} if parsed.artifact_type else {}
        copied.signatures.append(writer.put_as(entry.digest, manifest_body, entry.media_type, **more))


def _blobs(writer: LayoutWriter, client: RegistryClient, reference: Reference, manifest: Manifest) -> None:
    """Copy the small blobs of a signature or attestation; `RegistryClient` bounds the size of each."""
    for descriptor in _distinct((manifest.config, *manifest.layers)):
        body = client.content(reference, DocumentRequest(descriptor=descriptor, manifest=False))
        writer.put_as(descriptor.digest, body, descriptor.media_type)


def _distinct(descriptors: tuple[Descriptor, ...]) -> list[Descriptor]:
    found = list({descriptor.digest: descriptor for descriptor in descriptors}.values())
    if len(found) > MAX_REFERRERS:
        raise NestedTooDeep(f"a signature's manifest has {len(found)} blobs; the limit is {MAX_REFERRERS}")
    return found


def _media_type(document: Document, usual: str) -> str:
    stated = (document.media_type or "").partition(";")[0].strip()
    return stated or usual
