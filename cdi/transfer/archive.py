"""Import for ``contentType: archive``: unpacks a tar, which may be compressed, into a directory."""

from __future__ import annotations

from cdi.api.errors import CdiError, ContentTruncated, ImageError, TargetUnsuitable
from cdi.api.job import DirectoryTargetSpec, Job
from cdi.codec.tar import members
from cdi.image.plan import plan
from cdi.source.base import Ending, Source
from cdi.target.directory import DirectoryTarget
from cdi.transfer.control import TransferControl
from cdi.transfer.expected_digest import ExpectedDigest, expectation
from cdi.transfer.hashed_stream import HashedStream
from cdi.transfer.plan_input import plan_input
from cdi.transfer.reader import ResumingReader
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.unwrap import unwrap_stream
from cdi.verify.hashing import ResumableHash


def unpack_archive(job: Job, source: Source, control: TransferControl, result: OutcomeBuilder) -> None:
    """Unpack `source` into the directory of ``job.target``, where its files appear only after it was verified.

    After an error the directory is unchanged.

    Raises:
        CdiError: The import failed.
        RestartRequired: The source has to be read again from its first byte.
    """
    if not isinstance(job.target, DirectoryTargetSpec):
        raise TargetUnsuitable("an archive is unpacked into a directory, not onto a disk", where=job.target.path)
    fetcher = ResumingReader(source, control)
    control.on_cancel(fetcher.abort)
    facts = fetcher.facts
    result.validator = facts.validator
    control.meter.total = facts.length
    wanted = expectation(job, source, facts, result, control)
    with DirectoryTarget(job.target) as directory:
        _unpack(job, fetcher, directory, wanted, control, result)


def _unpack(
    job: Job,
    fetcher: ResumingReader,
    directory: DirectoryTarget,
    wanted: ExpectedDigest,
    control: TransferControl,
    result: OutcomeBuilder,
) -> None:
    facts = fetcher.facts
    digest = None if wanted.algorithm is None else ResumableHash(wanted.algorithm)
    fetcher.digest_promised = bool(wanted.promises)
    connections = job.policy.connections or (4 if fetcher.ranged else 1)
    # Archives without an end mark are accepted, unless only that mark can prove that the connection was not cut off.
    marked = facts.length is None and facts.ending in (Ending.CLOSE, Ending.TLS_CLOSE) and not wanted.promises
    intake = HashedStream(fetcher, digest, control.meter, connections)
    pieces = intake.pieces()
    written = 0

    def progress(size: int) -> None:
        nonlocal written
        written += size
        fetcher.check()

    control.written = lambda: written
    try:
        peeled = unwrap_stream(pieces, facts, archive=True)
        found = plan(
            plan_input(
                job,
                facts,
                image=None,
                wrappers=peeled.wrappers,
                capacity=None,
                reads_zero=True,
                digest_wanted=digest is not None,
                digest_promised=bool(wanted.promises),
            )
        )
        result.format, result.wrappers, result.path = "archive", peeled.wrappers, found.path
        control.meter.phase = "transferring"
        assert peeled.stream is not None
        directory.unpack(members(peeled.stream, require_end_mark=marked), progress)
        # Read the data after the archive's end too: the content and its digest include it.
        for _ in peeled.stream:
            pass
        for _ in pieces:
            pass
        control.meter.phase = "verifying"
        proof = fetcher.proof_of_end(end_marked=marked)
        if proof is not None:
            result.verified(proof)
        if digest is not None:
            wanted.check(digest.digest(), facts.location, result, may_be_cut=fetcher.may_be_cut)
        control.meter.phase = "flushing"
        directory.commit()
    except CdiError as error:
        directory.wipe()
        if isinstance(error, ContentTruncated) or (isinstance(error, ImageError) and intake.is_empty):
            raise fetcher.truncated(error) from error
        raise
    finally:
        result.written += written
        intake.close()
