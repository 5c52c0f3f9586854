"""The worker process: a `Job` goes in; progress, then exactly one `Outcome` come out, as files of a status directory.

    DIR/lock            held with flock(2) for as long as the worker lives
    DIR/progress.json   `Progress`, replaced about twice a second
    DIR/control.json    `Limits`, read again whenever it changes
    DIR/outcome.json    `Outcome`, written once at the end

SIGTERM and SIGINT stop the transfer where it is; what was done is kept for the next attempt.  The exit status is 0, or
that of the failure (docs/errors.md).
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from types import FrameType

from cdi import durable
from cdi.api.errors import CdiError, InvalidManifest, TargetBusy, UsageError
from cdi.api.job import Job, Limits, Outcome
from cdi.transfer.control import Control
from cdi.transfer.run import failure_of, transfer
from cdi.worker import log

_TICK = 0.5
_USAGE = "usage: python -m cdi.worker run JOB.json --status-dir DIR"


def main(arguments: list[str]) -> int:
    """Gives the exit status."""
    if len(arguments) != 4 or arguments[0] != "run" or arguments[2] != "--status-dir":
        print(_USAGE, file=sys.stderr)  # noqa: T201 - the one thing a wrong call can be told
        return UsageError.exit_status
    return run(arguments[1], arguments[3])


def run(job_path: str, directory: str) -> int:
    """Carry out the job of `job_path`, reporting into `directory`."""
    lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = TargetBusy("another worker has this job", where=directory)
            log.say(str(busy))  # the outcome belongs to the other worker
            return busy.exit_status
        outcome = _carry_out(job_path, directory)
        durable.write(os.path.join(directory, "outcome.json"), outcome.to_json().encode(), alone=True)
        log.ended(outcome)
        return outcome.failure.exit_status if outcome.failure is not None else 0
    finally:
        os.close(lock)


def _carry_out(job_path: str, directory: str) -> Outcome:
    try:
        with open(job_path, "rb") as file:
            job = Job.from_json(file.read())
    except OSError as error:
        return _refused(InvalidManifest(f"the job cannot be read: {error.strerror}", where=job_path))
    except CdiError as error:
        return _refused(error)
    log.asked(job)
    control = Control(job)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        # A handler runs between any two lines of the main thread: everything else is left to a thread.
        threading.Thread(target=control.cancel, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    ended = threading.Event()
    reporter = threading.Thread(target=_report, args=(control, directory, ended), name="report", daemon=True)
    reporter.start()
    try:
        return transfer(job, control)
    finally:
        ended.set()
        reporter.join()


def _refused(error: CdiError) -> Outcome:
    return Outcome(id="", failure=failure_of(error))


def _report(control: Control, directory: str, ended: threading.Event) -> None:
    limits_path = os.path.join(directory, "control.json")
    seen: tuple[int, int] | None = None
    course = log.Course()
    while True:
        last = ended.wait(0 if seen is None else _TICK)
        try:
            found = os.stat(limits_path)
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != seen:
                with open(limits_path, "rb") as file:
                    limits = Limits.from_json(file.read(4096))
                control.limit(limits)
                log.limited(limits)
                seen = stamp
        except FileNotFoundError:
            seen = seen or (0, 0)
        except (OSError, ValueError) as error:
            seen = seen or (0, 0)
            log.say(f"control.json is not read: {error}")
        progress = control.progress()
        told = progress.to_json().encode()
        durable.write(os.path.join(directory, "progress.json"), told, alone=True, lasting=False)
        course.tell(progress)
        if last:
            return
