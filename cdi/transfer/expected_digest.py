"""Expected digests of the content: given in the job, declared by the source, or published beside the image."""

from __future__ import annotations

from dataclasses import dataclass

from cdi.api.digest import Digest
from cdi.api.errors import (
    CdiError,
    ChecksumInvalid,
    ChecksumMismatch,
    ChecksumMissing,
    Interrupted,
    Retry,
    SignatureMissing,
)
from cdi.api.job import Job, Policy
from cdi.source.base import Source, SourceFacts, read_all
from cdi.transfer.control import TransferControl
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.retry import RestartRequired

_STRENGTH = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
_MAX_SUMS = 1 << 20
_OPTIONAL_RETRIES = 2
"""Maximum number of retries for optional files."""
_DISCOVERED_KINDS = frozenset({"http", "s3", "gcs", "file"})


@dataclass(frozen=True, slots=True)
class DeclaredDigest:
    """A digest that the whole content must have, and where it comes from."""

    digest: Digest
    by: str


@dataclass(frozen=True, slots=True)
class ExpectedDigest:
    """The digest algorithm to use, and the values to compare the result with."""

    algorithm: str | None
    promises: tuple[DeclaredDigest, ...] = ()

    def check(self, found: Digest, location: str, result: OutcomeBuilder, *, may_be_cut: bool = False) -> None:
        """Record the content's digest and compare it with the expected ones.

        Args:
            found: The digest of the received content.
            location: The source's location, for messages.
            result: Receives the digest and what verified it.
            may_be_cut: Whether the content may have been truncated undetected.

        Raises:
            ChecksumMismatch: The digests differ.
            RestartRequired: They differ, but the content may be truncated: the mismatch is reported only after two
                attempts in a row have received the same content.
        """
        before, result.digest = result.digest, str(found)
        for promise in self.promises:
            if promise.digest != found:
                error = ChecksumMismatch(
                    f"digest mismatch: {promise.by} says {promise.digest}, received {found}", where=location
                )
                if may_be_cut and before != result.digest:
                    raise RestartRequired(error)
                raise error
            result.verified(promise.by)


def expectation(
    job: Job, source: Source, facts: SourceFacts, result: OutcomeBuilder, control: TransferControl
) -> ExpectedDigest:
    """Collect the expected digests before the transfer begins.

    Raises:
        ChecksumInvalid: A checksum or a checksum file is malformed.
        ChecksumMissing: The policy requires a checksum, and there is none.
        ChecksumMismatch: Two expected digests contradict each other.
        SignatureInvalid: A checksum file has a bad signature.
        SignatureMissing: The policy requires a signature, and there is none.
        CdiError: A retryable error prevented the download of a file that the policy requires.
    """
    policy = job.policy
    promises = []
    if job.checksum is not None:
        promises.append(DeclaredDigest(Digest.parse(job.checksum), "checksum"))
    promises += [DeclaredDigest(digest, f"{job.source.kind} digest") for digest in facts.digests]
    signed = policy.signature != "ignore"
    if signed or (not promises and policy.discover_checksum and job.source.kind in _DISCOVERED_KINDS):
        promises += _Discovery(source, facts, policy, result, control).promises()
    if not promises and policy.require_checksum:
        raise ChecksumMissing(
            "no checksum is given, reported by the source or published beside it", where=facts.location
        )
    _require_consistent(promises, facts.location)
    if not promises:
        return ExpectedDigest("sha256" if policy.record_digest else None)
    strongest = max((promise.digest.algorithm for promise in promises), key=_STRENGTH.index)
    if job.checksum is not None:
        strongest = promises[0].digest.algorithm
    return ExpectedDigest(strongest, tuple(p for p in promises if p.digest.algorithm == strongest))


def published_digest(
    source: Source, facts: SourceFacts, policy: Policy, result: OutcomeBuilder, control: TransferControl
) -> DeclaredDigest | None:
    """Return the digest that a checksum file beside the image lists, None if there certainly is none.

    A poll takes the content's identity from it. If a checksum file cannot be read now, that is an error, because the
    identity from any other value would look like a new version.

    Raises:
        ChecksumInvalid: The policy requires a checksum, and a checksum file is malformed.
        SignatureInvalid: A checksum file has a bad signature.
        SignatureMissing: The policy requires a signature, and there is none.
        CdiError: A retryable error prevented the download of a file.
    """
    found = _Discovery(source, facts, policy, result, control, complete=True).promises()
    return found[0] if found else None


