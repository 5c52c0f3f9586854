"""What the content has to be: digests given, promised by the source, or published beside the image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cdi.api.digest import Digest
from cdi.api.errors import CdiError, ChecksumInvalid, ChecksumMismatch, ChecksumMissing, Interrupted, SignatureMissing
from cdi.api.job import Job, Policy
from cdi.source.base import Source, SourceFacts
from cdi.source.small import read_small
from cdi.transfer.result import Result

_STRENGTH = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
_SUMS_MOST = 1 << 20
_DISCOVERED_KINDS = frozenset({"http", "s3", "gcs", "file"})


@dataclass(frozen=True, slots=True)
class Promise:
    """A digest that the whole content must have, and who said so."""

    digest: Digest
    by: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """The digest to compute, and what to compare it with."""

    algorithm: str | None
    promises: tuple[Promise, ...] = ()

    def check(self, found: Digest, location: str, result: Result) -> None:
        """Raises `ChecksumMismatch`."""
        for promise in self.promises:
            if promise.digest != found:
                raise ChecksumMismatch(
                    f"the content's digest is {found}, and {promise.by} says {promise.digest}", where=location
                )
            result.verified(promise.by)


def expectation(job: Job, source: Source, facts: SourceFacts, result: Result) -> Expectation:
    """Gather what is known before a byte is transferred.

    Raises `ChecksumInvalid`, `ChecksumMissing`, `ChecksumMismatch` (two promises contradict each other),
    `SignatureInvalid`, `SignatureMissing`.
    """
    policy = job.policy
    promises = []
    if job.checksum is not None:
        promises.append(Promise(Digest.parse(job.checksum), "checksum"))
    promises += [Promise(digest, f"{job.source.kind} digest") for digest in facts.digests]
    signed = policy.signature != "ignore"
    if signed or (not promises and policy.discover_checksum and job.source.kind in _DISCOVERED_KINDS):
        promises += _discover(source, facts, policy, result)
    if not promises and policy.require_checksum:
        raise ChecksumMissing(
            "no checksum is given, promised by the source or published beside it", where=facts.location
        )
    _agree(promises, facts.location)
    if not promises:
        return Expectation("sha256" if policy.record_digest else None)
    strongest = max((promise.digest.algorithm for promise in promises), key=_STRENGTH.index)
    if job.checksum is not None:
        strongest = promises[0].digest.algorithm
    return Expectation(strongest, tuple(p for p in promises if p.digest.algorithm == strongest))


def _agree(promises: list[Promise], location: str) -> None:
    first: dict[str, Promise] = {}
    for promise in promises:
        other = first.setdefault(promise.digest.algorithm, promise)
        if other.digest != promise.digest:
            raise ChecksumMismatch(
                f"{other.by} says {other.digest} and {promise.by} says {promise.digest}", where=location
            )


def _discover(source: Source, facts: SourceFacts, policy: Policy, result: Result) -> list[Promise]:
    name = facts.name
    if not name:
        return _undiscovered(policy, facts)
    from cdi.verify.sums import checksum_files, find_digest

    candidates = checksum_files(name)
    with ThreadPoolExecutor(8, "sums") as pool:
        bodies = list(pool.map(lambda candidate: _small(source, candidate), candidates))
    for candidate, body in zip(candidates, bodies, strict=True):
        if body is None:
            continue
        try:
            digest = find_digest(body, name, file_name=candidate)
        except ChecksumInvalid as error:
            # A server that answers everything with a page of its own has no such file; whoever must have one is told.
            if policy.require_checksum:
                raise
            result.warn(f"{candidate} beside the image is not used: {error.what}")
            continue
        if digest is None:
            continue
        if policy.signature != "ignore" and not _check_signature(source, candidate, body, policy, result):
            continue
        return [Promise(digest, candidate)]
    return _undiscovered(policy, facts)


def _undiscovered(policy: Policy, facts: SourceFacts) -> list[Promise]:
    if policy.signature == "require":
        raise SignatureMissing(
            "no signed checksum file that names the image is published beside it", where=facts.location
        )
    return []


def _check_signature(source: Source, candidate: str, body: bytes, policy: Policy, result: Result) -> bool:
    """Whether the checksum file is to be believed: its signature is good, or it has none and need not have one.

    Raises `SignatureInvalid`: a bad signature is never passed over.
    """
    from cdi.verify.signature import is_clearsigned, verify_clearsigned, verify_detached
    from cdi.verify.sums import signature_files

    if policy.keyring is None:
        raise SignatureMissing(
            "the policy wants signatures checked and names no key ring", remedy="set the policy's keyring"
        )
    signers: tuple[str, ...] = ()
    if is_clearsigned(body):
        signers = verify_clearsigned(body, policy.keyring)
    else:
        for name in signature_files(candidate):
            signature = _small(source, name)
            if signature is not None:
                signers = verify_detached(body, signature, policy.keyring)
                break
    for signer in signers:
        result.verified(f"signature by {signer} of {candidate}")
    return bool(signers) or policy.signature == "if-present"


def _small(source: Source, name: str) -> bytes | None:
    """A file beside the image; None where there is none, or none that can be read."""
    try:
        sibling = source.sibling(name)
        if sibling is None:
            return None
        with sibling:
            return read_small(sibling, _SUMS_MOST)
    except Interrupted:
        raise
    except CdiError:
        # Most servers have no such file, and each says so in its own way.
        return None
