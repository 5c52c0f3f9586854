"""Control group of one run: its processor time, its memory, and a limit on it.

Works with version 1 (memory and cpuacct hierarchies) and version 2.  Where neither can be had (no root, a container
that hides them) `Tree` polls the processes instead: less exact, no limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Accounting(Protocol):
    """Processor time and memory of a run, during and after it."""

    how: str

    def join(self) -> None:
        """Join the accounting; called in the child between fork and exec."""
        ...

    def cpu(self) -> float | None:
        """Return the seconds used so far, None if only the wait status has them."""
        ...

    def memory(self, pid: int) -> int:
        """Return the bytes of memory that only the run uses now: anonymous and shared, no page cache."""
        ...

    def close(self) -> None: ...


class Group:
    """Accounting by a control group for each run."""

    def __init__(self, memory_limit: int | None) -> None:
        self._directories: list[Path] = []
        name = f"cdi-bench-{os.getpid()}-{time.monotonic_ns()}"
        own = _own_groups()
        self._version = 1 if "memory" in own else 2
        if self._version == 1:
            parents = {kind: own[kind] for kind in ("memory", "cpuacct")}
        else:
            # Processes may not sit beside controllers: the group is made beside ours.
            parents = {"": own[""] if own[""] == Path("/sys/fs/cgroup") else own[""].parent}
            (parents[""] / "cgroup.subtree_control").write_text("+memory +cpu")
        try:
            for kind, parent in parents.items():
                directory = parent / name
                directory.mkdir()
                self._directories.append(directory)
                if kind != "cpuacct" and memory_limit is not None:
                    limit = "memory.limit_in_bytes" if self._version == 1 else "memory.max"
                    (directory / limit).write_text(str(memory_limit))
            self._memory, self._cpu = self._directories[0], self._directories[-1]
            self.memory(0)
            self.cpu()
        except BaseException:
            self.close()
            raise
        self.how = f"control group, version {self._version}: anonymous and shared memory, without page cache"

    def join(self) -> None:
        for directory in self._directories:
            (directory / "cgroup.procs").write_text("0")

    def cpu(self) -> float | None:
        if self._version == 1:
            return int((self._cpu / "cpuacct.usage").read_text()) / 1e9
        return _statistics(self._cpu / "cpu.stat")["usage_usec"] / 1e6

    def memory(self, pid: int) -> int:  # noqa: ARG002 - the group knows its processes
        found = _statistics(self._memory / "memory.stat")
        if self._version == 1:
            return found["total_rss"] + found.get("total_shmem", 0)
        return found["anon"] + found["shmem"]

    def close(self) -> None:
        for directory in self._directories:
            for _ in range(100):
                try:
                    directory.rmdir()
                    break
                except OSError:
                    time.sleep(0.05)  # the last process is still going


class Tree:
    """Accounting by polling the process and its descendants."""

    how = "polled from the processes: proportional anonymous and shared memory, without page cache"

    def join(self) -> None:
        """Do nothing: there is no group to join."""

    def cpu(self) -> float | None:
        return None

    def memory(self, pid: int) -> int:
        total = 0
        for member in _descendants(pid):
            try:
                with open(f"/proc/{member}/smaps_rollup") as file:
                    for line in file:
                        if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                            total += int(line.split()[1]) << 10
            except OSError:
                continue  # it ended between two looks
        return total

    def close(self) -> None:
        """Do nothing: there is no group to remove."""


def accounting(memory_limit: int | None) -> Accounting:
    """Return the best accounting of this machine; raise SystemExit if a limit is requested and not possible."""
    try:
        return Group(memory_limit)
    except (OSError, KeyError) as error:
        if memory_limit is not None:
            raise SystemExit(f"bench: a run under a memory limit needs control groups: {error}") from error
        return Tree()


def _own_groups() -> dict[str, Path]:
    """Return the directories of this process's groups by controller; version 2 has the empty name."""
    mounts: dict[str, Path] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split(" ")
        if kind == "cgroup":
            for option in options.split(","):
                mounts[option] = Path(where)
        elif kind == "cgroup2":
            mounts[""] = Path(where)
    found: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in mounts:
                directory = mounts[controller] / path.lstrip("/")
                # In a container the path may be that of the host.
                found[controller] = directory if directory.exists() else mounts[controller]
    return found


def _statistics(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/stat") as file:
                    # The name in parentheses may hold anything, spaces and parentheses too.
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found.extend(children.get(member, ()))
    return found


def poll_peak(read: Callable[[], int], stop: Callable[[], bool], interval: float) -> int:
    """Return the largest value of `read` until `stop`."""
    peak = 0
    while not stop():
        try:
            peak = max(peak, read())
        except OSError:
            break
        time.sleep(interval)
    return peak
