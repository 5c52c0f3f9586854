"""Processes that outlive their parent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cdi
from cdi.api.errors import InternalError
from cdi.local.environment import of_process

LOG_LIMIT = 1 << 20
"""Bytes of a log that are kept, and as many of the rotated one."""
_ABOVE_STDIO = 10
GUARD = 3
"""The descriptor that a process keeps open for its whole life, to hold a lock."""


class Processes:
    """Launcher of detached processes; it also reaps those that end during its own lifetime."""

    def __init__(self) -> None:
        self._children: set[int] = set()

    def spawn(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        log: Path,
        guard: int | None = None,
        stdin: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Run ``python -m module arguments`` in a session of its own, and return its process id.

        Args:
            module: The module.
            arguments: Its arguments.
            log: The file that its output is appended to.
            guard: A descriptor that stays open in the process (as 3) for its whole life.
            stdin: Its standard input; None means empty.
            environment: Its variables, besides those that Python needs; None gives it only the parent's basic ones
                (`cdi.local.environment`).

        Raises:
            OSError: The log cannot be written.
            InternalError: The process cannot be started.
        """
        self.reap()
        rotate(log)
        # -P: do not import modules from the current directory.
        argv = [sys.executable, "-P", "-m", module, *arguments]
        with contextlib.ExitStack() as stack:
            actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
            if stdin is None:
                actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, _lifted(stdin, stack), 0))
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, output)
            lifted = _lifted(output, stack)
            actions += [(os.POSIX_SPAWN_DUP2, lifted, 1), (os.POSIX_SPAWN_DUP2, lifted, 2)]
            if guard is not None:
                actions.append((os.POSIX_SPAWN_DUP2, _lifted(guard, stack), GUARD))
            try:
                pid = os.posix_spawn(
                    sys.executable,
                    argv,
                    _environment(environment),
                    file_actions=actions,
                    setsid=True,
                    setsigmask=(),
                    setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
                )
            except OSError as error:
                raise InternalError(f"no process can be started: {error.strerror}", where=module) from error
        self._children.add(pid)
        return pid

    def reap(self) -> None:
        """Reap processes that have ended."""
        for pid in list(self._children):
            try:
                gone, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                gone = pid
            if gone:
                self._children.discard(pid)


def rotate(log: Path, *, writing: bool = False) -> None:
    """Rotate `log` if it exceeds its limit; a log that is being written keeps its inode.

    If there is no space for the older part, it is dropped, so that the limit holds.
    """
    try:
        if log.stat().st_size <= LOG_LIMIT:
            return
        old = log.with_name(log.name + ".1")
        if not writing:
            log.replace(old)
            return
        with open(log, "r+b") as file:
            file.seek(-LOG_LIMIT, os.SEEK_END)
            with contextlib.suppress(OSError):
                old.write_bytes(file.read(LOG_LIMIT))
            file.truncate(0)
    except FileNotFoundError:
        return


def with_arguments(*arguments: str) -> list[int]:
    """Return the ids of this user's processes that have these arguments in sequence."""
    wanted = b"".join(b"\0" + os.fsencode(argument) for argument in arguments) + b"\0"
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid != os.geteuid():
                continue
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if wanted in file.read(1 << 20):
                    found.append(int(name))
    return found


def signal_processes(number: signal.Signals, *arguments: str) -> bool:
    """Signal the process groups of the processes that have these arguments; return False if there are none."""
    found = False
    for pid in with_arguments(*arguments):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            group = os.getpgid(pid)
            if group == pid:
                os.killpg(group, number)
            else:
                os.kill(pid, number)
            found = True
    return found


def terminate_processes(*arguments: str, marker: Path, grace: float) -> None:
    """Send SIGTERM to the processes that have these arguments, or SIGKILL `grace` seconds after it was sent.

    Does not wait; call it again until they have ended. `marker` is a file that records when SIGTERM was sent.
    """
    try:
        asked = marker.stat().st_mtime
    except FileNotFoundError:
        # A process that has not called exec yet has no matching arguments: it is signalled next time.
        if signal_processes(signal.SIGTERM, *arguments):
            marker.touch()
        return
    if time.time() - asked >= grace:
        signal_processes(signal.SIGKILL, *arguments)


def _lifted(descriptor: int, stack: contextlib.ExitStack) -> int:
    """Duplicate a descriptor above 0 to 3, so that setting those up does not overwrite it."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE_STDIO)
    stack.callback(os.close, copy)
    return copy


def _environment(given: Mapping[str, str] | None) -> dict[str, str]:
    """Return the variables of a child, with a path from which it imports the same package."""
    here = str(Path(cdi.__file__).resolve().parent.parent)
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    own = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1"}
    return {**of_process(os.environ, given), **own}
