"""Polls: which version of its content a source has now, found without downloading the content.

A registry names its content by the digest of the manifest, or of the index that covers all platforms. Other sources are
identified, in this order, by

1. the image's entry in a checksum file beside it (``SHA256SUMS`` and others), whose signature is checked if the policy
   says so;
2. a strong ETag (HTTP, S3, with the version of the object where the bucket has versions) or the generation (GCS).

A weak ETag and a modification date do not identify content (RFC 9110 section 8.8), so a source that offers nothing else
is an error. The digest of a poll always is ``sha256:hex``: KubeVirt's CDI accepts no other algorithm. If the source
states no SHA-256 of its content, it is the SHA-256 of the kind, the URL without secrets and the value that identifies
the content, one per line.
"""

from __future__ import annotations

import hashlib
import threading
import traceback
from dataclasses import replace
from typing import assert_never

from cdi.api.digest import Digest
from cdi.api.errors import (
    CdiError,
    ChecksumMissing,
    InternalError,
    Interrupted,
    SourceNotSupported,
    SourceStalled,
    SourceVersionUnknown,
)
from cdi.api.job import (
    BlankSourceSpec,
    Failure,
    FileSourceSpec,
    GcsSourceSpec,
    HttpSourceSpec,
    Policy,
    RegistrySourceSpec,
    S3SourceSpec,
    StreamSourceSpec,
)
from cdi.api.peer import PeerSourceSpec
from cdi.api.poll import PollJob, PollResult
from cdi.source.open import open_source
from cdi.source.registry.reference import Reference
from cdi.source.registry.resolve import Document
from cdi.transfer.control import TransferControl
from cdi.transfer.expected_digest import published_digest
from cdi.transfer.result import OutcomeBuilder

MANIFEST, CHECKSUM_FILE, ETAG, GENERATION = "manifest", "checksum file", "etag", "generation"
_RETRIES = 3
"""Maximum number of retries within one poll: the caller repeats a failed poll anyway."""
_MAX_ARCHITECTURES = 32
_SHA256 = "sha256"

_RemoteSpec = HttpSourceSpec | S3SourceSpec | GcsSourceSpec


def poll(job: PollJob, control: TransferControl | None = None) -> PollResult:
    """Run a poll and return its result, which includes any failure; this function does not raise.

    `control` stops it from outside.
    """
    try:
        return find_version(job, control)
    except CdiError as error:
        return PollResult(id=job.id, failure=Failure.from_error(error))
    except Exception as error:  # noqa: BLE001 - the last line of defence: a defect is reported, not lost
        traceback.print_exc()
        defect = InternalError(f"{type(error).__name__}: {error}")
        return PollResult(id=job.id, failure=Failure.from_error(defect))


def find_version(job: PollJob, control: TransferControl | None = None) -> PollResult:
    """Return the version that the source has now.

    Raises:
        SourceVersionUnknown: Nothing identifies the content.
        SourceStalled: The poll took longer than its timeout.
        ChecksumMismatch: A registry states another digest than its manifest has.
        CdiError: Any other error of the source, its checksum file or the signature of that.

    """
    control = control or TransferControl(job)
    control.retries = control.retries.limited(_RETRIES)
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        control.cancel()

    timer = threading.Timer(job.timeout, expire)
    timer.daemon = True
    timer.start()
    try:
        return _find(job, control)
    except (Interrupted, InternalError) as error:
        if not control.cancelled.is_set():
            raise
        # The cancellation may have closed the source while it was being used.
        if not expired.is_set():
            raise Interrupted("the poll was stopped") from error
        raise SourceStalled(
            f"the poll did not end within {job.timeout:g} s",
            where=_location(job),
            remedy="check the server; the poll is repeated automatically",
        ) from error
    finally:
        timer.cancel()


