"""The controller of one machine: ``python -m cdi.local.supervisor --home DIR``.

There is one process per CDI_HOME. It is started by any command that leaves work behind, and exits when there is none.
It keeps no state of its own: if it is killed, the next one continues from the objects, volumes and workers on disk.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from cdi import atomic_file
from cdi import private_directory as private
from cdi.api.configuration import CONFIG_NAME
from cdi.api.core import PersistentVolumeClaim
from cdi.api.dataimportcron import DataImportCron
from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError, Conflict, InternalError, InvalidManifest
from cdi.api.names import ANN_POD_PHASE, GROUP, LABEL_DATA_IMPORT_CRON
from cdi.api.phases import Phase
from cdi.local import resumable_dirs
from cdi.local.cron_lister import LocalCronLister, cron_context
from cdi.local.environment import Environments
from cdi.local.executor import Executor
from cdi.local.garbage import collect_garbage
from cdi.local.home import Home
from cdi.local.launcher import Launcher
from cdi.local.lister import PLATFORM, WATCHED, Observed, Setting
from cdi.local.processes import GUARD, Processes, rotate
from cdi.local.provisioner import Provisioner
from cdi.local.tasks import Task, Tasks
from cdi.local.trouble import Troubles
from cdi.logs import LogFormat, configure
from cdi.reconcile.actions import Plan, StartWorker
from cdi.reconcile.dataimportcron.deletion import plan_deletion
from cdi.reconcile.dataimportcron.reconcile import reconcile_cron
from cdi.reconcile.datasource import reconcile_data_source
from cdi.reconcile.datavolume import upload_request as uploads
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.datavolume.upload_request import UploadRequest
from cdi.reconcile.invalid_object import report_invalid
from cdi.store.base import Change, Key, Object
from cdi.store.file_store import LocalStore

MAX_WORKERS = f"{GROUP}/policy.maxWorkers"
"""An annotation of CDIConfig ``config``: the largest number of concurrent workers."""
DEFAULT_WORKERS = 4
IDLE_TIMEOUT = 3.0
"""Seconds without work after which the supervisor exits."""
_TICK = 0.1
_POLL_INTERVAL = 0.5
_SOON = 10.0
"""Seconds; a DataImportCron that is to be reconciled within them is work, later it is a timer."""
_GARBAGE = "garbage collection"
"""The key of garbage collection among the recorded errors."""

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


def _data_volume_of(key: Key) -> Key:
    """Return the DataVolume in whose conditions errors about `key` are shown."""
    return Key("datavolumes", key.namespace, key.name) if key.plural == "persistentvolumeclaims" else key


class Supervisor:
    """Controller that observes objects, reconciles them and executes the plans; `step` is one round."""

    def __init__(
        self,
        home: Home,
        *,
        launcher: Launcher | None = None,
        setting: Setting | None = None,
        linger: float = IDLE_TIMEOUT,
    ) -> None:
        self._home = home
        self._setting = setting or Setting()
        self._linger = linger
        self._store = LocalStore(home.objects)
        self._launcher = launcher or Launcher(home)
        self._observed = Observed(home)
        self._environments = Environments(home)
        self._tasks = Tasks(home)
        self._executor = Executor(self._store, self._launcher, self._observed.content, self._environments, self._tasks)
        self._crons = LocalCronLister(self._observed, self._tasks)
        self._provisioner = Provisioner(home, self._store, self._launcher)
        self._watch = self._store.watch(WATCHED)
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._troubles = Troubles()
        self._queue: deque[Key] = deque()
        self._running: dict[str, Key] = {}
        self._running_tasks: dict[tuple[Task, str], Key] = {}
        self._timers: dict[Key, float] = {}
        """When DataImportCrons are to be reconciled that wait for their schedule: kept, but not waited for."""
        self._faces: dict[Key, tuple[object, ...] | None] = {}
        self._garbage = True
        self._garbage_due = 0.0
        self._ended = False

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
            busy = self.step(_TICK if idle_since is None or self._running else 2 * _TICK)
            rotate(self._home.supervisor_log, writing=True)
            now = time.monotonic()
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
        if self._due and (nearest := self._nearest()) is not None:
            timeout = max(0.0, min(timeout, nearest - time.monotonic()))
        changes = self._watch.poll(timeout)
        self._observed.take(changes)
        for key in self._touched(changes):
            self._schedule(key, 0.0)
        for uid, key in list(self._running.items()):
            if not self._launcher.alive(uid):
                del self._running[uid]
                self._schedule(key, 0.0)
        for (task, uid), key in list(self._running_tasks.items()):
            if not self._tasks.running(task, uid):
                del self._running_tasks[task, uid]
                self._schedule(key, 0.0)
        for key in [key for key, moment in self._timers.items() if moment <= time.monotonic()]:
            self._schedule(key, 0.0)
        for key in self._pop_due():
            self._guarded(key)
        self._admit()
        self._collect_garbage()
        return bool(self._due or self._running or self._running_tasks or self._garbage or changes)

    # --- due keys --------------------------------------------------------------------------------------------------

    def _schedule(self, key: Key, delay: float) -> None:
        moment = time.monotonic() + delay
        known = self._due.get(key)
        if known is None or moment < known:
            self._due[key] = moment
            heapq.heappush(self._heap, (moment, key))

    def _nearest(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _pop_due(self) -> list[Key]:
        """Remove and return the due keys: PVCs, then DataVolumes, then objects referring to them, each by age."""
        now = time.monotonic()
        due: list[Key] = []
        while (nearest := self._nearest()) is not None and nearest <= now:
            _, key = heapq.heappop(self._heap)
            del self._due[key]
            due.append(key)
        order = ("persistentvolumeclaims", "datavolumes")
        return sorted(due, key=lambda key: (order.index(key.plural) if key.plural in order else 2, self._born(key)))

    def _born(self, key: Key) -> tuple[str, Key]:
        body = self._observed.body(key)
        return (body["metadata"].get("creationTimestamp", "") if body else "", key)

    def _touched(self, changes: Iterable[Change]) -> Iterable[Key]:
        """Return the keys that have to be reconciled because of these changes."""
        touched: set[Key] = set()
        everything = clones = False
        for change in changes:
            self._garbage = self._garbage or change.type == "DELETED"
            labels = change.body["metadata"].get("labels") or {}
            if cron := labels.get(LABEL_DATA_IMPORT_CRON):
                touched.add(Key("dataimportcrons", change.key.namespace, str(cron)))
            match change.key.plural:
                case "datavolumes":
                    touched.add(change.key)
                    clones = clones or self._turned(change)
                case "persistentvolumeclaims":
                    touched |= {change.key, Key("datavolumes", change.key.namespace, change.key.name)}
                    clones = clones or self._turned(change)
                case "datasources" | "dataimportcrons":
                    touched.add(change.key)
                    clones = True
                case "events":
                    pass
                case _:
                    everything = True
        if everything:
            touched |= set(self._observed.keys("dataimportcrons"))
        if everything or clones:
            touched |= set(self._observed.keys("datasources"))
            touched |= {
                key
                for key in self._observed.keys("datavolumes")
                if (everything or self._refers(key)) and not self._is_final(key)
            }
        return touched

    def _turned(self, change: Change) -> bool:
        """Return whether a change is visible to other objects; progress, for example, is not."""
        metadata, status = change.body["metadata"], change.body.get("status") or {}
        face = (
            None
            if change.type == "DELETED"
            else (
                metadata["uid"],
                status.get("phase"),
                "deletionTimestamp" in metadata,
                (metadata.get("annotations") or {}).get(ANN_POD_PHASE),
                str(metadata.get("labels")),
            )
        )
        before = self._faces.get(change.key)
        self._faces[change.key] = face
        return face != before

    def _refers(self, key: Key) -> bool:
        spec = (self._observed.body(key) or {}).get("spec") or {}
        source = spec.get("source")
        return bool(spec.get("sourceRef") or (isinstance(source, dict) and source.get("pvc")))

    def _is_final(self, key: Key) -> bool:
        phase = ((self._observed.body(key) or {}).get("status") or {}).get("phase")
        return phase in (Phase.SUCCEEDED, Phase.FAILED)

    # --- reconciling ----------------------------------------------------------------------------------------------

    def _guarded(self, key: Key, *, admitted: bool = False) -> None:
        """Reconcile one object and record its errors, so that they do not affect others."""
        try:
            self._reconcile(key, admitted=admitted)
        except Conflict:
            self._schedule(key, 0.0)
        except InvalidManifest as error:
            log.error("%s: %s", key, error)  # noqa: TRY400  complete; not retried until the object changes
            self._complain(key, error)
        except CdiError as error:
            self._troubled(key, error)
        except Exception as error:
            log.exception("%s", key)
            self._troubled(key, InternalError(f"{type(error).__name__}: {error}"))
        else:
            if self._troubles.clear(key):
                self._schedule(_data_volume_of(key), 0.0)

    def _troubled(self, key: Key, error: CdiError) -> None:
        self._schedule(key, self._troubles.note(key, error))
        self._complain(_data_volume_of(key), error)

    def _complain(self, key: Key, error: CdiError) -> None:
        """Report an error in an object's conditions, unless that cannot be written either."""
        body = self._observed.body(key)
        if body is not None:
            with contextlib.suppress(CdiError):
                self._carry_out(report_invalid(body, error, self._setting.now()), body)

    def _collect_garbage(self) -> None:
        """Remove what no longer has an owner."""
        if not self._garbage or time.monotonic() < self._garbage_due:
            return
        try:
            self._garbage = collect_garbage(
                self._store, self._observed, self._launcher, self._environments, self._tasks
            )
        except CdiError as error:
            self._garbage_due = time.monotonic() + self._troubles.note(_GARBAGE, error)
        else:
            self._troubles.clear(_GARBAGE)

    def _reconcile(self, key: Key, *, admitted: bool) -> None:
        body = self._observed.body(key)
        if body is None:
            if key in self._queue:
                self._queue.remove(key)
            if key.plural == "dataimportcrons":
                self._delete_versions(key)
            return
        now = self._setting.now()
        match key.plural:
            case "persistentvolumeclaims":
                claim = self._observed.model(key, PersistentVolumeClaim)
                assert claim is not None
                if self._provisioner.reconcile(key, body, claim):
                    self._schedule(key, _TICK)
            case "datavolumes":
                self._data_volume(key, body, admitted=admitted)
            case "datasources":
                source = self._observed.model(key, DataSource)
                assert source is not None
                self._carry_out(reconcile_data_source(source, self._observed, PLATFORM, now), body)
            case "dataimportcrons":
                self._cron(key, body)
            case _:
                pass

    def _cron(self, key: Key, body: Object) -> None:
        cron = self._observed.model(key, DataImportCron)
        assert cron is not None
        self._timers.pop(key, None)
        context = cron_context(self._home, cron, self._crons, self._observed.config(), self._setting.now())
        plan = reconcile_cron(context)
        self._carry_out(plan, body)
        for uid in (claim.uid for claim in self._crons.claims_of(key.namespace, key.name)):
            if self._tasks.running("proof", uid):
                self._running_tasks["proof", uid] = key
        if self._tasks.running("poll", context.uid):
            self._running_tasks["poll", context.uid] = key
        if plan.requeue_after is not None and plan.requeue_after <= _SOON:
            self._schedule(key, plan.requeue_after)
        elif plan.requeue_after is not None:
            self._timers[key] = time.monotonic() + plan.requeue_after

    def _delete_versions(self, key: Key) -> None:
        """Delete the dependents of a DataImportCron that was deleted, perhaps while no supervisor was running."""
        self._timers.pop(key, None)
        plan = plan_deletion(self._crons, key.namespace, key.name, cluster=False)
        metadata = {"namespace": key.namespace, "name": key.name}
        self._carry_out(plan, {"apiVersion": key.kind.api_version, "kind": key.kind.kind, "metadata": metadata})

    def _data_volume(self, key: Key, body: Object, *, admitted: bool) -> None:
        dv = self._observed.model(key, DataVolume)
        assert dv is not None
        claim = self._observed.claim(key.namespace, key.name)
        worker = self._launcher.observe(claim.uid) if claim is not None else None
        if claim is not None and worker is not None and worker.running:
            self._running[claim.uid] = key
        request = UploadRequest.read(claim.annotations.get(uploads.ANNOTATION)) if claim is not None else None
        streamed = request is not None and request.path is None
        limit = self._limit()
        turn = (
            "waiting for the client that sends it" if streamed else f"waiting for one of {limit} workers to become free"
        )
        plan = reconcile(self._observed.context(dv, worker, self._setting, admitted=admitted, turn=turn))
        hindrance = self._troubles.get(Key("persistentvolumeclaims", key.namespace, key.name))
        if hindrance is not None:
            plan = report_invalid(body, hindrance, self._setting.now())
        if not plan.wants_worker and key in self._queue:
            self._queue.remove(key)
        if plan.wants_worker and not streamed:
            if key not in self._queue:
                self._queue.append(key)
            if self._queue[0] == key and len(self._running) < limit:
                # A worker is free: `_admit` runs next, so waiting need not be reported.
                return
        self._carry_out(plan, body)
        for action in plan.actions:
            if isinstance(action, StartWorker):
                self._running[action.claim] = key
                log.info("%s: attempt %d started", key, action.attempt)
        if plan.status is not None:
            phase = plan.status["phase"]
            log.info("%s: %s %s", key, phase, plan.status["progress"])
            if phase in (Phase.SUCCEEDED, Phase.FAILED) and claim is not None:
                self._launcher.tidy(claim.uid)
                self._garbage = True
        if plan.requeue_after is not None:
            self._schedule(key, plan.requeue_after)
        elif worker is not None and worker.running:
            self._schedule(key, _POLL_INTERVAL)

    def _carry_out(self, plan: Plan, body: Object) -> None:
        self._executor.carry_out(plan, body, self._setting.now())

    def _admit(self) -> None:
        """Start workers for the objects that have waited longest."""
        limit = self._limit()
        while self._queue and len(self._running) < limit:
            key = self._queue.popleft()
            self._guarded(key, admitted=True)

    def _limit(self) -> int:
        config = self._observed.body(Key("cdiconfigs", "", CONFIG_NAME)) or {}
        text = (config.get("metadata", {}).get("annotations") or {}).get(MAX_WORKERS, "")
        return max(1, min(int(text), 1000)) if text.isascii() and text.isdigit() else DEFAULT_WORKERS


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
