"""Conversion of images that only QEMU reads, by a mirror job in a sandboxed `qemu-storage-daemon`.

Measured with QEMU 7.2, a vmdk of a 2 GiB disk with 600 MB of data to a file: ``blockdev-mirror`` in 1 MiB chunks with
O_DIRECT 1.5-1.9 s and 1 CPU-s, ``blockdev-backup`` 3.1-7 s (and it allocates every block of the file), ``qemu-img
convert -n -W -m 8 -t none`` 2.9-3.2 s and 2.6 CPU-s. A mirror also reports progress, limits its speed and can be
cancelled.

Every driver is named explicitly: formats are never probed, and no node has a backing file. If an image's driver tries
to open another file, the sandbox denies it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cdi.api.errors import CdiError, ImageCorrupt, Interrupted, QemuFailed, TargetIo, TargetTooSmall
from cdi.api.job import Policy
from cdi.target.base import ALIGNMENT
from cdi.target.errors import error_from_errno
from cdi.transfer.qemu import sandbox
from cdi.transfer.qemu.disk import (
    SECTOR,
    TargetDisk,
    allocated_growth,
    process_write_bytes,
)

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

Format = Literal["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"]

CHUNK_SIZE = 1 << 20
"""Chunk size of the mirror: 64 KiB takes twice the time and three times the CPU."""
BUFFER = 16 << 20
"""Total size of the chunks in flight."""
SHUTDOWN_TIMEOUT = 5.0
"""Seconds for the daemon to exit after it was asked to."""
POLL = 0.1
"""Seconds between two polls of progress, speed and cancellation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult:
    """Result of a conversion."""

    virtual_size: int
    """Size of the disk as QEMU sees it, in bytes: a multiple of 512."""
    copied: int
    """Bytes of the disk that QEMU processed: those that the image has data for, if its format reveals it."""
    written: int
    """Bytes written to the target, as the kernel counts them, without zeros that were only requested.

    For a device that the kernel does not count, it equals `copied`.
    """
    direct: bool
    """Whether O_DIRECT was used."""
    protections: tuple[str, ...]
    """Active layers of the sandbox."""


