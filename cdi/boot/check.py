"""Boot check: start a virtual machine from an overlay of a disk, and report whether it boots."""

from __future__ import annotations

import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Mapping
from typing import Literal

from cdi.api.errors import TargetIo, TargetPermission
from cdi.boot.console import Console
from cdi.boot.machine import (
    Accelerator,
    Firmware,
    Machine,
    accelerators,
    choose_firmware,
    host_arch,
    is_nested,
    machine_arch,
    prepare_uefi,
)
from cdi.boot.seed import nocloud
from cdi.boot.watcher import AcceleratorFailed, BootReport, BootWatcher, Patience
from cdi.private_directory import private_directory
from cdi.transfer.qemu import sandbox

MAX_OVERLAY = 16 << 30
"""Default of the largest number of bytes that the VM may write."""
NESTED_PATIENCE = Patience(seconds=30.0, processor_seconds=15.0)
"""Time for nested KVM to bring a VM to its kernel.

Some hypervisors emulate the real mode of firmware and boot loader so slowly that the boot never finishes, and plain
emulation is much faster. Such a VM uses its processor without a pause. Where KVM works, firmware and boot loader use it
for less than two seconds, and for as long as a menu of the boot loader waits.
"""
DEFAULT_TIMEOUTS: Mapping[Accelerator, float] = {"kvm": 300.0, "tcg": 1200.0}
"""Seconds for a VM to boot. A small Debian takes six minutes under emulation on a busy machine."""


def boot_check(
    disk: str,
    *,
    memory: int = 1 << 30,
    timeout: float | None = None,
    firmware: Literal["bios", "uefi", "auto"] = "auto",
    seed: Mapping[str, str] | None = None,
    expect: str | None = None,
    tcg: bool = True,
    overlay: int = MAX_OVERLAY,
    architecture: str | None = None,
    cancelled: threading.Event | None = None,
    workdir: str | None = None,
    on_line: Callable[[str], None] | None = None,
) -> BootReport:
    """Boot a raw disk, a file or a block device, without writing to it.

    Args:
        disk: The path of the disk.
        memory: Memory of the VM in bytes.
        timeout: Seconds to wait; None takes the value of `DEFAULT_TIMEOUTS` for the accelerator.
        firmware: The firmware; "auto" chooses by the disk's content.
        seed: Files of a NoCloud seed that override the built-in ones.
        expect: A regular expression; if given, only a matching console line proves the boot.
        tcg: Whether emulation may be used if there is no KVM.
        overlay: Largest number of bytes that the VM may write; its writes fail beyond that.
        architecture: OCI architecture of the VM; None for this machine's. Others are emulated, whatever `tcg` says.
        cancelled: Stops the check when set.
        workdir: The parent of the temporary directory with the overlay, by default the system's.
        on_line: Called with the last line of the console, made printable, whenever the VM prints.

    Returns:
        The result; a VM that does not boot raises nothing (see `BootReport.require`).

    Raises:
        QemuMissing, QemuFailed, ResourceLimit: QEMU itself failed.
        BootFailed: There is no usable accelerator.
        TargetIo, TargetPermission: The disk cannot be read.
        Interrupted: The check was cancelled.
        ValueError: `expect` is not a regular expression, or `seed` has unknown files.
    """
    pattern = re.compile(expect) if expect is not None else None
    marker = f"cdi-boot-{secrets.token_hex(8)}"
    arch = machine_arch(architecture)
    usable: tuple[Accelerator, ...] = accelerators(tcg=tcg) if arch == host_arch() else ("tcg",)
    size, is_block, chosen = look_at(disk, firmware, arch)
    # A seed may contain passwords, and an overlay is large.
    with private_directory(workdir) as private:
        directory = str(private)
        seed_path = os.path.join(directory, "seed.iso")
        with open(seed_path, "wb") as file:
            file.write(nocloud(seed or {}, marker=marker))
        left = timeout
        for accelerator in usable:
            code, variables = prepare_uefi(arch, directory) if chosen == "uefi" else (None, None)
            machine = Machine(
                arch=arch,
                firmware=chosen,
                code=code,
                variables=variables,
                accelerator=accelerator,
                memory=memory,
                disk=os.path.abspath(disk),
                disk_is_block=is_block,
                overlay=make_overlay(directory, size),
                seed=seed_path,
            )
            watch = BootWatcher(
                console=Console(marker=marker, expect=pattern),
                machine=machine,
                timeout=DEFAULT_TIMEOUTS[accelerator] if left is None else left,
                patience=NESTED_PATIENCE if accelerator != usable[-1] and is_nested() else None,
                overlay=overlay,
                cancelled=cancelled or threading.Event(),
                on_line=on_line,
            )
            try:
                return watch.run(directory)
            except AcceleratorFailed as failed:
                # KVM is present but cannot run this machine, usually because it is nested.
                if accelerator == usable[-1]:
                    raise failed.cause from failed
                if left is not None:
                    left -= failed.seconds
    raise AssertionError  # there is at least one accelerator, and the last one returns or raises


def make_overlay(directory: str, size: int) -> str:
    """Create an empty qcow2 file that receives the VM's writes, and return its path."""
    overlay = os.path.join(directory, "overlay.qcow2")
    with open(overlay, "wb"):
        pass  # the sandbox permits writing files, not creating them
    sandbox.run(
        sandbox.Program(
            name="qemu-img",
            arguments=["create", "-q", "-f", "qcow2", overlay, str(size)],
            limits=sandbox.Limits(memory=1 << 30, cpu_seconds=60),
            access=sandbox.Access(write=(overlay,)),
            workdir=directory,
        )
    )
    return overlay


def look_at(disk: str, firmware: Literal["bios", "uefi", "auto"], arch: str) -> tuple[int, bool, Firmware]:
    """Return the disk's size in bytes, whether it is a block device, and its firmware; raise a `TargetError`."""
    try:
        handle = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
        try:
            is_block = stat.S_ISBLK(os.fstat(handle).st_mode)
            size = os.lseek(handle, 0, os.SEEK_END)
            if firmware == "auto":
                firmware = choose_firmware(lambda offset, length: os.pread(handle, length, offset), arch)
        finally:
            os.close(handle)
    except PermissionError as error:
        raise TargetPermission("the disk cannot be opened", where=disk) from error
    except OSError as error:
        raise TargetIo(f"the disk cannot be read: {error.strerror}", where=disk) from error
    return size, is_block, firmware
