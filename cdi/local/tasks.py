"""Polls and proofs as processes of this machine.

A task has a directory in CDI_HOME (`TaskDirectory`), and runs as ``python -m cdi.worker poll`` or ``prove``. As with
workers (`cdi.local.launcher`), a lock that its process inherits shows whether it is running, so that a supervisor
that was killed finds it again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdi import atomic_file
from cdi.local.home import Home
from cdi.local.launcher import GRACE_PERIOD, ReadInput, write_mounts
from cdi.local.processes import Processes, terminate_processes
from cdi.reconcile.actions import StartTask
from cdi.reconcile.dataimportcron.context import LocalTask

Task = Literal["poll", "proof"]
TASKS: tuple[Task, ...] = ("poll", "proof")
_COMMANDS: Mapping[Task, str] = {"poll": "poll", "proof": "prove"}
_MAX_RESULT = 1 << 16


@dataclass(frozen=True, slots=True)
class TaskDirectory:
    """The files of the newest task of one kind for one object."""

    path: Path

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def result(self) -> Path:
        """The file that the process writes at its end; absent until a task was started."""
        return self.path / "result.json"

    @property
    def started(self) -> Path:
        """The marker file whose time is that of the start."""
        return self.path / "started"

    @property
    def stopping(self) -> Path:
        """The marker file, created when the task was first asked to stop."""
        return self.path / "stopping"

    @property
    def guard(self) -> Path:
        return self.path / "guard"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def inputs(self) -> Path:
        """The directory below which Secrets and ConfigMaps are written as files while the task runs."""
        return self.path / "inputs"


class Tasks:
    """Launcher of the tasks of one CDI_HOME; methods may be called by any process at any time."""

    def __init__(self, home: Home, *, module: str = "cdi.worker") -> None:
        self._home = home
        self._module = module
        self._processes = Processes()

    def start(self, action: StartTask, read_input: ReadInput, *, environment: Mapping[str, str] | None = None) -> bool:
        """Start a task and return True; return False if one of this kind is running for the object.

        Raises:
            NotFound: An input does not exist.
            TargetError: The task's files cannot be written.
            InternalError: The process cannot be started.
        """
        directory = task_directory(self._home, action.task, action.uid)
        with self._files():
            directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_file.locked(directory.guard, wait=False) as guard:
                if guard is None:
                    return False
                shutil.rmtree(directory.inputs, ignore_errors=True)
                write_mounts(action.mounts, read_input)
                for path in (directory.result, directory.stopping):
                    path.unlink(missing_ok=True)
                atomic_file.write(directory.job, action.work.to_json().encode())
                atomic_file.write(directory.started, b"")
                arguments = [_COMMANDS[action.task], "--job", str(directory.job)]
                self._processes.spawn(
                    self._module,
                    [*arguments, "--termination-log", str(directory.result)],
                    log=directory.log,
                    guard=guard,
                    environment=environment,
                )
        return True

    def observe(self, task: Task, uid: str) -> LocalTask | None:
        """Return the state of the newest task, or None if there was none; remove its inputs once it has ended."""
        directory = task_directory(self._home, task, uid)
        self._processes.reap()
        with self._files():
            # Before reading the result: a task that has ended by now has written it.
            running = atomic_file.is_locked(directory.guard)
            try:
                started = directory.started.stat().st_mtime
            except FileNotFoundError:
                return None
            if running:
                return LocalTask(running=True, started=started)
            shutil.rmtree(directory.inputs, ignore_errors=True)
            try:
                ended = directory.result.stat().st_mtime
                with open(directory.result, "rb") as file:
                    text = file.read(_MAX_RESULT).decode("utf-8", "replace")
            except FileNotFoundError:
                # Its last sign of life; the log is written by the process only.
                ended, text = self._last_output(directory, started), ""
        return LocalTask(running=False, started=started, ended=ended, result=text)

    def known(self, task: Task) -> list[str]:
        """Return the UIDs of the objects that have had a task of this kind."""
        with self._files():
            try:
                names = os.listdir(self._home.tasks)
            except FileNotFoundError:
                return []
        return sorted(name.removeprefix(f"{task}-") for name in names if name.startswith(f"{task}-"))

    def running(self, task: Task, uid: str) -> bool:
        self._processes.reap()
        with self._files():
            return atomic_file.is_locked(task_directory(self._home, task, uid).guard)

    def stop(self, task: Task, uid: str, grace: float = GRACE_PERIOD) -> bool:
        """Send SIGTERM, and SIGKILL `grace` seconds later; return whether the task has ended.

        Does not wait; call it again until it returns True.
        """
        directory = task_directory(self._home, task, uid)
        if not self.running(task, uid):
            return True
        with self._files():
            terminate_processes(*_arguments(directory), marker=directory.stopping, grace=grace)
        return False

    def collect(self, exists: Callable[[Task, str], bool]) -> bool:
        """Stop and remove the tasks of objects that do not exist; return whether it has to be called again."""
        left = False
        for task in TASKS:
            for uid in self.known(task):
                if exists(task, uid):
                    continue
                if not self.stop(task, uid):
                    left = True
                    continue
                with self._files():
                    shutil.rmtree(task_directory(self._home, task, uid).path, ignore_errors=True)
        return left

    def _files(self) -> contextlib.AbstractContextManager[None]:
        return self._home.mapped("the files of polls and proofs")

    @staticmethod
    def _last_output(directory: TaskDirectory, started: float) -> float:
        with contextlib.suppress(OSError):
            return max(started, directory.log.stat().st_mtime)
        return started


def task_directory(home: Home, task: Task, uid: str) -> TaskDirectory:
    return TaskDirectory(home.task(task, uid))


def _arguments(directory: TaskDirectory) -> tuple[str, str]:
    """Return the arguments by which the task's processes are found."""
    return "--termination-log", str(directory.result)
