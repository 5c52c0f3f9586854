"""Observation of a running virtual machine until it has booted, or will not.

The evidence is its serial console (`cdi.boot.console`), QEMU's events (panic, reset, shutdown) and the amount that it
read from its disk, which is the only evidence of a VM with a silent console.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdi.api.errors import BootFailed, CdiError, Interrupted, QemuFailed
from cdi.boot.console import Console, Kind
from cdi.boot.machine import FIRMWARE_PLACES, Firmware, Machine
from cdi.transfer.qemu import sandbox

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

OVERHEAD = 3 << 30
"""Address space in bytes that QEMU needs besides VM memory: translated code, libraries, threads."""
RESETS = 4
"""Number of VM resets after which the VM counts as being in a boot loop."""
KERNEL_READS = 32 << 20
"""Bytes read from the disk after which the VM counts as having loaded a kernel."""
TAIL = 4096
"""Characters of console output in a report."""
POLL = 0.1
"""Seconds between checks of timeout and cancellation."""
START_TIMEOUT = 120.0
"""Seconds for QEMU to answer before it runs the VM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Limits of the time that an accelerator has to bring a VM to its kernel."""

    seconds: float
    processor_seconds: float
    """Of QEMU. On a busy machine, a VM takes longer, but no more of the processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootReport:
    """The result of a boot check."""

    booted: bool
    evidence: str | None
    """The proof of a successful boot: its meaning and the console line."""
    why_not: str | None
    seconds: float
    """Since the VM's first instruction."""
    accelerator: str
    """One of kvm and tcg."""
    firmware: Firmware
    resets: int
    disk_read: int
    """Bytes that the VM read from its disk."""
    serial_tail: str
    """The end of its console output: at most 4096 characters without control sequences."""

    def require(self, *, where: str | None = None) -> None:
        """Raise `BootFailed` unless the VM booted."""
        if not self.booted:
            raise BootFailed(self.why_not or "the guest did not start", where=where)


class AcceleratorFailed(Exception):
    """QEMU ended before the VM's first instruction, or the accelerator cannot run the VM."""

    def __init__(self, cause: CdiError, seconds: float = 0.0) -> None:
        super().__init__(cause.what)
        self.cause = cause
        self.seconds = seconds
        """Seconds that the VM ran."""


