"""Does a disk boot?  A virtual machine on a throw-away overlay says so, or why not.

The guest is watched from three sides: its serial console (`cdi.runtime.boot_console`), QEMU's events (panic, reset,
shutdown), and what it read from its disk, which is all that is known of a guest that says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cdi.api.errors import BootFailed, CdiError, Interrupted, QemuFailed, TargetIo, TargetPermission
from cdi.runtime.boot_console import Console, Kind
from cdi.runtime.boot_machine import (
    FIRMWARE_PLACES,
    Accelerator,
    Firmware,
    Machine,
    accelerators,
    choose_firmware,
    host_arch,
    is_nested,
    prepare_uefi,
)
from cdi.runtime.boot_seed import nocloud
from cdi.runtime.private import private_directory
from cdi.transfer.qemu import sandbox

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

OVERHEAD = 3 << 30
"""Address space that QEMU wants beside the guest's memory: translated code, libraries, threads."""
OVERLAY_MAX = 16 << 30
"""The guest may write so much before it is up, bytes."""
RESETS = 4
"""A guest that starts over so often without coming up is in a loop."""
NESTED_PATIENCE = 30.0
"""Seconds for KVM inside of a virtual machine to bring a guest to its kernel.  Some emulate the firmware's and boot
loader's real mode so slowly that they never come to their end, and plain emulation is faster by far."""
KERNEL_READS = 32 << 20
"""A guest that read so much from its disk has loaded a kernel, bytes."""
TAIL = 4096
"""Characters of the console in a report."""
POLL = 0.1
"""Seconds between looks at the clock and at cancel."""
DEFAULT_TIMEOUTS: Mapping[Accelerator, float] = {"kvm": 300.0, "tcg": 1200.0}
"""Seconds for a guest to come up.  A small Debian takes six minutes under emulation on a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootReport:
    """What became of the guest."""

    booted: bool
    evidence: str | None
    """What proves it: what it means, and the line that was printed."""
    why_not: str | None
    seconds: float
    """From the guest's first instruction."""
    accelerator: str
    """kvm or tcg."""
    firmware: Firmware
    resets: int
    disk_read: int
    """Bytes that the guest read from its disk."""
    serial_tail: str
    """The end of what its console showed, at most 4096 characters without control sequences."""

    def require(self, *, where: str | None = None) -> None:
        """Raises `BootFailed` unless it booted."""
        if not self.booted:
            raise BootFailed(self.why_not or "the guest did not come up", where=where)


def boot_check(
    disk: str,
    *,
    memory: int = 1 << 30,
    timeout: float | None = None,
    firmware: Literal["bios", "uefi", "auto"] = "auto",
    seed: Mapping[str, str] | None = None,
    expect: str | None = None,
    tcg: bool = True,
    cancelled: threading.Event | None = None,
    workdir: str | None = None,
    on_line: Callable[[str], None] | None = None,
) -> BootReport:
    """Boot a raw disk (a file or a block device), which is only read, and watch it for at most `timeout` seconds.

    Without a `timeout` it is the one that `DEFAULT_TIMEOUTS` has for the accelerator.  `memory` is the guest's, bytes.
    `seed` are files of a NoCloud seed that win over ours.  `expect` is a regular expression: then only a line of the
    console that matches it proves the boot.  `tcg` allows emulation where there is no KVM.  The overlay is made in a
    directory below `workdir`, or the system's place for temporary files, and removed.  `on_line` is called with the
    last line of the console, printable, whenever the guest prints something.

    Raises `QemuMissing`, `QemuFailed` and `ResourceLimit` where QEMU itself fails, `BootFailed` where nothing may run
    the guest, `TargetIo`, `TargetPermission` where the disk cannot be read, `Interrupted`; `ValueError` for an
    `expect` that is no regular expression and for a `seed` with unknown files.  A guest that does not come up raises
    nothing: `BootReport.require` does.
    """
    pattern = re.compile(expect) if expect is not None else None
    marker = f"cdi-boot-{secrets.token_hex(8)}"
    arch = host_arch()
    usable = accelerators(tcg=tcg)
    size, is_block, chosen = look_at(disk, firmware, arch)
    # A seed may hold passwords, and an overlay is large.
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
            watch = Watch(
                console=Console(marker=marker, expect=pattern),
                machine=machine,
                timeout=DEFAULT_TIMEOUTS[accelerator] if left is None else left,
                patience=NESTED_PATIENCE if accelerator != usable[-1] and is_nested() else None,
                cancelled=cancelled or threading.Event(),
                on_line=on_line,
            )
            try:
                return watch.run(directory)
            except AcceleratorFailed as failed:
                # KVM is there and cannot run this machine: nested in another one, as a rule.
                if accelerator == usable[-1]:
                    raise failed.cause from failed
                if left is not None:
                    left -= failed.seconds
    raise AssertionError  # there is at least one accelerator, and the last one returns or raises


