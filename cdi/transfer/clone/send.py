"""Clone source: serves a volume to the workers that fill others with it, `CopySourceJob` → `Outcome`.

Targets may start later, disconnect and return, and be added or removed while the source runs
(`cdi.transfer.clone.tickets`). Each has a session that connects to it and answers its requests
(`cdi.transfer.clone.target_session`). Reads are shared among targets (`cdi.transfer.clone.window`).
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Mapping

from cdi.api.copy import CopySourceJob, Ticket
from cdi.api.errors import CdiError, InternalError, Interrupted, InvalidManifest, SourceChanged
from cdi.api.job import Outcome
from cdi.transfer.clone.clone_source import CloneSource, CurrentSource, DiskSource
from cdi.transfer.clone.target_session import SenderContext, TargetSession
from cdi.transfer.clone.tickets import TicketFile
from cdi.transfer.clone.window import SharedWindow
from cdi.transfer.control import TransferControl
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.run import failure_of

PATH = "copy-send"
RETRY_AFTER = 30.0
"""Seconds until a target that failed is retried, if the source still serves others."""
_POLL_INTERVAL = 0.25


def send(job: CopySourceJob, control: TransferControl) -> Outcome:
    """Run `job` and return its outcome; never raises: the outcome contains the failure.

    The job fails if no target is complete in the end and some target failed; failures of the other targets become
    warnings. In the outcome, `fetched` counts the bytes read from the source volume, once for all targets that shared a
    pass, and `written` those sent to all targets.
    """
    began = time.monotonic()
    result = OutcomeBuilder(job.id, path=PATH, format="archive" if job.content_type == "archive" else "raw")
    try:
        CloneSender(job, control, result).run()
    except CdiError as error:
        result.failure = failure_of(error)
    except Exception as error:  # noqa: BLE001 - outermost handler: a defect becomes the reported failure
        traceback.print_exc()
        result.failure = failure_of(InternalError(f"{type(error).__name__}: {error}"))
    control.meter.phase = "done"
    result.seconds = round(time.monotonic() - began, 3)
    return result.outcome()


class CloneSender:
    def __init__(self, job: CopySourceJob, control: TransferControl, result: OutcomeBuilder) -> None:
        self._job = job
        self._control = control
        self._result = result
        self._wakeup = threading.Event()
        self._fetched = threading.Lock()
        self._sources = CurrentSource(self._source, self._source_changed)
        self._changes = 0
        self._context = SenderContext(
            job=job,
            control=control,
            sources=self._sources,
            window=SharedWindow(job.expected, self._counted),
            news=self._wakeup.set,
        )
        self._sessions: dict[str, TargetSession] = {}
        """Sessions by target id."""
        self._retired: list[TargetSession] = []
        """Sessions of targets that were replaced or removed."""

    def run(self) -> None:
        """Serve all targets; may raise `CdiError`."""
        self._control.written = lambda: sum(session.server.sent for session in self._all)
        meter = self._control.meter
        try:
            # Before any connection: an unreadable volume is of no use to a target.
            facts = self._sources.current().facts()
            self._result.virtual_size, meter.total = facts.size, facts.size
            with self._control.cancelling(self._wakeup.set):
                self._serve_targets()
        finally:
            for session in self._all:
                session.stop()
            for session in self._all:
                session.join()
            self._result.written = self._control.written()
            self._sources.close()
        self._conclude()

    @property
    def _all(self) -> list[TargetSession]:
        return [*self._retired, *self._sessions.values()]

    def _serve_targets(self) -> None:
        """Serve targets until none is left, or until cancelled."""
        ticket_file = TicketFile(self._job.targets, self._result.warn)
        quiet = time.monotonic()
        while not self._control.cancelled.is_set():
            self._reconcile_targets(ticket_file.reload())
            left = [session for session in self._sessions.values() if not session.finished]
            self._control.meter.phase = "transferring"
            if left:
                quiet = time.monotonic()
            elif time.monotonic() - quiet >= self._job.linger:
                return
            self._wakeup.wait(_POLL_INTERVAL)
            self._wakeup.clear()

    def _reconcile_targets(self, tickets: Mapping[str, Ticket]) -> None:
        for name, session in list(self._sessions.items()):
            ticket = tickets.get(name)
            if ticket is None or not session.update(ticket):
                session.stop()
                self._retired.append(self._sessions.pop(name))
            elif session.finished and session.failure is not None and time.monotonic() - session.ended >= RETRY_AFTER:
                # Others are still being served; a single target's failure would have ended this source.
                self._retired.append(self._sessions.pop(name))
        for name in tickets.keys() - self._sessions.keys():
            self._sessions[name] = TargetSession(tickets[name], self._context)

    def _conclude(self) -> None:
        """Complete the outcome, or raise the failure that all targets share."""
        result, waiters = self._result, self._all
        begun = [session.server.resumed_at for session in waiters if session.server.resumed_at is not None]
        result.resumed_at = min(begun, default=0)
        done = [session.digest for session in waiters if session.finished and session.digest]
        # Failures of removed targets do not matter.
        failed = [session for session in self._sessions.values() if session.failure is not None]
        if done:
            result.digest = done[-1]
        if not waiters and self._control.cancelled.is_set():
            raise Interrupted("the clone was interrupted")
        if not waiters:
            raise InvalidManifest("no clone target is listed", where=self._job.targets)
        for session in failed:
            if not done or isinstance(session.failure, Interrupted):
                assert session.failure is not None
                raise session.failure
            result.warn(f"{session.ticket.id}: {session.failure}")

    def _source(self) -> CloneSource:
        if self._job.content_type == "archive":
            from cdi.transfer.clone.archive import ArchiveSource

            return ArchiveSource(self._job.path)
        source = DiskSource(self._job.path, self._job.identity)
        self._result.validator = source.validator
        return source

    def _source_changed(self) -> None:
        """Have the targets start over with the current content, or give up if it never holds still."""
        error = SourceChanged("the source volume was modified while it was cloned", where=self._job.path)
        self._result.warn(f"{error.what}; starting over")
        with self._fetched:
            self._changes += 1
            if self._changes <= self._job.policy.retries:
                return
        for session in self._all:
            session.fail(error)

    def _counted(self, size: int) -> None:
        with self._fetched:
            self._result.fetched += size
        self._control.meter.add_fetched(size)
