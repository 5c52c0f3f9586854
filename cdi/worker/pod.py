"""Worker in a pod: it reads the job from an annotation and writes the outcome as the container's termination message.

    /var/run/cdi/pod/job       the `Job`; this directory shows annotations of the pod (downwardAPI)
    /var/run/cdi/pod/limits    `Limits`, read again when it changes
    /var/run/cdi/pod/journal   journal of an earlier pod, for a volume that cannot store it
    /dev/termination-log       the outcome (`cdi.worker.termination`)
    :8443                      ``/progress``, ``/metrics``, ``/healthz`` over HTTPS, one second after the start

    /var/run/cdi/state         what earlier runs of this pod's container left for the next one

The kubelet restarts the container after a failure, and the restarted worker continues the transfer. After a failure
that a restart cannot mend, it only repeats the termination message, until the controller replaces or deletes the pod.

SIGTERM stops the transfer at its current position; its progress is kept for the next attempt. The exit status is 0, or
that of the failure (docs/reference/errors.md).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from cdi.api.errors import CdiError, InternalError, InvalidManifest, UsageError
from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, Job, Limits, Outcome, Policy
from cdi.api.peer import PeerSourceSpec
from cdi.target.errors import map_os_errors
from cdi.transfer.control import TransferControl
from cdi.transfer.journal import Journal
from cdi.transfer.run import failure_of, transfer
from cdi.worker import log
from cdi.worker.earlier_runs import EarlierRuns, FinalRun
from cdi.worker.limits import LimitsFile
from cdi.worker.signals import SignalHandler
from cdi.worker.termination import termination_message

LOG = logging.getLogger(__name__)

if TYPE_CHECKING:
    from cdi.api.copy import CopySourceJob
    from cdi.worker.status_server import Response

_TICK = 0.5
_SERVE_AFTER = 1.0
"""Seconds until the server starts: most small imports end before that and need no certificate."""
_MAX_JOB = 1 << 20
_MAX_JOURNAL = 1 << 16
_OWN_DIRECTORY = ".cdi"
"""Directory of the journal beside the disk while a volume is being filled."""
_J = TypeVar("_J", Job, "CopySourceJob")
_USAGE = """\
usage: cdi-worker [--job FILE] [--limits FILE] [--journal FILE] [--termination-log FILE] [--port NUMBER]
                  [--state DIRECTORY] [--tls DIRECTORY]
Files that are not named default to those of a worker pod; port 0 disables the port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Paths and port; the defaults are those of a pod."""

    job: str = "/var/run/cdi/pod/job"
    limits: str = "/var/run/cdi/pod/limits"
    journal: str = "/var/run/cdi/pod/journal"
    termination_log: str = "/dev/termination-log"
    state: str = "/var/run/cdi/state"
    port: str = "8443"
    tls: str = "/var/run/cdi/tls"
    """Directory of an upload server's certificate and of its clients' CA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask(Generic[_J]):
    """Task of a pod: how to parse its job and run it."""

    parse: Callable[[bytes], _J]
    """Function that parses the job, or raises `InvalidManifest`."""
    asked: Callable[[_J], None]
    """Function that logs the job."""
    control: Callable[[_J], TransferControl]
    execute: Callable[[_J, TransferControl], Outcome]
    """Function that runs the job and never raises."""
    volume: Callable[[_J], Job | None]
    """Function that returns the written volume as a job whose journal is kept for the next attempt, or None."""
    work: Literal["import", "clone"] = "import"
    """Part of the metric's name."""


def main(arguments: list[str]) -> int:
    """Run an import with these command line arguments and return the exit status."""
    return parse_and_run(arguments, run)


def parse_and_run(arguments: list[str], run: Callable[[Options], int]) -> int:
    """Parse the command line, run the job and return the exit status."""
    try:
        options = _parsed(arguments)
    except ValueError:
        print(_USAGE, file=sys.stderr)  # noqa: T201 - usage errors go to standard error
        return UsageError.exit_status
    return run(options)


def _parsed(arguments: list[str]) -> Options:
    given: dict[str, str] = {}
    known = {field.name for field in fields(Options)}
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in known or not (equals or rest):
            raise ValueError(option)
        given[name] = value if equals else rest.pop(0)
    options = replace(Options(), **given)
    if not 0 <= int(options.port) <= 65535:
        raise ValueError(options.port)
    return options


def run(options: Options) -> int:
    """Import one image, from reading the job to the termination message, and return the exit status."""
    return run_task(
        options,
        WorkerTask(
            parse=Job.from_json,
            asked=log.log_started,
            control=TransferControl,
            execute=transfer,
            volume=lambda job: job,
        ),
    )