class AcceleratorFailed(Exception):
    """QEMU ended before the guest's first instruction, or met something that the accelerator cannot do."""

    def __init__(self, cause: CdiError, seconds: float = 0.0) -> None:
        super().__init__(cause.what)
        self.cause = cause
        self.seconds = seconds
        """That the guest ran."""


def make_overlay(directory: str, size: int) -> str:
    """An empty qcow2, which takes what the guest writes."""
    overlay = os.path.join(directory, "overlay.qcow2")
    with open(overlay, "wb"):
        pass  # the sandbox writes files, and makes none
    sandbox.run(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", overlay, str(size)],
        limits=sandbox.Limits(memory=1 << 30, cpu_seconds=60),
        access=sandbox.Access(write=(overlay,)),
        workdir=directory,
    )
    return overlay


def look_at(disk: str, firmware: Literal["bios", "uefi", "auto"], arch: str) -> tuple[int, bool, Firmware]:
    """The disk's size, whether it is a block device, and the firmware for it; raises a `TargetError`."""
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


class Watch:
    """One guest, from its first instruction to a verdict."""

    def __init__(
        self,
        *,
        console: Console,
        machine: Machine,
        timeout: float,
        patience: float | None,
        cancelled: threading.Event,
        on_line: Callable[[str], None] | None,
    ) -> None:
        """`patience` seconds are given to the accelerator to bring the guest past its boot loader, None: all."""
        self.console = console
        self.machine = machine
        self.timeout = timeout
        self.patience = patience
        self.cancelled = cancelled
        self.on_line = on_line
        self.resets = 0
        self.why_not: str | None = None
        self.seen = False
        """The console decided."""
        self.decided = asyncio.Event()
        self.unable: CdiError | None = None
        """The accelerator gave up."""
        self.began = 0.0
        self.disk_read = 0

    def run(self, directory: str) -> BootReport:
        """Start the guest and watch it.  Raises `AcceleratorFailed`, and a `CdiError` where QEMU fails."""
        machine = self.machine
        ours_monitor, monitor = socket.socketpair()
        ours_console, console = socket.socketpair()
        with ours_monitor, ours_console:
            with monitor, console:
                guest = sandbox.start(
                    machine.program,
                    machine.arguments(monitor=monitor.fileno(), console=console.fileno()),
                    limits=sandbox.Limits(
                        memory=machine.memory + OVERHEAD,
                        cpu_seconds=int(self.timeout * 4) + 60,
                        file_size=OVERLAY_MAX,
                    ),
                    access=sandbox.Access(read=(machine.disk, *FIRMWARE_PLACES), write=(directory, "/dev/kvm")),
                    workdir=directory,
                    pass_fds=(monitor.fileno(), console.fileno()),
                )
            with guest:
                return asyncio.run(self._run(guest, ours_monitor, ours_console))

    async def _run(self, guest: sandbox.Confined, monitor: socket.socket, console: socket.socket) -> BootReport:
        from qemu.qmp import QMPClient, QMPError

        client = QMPClient("boot")
        client.logger.disabled = True  # it logs what is raised anyway
        reading: asyncio.Task[None] | None = None
        watching: asyncio.Task[None] | None = None
        try:
            await client.connect(monitor)
            reading = asyncio.create_task(self._read(console))
            watching = asyncio.create_task(self._watch(client))
            await asyncio.sleep(0)  # the listener is there before the first event
            await client.execute("cont")
            self.began = time.monotonic()
            await self._wait(guest, client)
            await asyncio.sleep(POLL)  # for the rest of the line that decided
            await self._ask_for_reads(client)
        except (QMPError, EOFError, OSError) as error:
            if not self.decided.is_set():
                cause = await self._ended(guest, error)
                raise cause if self.began else AcceleratorFailed(cause) from error
        finally:
            guest.kill()
            for task in (reading, watching):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, QMPError, EOFError, OSError):
                        await task
            with contextlib.suppress(QMPError, EOFError, OSError):
                await client.disconnect()
        if self.unable is not None:
            raise AcceleratorFailed(self.unable, time.monotonic() - self.began)
        return self._report(time.monotonic() - self.began)

    async def _wait(self, guest: sandbox.Confined, client: QMPClient) -> None:
        deadline = self.began + self.timeout
        while not self.decided.is_set():
            if self.cancelled.is_set():
                raise Interrupted("the boot check was stopped")
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if self.patience is not None and time.monotonic() - self.began > self.patience:
                self.patience = None
                await self._ask_for_reads(client)
                if self.disk_read < KERNEL_READS and not self.console.kernel:
                    self.unable = QemuFailed(
                        f"{self.machine.accelerator} is too slow here: the guest did not get to its kernel"
                    )
                    return
            if guest.process.poll() is not None:
                # Its last words and events may still be on their way.
                await asyncio.sleep(POLL)
                if not self.decided.is_set():
                    raise guest.failure()
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.decided.wait(), min(POLL, left))

    async def _read(self, console: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        console.setblocking(False)
        while data := await loop.sock_recv(console, 1 << 16):
            if self.console.feed(data) is not None and not self.decided.is_set():
                self.seen = True
                self.decided.set()
            if self.on_line is not None and (line := self.console.last_line):
                self.on_line(sandbox.printable(line, 200))

    async def _watch(self, client: QMPClient) -> None:
        names = ("STOP", "SHUTDOWN", "RESET", "GUEST_PANICKED", "BLOCK_IO_ERROR")
        with client.listener(names) as events:
            async for event in events:
                data: Any = event.get("data", {})
                match event["event"]:
                    case "STOP":
                        await self._stopped(client)
                    case "RESET" if data.get("guest"):
                        self.resets += 1
                        if self.resets >= RESETS:
                            self._fail(f"the guest is in a boot loop: it started over {self.resets} times")
                    case "GUEST_PANICKED":
                        self._fail("the kernel panicked")
                    case "BLOCK_IO_ERROR" if data.get("nospace") or data.get("node-name") == "disk":
                        reason = str(data.get("reason", "input/output error"))
                        self._fail(f"the guest's disk failed: {sandbox.printable(reason)}")
                    case "SHUTDOWN" if data.get("guest"):
                        self._fail("the guest switched itself off before it was up")
                    case _:
                        pass

    async def _stopped(self, client: QMPClient) -> None:
        """QEMU stops a guest for several reasons; of one, no other event tells."""
        status: Any = await client.execute("query-status")
        if status["status"] == "internal-error":
            self.unable = QemuFailed(f"{self.machine.accelerator} cannot run this guest: an internal error")
            self.decided.set()

    def _fail(self, why: str) -> None:
        if not self.decided.is_set():
            self.why_not = why
            self.decided.set()

    async def _ask_for_reads(self, client: QMPClient) -> None:
        """How much the guest read: a guest that is silent and read a kernel's worth lacks only a serial console."""
        answer: Any = await asyncio.wait_for(client.execute("query-blockstats"), 5)
        for device in answer:
            if device.get("node-name") == "disk" and device.get("stats"):
                self.disk_read = int(device["stats"].get("rd_bytes", 0))

    async def _ended(self, guest: sandbox.Confined, error: Exception) -> CdiError:
        """Why QEMU does not answer."""
        with contextlib.suppress(CdiError):
            await asyncio.to_thread(guest.wait, timeout=5)
            return guest.failure()
        return BootFailed(f"QEMU does not answer: {sandbox.printable(str(error))}")

    def _report(self, seconds: float) -> BootReport:
        sighting = self.console.decided if self.seen else None
        evidence: str | None = None
        why_not = self.why_not
        if sighting is not None:
            text = f"{sighting.what}: {sandbox.printable(sighting.line.strip(), 200)}"
            if sighting.kind is Kind.BOOTED:
                evidence, why_not = text, None
            else:
                why_not = text
        elif why_not is None and self.console.hint is not None and not self.console.awaits_text:
            hint = self.console.hint
            evidence = f"{hint.what}: {sandbox.printable(hint.line.strip(), 200)}"
        elif why_not is None:
            why_not = self._silence(seconds)
        return BootReport(
            booted=evidence is not None,
            evidence=evidence,
            why_not=why_not,
            seconds=seconds,
            accelerator=self.machine.accelerator,
            firmware=self.machine.firmware,
            resets=self.resets,
            disk_read=self.disk_read,
            serial_tail=self.console.tail[-TAIL:],
        )

    def _silence(self, seconds: float) -> str:
        """Nothing decided until the time was up."""
        read = f"the guest read {self.disk_read >> 10} KiB of its disk"
        if self.console.awaits_text:
            return f"the expected text did not appear within {seconds:.0f} seconds; {read}"
        if not self.console.last_line:
            return (
                f"nothing on the serial console within {seconds:.0f} seconds; {read}"
                " (does the image's kernel use console=ttyS0?)"
            )
        last = sandbox.printable(self.console.last_line, 200)
        return f"no sign of a running system within {seconds:.0f} seconds; {read}; last line: {last}"
