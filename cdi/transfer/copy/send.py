"""Clone source: sends a volume to the workers that fill others with it, `CopySourceJob` → `Outcome`.

Targets may start later, disconnect and return, and be added or removed while the source runs
(`cdi.transfer.copy.roster`). Each has a thread that reconnects and resumes where the target is, and gives up when the
target makes no progress for the job's patience. Reads are shared among targets (`cdi.transfer.copy.hall`).
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Mapping

from cdi.api.copy import CopySourceJob, Ticket
from cdi.api.errors import CdiError, InternalError, Interrupted, InvalidManifest
from cdi.api.job import Outcome
from cdi.transfer.control import Control
from cdi.transfer.copy.digest import written
from cdi.transfer.copy.hall import Hall
from cdi.transfer.copy.roster import Roster
from cdi.transfer.copy.supply import DiskSupply, Stock, Supply
from cdi.transfer.copy.waiter import House, Waiter
from cdi.transfer.result import Result
from cdi.transfer.run import failure_of

PATH = "copy-send"
AGAIN = 30.0
"""Seconds until a target that failed is retried, if the source still serves others."""
_LOOK = 0.25


def send(job: CopySourceJob, control: Control) -> Outcome:
    """Run `job` and return its outcome; never raises: the outcome contains the failure.

    The job fails if no target is complete in the end and some target failed; failures of the other targets become
    warnings. In the outcome, `fetched` counts the bytes read from the source volume, once for all targets that shared a
    pass, and `written` those sent to all targets.
    """
    began = time.monotonic()
    result = Result(job.id, path=PATH, format="archive" if job.content_type == "archive" else "raw")
    try:
        _Source(job, control, result).run()
    except CdiError as error:
        result.failure = failure_of(error)
    except Exception as error:  # noqa: BLE001 - outermost handler: a defect becomes the reported failure
        traceback.print_exc()
        result.failure = failure_of(InternalError(f"{type(error).__name__}: {error}"))
    control.meter.phase = "done"
    result.seconds = round(time.monotonic() - began, 3)
    return result.outcome()


class _Source:
    def __init__(self, job: CopySourceJob, control: Control, result: Result) -> None:
        self._job = job
        self._control = control
        self._result = result
        self._news = threading.Event()
        self._fetched = threading.Lock()
        self._stock = Stock(self._supply)
        self._house = House(
            job=job,
            control=control,
            stock=self._stock,
            hall=Hall(job.expected, self._counted),
            warn=result.warn,
            news=self._news.set,
        )
        self._waiters: dict[str, Waiter] = {}
        """Sessions by target id."""
        self._former: list[Waiter] = []
        """Sessions of targets that were replaced or removed."""

    def run(self) -> None:
        """Serve all targets; may raise `CdiError`."""
        self._control.written = lambda: sum(waiter.sent for waiter in self._all)
        meter = self._control.meter
        try:
            # Before any connection: an unreadable volume is of no use to a target.
            supply = self._stock.current()
            self._result.virtual_size, meter.total = supply.size, supply.data
            with self._control.cancelling(self._news.set):
                self._wait_upon_all()
        finally:
            for waiter in self._all:
                waiter.dismiss()
            for waiter in self._all:
                waiter.join()
            self._result.written = self._control.written()
            self._stock.close()
        self._conclude()

    @property
    def _all(self) -> list[Waiter]:
        return [*self._former, *self._waiters.values()]

    def _wait_upon_all(self) -> None:
        """Serve targets until none is left, or until cancelled."""
        roster = Roster(self._job.targets, self._result.warn)
        quiet = time.monotonic()
        while not self._control.cancelled.is_set():
            self._muster(roster.look())
            left = [waiter for waiter in self._waiters.values() if not waiter.over]
            self._control.meter.phase = "flushing" if left and all(waiter.ending for waiter in left) else "transferring"
            if left:
                quiet = time.monotonic()
            elif time.monotonic() - quiet >= self._job.linger:
                return
            self._news.wait(_LOOK)
            self._news.clear()

    def _muster(self, tickets: Mapping[str, Ticket]) -> None:
        for name, waiter in list(self._waiters.items()):
            ticket = tickets.get(name)
            if ticket is None or not waiter.goes_on(ticket):
                waiter.dismiss()
                self._former.append(self._waiters.pop(name))
            elif waiter.over and waiter.failure is not None and time.monotonic() - waiter.ended >= AGAIN:
                # Others are still being served; a single target's failure would have ended this source.
                self._former.append(self._waiters.pop(name))
        for name in tickets.keys() - self._waiters.keys():
            self._waiters[name] = Waiter(tickets[name], self._house)

    def _conclude(self) -> None:
        """Complete the outcome, or raise the failure that all targets share."""
        result, waiters = self._result, self._all
        begun = [waiter.resumed_at for waiter in waiters if waiter.resumed_at is not None]
        result.resumed_at = min(begun, default=0)
        done = [waiter.digest for waiter in waiters if waiter.digest is not None]
        # Failures of removed targets do not matter.
        failed = [waiter for waiter in self._waiters.values() if waiter.failure is not None]
        if done:
            result.digest = written(done[-1])
        if not waiters and self._control.cancelled.is_set():
            raise Interrupted("the clone was interrupted")
        if not waiters:
            raise InvalidManifest("no clone target is listed", where=self._job.targets)
        for waiter in failed:
            if not done or isinstance(waiter.failure, Interrupted):
                assert waiter.failure is not None
                raise waiter.failure
            result.warn(f"{waiter.ticket.id}: {waiter.failure}")

    def _supply(self) -> Supply:
        if self._job.content_type == "archive":
            from cdi.transfer.copy.archive import ArchiveSupply

            return ArchiveSupply(self._job.path)
        supply = DiskSupply(self._job.path, self._job.identity)
        self._result.validator = supply.validator
        return supply

    def _counted(self, size: int) -> None:
        with self._fetched:
            self._result.fetched += size
        self._control.meter.add_fetched(size)