def convert(job: MirrorJob, workdir: str) -> ConvertResult:
    """Write the disk in ``job.image`` to the first ``job.virtual_size`` bytes of the target.

    The target exists and is large enough; bytes beyond `virtual_size` are not modified. Ranges without data are skipped
    if the target reads as zeros, otherwise zeroed. On return all data has been handed to the kernel; making it durable
    (fsync) is the target's responsibility.

    Args:
        job: the conversion.
        workdir: a directory of the caller's.

    Raises:
        ImageCorrupt: QEMU reports a size other than `virtual_size`; nothing was written.
        TargetFull, TargetIo, TargetTooSmall, TargetPermission: the target cannot be written.
        QemuFailed, QemuMissing, ResourceLimit, Interrupted: QEMU failed, is not installed or was stopped.
    """
    target = job.target
    if target.size < job.virtual_size:
        raise TargetTooSmall(
            f"the disk has {job.virtual_size} bytes, but the target only {target.size}", where=target.path
        )
    if job.cancelled.is_set():
        raise Interrupted("the conversion was interrupted", where=target.path)
    daemon, monitor = job.start(workdir)
    with monitor, daemon:
        return asyncio.run(job.run(daemon, monitor))


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorJob:
    """One conversion."""

    image: str
    """Path of a local file or block device."""
    format: Format
    virtual_size: int
    """Size of the disk in bytes."""
    target: TargetDisk
    policy: Policy
    """Limits of QEMU, and timeouts."""
    on_progress: Callable[[int, int], None]
    """Called in this thread with the bytes of the disk copied so far and the total."""
    on_written: Callable[[int], None] = lambda _: None
    """Called with `ConvertResult.written` so far, also if the conversion fails later."""
    bandwidth: Callable[[], int] | None = None
    """Returns the limit in bytes of the disk per second, 0 for none; called continuously."""
    cancelled: threading.Event
    """Set to stop the conversion."""

    @property
    def sectors_size(self) -> int:
        return -(-self.virtual_size // SECTOR) * SECTOR

    @property
    def direct(self) -> bool:
        """True if O_DIRECT is used: the target must support it, and disk and target must end at a block boundary.

        The mirror does not pad its last chunk, and QEMU would have to extend a target of odd size.
        """
        return self.target.direct and self.sectors_size % ALIGNMENT == 0 and self.target.size % ALIGNMENT == 0

    def protocol_node(self) -> dict[str, Any]:
        """Return the node of the image's storage."""
        return {
            "driver": "host_device" if stat.S_ISBLK(os.stat(self.image).st_mode) else "file",
            "node-name": "bytes",
            "filename": self.image,
            "locking": "off",
            "read-only": True,
            "auto-read-only": False,
        }

    def format_node(self) -> dict[str, Any]:
        """Return the node of the disk within the image."""
        node: dict[str, Any] = {"driver": self.format, "node-name": "image", "file": "bytes", "read-only": True}
        if self.format in ("qcow2", "vmdk"):
            node["backing"] = None
        return node

    def target_nodes(self) -> list[dict[str, Any]]:
        """Return the nodes of the target: a window of the image's size at its beginning."""
        # With "unmap" the mirror first zeroes the whole target, then copies data: efficient if zeroing is cheap.
        # With "ignore" it zeroes only the ranges that need it, so a device without offload writes each zero once.
        unmap = self.target.reads_zero or self.target.offloads_zero
        discard = "unmap" if unmap else "ignore"
        cache = {"direct": self.direct, "no-flush": False}
        protocol = {
            "driver": "host_device" if self.target.is_block else "file",
            "node-name": "volume",
            "filename": self.target.path,
            "discard": discard,
            "cache": cache,
            "locking": "off",  # the caller holds the volume; QEMU's own locks fail on some network file systems
        }
        disk = {
            "driver": "raw",
            "node-name": "target",
            "file": "volume",
            "size": self.sectors_size,
            "discard": discard,
            "cache": cache,
            "detect-zeroes": "unmap" if unmap else "on",
        }
        return [protocol, disk]

    def start(self, workdir: str) -> tuple[sandbox.SandboxedProcess, socket.socket]:
        """Start the daemon and return it with its monitor; may raise `QemuMissing`."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ["--chardev", f"socket,id=monitor,fd={theirs.fileno()}", "--monitor", "chardev=monitor"]
            arguments += ["--blockdev", json.dumps(self.protocol_node())]
            try:
                program = sandbox.Program(
                    name="qemu-storage-daemon",
                    arguments=arguments,
                    limits=sandbox.Limits(
                        memory=self.policy.qemu_memory,
                        cpu_seconds=self.policy.qemu_cpu_seconds,
                        file_size=max(self.target.size, self.sectors_size),
                    ),
                    access=sandbox.Access(read=(self.image,), write=(self.target.path,)),
                    workdir=workdir,
                    pass_fds=(theirs.fileno(),),
                )
                confined = sandbox.start(program)
            except BaseException:
                ours.close()
                raise
        return confined, ours

    async def run(self, daemon: sandbox.SandboxedProcess, monitor: socket.socket) -> ConvertResult:
        """Control the daemon until the copy ends."""
        # Imported here so that only a conversion pays for it.
        from qemu.qmp import QMPClient, QMPError

        client = QMPClient("convert")
        client.logger.disabled = True  # it logs errors that are raised anyway
        watcher = asyncio.create_task(self._stop_when_cancelled(daemon))
        try:
            await client.connect(monitor)
            copied, written = await self._copy(client, daemon.pid)
            with contextlib.suppress(QMPError, EOFError, OSError, TimeoutError):
                await asyncio.wait_for(client.execute("quit"), SHUTDOWN_TIMEOUT)
                await asyncio.to_thread(self._wait_exit, daemon)
            return ConvertResult(
                virtual_size=self.sectors_size,
                copied=copied,
                written=written,
                direct=self.direct,
                protections=daemon.protections(),
            )
        except (QMPError, EOFError, OSError) as error:
            raise await self._exit_error(daemon, error) from error
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            # Not "quit", which would wait for a job that hangs.
            daemon.kill()
            with contextlib.suppress(QMPError, EOFError, OSError):
                await client.disconnect()
            if not self.target.is_block and self.sectors_size > self.target.size:
                # A size that is not a multiple of 512 was rounded up to write the last sector.
                os.truncate(self.target.path, self.target.size)

    # --- the job ------------------------------------------------------------------------------------------------

    async def _copy(self, client: QMPClient, daemon: int) -> tuple[int, int]:
        """Return `ConvertResult.copied` and `written`."""
        await self._open_image(client)
        await self._open_target(client)
        before = process_write_bytes(daemon)
        speed = self._speed()
        with client.listener(("JOB_STATUS_CHANGE", "BLOCK_JOB_ERROR")) as events:
            await client.execute(
                "blockdev-mirror",
                {
                    "job-id": "copy",
                    "device": "image",
                    "target": "target",
                    # The image is the only layer, so "top" covers all of it, and unallocated ranges are skipped.
                    "sync": "top" if self.target.reads_zero else "full",
                    "granularity": CHUNK_SIZE,
                    "buf-size": BUFFER,
                    "speed": speed,
                    "auto-dismiss": False,
                    "on-source-error": "report",
                    "on-target-error": "report",
                },
            )
            patience = ProgressWatchdog(self.policy)
            while True:
                jobs: Any = await client.execute("query-jobs")
                (job,) = jobs
                done, total = int(job["current-progress"]), int(job["total-progress"])
                self.on_progress(done, total)
                written = self._written(daemon, before, done)
                self.on_written(written)
                if patience.expired(done, throttled=speed > 0):
                    raise QemuFailed(f"qemu-storage-daemon made no progress for {patience.seconds:.0f} seconds")
                if job["status"] == "concluded":
                    if "error" in job:
                        history: Any = events.history
                        sides = [event["data"]["operation"] for event in history if "operation" in event["data"]]
                        raise self._job_error(str(job["error"]), sides[0] if sides else None)
                    return total, written
                if job["status"] == "ready":
                    # Not job-complete, which would replace the image by the target; cancelling a job that is ready
                    # ends it with a complete copy.
                    await client.execute("block-job-cancel", {"device": "copy"})
                if (wanted := self._speed()) != speed:
                    speed = wanted
                    await client.execute("block-job-set-speed", {"device": "copy", "speed": speed})
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(events.get(), POLL)

    def _written(self, daemon: int, before: int | None, done: int) -> int:
        now = process_write_bytes(daemon)
        grown = allocated_growth(self.target)
        if before is not None and now is not None:
            return max(now - before, grown)
        return done if self.target.is_block else grown

    def _speed(self) -> int:
        return max(0, self.bandwidth()) if self.bandwidth is not None else 0

    async def _open_image(self, client: QMPClient) -> None:
        from qemu.qmp import ExecuteError

        try:
            await client.execute("blockdev-add", self.format_node())
        except ExecuteError as error:
            said = sandbox.printable(str(error))
            raise QemuFailed(f"QEMU cannot open the {self.format} image: {said}", where=self.image) from error
        nodes: Any = await client.execute("query-named-block-nodes", {"flat": True})
        (size,) = (node["image"]["virtual-size"] for node in nodes if node["node-name"] == "image")
        if size != self.sectors_size:
            raise ImageCorrupt(
                f"QEMU reports a {self.format} disk of {size} bytes, but its header says {self.virtual_size}",
                where=self.image,
            )

    async def _open_target(self, client: QMPClient) -> None:
        from qemu.qmp import ExecuteError

        try:
            for node in self.target_nodes():
                await client.execute("blockdev-add", node)
        except ExecuteError as error:
            said = sandbox.printable(str(error))
            raise TargetIo(f"QEMU cannot open the target: {said}", where=self.target.path) from error

    def _job_error(self, text: str, side: str | None) -> CdiError:
        """Return the error for strerror's `text` in the C locale; `side` is the failed operation, None if unknown."""
        number = next((n for n in errno.errorcode if os.strerror(n) == text), errno.EIO)
        if side == "write" or number in (errno.ENOSPC, errno.EDQUOT):
            return error_from_errno(OSError(number, text), self.target.path)
        return QemuFailed(f"cannot read the {self.format} image: {sandbox.printable(text)}", where=self.image)

    # --- its end ------------------------------------------------------------------------------------------------

    async def _stop_when_cancelled(self, daemon: sandbox.SandboxedProcess) -> None:
        """Kill the daemon on cancellation: a later attempt cannot use what it wrote, so nothing is lost."""
        while not self.cancelled.is_set():  # noqa: ASYNC110 — set by a thread without event loop
            await asyncio.sleep(POLL)
        daemon.process.kill()

    async def _exit_error(self, daemon: sandbox.SandboxedProcess, error: Exception) -> CdiError:
        """Return why the daemon no longer responds."""
        from qemu.qmp import ExecuteError

        if self.cancelled.is_set():
            return Interrupted("the conversion was interrupted", where=self.target.path)
        if isinstance(error, ExecuteError):
            return QemuFailed(f"qemu-storage-daemon rejected a command: {sandbox.printable(str(error))}")
        status = await asyncio.to_thread(self._wait_exit, daemon)
        if status == 0:
            return QemuFailed("qemu-storage-daemon exited early")
        return daemon.failure(where=self.image)

    def _wait_exit(self, daemon: sandbox.SandboxedProcess) -> int:
        try:
            return daemon.wait(timeout=SHUTDOWN_TIMEOUT)
        except CdiError:
            return daemon.process.returncode


class ProgressWatchdog:
    """Watchdog for a job that makes no progress.

    A hostile image may have made QEMU hang, or the storage that holds the image does not answer.
    """

    def __init__(self, policy: Policy) -> None:
        self.seconds = 120 + policy.stall_timeout * (policy.retries + 1) * 2
        self._done = -1
        self._since = 0.0

    def expired(self, done: int, *, throttled: bool) -> bool:
        """Return whether the job has made no progress for that long; a throttled job never expires."""
        now = time.monotonic()
        if done != self._done or throttled:
            self._done, self._since = done, now
        return now - self._since > self.seconds
