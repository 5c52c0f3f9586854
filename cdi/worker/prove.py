"""Boot proof of a golden image: ``cdi-worker prove [--job FILE] [--termination-log FILE]``.

In a pod the job is an annotation that the downwardAPI shows as a file; on one machine it is any file. The termination
message is a `cdi.api.proof.ProofResult` of at most 4096 bytes. The disk is only read: the virtual machine writes to an
overlay below ``$TMPDIR``, which is removed at the end. The log shows a line of the console now and then.

The exit status is 0 if the virtual machine booted, that of `BootFailed` if it did not, or that of the failure because
of which it could not be tried. SIGTERM stops the proof with the failure `Interrupted`.
"""

from __future__ import annotations

import logging
import re
import threading
import time

from cdi.api.errors import BootFailed, CdiError, InternalError, InvalidManifest
from cdi.api.job import Failure
from cdi.api.proof import MAX_EXPECT, ProofJob, ProofResult
from cdi.worker import log
from cdi.worker.pod import Options, parse_and_run, read_job
from cdi.worker.signals import SignalHandler

LOG = logging.getLogger(__name__)

LOG_INTERVAL = 10.0
"""Minimum seconds between two console lines in the log."""


def main(arguments: list[str]) -> int:
    """Run ``prove`` and return the exit status."""
    return parse_and_run(arguments, run)


def run(options: Options) -> int:
    """Make one boot proof, from reading the job to the termination message, and return the exit status."""
    stop = SignalHandler()
    identity = ""
    try:
        job = ProofJob.from_json(read_job(options.job))
        identity = job.id
        cancellation = Cancellation()
        stop.watch(cancellation)
        result = prove(job, cancellation.cancelled)
    except CdiError as error:
        result = ProofResult(id=identity, failure=Failure.from_error(error))
    except Exception as error:
        LOG.exception("the worker failed because of a defect")
        defect = InternalError(f"{type(error).__name__}: {error}")
        result = ProofResult(id=identity, failure=Failure.from_error(defect))
    try:
        # The kubelet has mounted this file, so it must be written in place.
        with open(options.termination_log, "w", encoding="ascii") as file:
            file.write(result.to_json())
    except OSError as error:
        LOG.warning(f"cannot write the termination message: {error}")
    return _finish(result)


class Cancellation:
    """Cancellation of a proof by a signal."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class ConsoleLog:
    """Log of the console's completed lines, one per `LOG_INTERVAL` at most."""

    def __init__(self) -> None:
        self._when = -LOG_INTERVAL
        self._line = ""

    def tell(self, line: str) -> None:
        """Take the console's last line, as far as it is printed."""
        completed, self._line = self._line, line
        now = time.monotonic()
        if completed and not line.startswith(completed) and now - self._when >= LOG_INTERVAL:
            self._when = now
            LOG.info(f"console: {completed}")


def prove(job: ProofJob, cancelled: threading.Event) -> ProofResult:
    """Boot a virtual machine from the job's disk and return the result.

    Raises:
        CdiError: It could not be tried, or was cancelled.

    """
    _validate_pattern(job.expect)
    LOG.info(f"boot proof of {job.disk} with {job.memory >> 20} MiB of memory")
    # QEMU's client is loaded only now, so that an invalid job ends at once.
    from cdi.boot.check import boot_check

    report = boot_check(
        job.disk,
        memory=job.memory,
        timeout=job.timeout,
        firmware=job.firmware,
        expect=job.expect,
        overlay=job.overlay,
        architecture=job.architecture,
        cancelled=cancelled,
        on_line=ConsoleLog().tell,
    )
    return ProofResult(
        id=job.id,
        booted=report.booted,
        message=(report.evidence if report.booted else report.why_not) or "",
        accelerator=report.accelerator,
        seconds=round(report.seconds, 3),
        console=report.serial_tail,
    )


def _validate_pattern(pattern: str | None) -> None:
    if pattern is None:
        return
    if len(pattern) > MAX_EXPECT:
        raise InvalidManifest(f"the expected text has more than {MAX_EXPECT} characters", remedy="shorten it")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        remedy = "correct the annotation golden.proofExpect"
        raise InvalidManifest(f"the expected text is not a regular expression: {error}", remedy=remedy) from error


def _finish(result: ProofResult) -> int:
    """Log the result and return the exit status."""
    if result.failure is not None:
        log.log_failure(result.failure)
        return result.failure.exit_status
    if result.booted:
        LOG.info(f"booted in {result.seconds:.1f} s with {result.accelerator}: {result.message}")
        return 0
    for line in result.console.splitlines()[-20:]:
        LOG.info(f"console: {line}")
    LOG.info(f"did not boot within {result.seconds:.1f} s with {result.accelerator}: {result.message}")
    return BootFailed.exit_status
