"""Poll of a source's current version: ``cdi-worker poll [--job FILE] [--termination-log FILE]``.

In a pod the job is an annotation that the downwardAPI shows as a file; on one machine it is any file. The termination
message is a `cdi.api.poll.PollResult` of at most 4096 bytes. Nothing is written but that.
"""

from __future__ import annotations

import logging

from cdi.api.errors import CdiError, InvalidManifest
from cdi.api.job import Failure
from cdi.api.poll import PollJob, PollResult
from cdi.transfer.control import TransferControl
from cdi.transfer.poll import poll
from cdi.worker import log
from cdi.worker.pod import Options, parse_and_run, read_job
from cdi.worker.signals import SignalHandler
from cdi.worker.termination import LIMIT

LOG = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run ``poll`` and return the exit status."""
    return parse_and_run(arguments, run)


def run(options: Options) -> int:
    """Poll one source, from reading the job to the termination message, and return the exit status."""
    stop = SignalHandler()
    try:
        job = PollJob.from_json(read_job(options.job))
    except InvalidManifest as error:
        return _finish(PollResult(id="", failure=Failure.from_error(error)), options)
    LOG.info(f"poll of {log.place(job.source)}")
    try:
        control = TransferControl(job)
        stop.watch(control)
        result = poll(job, control)
    except CdiError as error:
        result = PollResult(id=job.id, failure=Failure.from_error(error))
    return _finish(result, options)


def _finish(result: PollResult, options: Options) -> int:
    failure = result.failure
    if failure is None:
        LOG.info(f"found {result.digest} by {result.identity}")
    else:
        log.log_failure(failure)
    try:
        # The kubelet has mounted this file, so it must be written in place.
        with open(options.termination_log, "w", encoding="ascii") as file:
            file.write(result.to_json(LIMIT))
    except OSError as error:
        LOG.warning(f"cannot write the termination message: {error}")
    return 0 if failure is None else failure.exit_status
