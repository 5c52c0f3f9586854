"""Removal of what a killed node leaves outside its namespaces."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.layout import ClusterError, Layout
from tests.cluster.node import started_at

_TIMEOUT = 30.0  # seconds
# linux/loop.h: LOOP_GET_STATUS64 fills struct loop_info64, in which lo_rdevice is third and lo_file_name ninth.
_GET_STATUS, _DETACH = 0x4C05, 0x4C01
_INFO = struct.Struct("=QQQQQIIII64s64s32sQQ")
_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
_ENOUGH_INSTANCES = 1024  # each container needs one
_BEFORE = "inotify-instances-before"
_CPU_WEIGHTS = {"cpu.shares": 4 * 1024, "cpu.weight": 4 * 100}
"""Four times the default of cgroup v1 and v2: all pods together compete with each of this machine's sessions."""


def process(layout: Layout) -> int | None:
    """Return the pid of the node's first process, or None."""
    try:
        number, began = (layout.node / "pid").read_text().split()
        return int(number) if started_at(int(number)) == began else None
    except (OSError, ValueError):
        return None


def prepare(layout: Layout) -> None:
    """Raise the inotify limit and create the control groups that the kubelet expects, before the node starts."""
    before = _INSTANCES.read_text()
    if int(before) < _ENOUGH_INSTANCES:
        (layout.node / _BEFORE).write_text(before)
        _INSTANCES.write_text(str(_ENOUGH_INSTANCES))
    for group in _cgroups(layout):
        group.mkdir(exist_ok=True)
        if (offered := group / "cgroup.controllers").exists():  # cgroup v2: controllers are delegated level by level
            for directory in (group.parent, group):
                for controller in offered.read_text().split():
                    with contextlib.suppress(OSError):
                        (directory / "cgroup.subtree_control").write_text(f"+{controller}")
        for name in ("cpuset.cpus", "cpuset.mems"):  # cgroup v1: a new group has none and cannot hold processes
            own = group / name
            if own.exists() and not own.read_text().strip():
                own.write_text((group.parent / name).read_text())
        for name, weight in _CPU_WEIGHTS.items():
            if (own := group / name).exists():
                own.write_text(str(weight))


def remove(layout: Layout) -> None:
    """End the node and remove everything that it created, including its state; missing parts are ignored.

    Raises:
        ClusterError: Something could not be removed.
    """
    _end(layout)
    _detach_loops(layout)
    if Path("/sys/class/net", layout.link).exists():
        # The kernel removes the interface soon after the node has ended, so this may fail.
        subprocess.run(["ip", "link", "del", layout.link], check=False, capture_output=True, stdin=subprocess.DEVNULL)
    _remove_cgroups(layout)
    with contextlib.suppress(FileNotFoundError):
        _INSTANCES.write_text((layout.node / _BEFORE).read_text())
    shutil.rmtree(layout.node, ignore_errors=True)
    left = describe(layout)
    if left:
        raise ClusterError(f"still there: {', '.join(left)}")


def describe(layout: Layout) -> list[str]:
    """Return descriptions of everything that remains of a node."""
    left = []
    if (first := process(layout)) is not None:
        left.append(f"process {first}")
    left += [f"loop device {loop.device}" for loop in _loops(layout)]
    if Path("/sys/class/net", layout.link).exists():
        left.append(f"interface {layout.link}")
    left += [f"control group {group}" for group in _cgroups(layout) if group.exists()]
    if layout.node.exists():
        left.append(f"directory {layout.node}")
    return left


def _end(layout: Layout) -> None:
    number = process(layout)
    if number is None:
        return
    handle = os.pidfd_open(number)
    try:
        if process(layout) != number:  # it has ended, and its pid may have been reused
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        # It ends only after every other process of the node.
        if not select.select([handle], [], [], _TIMEOUT)[0]:
            raise ClusterError(f"the node's process {number} does not end")
    finally:
        os.close(handle)


def _cgroups(layout: Layout) -> list[Path]:
    """Return the path of the pods' control group in each hierarchy, whether or not it exists."""
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():  # cgroup v2
        return [top / layout.cgroup]
    return [Path(path, layout.cgroup) for path in _hierarchies()]


def _hierarchies() -> set[str]:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return {path for _, path, kind, *_ in mounts if kind in {"cgroup", "cgroup2"}}


def _remove_cgroups(layout: Layout) -> None:
    until = time.monotonic() + _TIMEOUT
    while any(group.exists() for group in _cgroups(layout)) and time.monotonic() < until:
        for group in _cgroups(layout):
            for directory, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):  # the kernel needs a moment to notice that a group is empty
                    os.rmdir(directory)
        time.sleep(0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loop:
    device: str
    number: int  # kernel number of the device
    behind: int  # number of the backing device, 0 if it is a file
    tag: str


def _loops(layout: Layout) -> list[_Loop]:
    """Return the cluster's loop devices, preceded by those that the kubelet stacked on them."""
    every = [loop for entry in Path("/sys/block").glob("loop*/loop") if (loop := _loop(f"/dev/{entry.parent.name}"))]
    own = [loop for loop in every if loop.tag == layout.loop_tag]
    numbers = {loop.number for loop in own}
    return [loop for loop in every if loop.behind in numbers] + own


def _loop(device: str) -> _Loop | None:
    try:
        handle = os.open(device, os.O_RDONLY)
    except OSError:
        return None
    try:
        fields = _INFO.unpack(fcntl.ioctl(handle, _GET_STATUS, bytes(_INFO.size)))
        number = os.fstat(handle).st_rdev
    except OSError:
        return None
    finally:
        os.close(handle)
    return _Loop(device=device, number=number, behind=fields[2], tag=fields[9].rstrip(b"\0").decode(errors="replace"))


def _detach_loops(layout: Layout) -> None:
    until = time.monotonic() + _TIMEOUT
    while loops := _loops(layout):
        for loop in loops:
            with contextlib.suppress(OSError):
                handle = os.open(loop.device, os.O_RDONLY)
                try:
                    fcntl.ioctl(handle, _DETACH)
                finally:
                    os.close(handle)
        if time.monotonic() > until:
            return
        time.sleep(0.05)


def volumes(layout: Layout) -> int:
    """Return the number of the cluster's loop devices."""
    return len(_loops(layout))
