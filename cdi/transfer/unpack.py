"""``contentType: archive``: a tar, wrapped or not, into a directory."""

from __future__ import annotations

from cdi.api.errors import CdiError, TargetUnsuitable
from cdi.api.job import DirectoryTargetSpec, Job
from cdi.codec.tar import members
from cdi.image.plan import plan
from cdi.source.base import Source
from cdi.target.directory import DirectoryTarget
from cdi.transfer.control import Control
from cdi.transfer.expect import Expectation, expectation
from cdi.transfer.fetch import Fetcher
from cdi.transfer.intake import Intake
from cdi.transfer.peel import peel_stream
from cdi.transfer.planning import plan_input
from cdi.transfer.result import Result
from cdi.verify.hashing import ResumableHash


def unpack_archive(job: Job, source: Source, control: Control, result: Result) -> None:
    """Unpack `source` into the directory of ``job.target``; it appears there whole, once it is verified.

    Raises `CdiError`, and `RestartRequired` where the caller may begin again; either way the directory is as it was.
    """
    if not isinstance(job.target, DirectoryTargetSpec):
        raise TargetUnsuitable("an archive is unpacked into a directory, not onto a disk", where=job.target.path)
    fetcher = Fetcher(source, control)
    control.on_cancel(fetcher.abort)
    facts = fetcher.facts
    result.validator = facts.validator
    control.meter.total = facts.length
    wanted = expectation(job, source, facts, result, control)
    with DirectoryTarget(job.target) as directory:
        _unpack(job, fetcher, directory, wanted, control, result)


def _unpack(
    job: Job, fetcher: Fetcher, directory: DirectoryTarget, wanted: Expectation, control: Control, result: Result
) -> None:
    facts = fetcher.facts
    digest = None if wanted.algorithm is None else ResumableHash(wanted.algorithm)
    connections = job.policy.connections or (4 if facts.ranges else 1)
    intake = Intake(fetcher, digest, control.meter, connections)
    pieces = intake.pieces()
    written = 0

    def progress(size: int) -> None:
        nonlocal written
        written += size
        fetcher.check()

    control.written = lambda: written
    try:
        peeled = peel_stream(pieces, facts, archive=True)
        found = plan(
            plan_input(
                job,
                facts,
                image=None,
                wrappers=peeled.wrappers,
                capacity=None,
                reads_zero=True,
                digest_wanted=digest is not None,
            )
        )
        result.format, result.wrappers, result.path = "archive", peeled.wrappers, found.path
        control.meter.phase = "transferring"
        assert peeled.stream is not None
        directory.unpack(members(peeled.stream), progress)
        # What follows the archive's end belongs to the content and to its digest.
        for _ in peeled.stream:
            pass
        for _ in pieces:
            pass
        control.meter.phase = "verifying"
        if facts.length is not None:
            result.verified("length")
        if digest is not None:
            computed = digest.digest()
            result.digest = str(computed)
            wanted.check(computed, facts.location, result)
        control.meter.phase = "flushing"
        directory.commit()
    except CdiError:
        directory.wipe()
        raise
    finally:
        result.written += written
        intake.close()
