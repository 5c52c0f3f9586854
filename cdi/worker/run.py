"""Worker process in embedded mode: it takes a `Job` and writes progress and one `Outcome` to a status directory.

    DIR/lock            locked with flock(2) as long as the worker lives
    DIR/progress.json   `Progress`, replaced about twice a second
    DIR/control.json    `Limits`, read again when it changes
    DIR/outcome.json    `Outcome`, written once at the end

SIGTERM and SIGINT stop the transfer at its current position; its progress is kept for the next attempt. The exit status
is 0, or that of the failure (docs/reference/errors.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Callable

from cdi import atomic_file
from cdi.api.errors import CdiError, InvalidManifest, TargetBusy, UsageError
from cdi.api.job import Job, Limits, Outcome, StreamSourceSpec
from cdi.transfer.control import TransferControl
from cdi.transfer.run import failure_of, transfer
from cdi.worker import log
from cdi.worker.limits import LimitsFile
from cdi.worker.signals import SignalHandler

_TICK = 0.5
_USAGE = "usage: python -m cdi.worker run JOB.json --status-dir DIR"


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit status."""
    if len(arguments) != 4 or arguments[0] != "run" or arguments[2] != "--status-dir":
        print(_USAGE, file=sys.stderr)  # noqa: T201 - usage errors go to standard error
        return UsageError.exit_status
    return run(arguments[1], arguments[3])


def run(job_path: str, directory: str) -> int:
    """Run the job in the file `job_path`, report to `directory`, and return the exit status."""
    lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = TargetBusy("another worker runs this job", where=directory)
            log.log_failure(failure_of(busy))  # the outcome belongs to the other worker
            return busy.exit_status
        outcome = _carry_out(job_path, directory)
        # The process that started this worker may have reserved disk space for the outcome.
        atomic_file.write(os.path.join(directory, "outcome.json"), outcome.to_json().encode(), single_writer=True)
        log.log_finished(outcome)
        return outcome.failure.exit_status if outcome.failure is not None else 0
    finally:
        os.close(lock)


def _carry_out(job_path: str, directory: str) -> Outcome:
    stop = SignalHandler()
    try:
        with open(job_path, "rb") as file:
            job = Job.from_json(file.read())
    except OSError as error:
        return _refused(InvalidManifest(f"cannot read the job: {error.strerror}", where=job_path))
    except CdiError as error:
        return _refused(error)
    log.log_started(job)
    control, carry_out = _work(job)
    stop.watch(control)
    ended = threading.Event()
    reporter = threading.Thread(target=_report, args=(job, control, directory, ended), name="report", daemon=True)
    reporter.start()
    try:
        return carry_out()
    finally:
        ended.set()
        reporter.join()


def _work(job: Job) -> tuple[TransferControl, Callable[[], Outcome]]:
    """Return a job's control and a function that runs it: a transfer, or a server for uploads to a listening socket."""
    if isinstance(job.source, StreamSourceSpec):
        from cdi.worker import upload_local

        if upload_local.is_listening_socket(job):
            from cdi.worker.upload_session import Session

            session = Session(job)
            return session, lambda: upload_local.receive(job, session)
    control = TransferControl(job)
    return control, lambda: transfer(job, control)


def _refused(error: CdiError) -> Outcome:
    return Outcome(id="", failure=failure_of(error))


def _report(job: Job, control: TransferControl, directory: str, ended: threading.Event) -> None:
    limits = LimitsFile(os.path.join(directory, "control.json"), Limits(bandwidth=job.policy.bandwidth))
    course = log.ProgressLogger()
    last = False
    while True:
        limits.reload(control)
        progress = control.progress()
        told = progress.to_json().encode()
        with contextlib.suppress(OSError):
            # The file system may be full, and the outcome will say so.
            atomic_file.write(os.path.join(directory, "progress.json"), told, single_writer=True, fsync=False)
        course.tell(progress)
        if last:
            return
        last = ended.wait(_TICK)
