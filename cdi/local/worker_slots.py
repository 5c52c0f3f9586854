"""Running processes of one machine, and the DataVolumes that wait for a worker."""

from __future__ import annotations

from typing import Literal

from cdi.api.annotation_types import annotations_of
from cdi.api.configuration import CONFIG_NAME
from cdi.api.names import GROUP
from cdi.local.launcher import Launcher
from cdi.local.lister import Observed
from cdi.local.tasks import Tasks
from cdi.store.base import Key

MAX_WORKERS = f"{GROUP}/policy.maxWorkers"
"""An annotation of CDIConfig ``config``: the largest number of concurrent workers."""
DEFAULT_WORKERS = 4
_MAX_LIMIT = 1000
ProcessKind = Literal["worker", "poll", "proof"]


class ProcessMonitor:
    """Processes whose end causes a reconcile."""

    def __init__(self, launcher: Launcher, tasks: Tasks) -> None:
        self._launcher = launcher
        self._tasks = tasks
        self._running: dict[tuple[ProcessKind, str], Key] = {}

    def __len__(self) -> int:
        return len(self._running)

    @property
    def workers(self) -> int:
        """Number of running workers."""
        return sum(kind == "worker" for kind, _ in self._running)

    def add(self, kind: ProcessKind, uid: str, key: Key) -> None:
        """Reconcile `key` when a running process has ended; `uid` is that of the PVC or DataImportCron it is for."""
        self._running[kind, uid] = key

    def take_ended(self) -> list[Key]:
        """Return the keys of processes that have ended since the last call."""
        ended = [process for process in self._running if not self._is_running(*process)]
        return [self._running.pop(process) for process in ended]

    def _is_running(self, kind: ProcessKind, uid: str) -> bool:
        return self._launcher.alive(uid) if kind == "worker" else self._tasks.running(kind, uid)


class WorkerSlots:
    """A bounded number of workers, for which DataVolumes wait in the order in which they asked."""

    def __init__(self, observed: Observed, processes: ProcessMonitor) -> None:
        self._observed = observed
        self._processes = processes
        self._waiting: dict[Key, None] = {}

    @property
    def limit(self) -> int:
        """Number of workers that may run at a time."""
        config = self._observed.body(Key("cdiconfigs", "", CONFIG_NAME)) or {}
        text = annotations_of(config).get(MAX_WORKERS, "")
        if not (text.isascii() and text.isdigit()):
            return DEFAULT_WORKERS
        digits = text.lstrip("0") or "0"
        # Python refuses to convert thousands of digits.
        return max(1, int(digits)) if len(digits) < len(str(_MAX_LIMIT)) else _MAX_LIMIT

    def next(self) -> Key | None:
        """Return the DataVolume that has waited longest, if a worker may be started for it."""
        return next(iter(self._waiting), None) if self._processes.workers < self.limit else None

    def has_slot(self, key: Key) -> bool:
        """Return whether a worker may be started for a DataVolume: no other one has waited longer."""
        return self._processes.workers < self.limit and next(iter(self._waiting), key) == key

    def wait(self, key: Key) -> None:
        self._waiting.setdefault(key)

    def leave(self, key: Key) -> None:
        """Wait no longer, as the DataVolume needs no worker or has got one."""
        self._waiting.pop(key, None)
