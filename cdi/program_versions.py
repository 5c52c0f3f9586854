"""Versions of the programs that import images, for records of origin."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

_TIMEOUT = 10.0
_VERSION = re.compile(r"version (\d+(?:\.\d+){1,3}\S{0,40})")


@functools.cache
def program_versions() -> MappingProxyType[str, str]:
    """Return the versions of cdi and qemu by name, without those that cannot be found; later calls are cached."""
    found = {}
    with contextlib.suppress(PackageNotFoundError):  # run from a source tree that is not installed
        found["cdi"] = version("cdi")
    qemu = _qemu()
    if qemu is not None:
        found["qemu"] = qemu
    return MappingProxyType(found)


def _qemu() -> str | None:
    path = shutil.which("qemu-img")
    if path is None:
        return None
    try:
        printed = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(printed.stdout[:1000])
    return None if match is None else match[1]
