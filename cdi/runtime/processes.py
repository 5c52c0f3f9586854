"""Processes that outlive the one that starts them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cdi
from cdi.api.errors import InternalError
from cdi.runtime.environment import of_process

LOG_LIMIT = 1 << 20
"""Bytes of a log that are kept, and as many of the one before it."""
_ABOVE_STDIO = 10
GUARD = 3
"""The descriptor that a process keeps open for its whole life, to hold a lock."""


class Processes:
    """Starts detached processes and, as long as this one lives, buries them when they end."""

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
        """Run ``python -m module arguments`` in a session of its own; returns its process id.

        Its output is appended to `log`.  `guard`, a descriptor, stays open in it (as 3) for its whole life; `stdin` is
        its standard input, or nothing.  `environment` is all that it gets of that kind, but for what Python needs;
        without one, nothing that speaks of people and networks (`cdi.runtime.environment`).

        Raises `OSError` where there can be no log, `InternalError` where no process can be made.
        """
        self.reap()
        rotate(log)
        # -P: what lies in the current directory is no code of ours.
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
        """Bury those that have ended."""
        for pid in list(self._children):
            try:
                gone, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                gone = pid
            if gone:
                self._children.discard(pid)


def rotate(log: Path, *, writing: bool = False) -> None:
    """Keep `log` within its limit; one that is being written keeps its inode.

    Where the older part cannot be kept, for its file system is full, it is dropped: the limit holds.
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
    """This user's processes that were started with exactly these arguments, one after another."""
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


def _lifted(descriptor: int, stack: contextlib.ExitStack) -> int:
    """A copy above 0, 1, 2 and 3, so that setting those up overwrites none that is still needed."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE_STDIO)
    stack.callback(os.close, copy)
    return copy


def _environment(given: Mapping[str, str] | None) -> dict[str, str]:
    """With a path, so that the child imports the same package."""
    here = str(Path(cdi.__file__).resolve().parent.parent)
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    own = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1"}
    return {**of_process(os.environ, given), **own}
