"""Import for ``contentType: archive``: unpacks a tar, which may be compressed, into a directory."""

from __future__ import annotations

from cdi.api.errors import CdiError, TargetUnsuitable
from cdi.api.job import DirectoryTargetSpec, Job
from cdi.codec.tar import members
from cdi.image.plan import plan
from cdi.source.base import Ending
from cdi.target.directory import DirectoryTarget
from cdi.transfer.context import SourceContext
from cdi.transfer.control import TransferControl
from cdi.transfer.plan_input import plan_input
from cdi.transfer.reader import ResumingReader
from cdi.transfer.restarts import ProbedSource
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.retry import RestartRequired
from cdi.transfer.unwrap import unwrap_stream


def unpack_archive(job: Job, probed: ProbedSource, control: TransferControl, result: OutcomeBuilder) -> None:
    """Unpack the source into the directory of ``job.target``, where its files appear only after it was verified.

    After an error the directory is unchanged.

    Raises:
        CdiError: The import failed.
        RestartRequired: The source has to be read again from its first byte.
    """
    if not isinstance(job.target, DirectoryTargetSpec):
        raise TargetUnsuitable("an archive is unpacked into a directory, not onto a disk", where=job.target.path)
    with ResumingReader(probed.source, control) as reader:
        context = SourceContext(job=job, reader=reader, control=control, result=result, expected=probed.expected)
        with DirectoryTarget(job.target) as directory:
            _unpack(context, directory)


def _unpack(context: SourceContext, directory: DirectoryTarget) -> None:
    reader, meter, result = context.reader, context.control.meter, context.result
    facts = reader.facts
    # Archives without an end mark are accepted, unless only that mark can prove that the connection was not cut off.
    stream_end = facts.length is None and facts.ending in (Ending.CLOSE, Ending.TLS_CLOSE)
    marked = stream_end and not context.expected.promises
    written = 0

    def progress(size: int) -> None:
        nonlocal written
        written += size
        reader.check()

    context.control.written = lambda: written
    try:
        with context.stream() as content:
            unwrapped = unwrap_stream(content.pieces, facts, archive=True, disk=context.job.policy.disk)
            found = plan(plan_input(context.job, facts, unwrapped, context.expected))
            result.format, result.wrappers, result.path = "archive", unwrapped.wrappers, found.path
            meter.phase = "transferring"
            assert unwrapped.stream is not None
            directory.unpack(members(unwrapped.stream, require_end_mark=marked), progress)
            # Read the data after the archive's end too: the content and its digest include it.
            for _ in unwrapped.stream:
                pass
            content.drain()
        meter.phase = "verifying"
        proof = reader.proof_of_end(end_marked=marked)
        if proof is not None:
            result.verified(proof)
        context.verify_digest()
        context.control.begin_finishing("flushing")
        directory.commit()
    except (CdiError, RestartRequired):
        directory.wipe()
        raise
    finally:
        result.written += written
