"""Measurement of one run of a command from outside."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_lib.group import accounting, poll_peak

_POLL = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Result of a run, in seconds and bytes."""

    wall: float
    cpu: float
    memory: int
    """Highest seen of the whole tree."""
    written: int
    """Given to file systems and devices by the tree (`write_bytes` of /proc/PID/io: pages made dirty, and direct
    writes), deleted or not."""
    fetched: int = 0
    scratch: int = 0
    memory_how: str = ""


class RunFailed(Exception):
    """The command exited with a status other than 0; the text is the end of its error output."""


def measure(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    memory_limit: int | None = None,
    timeout: float,
) -> Measurement:
    """Run `command` to its end; raise `RunFailed` if it fails."""
    group = accounting(memory_limit)
    try:
        with log.open("wb") as output:
            written_before = _written()
            usage_before = resource.getrusage(resource.RUSAGE_CHILDREN)
            began = time.monotonic()
            # This process has no other thread at this point, so code may run between fork and exec.
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=group.join,  # noqa: PLW1509 - see above
            )
            peaks: list[int] = []
            sampler = threading.Thread(
                target=lambda: peaks.append(
                    poll_peak(lambda: group.memory(process.pid), lambda: process.returncode is not None, _POLL)
                )
            )
            sampler.start()
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                status = process.wait()
            wall = time.monotonic() - began
            sampler.join()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        waited = usage.ru_utime + usage.ru_stime - usage_before.ru_utime - usage_before.ru_stime
        cpu = group.cpu()
        if status != 0:
            tail = log.read_text(errors="replace").strip()[-600:]
            raise RunFailed(f"status {status}: {tail or 'no message'}")
        return Measurement(
            wall=wall,
            cpu=waited if cpu is None else cpu,
            memory=max(peaks, default=0),
            written=_written() - written_before,
            memory_how=group.how,
        )
    finally:
        group.close()


def settle() -> bool:
    """Flush all writes to disk and, if permitted, drop the page cache; return whether it was dropped."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def warm(path: Path) -> None:
    """Read a file into the page cache, so that a server's disk is not part of what is measured.

    Holes are skipped, and a file that would fill the memory is left alone.
    """
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if os.fstat(file.fileno()).st_blocks * 512 > available // 2:
            return
        buffer = bytearray(4 << 20)
        position = 0
        while position < size:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
                hole = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            except OSError:
                return  # only a hole is left
            os.lseek(file.fileno(), position, os.SEEK_SET)
            while position < hole:
                count = file.readinto(memoryview(buffer)[: min(len(buffer), hole - position)])
                if not count:
                    return
                position += count


def _written() -> int:
    """Return the bytes written by this process and its reaped descendants."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "write_bytes":
            return int(value)
    return 0
