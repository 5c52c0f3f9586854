"""`qemu-img info` and `qemu-img check`, sandboxed like every other QEMU program.

They provide a second opinion on local files; `cdi.image` decides whether an image is accepted.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from cdi.api.errors import QemuFailed
from cdi.api.job import Policy
from cdi.api.json_document import parse_json
from cdi.transfer.qemu import sandbox
from cdi.transfer.qemu.convert import Format

CHECK_CORRUPT = 2
CHECK_LEAKS = 3
CHECK_UNSUPPORTED = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """Header of an image, as QEMU reads it."""

    format: str
    virtual_size: int
    """Virtual size in bytes, rounded up to 512."""
    cluster_size: int | None
    backing_file: str | None
    """Name in the header; never opened."""
    encrypted: bool
    dirty: bool
    details: dict[str, Any]
    """Format-specific properties; untrusted, for display only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Result of a consistency check."""

    supported: bool
    """Whether QEMU can check the format at all."""
    corruptions: int
    leaks: int
    errors: int
    """Number of places that could not be checked."""

    @property
    def sound(self) -> bool:
        """True if the image is consistent; leaks waste space and are harmless."""
        return self.corruptions == 0 and self.errors == 0


def info(
    path: str,
    *,
    format: Format,  # noqa: A002 — the name that the rest of the project uses
    policy: Policy,
    workdir: str,
    cancelled: threading.Event | None = None,
) -> ImageInfo:
    """Return what `qemu-img info` reports.

    Raises:
        QemuFailed, QemuMissing, ResourceLimit, Interrupted: qemu-img failed, is not installed or was stopped.
    """
    _, output = _qemu_img(
        ["info", "--output=json", "--force-share", "-f", format, "--", path],
        path=path,
        policy=policy,
        workdir=workdir,
        cancelled=cancelled,
        accept=(0,),
    )
    said = _object(output, path)
    specific = said.get("format-specific")
    details = specific.get("data") if isinstance(specific, dict) else None
    backing = said.get("backing-filename")
    return ImageInfo(
        format=str(said.get("format", format)),
        virtual_size=int(said["virtual-size"]),
        cluster_size=int(said["cluster-size"]) if "cluster-size" in said else None,
        backing_file=None if backing is None else sandbox.printable(str(backing)),
        encrypted=bool(said.get("encrypted", False)),
        dirty=bool(said.get("dirty-flag", False)),
        details=details if isinstance(details, dict) else {},
    )


def check(
    path: str,
    *,
    format: Format,  # noqa: A002 — the name that the rest of the project uses
    policy: Policy,
    workdir: str,
    cancelled: threading.Event | None = None,
) -> CheckReport:
    """Return what `qemu-img check` reports.

    Raises:
        QemuFailed: the image cannot be opened.
        QemuMissing, ResourceLimit, Interrupted: qemu-img is not installed or was stopped.
    """
    status, output = _qemu_img(
        ["check", "--output=json", "--force-share", "-f", format, "--", path],
        path=path,
        policy=policy,
        workdir=workdir,
        cancelled=cancelled,
        accept=(0, CHECK_CORRUPT, CHECK_LEAKS, CHECK_UNSUPPORTED),
    )
    if status == CHECK_UNSUPPORTED:
        return CheckReport(supported=False, corruptions=0, leaks=0, errors=0)
    said = _object(output, path)
    return CheckReport(
        supported=True,
        corruptions=int(said.get("corruptions", 0)),
        leaks=int(said.get("leaks", 0)),
        errors=int(said.get("check-errors", 0)),
    )


def _qemu_img(
    arguments: list[str],
    *,
    path: str,
    policy: Policy,
    workdir: str,
    cancelled: threading.Event | None,
    accept: tuple[int, ...],
) -> tuple[int, bytes]:
    program = sandbox.Program(
        name="qemu-img",
        arguments=arguments,
        limits=sandbox.Limits(memory=policy.qemu_memory, cpu_seconds=policy.qemu_cpu_seconds, file_size=0),
        access=sandbox.Access(read=(path,)),
        workdir=workdir,
    )
    return sandbox.run(program, cancelled=cancelled, accept=accept, where=path)


def _object(output: bytes, path: str) -> dict[str, Any]:
    try:
        said = parse_json(output)
    except ValueError as error:
        raise QemuFailed("the output of qemu-img is not valid JSON", where=path) from error
    if not isinstance(said, dict):
        raise QemuFailed("the output of qemu-img is not a JSON object", where=path)
    return said
