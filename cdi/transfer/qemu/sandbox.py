"""QEMU's programs, shut in: they parse what strangers made, so they get one image, one disk, and limits.

Layers, each independent of the others and left out where the kernel or the container does not allow it (`describe`
says which stand): Landlock, so that only the named files and the program's own libraries can be opened; an empty
network namespace; no capability but the one to open a volume of another owner; no new privileges; limits on address
space, processor time, file size and descriptors; death together with this process; an empty environment.

The program starts through `cdi.transfer.qemu.launcher`, about 25 ms of processor time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

from cdi.api.errors import CdiError, Interrupted, QemuFailed, QemuMissing, ResourceLimit

STDERR_KEPT = 4096
"""Bytes of standard error that are kept, the last ones."""

LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launcher.py")

LIBRARIES = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/share/qemu",
    "/usr/local/share/qemu",
    "/nix/store",
    "/gnu/store",
)
"""Where programs, their libraries and modules live.  Nothing in them is private."""

SYSTEM_FILES = ("/etc/ld.so.cache", "/dev/urandom", "/proc/self/status")
ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": "/usr/bin:/bin",
    # One heap, not one for every thread: each reserves 64 MiB of the address space that is limited here.
    "MALLOC_ARENA_MAX": "2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use."""

    memory: int
    """Address space, bytes."""
    cpu_seconds: int
    """Processor time of all its threads."""
    file_size: int | None = None
    """No regular file may grow beyond this, bytes."""
    descriptors: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a program may open, by path, beside its own libraries."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    """Read and written, directories with everything that is in them; nothing can be made, renamed or removed."""


class Confined:
    """A program that runs in the sandbox.  Leaving the ``with`` block kills what still runs."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, protections: IO[bytes]) -> None:
        self.process = process
        self.name = name
        self._protections_pipe = protections
        self._protections: tuple[str, ...] | None = None
        assert process.stderr is not None  # it was asked for
        self._stderr = Drain(process.stderr, keep=STDERR_KEPT, newest=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    def protections(self) -> tuple[str, ...]:
        """The layers that stand, by name; waits for the launcher to say so."""
        if self._protections is None:
            self._protections = tuple(self._protections_pipe.read().decode().splitlines())
        return self._protections

    def stderr(self) -> str:
        """The last 4 KiB that it said, complete once it has ended."""
        if self.process.poll() is not None:
            self._stderr.wait()
        return self._stderr.text()

    def wait(self, *, timeout: float | None = None, cancelled: threading.Event | None = None) -> int:
        """The exit status, negative for a signal.  Raises `Interrupted` when `cancelled` is set, `ResourceLimit` when
        `timeout` seconds have passed; it is killed then.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.5 if cancelled is None else 0.1
        while True:
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            try:
                return self.process.wait(max(0.0, left))
            except subprocess.TimeoutExpired:
                if cancelled is not None and cancelled.is_set():
                    self.kill()
                    raise Interrupted(f"{self.name} was stopped") from None
                if deadline is not None and time.monotonic() >= deadline:
                    self.kill()
                    raise ResourceLimit(f"{self.name} did not end within {timeout:g} seconds") from None

    def failure(self, *, where: str | None = None) -> CdiError:
        """What its exit status and its last words amount to; call it after it ended badly."""
        return explain(self.name, self.process.returncode, self.stderr(), where=where)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        self._stderr.wait()
        self._protections_pipe.close()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Drain:
    """Reads a pipe to its end in a thread of its own, so that the writer never blocks, and keeps a bounded part."""

    def __init__(self, pipe: IO[bytes], *, keep: int, newest: bool) -> None:
        self._pipe = pipe
        self._keep = keep
        self._newest = newest
        self._kept = bytearray()
        self.overflowed = False
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._pipe:
            while data := os.read(self._pipe.fileno(), 1 << 16):
                if self._newest:
                    self._kept += data
                    if len(self._kept) > self._keep:
                        self.overflowed = True
                        del self._kept[: -self._keep]
                else:
                    room = self._keep - len(self._kept)
                    self.overflowed = self.overflowed or len(data) > room
                    self._kept += data[:room]

    def wait(self) -> None:
        self._thread.join()

    def bytes(self) -> bytes:
        return bytes(self._kept)

    def text(self) -> str:
        return self.bytes().decode("utf-8", "replace")


def find(program: str) -> str:
    """The absolute path of a QEMU program; raises `QemuMissing`."""
    path = shutil.which(program) or shutil.which(program, path="/usr/bin:/usr/local/bin:/usr/libexec:/usr/sbin")
    if path is None:
        raise QemuMissing(f"{program} is not installed")
    return os.path.realpath(path)


def start(
    program: str,
    arguments: Iterable[str],
    *,
    limits: Limits,
    access: Access,
    workdir: str,
    pass_fds: tuple[int, ...] = (),
    network: bool = False,
    stdout: int = subprocess.DEVNULL,
) -> Confined:
    """Start a program of QEMU's, in `workdir`, which it may not even read unless `access` says so.

    `pass_fds` keep their numbers.  The calling thread must live as long as the program: the kernel kills it with the
    thread that started it.  Raises `QemuMissing`.
    """
    path = find(program)
    protections_read, protections_write = os.pipe()
    options = [f"parent={os.getpid()}", f"report={protections_write}", "limit=CORE:0"]
    options += [f"limit=AS:{limits.memory}", f"limit=CPU:{limits.cpu_seconds}", f"limit=NOFILE:{limits.descriptors}"]
    if limits.file_size is not None:
        options.append(f"limit=FSIZE:{limits.file_size}")
    if network:
        options.append("network=1")
    # A program from elsewhere (/opt/qemu/bin) brings its libraries and data along, below the same prefix.
    prefix = os.path.dirname(os.path.dirname(path))
    own = (
        [path]
        if prefix in ("/usr", "/usr/local", "/")
        else [path, f"{prefix}/lib", f"{prefix}/lib64", f"{prefix}/share"]
    )
    options += [f"run={directory}" for directory in (*LIBRARIES, *own)]
    options += [f"read={name}" for name in (*SYSTEM_FILES, *access.read)]
    options += [f"write={name}" for name in ("/dev/null", *access.write)]
    command = [sys.executable or "/usr/bin/python3", "-I", "-S", LAUNCHER, *options, "--", path, *arguments]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=workdir,
            env=ENVIRONMENT,
            pass_fds=(protections_write, *pass_fds),
        )
    except BaseException:
        os.close(protections_read)
        raise
    finally:
        os.close(protections_write)
    return Confined(process, program, os.fdopen(protections_read, "rb"))


def run(
    program: str,
    arguments: Iterable[str],
    *,
    limits: Limits,
    access: Access,
    workdir: str,
    pass_fds: tuple[int, ...] = (),
    keep: int = 8 << 20,
    timeout: float | None = None,
    cancelled: threading.Event | None = None,
    accept: tuple[int, ...] = (0,),
    where: str | None = None,
) -> tuple[int, bytes]:
    """Run a program to its end: its exit status, one of `accept`, and its standard output, at most `keep` bytes.

    Raises `QemuMissing`, `ResourceLimit`, `QemuFailed`, `Interrupted`.
    """
    confined = start(
        program, arguments, limits=limits, access=access, workdir=workdir, pass_fds=pass_fds, stdout=subprocess.PIPE
    )
    with confined:
        assert confined.process.stdout is not None  # it was asked for
        output = Drain(confined.process.stdout, keep=keep, newest=False)
        try:
            status = confined.wait(timeout=timeout, cancelled=cancelled)
        finally:
            confined.kill()
            output.wait()
        if status not in accept:
            raise confined.failure(where=where)
        if output.overflowed:
            raise ResourceLimit(f"{program} said more than {keep} bytes", where=where)
        return status, output.bytes()


# The words of GLib, glibc and QEMU for an allocation that failed; they end by themselves then, so no signal tells it.
NO_MEMORY = (
    os.strerror(errno.ENOMEM),
    os.strerror(errno.EAGAIN),  # of a thread that could not be made
    "failed to allocate",
    "cannot allocate",
    "Could not allocate",
    "failed to map segment from shared object",
)


def explain(name: str, status: int, stderr: str, *, where: str | None = None) -> CdiError:
    """The error for a program that ended with `status` (negative: a signal) and said `stderr`."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = printable(lines[-1]) if lines else ""
    if status == 127 and last.startswith("launcher: "):
        return QemuMissing(f"{name} cannot be started", where=where)
    if status == -signal.SIGXCPU:
        return ResourceLimit(f"{name} used up its processor time", where=where)
    if status == -signal.SIGXFSZ:
        return ResourceLimit(f"{name} wrote past the end of the disk", where=where)
    if any(words in line for words in NO_MEMORY for line in lines):
        return ResourceLimit(f"{name} came to its limit of memory: {last}", where=where)
    if status == -signal.SIGKILL:
        what = f"{name} was killed: it came to a limit of processor time, or the machine ran out of memory"
        return ResourceLimit(what, where=where)
    said = last.removeprefix(f"{name}: ") or "it said nothing"
    if status < 0:
        with contextlib.suppress(ValueError):
            return QemuFailed(f"{name} died of {signal.Signals(-status).name}: {said}", where=where)
    return QemuFailed(f"{name}: {said}", where=where)


def printable(text: str, limit: int = 300) -> str:
    """Foreign text for a message: one line, no control characters, bounded."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def describe() -> tuple[str, ...]:
    """The protections that stand on this machine, by name, in the order in which they are put up.

    Empty where no program can be started at all.
    """
    try:
        confined = start(
            "true",
            (),
            limits=Limits(memory=1 << 30, cpu_seconds=10),
            access=Access(),
            workdir="/",
        )
    except (QemuMissing, OSError):
        return ()
    with confined:
        active = confined.protections()
        confined.wait(timeout=10)
    return (*active, "resource limits")
