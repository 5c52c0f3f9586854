"""The controller of one machine: ``python -m cdi.local.supervisor --home DIR``.

There is one process per CDI_HOME. It is started by any command that leaves work behind, and exits when there is none.
It keeps no state of its own: if it is killed, the next one continues from the objects, volumes and workers on disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cdi import atomic_file
from cdi import private_directory as private
from cdi.api.errors import CdiError, Conflict, InternalError, InvalidManifest
from cdi.controller.workqueue import WorkQueue
from cdi.local import resumable_dirs
from cdi.local.applier import PlanApplier
from cdi.local.environment import Environments
from cdi.local.home import Home
from cdi.local.launcher import Launcher
from cdi.local.lister import WATCHED, Observed, Setting
from cdi.local.processes import GUARD, Processes, rotate
from cdi.local.reconcilers.dataimportcron import DataImportCronReconciler
from cdi.local.reconcilers.datasource import DataSourceReconciler
from cdi.local.reconcilers.datavolume import DataVolumeReconciler
from cdi.local.reconcilers.garbage import GarbageCollector
from cdi.local.reconcilers.persistentvolumeclaim import PersistentVolumeClaimReconciler
from cdi.local.reconcilers.reconciler import Changes, ChangeTracker, Reconciler, Request, Result, Task
from cdi.local.tasks import Tasks
from cdi.local.worker_slots import ProcessMonitor, WorkerSlots
from cdi.logs import LogFormat, configure
from cdi.reconcile.invalid_object import report_invalid
from cdi.store.base import Key
from cdi.store.file_store import LocalStore

IDLE_TIMEOUT = 3.0
"""Seconds without work after which the supervisor exits."""
MIN_BACKOFF = 1.0
MAX_BACKOFF = 60.0
"""Seconds until a failed reconcile is tried again; doubled with every failure."""
_TICK = 0.1
_ORDER = ("persistentvolumeclaims", "datavolumes")
"""Kinds that are reconciled before all others, as those refer to them."""

log = logging.getLogger("cdi.supervisor")
_processes = Processes()


def ensure_supervisor(home: Home) -> bool:
    """Start the supervisor unless one is running, and return whether it was started.

    Callers write their objects first. A supervisor that is about to exit checks the objects again after releasing its
    lock, so no change is missed. The lock is taken here and inherited by the new process, so that concurrent callers
    start only one, however long it takes to start. Raises a `TargetError`.
    """
    _processes.reap()
    home.make()
    with home.mapped("the supervisor's files"), atomic_file.locked(home.supervisor_lock, wait=False) as lock:
        if lock is not None:
            arguments = ["--home", str(home.root), "--locked"]
            _processes.spawn("cdi.local.supervisor", arguments, log=home.supervisor_log, guard=lock)
        return lock is not None


class Supervisor:
    """Manager of one CDI_HOME: it observes objects and processes, and reconciles what they affect.

    `step` is one round.
    """

    def __init__(
        self,
        home: Home,
        *,
        launcher: Launcher | None = None,
        setting: Setting | None = None,
        linger: float = IDLE_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire up queue and reconcilers.

        Args:
            home: The CDI_HOME.
            launcher: Launcher of workers.
            setting: Settings for every reconcile.
            linger: Seconds without work after which `run` returns.
            clock: Called for monotonic time in seconds.

        """
        self._home = home
        self._setting = setting = setting or Setting()
        self._linger = linger
        self._clock = clock
        self._store = store = LocalStore(home.objects)
        launcher, environments, tasks = launcher or Launcher(home), Environments(home), Tasks(home)
        self._observed = observed = Observed(home)
        self._applier = applier = PlanApplier(
            store, launcher, observed.content, environments, tasks, lambda: observed.config().pods.verbosity
        )
        # One supervisor handles one key at a time, so that its backoffs need no jitter.
        self._queue: WorkQueue[Request] = WorkQueue(
            clock=clock, jitter=lambda: 0.5, base=MIN_BACKOFF, max_backoff=MAX_BACKOFF
        )
        self._timers: WorkQueue[Request] = WorkQueue(clock=clock)
        """Keys that are to be reconciled later, but that the supervisor does not keep running for."""
        self._errors: dict[Request, CdiError] = {}
        """Errors of the last reconciles."""
        self._processes = processes = ProcessMonitor(launcher, tasks)
        self._slots = slots = WorkerSlots(observed, processes)
        self._reconcilers: dict[str, Reconciler] = {
            "persistentvolumeclaims": PersistentVolumeClaimReconciler(home, store, observed, launcher),
            "datavolumes": DataVolumeReconciler(observed, applier, launcher, processes, slots, setting, self._errors),
            "datasources": DataSourceReconciler(observed, applier, setting),
            "dataimportcrons": DataImportCronReconciler(home, observed, applier, tasks, processes, setting),
        }
        self._garbage = GarbageCollector(store, observed, launcher, environments, tasks)
        self._tracker = ChangeTracker()
        self._watch = store.watch(WATCHED)
        self._ended = False
        self._queue.add(Task.GARBAGE_COLLECTION)

    def end(self) -> None:
        """Exit after the current round; workers keep running."""
        self._ended = True

    def close(self) -> None:
        self._watch.close()

    def run(self, inherited: int | None = None) -> bool:
        """Run until there is no work left; return False if another supervisor holds the lock of this CDI_HOME.

        `inherited` is a descriptor that holds the lock already; it is closed.
        """
        while True:
            if inherited is not None:
                try:
                    seen = self._serve()
                finally:
                    os.close(inherited)
                inherited = None
            else:
                with atomic_file.locked(self._home.supervisor_lock, wait=False) as lock:
                    if lock is None:
                        return False
                    seen = self._serve()
            if self._ended or self._store.version() == seen:
                return True

    def _serve(self) -> int:
        idle_since: float | None = None
        while True:
            seen = self._store.version()
            busy = self.step(_TICK if idle_since is None else 2 * _TICK)
            rotate(self._home.supervisor_log, writing=True)
            now = self._clock()
            if busy:
                idle_since = None
            elif idle_since is None:
                idle_since = now
            elif now - idle_since >= self._linger:
                return seen
            if self._ended:
                return seen

    def step(self, timeout: float) -> bool:
        """Process changes, waiting for at most `timeout` seconds; return whether there is work left."""
        if (due := self._queue.next_due()) is not None:
            timeout = max(0.0, min(timeout, due - self._clock()))
        changes = self._watch.poll(timeout)
        self._observed.take(changes)
        for request in self._requests_for(self._tracker.track(changes)):
            self._queue.add(request)
        for key in self._processes.take_ended():
            self._queue.add(key)
        for request in _take_ready(self._timers):
            self._timers.done(request)
            self._queue.add(request)
        for request in sorted(_take_ready(self._queue), key=self._rank):
            self._reconcile(request)
            self._queue.done(request)
        while (first := self._slots.next()) is not None:
            self._reconcile(first)
            self._slots.leave(first)
        return bool(len(self._queue) or len(self._processes) or changes)

    def _requests_for(self, changes: Changes) -> Iterable[Request]:
        requests: set[Request] = set(self._garbage.requests_for(changes))
        for reconciler in self._reconcilers.values():
            requests.update(reconciler.requests_for(changes))
        return requests

    def _rank(self, request: Request) -> tuple[int, str, tuple[str, str, str]]:
        """Return the place of a request in a round: by kind, then by age."""
        if isinstance(request, Task):
            return len(_ORDER) + 1, "", ("", "", "")
        body = self._observed.body(request)
        born = body["metadata"].get("creationTimestamp", "") if body else ""
        kind = _ORDER.index(request.plural) if request.plural in _ORDER else len(_ORDER)
        return kind, born, (request.plural, request.namespace, request.name)

    def _reconcile(self, request: Request) -> None:
        """Reconcile one object and record its errors, so that they do not affect others."""
        try:
            result = self._result_of(request)
        except Conflict:
            self._queue.add(request)
        except InvalidManifest as error:
            log.error("%s: %s", request, error)  # noqa: TRY400  complete; not retried until the object changes
            self._report(request, error)
        except CdiError as error:
            self._retry(request, error)
        except Exception as error:
            log.exception("%s", request)
            self._retry(request, InternalError(f"{type(error).__name__}: {error}"))
        else:
            self._queue.forget(request)
            if self._errors.pop(request, None) is not None and isinstance(request, Key):
                self._queue.add(_data_volume_of(request))
            if result.requeue_after is not None:
                (self._queue if result.keeps_running else self._timers).add(request, result.requeue_after)

    def _result_of(self, request: Request) -> Result:
        if isinstance(request, Task):
            return self._garbage.collect()
        return self._reconcilers[request.plural].reconcile(request)

    def _retry(self, request: Request, error: CdiError) -> None:
        """Try again later; log the error unless it is the same as before."""
        self._queue.retry(request)
        before = self._errors.get(request)
        if before is None or str(before) != str(error):
            log.error("%s: %s", request, error)
        self._errors[request] = error
        if isinstance(request, Key):
            self._report(_data_volume_of(request), error)

    def _report(self, request: Request, error: CdiError) -> None:
        """Report an error in an object's conditions, unless that cannot be written either."""
        body = self._observed.body(request) if isinstance(request, Key) else None
        if body is not None:
            with contextlib.suppress(CdiError):
                now = self._setting.now()
                self._applier.apply(report_invalid(body, error, now), body, now)


