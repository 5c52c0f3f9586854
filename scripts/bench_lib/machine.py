"""Properties of the machine and the versions of the compared programs, without names and paths."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

_PROGRAMS = {
    "qemu-img": ("qemu-img", "--version"),
    "nginx": ("nginx", "-v"),
    "curl": ("curl", "--version"),
    "nbdkit": ("nbdkit", "--version"),
    "pigz": ("pigz", "--version"),
    "zstd": ("zstd", "--version"),
    "xz": ("xz", "--version"),
}
_LIBRARIES = ("cdi", "isal", "zlib-ng", "backports.zstd")


@functools.cache
def shape(directory: Path, *, caches_dropped: bool) -> dict[str, str]:
    """Return the properties of this machine and of the file system that contains `directory`."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return {
        "processors": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{memory:.0f} GiB",
        "file system": _file_system(directory),
        "kernel": platform.release().split("-")[0],
        "Python": platform.python_version(),
        "programs": ", ".join(f"{name} {version}" for name in _PROGRAMS if (version := _version(_PROGRAMS[name]))),
        "libraries": ", ".join(f"{name} {version}" for name in _LIBRARIES if (version := _library(name))),
        "page cache": "dropped before each run, then the served file and the programs read into it"
        if caches_dropped
        else "could not be dropped; written out before each run",
    }


def busy() -> list[str]:
    """Return a note if other programs use the processors, which costs a way with more threads more of its time."""
    load = os.getloadavg()[0]
    # The cases before this one cause some load themselves.
    if load < 2 * (os.cpu_count() or 1):
        return []
    return [f"the machine was busy with other work: load average {load:.0f} on {os.cpu_count()} processors"]


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def _file_system(directory: Path) -> str:
    where = directory.resolve()
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, candidate, *_ = line.split(" ")
        if where.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, candidate
    return kind


def _version(command: tuple[str, ...]) -> str | None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return None
    found = re.search(r"\d+(\.\d+)+|\b\d+\.\d+", done.stdout + done.stderr)
    return found[0] if found else None


def _library(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