def run_task(options: Options, task: WorkerTask[_J]) -> int:
    """Run one attempt of any task and return the exit status."""
    earlier = EarlierRuns(options.state)
    final = earlier.final()
    if final is not None:
        _write_termination_message(options, final.message)
        return final.exit_status
    job: _J | None = None
    number = 1
    try:
        stop = SignalHandler()
        job = task.parse(read_job(options.job))
        number = earlier.begin()
        if number > 1 and isinstance(job, Job):
            job = replace(job, continued=True)
        outcome = _carry_out(job, task, options, stop)
    except CdiError as error:
        outcome = Outcome(id=job.id if job else "", failure=failure_of(error))
    except Exception as error:
        LOG.exception("the worker failed because of a defect")
        defect = InternalError(f"{type(error).__name__}: {error}")
        outcome = Outcome(id=job.id if job else "", failure=failure_of(defect))
    left = journal_of(task.volume(job)) if job is not None and outcome.failure is not None else None
    message = termination_message(outcome, left, source=_source_kind(job), run=number)
    _write_termination_message(options, message)
    log.log_finished(outcome)
    if outcome.failure is None:
        return 0
    if outcome.failure.needs_new_pod:
        earlier.end(FinalRun(message=message, exit_status=outcome.failure.exit_status))
    return outcome.failure.exit_status


def _write_termination_message(options: Options, message: str) -> None:
    try:
        # The kubelet has mounted this file, so it must be written in place.
        with open(options.termination_log, "w", encoding="ascii") as file:
            file.write(message)
    except OSError as error:
        LOG.warning(f"cannot write the termination message: {error}")


def _source_kind(job: object) -> str:
    return job.source.kind if isinstance(job, Job) and not isinstance(job.source, PeerSourceSpec) else ""


def read_job(path: str) -> bytes:
    """Read a job's file; raise `InvalidManifest` if that fails."""
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_JOB)
    except OSError as error:
        raise InvalidManifest(f"cannot read the job: {error.strerror}", where=path) from error


def _carry_out(job: _J, task: WorkerTask[_J], options: Options, stop: SignalHandler) -> Outcome:
    task.asked(job)
    control = task.control(job)
    stop.watch(control)
    volume = task.volume(job)
    own = _prepare_journal(volume, options.journal)
    ended = threading.Event()

    def answering() -> Mapping[str, Callable[[], Response]]:
        from cdi.worker.progress import endpoints

        return endpoints(job, control, lambda: journal_of(volume), task.work)

    reporter = threading.Thread(
        target=_report, args=(job.policy, control, options, ended, answering), name="report", daemon=True
    )
    reporter.start()
    try:
        return task.execute(job, control)
    finally:
        ended.set()
        reporter.join()
        if own is not None:
            # This succeeds only if the journal was removed because there is nothing to resume.
            with contextlib.suppress(OSError):
                os.rmdir(own)


# --- the journal --------------------------------------------------------------------------------------------------


def _prepare_journal(job: Job | None, carried: str) -> str | None:
    """Create the journal's directory, with the earlier pod's journal if the volume has none itself.

    An archive gets no journal: its volume holds nothing else, and its extraction cannot be resumed.

    Args:
        job: The job that writes the volume; None if none is written.
        carried: Path of the earlier pod's journal.

    Returns:
        The directory if it is on the volume and must be removed at the end.

    Raises:
        TargetError: The directory or journal cannot be written.

    """
    path = None if job is None else job.journal
    if job is None or path is None or isinstance(job.target, DirectoryTargetSpec):
        return None
    directory = os.path.dirname(path)
    with map_os_errors(path):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        journal = None if os.path.exists(path) else Journal.load(carried)
        if journal is not None and journal.job == job.id:
            journal.save(path)
    return directory if os.path.basename(directory) == _OWN_DIRECTORY else None


def journal_of(job: Job | None) -> str | None:
    """Return the journal's text if it would be lost with the pod; None if the volume keeps it or there is none."""
    if job is None or job.journal is None or not isinstance(job.target, BlockTargetSpec):
        return None
    try:
        with open(job.journal, encoding="utf-8") as file:
            return file.read(_MAX_JOURNAL)
    except (OSError, ValueError):
        return None


# --- while it runs ------------------------------------------------------------------------------------------------


def _report(
    policy: Policy,
    control: TransferControl,
    options: Options,
    ended: threading.Event,
    answering: Callable[[], Mapping[str, Callable[[], Response]]],
) -> None:
    limits = LimitsFile(options.limits, Limits(bandwidth=policy.bandwidth))
    course = log.ProgressLogger()
    began = time.monotonic()
    asked = int(options.port) != 0
    with contextlib.ExitStack() as serving:
        while True:
            limits.reload(control)
            course.tell(control.progress())
            if asked and time.monotonic() - began >= _SERVE_AFTER:
                asked = False
                _serve(answering, int(options.port), serving)
            if ended.wait(_TICK):
                course.tell(control.progress())
                return


def _serve(
    answering: Callable[[], Mapping[str, Callable[[], Response]]], port: int, serving: contextlib.ExitStack
) -> None:
    from cdi.worker.self_signed import server_context
    from cdi.worker.status_server import serve_status

    try:
        server = serve_status(port, server_context(os.uname().nodename), answering())
    except OSError as error:
        # The progress is not served then, which does not affect the import.
        LOG.warning(f"cannot listen on port {port}: {error.strerror}")
        return
    serving.callback(server.close)