def _take_ready(queue: WorkQueue[Request]) -> list[Request]:
    taken = []
    while (request := queue.pop_ready()) is not None:
        taken.append(request)
    return taken


def _data_volume_of(key: Key) -> Key:
    """Return the DataVolume in whose conditions errors about `key` are shown."""
    return Key("datavolumes", key.namespace, key.name) if key.plural == "persistentvolumeclaims" else key


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 3) or arguments[0] != "--home" or arguments[2:] not in ([], ["--locked"]):
        sys.stderr.write("usage: python -m cdi.local.supervisor --home DIR [--locked]\n")
        return 2
    configure(LogFormat.TEXT)
    os.umask(0o077)
    inherited = GUARD if len(arguments) == 3 else None
    if inherited is not None:
        os.set_inheritable(inherited, False)
    try:
        _supervise(Home.find(Path(arguments[1])), inherited)
    except CdiError as error:
        log.error("the supervisor is stopping: %s", error)  # noqa: TRY400  no traceback: the error is complete
        return error.exit_status
    return 0


def _supervise(home: Home, inherited: int | None) -> None:
    home.make()
    with home.mapped("CDI_HOME"):
        os.chdir(home.root)
    private.remove_stale()
    resumable_dirs.remove_stale(home)
    with contextlib.closing(Supervisor(home)) as supervisor:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.end())
        supervisor.run(inherited)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
