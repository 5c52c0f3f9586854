"""The program that runs in the image of a DataImportCron that a node polls: ``cdi-worker poll-program PATH``.

The node pulls an image only for a container, and an image with a disk contains nothing that could run in one. A
container that ends at once shows which image was pulled, so the program exits with status 0. It is a static ELF
executable of less than 200 bytes (https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html).
"""

from __future__ import annotations

import os
import struct
import sys

from cdi.api.errors import CdiError, TargetUnsuitable, UsageError
from cdi.api.job import Failure
from cdi.target.errors import map_os_errors
from cdi.worker import log

_BASE = 0x400000
_PAGE = 0x10000
"""Alignment in bytes: the largest page size of these machines."""
_HEADERS = 64 + 56
_MACHINES = {
    # ELF's number, byte order, and exit(0)
    "x86_64": (62, "<", bytes.fromhex("31ff b83c000000 0f05")),
    "aarch64": (183, "<", bytes.fromhex("000080d2 a80b80d2 010000d4")),
    "s390x": (22, ">", bytes.fromhex("a7290000 0a01")),
}


def main(arguments: list[str]) -> int:
    """Write the program and return the exit status."""
    if len(arguments) != 1:
        print("usage: cdi-worker poll-program PATH", file=sys.stderr)  # noqa: T201 - usage errors go to standard error
        return UsageError.exit_status
    try:
        write(arguments[0], os.uname().machine)
    except CdiError as error:
        log.log_failure(Failure.from_error(error))
        return error.exit_status
    return 0


def write(path: str, machine: str) -> None:
    """Write the program for a machine (``uname -m``).

    Raises:
        TargetUnsuitable: There is no program for this machine.
        TargetError: The file cannot be written.

    """
    known = _MACHINES.get(machine)
    if known is None:
        names = ", ".join(_MACHINES)
        raise TargetUnsuitable(
            f"images are pulled by nodes of these architectures only: {names}",
            where=machine,
            remedy="use pullMethod pod",
        )
    with (
        map_os_errors(path),
        open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o755), "wb") as file,
    ):
        os.fchmod(file.fileno(), 0o555)
        file.write(_executable(*known))


def _executable(number: int, order: str, code: bytes) -> bytes:
    kind = 1 if order == "<" else 2
    identification = b"\x7fELF" + bytes((2, kind, 1)) + bytes(9)
    entry = _BASE + _HEADERS
    header = struct.pack(f"{order}HHIQQQIHHHHHH", 2, number, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = _HEADERS + len(code)
    segment = struct.pack(f"{order}IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, _PAGE)
    return identification + header + segment + code
