"""Worker processes: start, observation, termination.

A worker is identified by its directory (`cdi.local.home.WorkerDirectory`), not by its process: it is alive while the
lock is held that it inherits at its start and keeps until its end. A restarted supervisor therefore finds all workers,
and no process id is ever trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cdi import atomic_file
from cdi.api.decode import DecodeError, decode
from cdi.api.errors import CdiError, InternalError, WorkerLost
from cdi.api.job import Failure, Job, Limits, Outcome, Progress
from cdi.api.printable import printable
from cdi.local.home import Home, WorkerDirectory
from cdi.local.processes import Processes, rotate, terminate_processes
from cdi.reconcile.actions import Mount, ObjectRef, StartWorker
from cdi.reconcile.pods.types import Worker

GRACE_PERIOD = 10.0
"""Seconds between SIGTERM and SIGKILL."""
_TAIL = 4096
_MAX_OUTCOME = 8192
"""Bytes that are reserved for the outcome, so that a full file system can be reported as well."""

ReadInput = Callable[[ObjectRef], Mapping[str, bytes]]
"""Callable that returns the keys and values of a Secret or ConfigMap; raises `NotFound`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    attempt: int
    started: float
    fingerprint: str = ""
    upload: str = ""


class Launcher:
    """Launcher of one CDI_HOME; methods may be called by any process at any time."""

    def __init__(self, home: Home, *, import_module: str = "cdi.worker", clone_module: str = "cdi.local.clone") -> None:
        self._home = home
        self._import_module = import_module
        self._clone_module = clone_module
        self._processes = Processes()
        self._parsed: dict[Path, tuple[tuple[int, int], object]] = {}

    def start(
        self,
        action: StartWorker,
        read_input: ReadInput,
        *,
        stdin: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> bool:
        """Start an attempt; return False if one is running or this one was started before.

        `environment` is the worker's, as for `Processes.spawn`.

        Raises:
            NotFound: An input does not exist.
            TargetError: The worker's files cannot be written.
            InternalError: The process cannot be started.
        """
        directory = self._home.worker(action.claim)
        with self._files():
            for path in (directory.path, directory.scratch):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_file.locked(directory.starting):
                before = self._attempt(directory)
                if self._alive(directory) or (before is not None and before.attempt >= action.attempt):
                    return False
                # No other process starts one and the last one has ended: only probes of the lock are waited for.
                with atomic_file.locked(directory.guard) as guard:
                    self._write_inputs(directory, action, read_input)
                    atomic_file.write(directory.job, action.work.to_json().encode())
                    for path in (directory.outcome, directory.progress, directory.control, directory.stopping):
                        path.unlink(missing_ok=True)
                    attempt = _Attempt(
                        attempt=action.attempt,
                        started=time.time(),
                        fingerprint=action.fingerprint,
                        upload=action.upload,
                    )
                    atomic_file.reserve(directory.outcome, _MAX_OUTCOME)
                    atomic_file.write(directory.attempt, json.dumps(asdict(attempt)).encode())
                    self._processes.spawn(
                        self._import_module if isinstance(action.work, Job) else self._clone_module,
                        ["run", str(directory.job), "--status-dir", str(directory.path)],
                        log=directory.log,
                        guard=guard,
                        stdin=stdin,
                        environment=environment,
                    )
        return True

    def observe(self, claim: str) -> Worker | None:
        """Return the state of the newest attempt, or None if there was none."""
        directory = self._home.worker(claim)
        self._processes.reap()
        with self._files():
            # Before reading the outcome: a worker that has ended by now has written it.
            alive = self._alive(directory)
            attempt = self._attempt(directory)
            if attempt is None:
                return None
            progress = self._parse(directory.progress, Progress.from_json)
            outcome: Outcome | None = None
            ended: float | None = None
            if alive:
                rotate(directory.log, writing=True)
            else:
                outcome, ended = self._end(directory, claim, attempt)
                if ended is None:
                    alive = True
        return Worker(
            attempt=attempt.attempt,
            running=alive,
            started=attempt.started,
            ended=ended,
            progress=progress if isinstance(progress, Progress) else None,
            outcome=outcome,
            fingerprint=attempt.fingerprint,
            upload=attempt.upload,
        )

    def outcome(self, claim: str) -> Outcome | None:
        """Return the newest attempt's outcome once it has ended, or None; unlike `observe`, write nothing."""
        directory = self._home.worker(claim)
        with self._files():
            if self._alive(directory):
                return None
            outcome = self._parse(directory.outcome, Outcome.from_json)
        return outcome if isinstance(outcome, Outcome) else None

    def alive(self, claim: str) -> bool:
        """Return whether a worker is alive; raise a `TargetError`."""
        self._processes.reap()
        with self._files():
            return self._alive(self._home.worker(claim))

    def stop(self, claim: str, grace: float = GRACE_PERIOD) -> bool:
        """Send SIGTERM to the worker, and SIGKILL `grace` seconds later; return whether none is alive.

        Does not wait; call it again until it returns True.
        """
        directory = self._home.worker(claim)
        if not self.alive(claim):
            return True
        with self._files():
            terminate_processes(*_arguments(directory), marker=directory.stopping, grace=grace)
        return False

    def limit(self, claim: str, limits: Limits) -> bool:
        """Send new limits to a running worker; return False if none is running."""
        directory = self._home.worker(claim)
        if not self.alive(claim):
            return False
        with self._files(), atomic_file.locked(directory.starting):
            # A start that is in progress counts as alive and still removes the limits of the attempt before.
            if not self._alive(directory):
                return False
            atomic_file.write(directory.control, limits.to_json().encode())
        return True

    def tidy(self, claim: str) -> None:
        """Remove secrets, scratch space and journal of a volume that is complete or has failed permanently."""
        directory = self._home.worker(claim)
        if not self.alive(claim):
            with self._files():
                shutil.rmtree(directory.inputs, ignore_errors=True)
                shutil.rmtree(directory.scratch, ignore_errors=True)

    def forget(self, claim: str) -> bool:
        """Stop the worker and remove its directory; return whether both are done.

        Does not wait; call it again until it returns True.
        """
        if not self.stop(claim):
            return False
        directory = self._home.worker(claim)
        with self._files():
            if not directory.path.exists():
                return True
            with atomic_file.locked(directory.starting, wait=False) as lock:
                if lock is None or self._alive(directory):
                    return False
                shutil.rmtree(directory.path, ignore_errors=True)
        self._parsed = {path: value for path, value in self._parsed.items() if directory.path not in path.parents}
        return not directory.path.exists()

    def known(self) -> list[str]:
        """Return the PVC uids that have a directory."""
        with self._files():
            try:
                return sorted(name for name in os.listdir(self._home.workers) if not name.startswith("."))
            except FileNotFoundError:
                return []

    def _files(self) -> contextlib.AbstractContextManager[None]:
        return self._home.mapped("the workers' files")

    # --- internals ----------------------------------------------------------------------------------------------

    def _alive(self, directory: WorkerDirectory) -> bool:
        # The worker's own lock counts as well, because a worker may have been started by hand. It is probed second, so
        # that probing never disturbs a launched worker while it takes that lock.
        return atomic_file.is_locked(directory.guard) or atomic_file.is_locked(directory.lock)

    def _attempt(self, directory: WorkerDirectory) -> _Attempt | None:
        text = atomic_file.read(directory.attempt)
        if text is None:
            return None
        try:
            return decode(_Attempt, text)
        except DecodeError as error:
            raise InternalError("a worker's directory is damaged", where=str(directory.attempt)) from error

    def _end(self, directory: WorkerDirectory, claim: str, attempt: _Attempt) -> tuple[Outcome | None, float | None]:
        """Return the outcome and its time; write one if the worker left none, so that its end has a time.

        Returns None for both while a new attempt is being started.
        """
        with atomic_file.locked(directory.starting, wait=False) as lock:
            if lock is None or self._alive(directory) or self._attempt(directory) != attempt:
                return None, None
            if not directory.outcome.exists():
                outcome = Outcome(id=claim, failure=_lost(directory))
                atomic_file.write(directory.outcome, outcome.to_json().encode(), single_writer=True)
            ended = directory.outcome.stat().st_mtime
            parsed = self._parse(directory.outcome, Outcome.from_json)
        if isinstance(parsed, Outcome):
            return parsed, ended
        failure = Failure.from_error(InternalError("the worker's outcome cannot be read", where=str(directory.outcome)))
        return Outcome(id=claim, failure=failure), ended

    def _parse(self, path: Path, parser: Callable[[bytes], object]) -> object | None:
        """Return the parsed file, cached until it is replaced; None if it is missing or malformed."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        mark = (stat.st_ino, stat.st_mtime_ns)
        known = self._parsed.get(path)
        if known is not None and known[0] == mark:
            return known[1]
        text = atomic_file.read(path)
        if text is None:
            return None
        try:
            value = parser(text)
        except (CdiError, ValueError):
            return None
        self._parsed[path] = (mark, value)
        return value

    @staticmethod
    def _write_inputs(directory: WorkerDirectory, action: StartWorker, read_input: ReadInput) -> None:
        shutil.rmtree(directory.inputs, ignore_errors=True)
        write_mounts(action.mounts, read_input)


def _arguments(directory: WorkerDirectory) -> tuple[str, str]:
    """Return the arguments by which the worker's processes are found."""
    return "--status-dir", str(directory.path)


def write_mounts(mounts: Iterable[Mount], read_input: ReadInput) -> None:
    """Write each key of the mounted objects as a file; raise `NotFound` for a missing object, and `OSError`."""
    for mount in mounts:
        place = Path(mount.directory)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for ref in mount.inputs:
            for key, value in read_input(ref).items():
                name = key if len(mount.inputs) == 1 else f"{ref.kind.lower()}-{ref.name}-{key}"[-200:]
                atomic_file.write(place / name, value)


def _lost(directory: WorkerDirectory) -> Failure:
    """Return the error for a worker that ended without an outcome, with the end of its log."""
    last = ""
    with contextlib.suppress(OSError), open(directory.log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        lines = [line.strip() for line in file.read(_TAIL).decode(errors="replace").splitlines() if line.strip()]
        last = printable(lines[-1], _TAIL, substitute="")[:200] if lines else ""
    what = "the worker ended without an outcome"
    return Failure.from_error(WorkerLost(f"{what}; its last output: {last}" if last else what))