def _find(job: PollJob, control: TransferControl) -> PollResult:
    source = job.source
    match source:
        case RegistrySourceSpec():
            document = control.run_abandonable(lambda: _top_document(source, job, control))
            if document is None:
                return PollResult(id=job.id, digest=job.known, identity=MANIFEST)
            return _from_manifest(job.id, source, document)
        case HttpSourceSpec() | S3SourceSpec() | GcsSourceSpec():
            return control.run_abandonable(lambda: _from_object(job.id, source, job.policy, control))
        case FileSourceSpec() | StreamSourceSpec() | PeerSourceSpec() | BlankSourceSpec():
            raise SourceNotSupported(
                f"a {source.kind} source has no versions to poll",
                remedy="use a registry, an http(s) URL, or an object in S3 or GCS",
            )
        case _:
            assert_never(source)


def _location(job: PollJob) -> str | None:
    from cdi.api.rules.urls import redacted

    source = job.source
    return redacted(source.url) if isinstance(source, RegistrySourceSpec | _RemoteSpec) else None


# --- registries ---------------------------------------------------------------------------------------------------


def _top_document(source: RegistrySourceSpec, job: PollJob, control: TransferControl) -> Document | None:
    """Return the manifest or index that the reference names, verified against the digest that the registry states.

    Return None if the registry says that it is the one that the last poll found.
    """
    if source.url.strip().startswith("oci-archive:"):
        from cdi.source.registry.archive import Archive, split_archive

        path, tag = split_archive(source.url.strip())
        archive = Archive(path)
        try:
            return archive.document(tag)
        finally:
            archive.close()
    from cdi.source.registry.client import RegistryClient

    reference = Reference.parse(source.url)
    with (
        RegistryClient(source, job.policy.stall_timeout, control.retries.backoff) as client,
        control.cancelling(client.close),
    ):
        if job.known is not None and client.states(reference, Digest.parse(job.known)):
            return None
        return client.document(reference)


def _from_manifest(identity: str, source: RegistrySourceSpec, document: Document) -> PollResult:
    from cdi.source.registry.manifest import Index, parse_manifest

    archive = source.url.strip().startswith("oci-archive:")
    reference = None if archive else Reference.parse(source.url)
    where = source.url.strip() if reference is None else str(reference)
    parsed = parse_manifest(document.body, document.media_type, where)
    entries = parsed.entries if isinstance(parsed, Index) else ()
    architectures = {
        entry.platform.architecture for entry in entries if entry.platform.architecture and not entry.is_attestation
    }
    digest = document.digest
    if digest.algorithm != _SHA256:
        digest = Digest(_SHA256, hashlib.sha256(document.body).hexdigest())
    return PollResult(
        id=identity,
        digest=str(digest),
        resolved=None if reference is None else f"docker://{reference.name}@{document.digest}",
        identity=MANIFEST,
        architectures=tuple(sorted(architectures)[:_MAX_ARCHITECTURES]),
    )


# --- objects with a URL -------------------------------------------------------------------------------------------


def _from_object(identity: str, spec: _RemoteSpec, policy: Policy, control: TransferControl) -> PollResult:
    checks = OutcomeBuilder(identity)
    retries = control.retries
    # Opening a source may fetch credentials.
    source = retries.call(lambda: open_source(spec, policy))
    with source, control.cancelling(source.close):
        facts = retries.call(source.probe)
        published = None
        if policy.discover_checksum or policy.require_checksum or policy.signature != "ignore":
            published = published_digest(source, facts, policy, checks, control)
    found = PollResult(id=identity, resolved=facts.pinned, size=facts.length, verified_by=tuple(checks.verified_by))
    if published is not None:
        digest = published.digest
        text = str(digest) if digest.algorithm == _SHA256 else _digest_of(spec.kind, facts.location, str(digest))
        return replace(found, digest=text, identity=CHECKSUM_FILE, checksum=str(digest))
    if policy.require_checksum:
        raise ChecksumMissing("no checksum of the image is published beside it", where=facts.location)
    if facts.identity is None:
        offered = "only a weak ETag or a modification date" if facts.validator else "nothing"
        raise SourceVersionUnknown(f"the server states {offered} to identify the image", where=facts.location)
    generation = facts.pinned is not None and isinstance(spec, GcsSourceSpec)
    return replace(
        found,
        digest=_digest_of(spec.kind, facts.location, facts.identity),
        identity=GENERATION if generation else ETAG,
    )


def _digest_of(kind: str, location: str, value: str) -> str:
    text = f"{kind}\n{location}\n{value}"
    return f"{_SHA256}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
