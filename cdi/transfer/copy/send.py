"""A volume to the workers that fill others with it: `CopySourceJob` → `Outcome`.

Targets may not be there yet, go away and come back, be named later or no more (`cdi.transfer.copy.roster`): each has a
thread, which connects anew and goes on from where the target has it, and gives it up when that one got no further for
the job's patience.  What is read is read for all of them (`cdi.transfer.copy.hall`).
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
"""Seconds until a target that was given up is tried again, where the reader is still at work for others."""
_LOOK = 0.25


def send(job: CopySourceJob, control: Control) -> Outcome:
    """Carry `job` out.  Raises nothing: a failure is part of the outcome.

    It has failed where no target has the whole in the end, and some target failed; what became of the others is told in
    warnings.  Of the outcome, `fetched` are the bytes that were read of the source volume, once for all targets that
    could be read for together, and `written` those that were sent to all of them.
    """
    began = time.monotonic()
    result = Result(job.id, path=PATH, format="archive" if job.content_type == "archive" else "raw")
    try:
        _Source(job, control, result).run()
    except CdiError as error:
        result.failure = failure_of(error)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a defect is reported, not lost
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
        """By their targets' ids."""
        self._former: list[Waiter] = []
        """Of targets that are others now, or no more."""

    def run(self) -> None:
        """Raises `CdiError`s."""
        self._control.written = lambda: sum(waiter.sent for waiter in self._all)
        meter = self._control.meter
        try:
            # Before anybody is called: a volume that cannot be read is no use to a target.
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
        """Until nobody is left to be served, or it is cancelled."""
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
                # Others are still served meanwhile; were it alone, this reader had ended with its failure.
                self._former.append(self._waiters.pop(name))
        for name in tickets.keys() - self._waiters.keys():
            self._waiters[name] = Waiter(tickets[name], self._house)

    def _conclude(self) -> None:
        """Raises the failure that all have come to."""
        result, waiters = self._result, self._all
        begun = [waiter.resumed_at for waiter in waiters if waiter.resumed_at is not None]
        result.resumed_at = min(begun, default=0)
        done = [waiter.digest for waiter in waiters if waiter.digest is not None]
        # Of those that were dismissed nobody wants to know.
        failed = [waiter for waiter in self._waiters.values() if waiter.failure is not None]
        if done:
            result.digest = written(done[-1])
        if not waiters and self._control.cancelled.is_set():
            raise Interrupted("the clone was stopped")
        if not waiters:
            raise InvalidManifest("nobody is named to whom the source is to be sent", where=self._job.targets)
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