def _require_consistent(promises: list[DeclaredDigest], location: str) -> None:
    first: dict[str, DeclaredDigest] = {}
    for promise in promises:
        other = first.setdefault(promise.digest.algorithm, promise)
        if other.digest != promise.digest:
            raise ChecksumMismatch(
                f"{other.by} says {other.digest} and {promise.by} says {promise.digest}", where=location
            )


class _Discovery:
    """Search for checksum files beside an image, and for their signatures."""

    def __init__(
        self,
        source: Source,
        facts: SourceFacts,
        policy: Policy,
        result: OutcomeBuilder,
        control: TransferControl,
        *,
        complete: bool = False,
    ) -> None:
        """Create a search; with `complete`, a file that cannot be read now ends it with an error."""
        self._source = source
        self._facts = facts
        self._policy = policy
        self._result = result
        self._control = control
        self._complete = complete
        self._required = policy.require_checksum or policy.signature == "require"
        # Some servers answer requests for missing files with errors that look retryable.
        self._retries = control.retries if self._required else control.retries.limited(_OPTIONAL_RETRIES)

    def promises(self) -> list[DeclaredDigest]:
        from cdi.verify.checksum_file import checksum_files, find_digest

        name, policy = self._facts.name, self._policy
        failures: list[CdiError] = []
        for candidate in checksum_files(name) if name else ():
            body = self._fetch_sibling(candidate)
            if isinstance(body, CdiError):
                if self._complete:
                    raise body
                failures.append(body)
            if not isinstance(body, bytes) or not name:
                continue
            try:
                digest = find_digest(body, name, file_name=candidate)
            except ChecksumInvalid as error:
                # Some servers answer requests for missing files with a web page. This is an error only if the policy
                # requires a checksum.
                if policy.require_checksum:
                    raise
                self._result.warn(f"{candidate} beside the image is ignored: {error.what}")
                continue
            if digest is None or (policy.signature != "ignore" and not self._is_signed(candidate, body)):
                continue
            return [DeclaredDigest(digest, candidate)]
        if failures and self._required:
            raise failures[0]
        for failure in failures[:1]:
            self._result.warn(f"cannot look for a checksum file beside the image: {failure.what}")
        if policy.signature == "require":
            raise SignatureMissing(
                "no signed checksum file that lists the image is published beside it", where=self._facts.location
            )
        return []

    def _is_signed(self, candidate: str, body: bytes) -> bool:
        """Return whether the checksum file is trusted: its signature is good, or it has none and needs none.

        Raises:
            SignatureInvalid: The signature is bad; the policy cannot allow that.
            SignatureMissing: The policy names no keyring.
            CdiError: A retryable error prevented the download of the signature. It is not treated as a missing
                signature, or an attacker could drop signatures by making the server fail.
        """
        from cdi.verify.checksum_file import signature_files
        from cdi.verify.openpgp import is_clearsigned, verify_clearsigned, verify_detached

        keyring = self._policy.keyring
        if keyring is None:
            raise SignatureMissing(
                "the policy requires signatures, but names no key ring", remedy="set the policy's keyring"
            )
        signers: tuple[str, ...] = ()
        if is_clearsigned(body):
            signers = verify_clearsigned(body, keyring)
        else:
            for name in signature_files(candidate):
                signature = self._fetch_sibling(name)
                if isinstance(signature, CdiError):
                    raise signature
                if signature is not None:
                    signers = verify_detached(body, signature, keyring)
                    break
        for signer in signers:
            self._result.verified(f"signature by {signer} of {candidate}")
        return bool(signers) or self._policy.signature == "if-present"

    def _fetch_sibling(self, name: str) -> bytes | CdiError | None:
        """Return a file beside the image, None if it does not exist, or the error if that cannot be determined."""
        try:
            return self._retries.call(lambda: self._read(name))
        except Interrupted:
            raise
        except CdiError as error:
            # Most servers have no such file, and they report that with various errors.
            return error if error.retry is Retry.BACKOFF else None

    def _read(self, name: str) -> bytes | None:
        sibling = self._source.sibling(name)
        if sibling is None:
            return None
        # Closing the source on cancellation interrupts a read in progress.
        with sibling, self._control.cancelling(sibling.close):
            return read_all(sibling, _MAX_SUMS)
