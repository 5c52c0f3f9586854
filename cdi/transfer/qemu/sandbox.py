"""Sandbox for QEMU's programs: they parse untrusted images, so they get one image, one disk, and limits.

The layers are independent, and each is skipped if the kernel or the container does not permit it (`probe_protections`
lists the active ones): Landlock, so that only the named files and the program's own libraries can be opened; an empty
network namespace; no capability except the one to open a volume of another owner; no new privileges; limits on address
space, CPU time, file size and descriptors; death together with this process; an empty environment.

The program starts through `cdi.transfer.qemu.launcher`, which takes about 25 ms of CPU time.
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
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

from cdi.api import printable as foreign
from cdi.api.errors import CdiError, Interrupted, QemuFailed, QemuMissing, ResourceLimit

MAX_STDERR = 4096
"""Bytes of standard error that are kept, from its end."""

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
"""Directories of programs, their libraries and modules; nothing in them is private."""

SYSTEM_FILES = ("/etc/ld.so.cache", "/dev/urandom", "/proc/self/status")
ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": "/usr/bin:/bin",
    # Fewer heaps than threads: each reserves 64 MiB of the limited address space.
    "MALLOC_ARENA_MAX": "2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resource limits of a program."""

    memory: int
    """Address space in bytes."""
    cpu_seconds: int
    """CPU time of all its threads in seconds."""
    file_size: int | None = None
    """Maximum size of a regular file in bytes."""
    descriptors: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Paths that a program may open in addition to its own libraries."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    """Paths to read and write, directories recursively; creating, renaming and removing is not permitted."""


class SandboxedProcess:
    """Program in the sandbox; leaving the ``with`` block kills it if it still runs."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, protections: IO[bytes]) -> None:
        self.process = process
        self.name = name
        self._protections_pipe = protections
        self._protections: tuple[str, ...] | None = None
        assert process.stderr is not None  # PIPE was requested
        self._stderr = PipeReader(process.stderr, keep=MAX_STDERR, newest=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    def processor_seconds(self) -> float:
        """Return the processor time of the program so far, in seconds; 0 once it was waited for (proc_pid_stat(5))."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                values = file.read().rpartition(b")")[2].split()
        except OSError:
            return 0.0
        return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")

    def protections(self) -> tuple[str, ...]:
        """Return the names of the active layers; waits for the launcher's report."""
        if self._protections is None:
            self._protections = tuple(self._protections_pipe.read().decode().splitlines())
        return self._protections

    def stderr(self) -> str:
        """Return the last 4 KiB of standard error, complete once the program has exited."""
        if self.process.poll() is not None:
            self._stderr.wait()
        return self._stderr.text()

    def wait(self, *, timeout: float | None = None, cancelled: threading.Event | None = None) -> int:
        """Return the exit status, negative for a signal.

        Raises:
            Interrupted: `cancelled` was set; the program is killed.
            ResourceLimit: `timeout` seconds have passed; the program is killed.
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
                    raise Interrupted(f"{self.name} was interrupted") from None
                if deadline is not None and time.monotonic() >= deadline:
                    self.kill()
                    raise ResourceLimit(f"{self.name} did not finish within {timeout:g} seconds") from None

    def failure(self, *, where: str | None = None) -> CdiError:
        """Return the error for the exit status and the output of a program that failed."""
        return error_from_exit(self.name, self.process.returncode, self.stderr(), where=where)

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


class PipeReader:
    """Thread that reads a pipe to its end, so that the writer never blocks, and keeps a bounded part."""

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
    """Return the absolute path of a QEMU program, or raise `QemuMissing`."""
    path = shutil.which(program) or shutil.which(program, path="/usr/bin:/usr/local/bin:/usr/libexec:/usr/sbin")
    if path is None:
        raise QemuMissing(f"{program} is not installed")
    return os.path.realpath(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A QEMU program to start, and what it may use."""

    name: str
    arguments: Sequence[str] = ()
    limits: Limits
    access: Access
    workdir: str
    """Its directory, which it cannot even read unless `access` permits it."""
    pass_fds: tuple[int, ...] = ()
    """Descriptors that keep their numbers."""


def start(program: Program, *, stdout: int = subprocess.DEVNULL) -> SandboxedProcess:
    """Start a program.

    The calling thread must outlive it: the kernel kills it with the thread that started it.

    Raises:
        QemuMissing: the program is not installed.
    """
    limits, access = program.limits, program.access
    path = find(program.name)
    protections_read, protections_write = os.pipe()
    options = [f"parent={os.getpid()}", f"report={protections_write}", "limit=CORE:0"]
    options += [f"limit=AS:{limits.memory}", f"limit=CPU:{limits.cpu_seconds}", f"limit=NOFILE:{limits.descriptors}"]
    if limits.file_size is not None:
        options.append(f"limit=FSIZE:{limits.file_size}")
    # A program in another prefix (/opt/qemu/bin) has its libraries and data below the same prefix.
    prefix = os.path.dirname(os.path.dirname(path))
    own = (
        [path]
        if prefix in ("/usr", "/usr/local", "/")
        else [path, f"{prefix}/lib", f"{prefix}/lib64", f"{prefix}/share"]
    )
    options += [f"run={directory}" for directory in (*LIBRARIES, *own)]
    options += [f"read={name}" for name in (*SYSTEM_FILES, *access.read)]
    options += [f"write={name}" for name in ("/dev/null", *access.write)]
    command = [sys.executable or "/usr/bin/python3", "-I", "-S", LAUNCHER, *options, "--", path, *program.arguments]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=program.workdir,
            env=ENVIRONMENT,
            pass_fds=(protections_write, *program.pass_fds),
        )
    except BaseException:
        os.close(protections_read)
        raise
    finally:
        os.close(protections_write)
    return SandboxedProcess(process, program.name, os.fdopen(protections_read, "rb"))