class BootWatcher:
    """The observation of one VM, from its first instruction to the result."""

    def __init__(
        self,
        *,
        console: Console,
        machine: Machine,
        timeout: float,
        patience: Patience | None,
        overlay: int,
        cancelled: threading.Event,
        on_line: Callable[[str], None] | None,
    ) -> None:
        """Observe a VM; `patience` limits the time until its kernel (None: no limit)."""
        self.console = console
        self.machine = machine
        self.timeout = timeout
        self.patience = patience
        self.overlay = overlay
        self.cancelled = cancelled
        self.on_line = on_line
        self.resets = 0
        self.why_not: str | None = None
        self.seen = False
        """Whether the console has decided the result."""
        self.decided = asyncio.Event()
        self.unable: CdiError | None = None
        """The error of an accelerator that cannot run the VM."""
        self.began = 0.0
        self.disk_read = 0

    def run(self, directory: str) -> BootReport:
        """Start the VM and observe it; raise `AcceleratorFailed`, or a `CdiError` if QEMU fails."""
        machine = self.machine
        ours_monitor, monitor = socket.socketpair()
        ours_console, console = socket.socketpair()
        with ours_monitor, ours_console:
            with monitor, console:
                program = sandbox.Program(
                    name=machine.program,
                    arguments=machine.arguments(monitor=monitor.fileno(), console=console.fileno()),
                    limits=sandbox.Limits(
                        memory=machine.memory + OVERHEAD,
                        cpu_seconds=int(self.timeout * 4) + 60,
                        file_size=self.overlay,
                    ),
                    access=sandbox.Access(read=(machine.disk, *FIRMWARE_PLACES), write=(directory, "/dev/kvm")),
                    workdir=directory,
                    pass_fds=(monitor.fileno(), console.fileno()),
                )
                guest = sandbox.start(program)
            with guest:
                return asyncio.run(self._run(guest, ours_monitor, ours_console))

    async def _run(self, guest: sandbox.SandboxedProcess, monitor: socket.socket, console: socket.socket) -> BootReport:
        from qemu.qmp import QMPClient, QMPError

        client = QMPClient("boot")
        client.logger.disabled = True  # it logs errors that are raised anyway
        reading: asyncio.Task[None] | None = None
        watching: asyncio.Task[None] | None = None
        try:
            await self._answered(client.connect(monitor))
            reading = asyncio.create_task(self._read(console))
            watching = asyncio.create_task(self._watch(client))
            await asyncio.sleep(0)  # registers the listener before the first event
            await self._answered(client.execute("cont"))
            self.began = time.monotonic()
            await self._wait(guest, client)
            await asyncio.sleep(POLL)  # for the rest of the deciding line
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

    async def _answered(self, call: Coroutine[Any, Any, object]) -> None:
        """Wait for QEMU's answer; raise `AcceleratorFailed` after `START_TIMEOUT`, or `Interrupted`."""
        task = asyncio.create_task(call)
        deadline = time.monotonic() + START_TIMEOUT
        try:
            while not (await asyncio.wait((task,), timeout=POLL))[0]:
                if self.cancelled.is_set():
                    raise Interrupted("the boot check was stopped")
                if time.monotonic() >= deadline:
                    what = f"{self.machine.program} did not answer within {START_TIMEOUT:.0f} seconds of its start"
                    raise AcceleratorFailed(QemuFailed(what), START_TIMEOUT)
            await task
        finally:
            task.cancel()
            # A cancelled connection attempt disconnects by itself, which must end before anything else disconnects.
            await asyncio.gather(task, return_exceptions=True)

    async def _wait(self, guest: sandbox.SandboxedProcess, client: QMPClient) -> None:
        deadline = self.began + self.timeout
        while not self.decided.is_set():
            if self.cancelled.is_set():
                raise Interrupted("the boot check was stopped")
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if self.patience is not None and self._is_slow(guest, self.patience):
                self.patience = None
                await self._ask_for_reads(client)
                if self.disk_read < KERNEL_READS and not self.console.kernel:
                    self.unable = QemuFailed(
                        f"{self.machine.accelerator} is too slow here: the guest did not reach its kernel"
                    )
                    return
            if guest.process.poll() is not None:
                # The last console output and events may still be buffered.
                await asyncio.sleep(POLL)
                if not self.decided.is_set():
                    raise guest.failure()
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.decided.wait(), min(POLL, left))

    def _is_slow(self, guest: sandbox.SandboxedProcess, patience: Patience) -> bool:
        spent = time.monotonic() - self.began
        return spent > patience.seconds or guest.processor_seconds() > patience.processor_seconds

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
                            self._fail(f"the guest is in a boot loop: it restarted {self.resets} times")
                    case "GUEST_PANICKED":
                        self._fail("the kernel panicked")
                    case "BLOCK_IO_ERROR" if data.get("nospace") or data.get("node-name") == "disk":
                        reason = str(data.get("reason", "input/output error"))
                        self._fail(f"the guest's disk failed: {sandbox.printable(reason)}")
                    case "SHUTDOWN" if data.get("guest"):
                        self._fail("the guest powered off before it was up")
                    case _:
                        pass

    async def _stopped(self, client: QMPClient) -> None:
        """Check why QEMU stopped the VM; an internal error is reported by no other event."""
        status: Any = await client.execute("query-status")
        if status["status"] == "internal-error":
            self.unable = QemuFailed(f"{self.machine.accelerator} cannot run this guest: an internal error")
            self.decided.set()

    def _fail(self, why: str) -> None:
        if not self.decided.is_set():
            self.why_not = why
            self.decided.set()

    async def _ask_for_reads(self, client: QMPClient) -> None:
        """Query how much the VM has read; if it read a kernel, only its serial console is missing."""
        answer: Any = await asyncio.wait_for(client.execute("query-blockstats"), 5)
        for device in answer:
            if device.get("node-name") == "disk" and device.get("stats"):
                self.disk_read = int(device["stats"].get("rd_bytes", 0))

    async def _ended(self, guest: sandbox.SandboxedProcess, error: Exception) -> CdiError:
        """Return the error that explains why QEMU does not respond."""
        with contextlib.suppress(CdiError):
            await asyncio.to_thread(guest.wait, timeout=5)
            return guest.failure()
        return BootFailed(f"QEMU does not respond: {sandbox.printable(str(error))}")

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
        """Return the reason for a check that ended without a decision."""
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
