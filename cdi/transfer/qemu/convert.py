"""Images that only QEMU reads, onto the target: a mirror job in a sandboxed `qemu-storage-daemon`.

Measured with QEMU 7.2, a vmdk of a 2 GiB disk with 600 MB in it onto a file: ``blockdev-mirror`` in 1 MiB pieces past
the page cache 1.5-1.9 s and 1 CPU-s, ``blockdev-backup`` 3.1-7 s (and it gives every block of the file its place),
``qemu-img convert -n -W -m 8 -t none`` 2.9-3.2 s and 2.6 CPU-s.  A mirror knows progress, speed and cancel too.

Every driver is named; nothing is probed, and no node has a backing file.  Should an image's driver want to open
another file all the same, the sandbox has no right to it.
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
from cdi.transfer.qemu import sandbox
from cdi.transfer.qemu.disk import SECTOR, TargetDisk, bytes_given, bytes_grown, inspect_target, target_error

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

Format = Literal["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"]

PIECE = 1 << 20
"""What the mirror copies at a time: 64 KiB costs twice the time and three times the processor."""
BUFFER = 16 << 20
"""Of all pieces under way together."""
GRACE = 5.0
"""Seconds for the daemon to end once it was asked to."""
POLL = 0.1
"""Seconds between two looks at progress, speed and cancel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult:
    """What was done."""

    virtual_size: int
    """Of the disk as QEMU sees it, bytes: a multiple of 512."""
    copied: int
    """Bytes of the disk that QEMU looked at: those that the image has data for, where its format can say."""
    written: int
    """Bytes that the target was given, as the kernel counts them; zeros that it was only asked to make are none.
    Where the kernel counts nothing for a device, as many as were copied."""
    direct: bool
    """Written past the page cache."""
    protections: tuple[str, ...]
    """The layers of the sandbox that stood."""