def run(
    program: Program,
    *,
    keep: int = 8 << 20,
    timeout: float | None = None,
    cancelled: threading.Event | None = None,
    accept: tuple[int, ...] = (0,),
    where: str | None = None,
) -> tuple[int, bytes]:
    """Run a program to its end; return its exit status, one of `accept`, and its output, at most `keep` bytes.

    Raises:
        QemuMissing, ResourceLimit, QemuFailed, Interrupted: the program is not installed, failed or was stopped.
    """
    confined = start(program, stdout=subprocess.PIPE)
    with confined:
        assert confined.process.stdout is not None  # PIPE was requested
        output = PipeReader(confined.process.stdout, keep=keep, newest=False)
        try:
            status = confined.wait(timeout=timeout, cancelled=cancelled)
        finally:
            confined.kill()
            output.wait()
        if status not in accept:
            raise confined.failure(where=where)
        if output.overflowed:
            raise ResourceLimit(f"the output of {program.name} exceeds {keep} bytes", where=where)
        return status, output.bytes()


# Messages of GLib, glibc and QEMU about a failed allocation; they exit normally then, so there is no signal.
NO_MEMORY = (
    os.strerror(errno.ENOMEM),
    os.strerror(errno.EAGAIN),  # thread creation failed
    "failed to allocate",
    "cannot allocate",
    "Could not allocate",
    "failed to map segment from shared object",
)


def error_from_exit(name: str, status: int, stderr: str, *, where: str | None = None) -> CdiError:
    """Return the error for a program that exited with `status` (negative: a signal) and wrote `stderr`."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = printable(lines[-1]) if lines else ""
    if status == 127 and last.startswith("launcher: "):
        return QemuMissing(f"cannot start {name}", where=where)
    if status == -signal.SIGXCPU:
        return ResourceLimit(f"{name} exceeded its CPU time limit", where=where)
    if status == -signal.SIGXFSZ:
        return ResourceLimit(f"{name} tried to write past the end of the disk", where=where)
    if any(words in line for words in NO_MEMORY for line in lines):
        return ResourceLimit(f"{name} exceeded its memory limit: {last}", where=where)
    if status == -signal.SIGKILL:
        what = f"{name} was killed: it exceeded its CPU time limit, or the machine ran out of memory"
        return ResourceLimit(what, where=where)
    said = last.removeprefix(f"{name}: ") or "no error output"
    if status < 0:
        with contextlib.suppress(ValueError):
            return QemuFailed(f"{name} was killed by {signal.Signals(-status).name}: {said}", where=where)
    return QemuFailed(f"{name}: {said}", where=where)


def printable(text: str, limit: int = 300) -> str:
    """Return foreign text for a message: one line, no control characters, bounded."""
    clean = foreign.printable(text, len(text), substitute="?")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def probe_protections() -> tuple[str, ...]:
    """Return the names of the protections that are active on this machine, in the order in which they are set up.

    The result is empty if no program can be started at all.
    """
    try:
        confined = start(
            Program(name="true", limits=Limits(memory=1 << 30, cpu_seconds=10), access=Access(), workdir="/")
        )
    except (QemuMissing, OSError):
        return ()
    with confined:
        active = confined.protections()
        confined.wait(timeout=10)
    return (*active, "resource limits")