def convert(
    *,
    image: socket.socket | str,
    format: Format,  # noqa: A002 — the name that the rest of the project has for it
    virtual_size: int,
    target_path: str,
    target_is_block: bool,
    target_reads_zero: bool,
    policy: Policy,
    on_progress: Callable[[int, int], None],
    bandwidth: Callable[[], int] | None,
    cancelled: threading.Event,
    workdir: str,
    on_written: Callable[[int], None] = lambda _: None,
) -> ConvertResult:
    """Write the disk in `image` over the first `virtual_size` bytes of the target.

    `image` is a local file's path or one end of an `NbdServer` (`attach`), which is closed.  The target exists and is
    large enough; what lies beyond `virtual_size` is left alone.  Where `target_reads_zero`, places that the image has
    no data for are left alone too, otherwise they are made zero.  `on_progress` is given the bytes of the disk that
    were copied and how many there are to copy, from this thread; `on_written` those of `ConvertResult.written` so far,
    also of a conversion that fails; `bandwidth` says how many bytes of the disk may be copied a second, 0 unlimited,
    and is asked all the time.  `workdir` is a directory of the caller's.

    Returns when everything is handed to the kernel; making it durable (fsync) is the target's business.

    Raises `ImageCorrupt` where QEMU sees another size than `virtual_size` (before anything is written), `TargetFull`,
    `TargetIo`, `TargetTooSmall`, `TargetPermission`, `QemuFailed`, `QemuMissing`, `ResourceLimit`, `Interrupted`.  The
    cause of a failed read over NBD is the server's `cause`, to be preferred by the caller (`NbdServer.cause`).
    """
    copy = Copy(
        image=image,
        format=format,
        virtual_size=virtual_size,
        target=inspect_target(target_path, is_block=target_is_block, reads_zero=target_reads_zero),
        policy=policy,
        on_progress=on_progress,
        on_written=on_written,
        bandwidth=bandwidth,
        cancelled=cancelled,
    )
    try:
        if copy.target.size < virtual_size:
            raise TargetTooSmall(f"the disk has {virtual_size} bytes, the target {copy.target.size}", where=target_path)
        if cancelled.is_set():
            raise Interrupted("the conversion was stopped", where=target_path)
        daemon, monitor = copy.start(workdir)
        with monitor, daemon:
            return asyncio.run(copy.run(daemon, monitor))
    finally:
        if isinstance(image, socket.socket):
            image.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One conversion."""

    image: socket.socket | str
    format: Format
    virtual_size: int
    target: TargetDisk
    policy: Policy
    on_progress: Callable[[int, int], None]
    on_written: Callable[[int], None]
    bandwidth: Callable[[], int] | None
    cancelled: threading.Event

    @property
    def sectors_size(self) -> int:
        return -(-self.virtual_size // SECTOR) * SECTOR

    @property
    def direct(self) -> bool:
        """Past the page cache, where the target takes it and both the disk and the target end on a block's boundary:
        the mirror writes its last piece no longer than it is, and QEMU would have to make an odd target longer.
        """
        return self.target.direct and self.sectors_size % ALIGNMENT == 0 and self.target.size % ALIGNMENT == 0

    def bytes_node(self) -> dict[str, Any]:
        """What the image is stored in."""
        if isinstance(self.image, str):
            node: dict[str, Any] = {
                "driver": "host_device" if stat.S_ISBLK(os.stat(self.image).st_mode) else "file",
                "filename": self.image,
                "locking": "off",
            }
        else:
            node = {"driver": "nbd", "server": {"type": "fd", "str": str(self.image.fileno())}}
        return node | {"node-name": "bytes", "read-only": True, "auto-read-only": False}

    def image_node(self) -> dict[str, Any]:
        """The disk in it."""
        node: dict[str, Any] = {"driver": self.format, "node-name": "image", "file": "bytes", "read-only": True}
        if self.format in ("qcow2", "vmdk"):
            node["backing"] = None
        return node

    def target_nodes(self) -> list[dict[str, Any]]:
        """The disk: a window of the image's size at the front of the target."""
        # With "unmap" the mirror first makes all of the target zero, then copies data: right where that is cheap.
        # With "ignore" it makes each place zero that needs it, so a device that has to write zeros writes each once.
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

    def start(self, workdir: str) -> tuple[sandbox.Confined, socket.socket]:
        """The daemon, and its monitor; raises `QemuMissing`."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ["--chardev", f"socket,id=monitor,fd={theirs.fileno()}", "--monitor", "chardev=monitor"]
            # Only here may a node take an inherited descriptor by its number.
            arguments += ["--blockdev", json.dumps(self.bytes_node())]
            inherited = [theirs.fileno()]
            readable: tuple[str, ...] = ()
            if isinstance(self.image, str):
                readable = (self.image,)
            else:
                inherited.append(self.image.fileno())
            try:
                confined = sandbox.start(
                    "qemu-storage-daemon",
                    arguments,
                    limits=sandbox.Limits(
                        memory=self.policy.qemu_memory,
                        cpu_seconds=self.policy.qemu_cpu_seconds,
                        file_size=max(self.target.size, self.sectors_size),
                    ),
                    access=sandbox.Access(read=readable, write=(self.target.path,)),
                    workdir=workdir,
                    pass_fds=tuple(inherited),
                )
            except BaseException:
                ours.close()
                raise
        return confined, ours

    async def run(self, daemon: sandbox.Confined, monitor: socket.socket) -> ConvertResult:
        """Drive the daemon to the end of the copy."""
        # Here, not above: only a conversion pays for it.
        from qemu.qmp import QMPClient, QMPError

        client = QMPClient("convert")
        client.logger.disabled = True  # it logs what is raised anyway
        watcher = asyncio.create_task(self._stop_when_cancelled(daemon))
        try:
            await client.connect(monitor)
            copied, written = await self._copy(client, daemon.pid)
            with contextlib.suppress(QMPError, EOFError, OSError, TimeoutError):
                await asyncio.wait_for(client.execute("quit"), GRACE)
                await asyncio.to_thread(self._let_end, daemon)
            return ConvertResult(
                virtual_size=self.sectors_size,
                copied=copied,
                written=written,
                direct=self.direct,
                protections=daemon.protections(),
            )
        except (QMPError, EOFError, OSError) as error:
            raise await self._ended(daemon, error) from error
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            # Not "quit": a job that hangs would be waited for.
            daemon.kill()
            with contextlib.suppress(QMPError, EOFError, OSError):
                await client.disconnect()
            if not self.target.is_block and self.sectors_size > self.target.size:
                # A size that is no multiple of 512 was rounded up to write the last sector.
                os.truncate(self.target.path, self.target.size)

    # --- the job ------------------------------------------------------------------------------------------------

    async def _copy(self, client: QMPClient, daemon: int) -> tuple[int, int]:
        """Gives `ConvertResult.copied` and `written`."""
        await self._open_image(client)
        await self._open_target(client)
        before = bytes_given(daemon)
        speed = self._speed()
        with client.listener(("JOB_STATUS_CHANGE", "BLOCK_JOB_ERROR")) as events:
            await client.execute(
                "blockdev-mirror",
                {
                    "job-id": "copy",
                    "device": "image",
                    "target": "target",
                    # The image is its only layer, so "top" is all of it; said this way, places that no layer has data
                    # for are left as they are.
                    "sync": "top" if self.target.reads_zero else "full",
                    "granularity": PIECE,
                    "buf-size": BUFFER,
                    "speed": speed,
                    "auto-dismiss": False,
                    "on-source-error": "report",
                    "on-target-error": "report",
                },
            )
            patience = Patience(self.policy)
            while True:
                jobs: Any = await client.execute("query-jobs")
                (job,) = jobs
                done, total = int(job["current-progress"]), int(job["total-progress"])
                self.on_progress(done, total)
                written = self._written(daemon, before, done)
                self.on_written(written)
                if patience.spent(done, throttled=speed > 0):
                    raise QemuFailed(f"qemu-storage-daemon made no progress for {patience.seconds:.0f} seconds")
                if job["status"] == "concluded":
                    if "error" in job:
                        history: Any = events.history
                        sides = [event["data"]["operation"] for event in history if "operation" in event["data"]]
                        raise self._job_error(str(job["error"]), sides[0] if sides else None)
                    return total, written
                if job["status"] == "ready":
                    # Not job-complete, which would put the target in the image's place; a cancel of a job that is
                    # ready ends it with the copy whole.
                    await client.execute("block-job-cancel", {"device": "copy"})
                if (wanted := self._speed()) != speed:
                    speed = wanted
                    await client.execute("block-job-set-speed", {"device": "copy", "speed": speed})
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(events.get(), POLL)

    def _written(self, daemon: int, before: int | None, done: int) -> int:
        now = bytes_given(daemon)
        grown = bytes_grown(self.target)
        if before is not None and now is not None:
            return max(now - before, grown)
        return done if self.target.is_block else grown

    def _speed(self) -> int:
        return max(0, self.bandwidth()) if self.bandwidth is not None else 0

    async def _open_image(self, client: QMPClient) -> None:
        from qemu.qmp import ExecuteError

        where = self.image if isinstance(self.image, str) else None
        try:
            await client.execute("blockdev-add", self.image_node())
        except ExecuteError as error:
            said = sandbox.printable(str(error))
            raise QemuFailed(f"QEMU cannot open the {self.format} image: {said}", where=where) from error
        nodes: Any = await client.execute("query-named-block-nodes", {"flat": True})
        (size,) = (node["image"]["virtual-size"] for node in nodes if node["node-name"] == "image")
        if size != self.sectors_size:
            raise ImageCorrupt(
                f"QEMU sees a {self.format} disk of {size} bytes, its header was read as {self.virtual_size}",
                where=where,
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
        """`text` is strerror's, in the C locale; `side` whether reading or writing failed, None where unsaid."""
        number = next((n for n in errno.errorcode if os.strerror(n) == text), None)
        if side == "write" or number in (errno.ENOSPC, errno.EDQUOT):
            return target_error(number, self.target.path)
        where = self.image if isinstance(self.image, str) else None
        return QemuFailed(f"reading the {self.format} image failed: {sandbox.printable(text)}", where=where)

    # --- its end ------------------------------------------------------------------------------------------------

    async def _stop_when_cancelled(self, daemon: sandbox.Confined) -> None:
        """Kill the daemon when asked to: what it wrote is of no use to a later attempt, so nothing is lost."""
        while not self.cancelled.is_set():  # noqa: ASYNC110 — it is set by a thread that knows no event loop
            await asyncio.sleep(POLL)
        daemon.process.kill()

    async def _ended(self, daemon: sandbox.Confined, error: Exception) -> CdiError:
        """Why the daemon does not answer any more."""
        from qemu.qmp import ExecuteError

        if self.cancelled.is_set():
            return Interrupted("the conversion was stopped", where=self.target.path)
        if isinstance(error, ExecuteError):
            return QemuFailed(f"qemu-storage-daemon refused: {sandbox.printable(str(error))}")
        status = await asyncio.to_thread(self._let_end, daemon)
        if status == 0:
            return QemuFailed("qemu-storage-daemon ended early")
        return daemon.failure(where=self.image if isinstance(self.image, str) else None)

    def _let_end(self, daemon: sandbox.Confined) -> int:
        try:
            return daemon.wait(timeout=GRACE)
        except CdiError:
            return daemon.process.returncode


class Patience:
    """How long a job may stand still.

    Longer than a source may take until it gives up, because then its error is the better one; what is left is QEMU
    itself, which a hostile image may have sent to sleep.
    """

    def __init__(self, policy: Policy) -> None:
        self.seconds = 120 + policy.stall_timeout * (policy.retries + 1) * 2
        self._done = -1
        self._since = 0.0

    def spent(self, done: int, *, throttled: bool) -> bool:
        """Whether it stood still for so long; a job that is held back on purpose never does."""
        now = time.monotonic()
        if done != self._done or throttled:
            self._done, self._since = done, now
        return now - self._since > self.seconds
