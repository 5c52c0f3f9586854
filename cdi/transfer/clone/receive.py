"""Clone target: fills a volume from another worker's source, `CopyTargetJob` → `Outcome`.

The source may disconnect and return as another process or pod; each time it learns where to resume. The volume is
always correct up to the watermark, and so is the journal.
"""

from __future__ import annotations

import ssl
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from cdi.api.copy import CopyTargetJob
from cdi.api.errors import (
    CdiError,
    InternalError,
    Interrupted,
    PeerProtocolError,
    PeerUnreachable,
    Retry,
    SourceChanged,
    TargetTooSmall,
    TargetUnsuitable,
)
from cdi.api.job import DirectoryTargetSpec, Outcome
from cdi.image.sizes import format_size
from cdi.target.base import Target
from cdi.target.directory import DirectoryTarget
from cdi.target.errors import error_from_errno, map_os_errors
from cdi.target.open import open_target
from cdi.transfer.cleanup import discard_unfinished
from cdi.transfer.clone import frames
from cdi.transfer.clone.digest import CHUNK, format_digest
from cdi.transfer.clone.frames import Done, Fail, Hello, Kind, Welcome
from cdi.transfer.clone.listener import PeerListener
from cdi.transfer.clone.peer_connection import PeerConnection
from cdi.transfer.clone.receiver import DiskReceiver, FrameReader, KeepAlive, ResumePoint
from cdi.transfer.clone.tls import server_context
from cdi.transfer.control import TransferControl
from cdi.transfer.journal import Journal, encode_state, mark_dirty, remove
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.run import failure_of

PATH = "copy"
DONE_TIMEOUT = 10.0
"""Seconds for which the target tries to report completion to the source; the result does not depend on it."""
_SOURCE_ERRORS = (PeerUnreachable, PeerProtocolError)


def receive(job: CopyTargetJob, control: TransferControl, ready: Callable[[int], None] = lambda _port: None) -> Outcome:
    """Run `job` and return its outcome; `ready` is called with the port once a source may connect.

    Never raises: the outcome contains the failure. Its `fetched` counts the bytes received from the network.
    """
    began = time.monotonic()
    result = OutcomeBuilder(job.id, path=PATH)
    try:
        _receive(job, control, result, ready)
    except CdiError as error:
        result.failure = failure_of(error)
        try:
            discard_unfinished(job.as_job(), error, begun=result.target_modified)
        except CdiError as another:
            result.warn(f"cannot wipe the unfinished disk: {another.what}")
    except Exception as error:  # noqa: BLE001 - outermost handler: a defect becomes the reported failure
        traceback.print_exc()
        result.failure = failure_of(InternalError(f"{type(error).__name__}: {error}"))
    control.meter.phase = "done"
    result.fetched = control.meter.fetched
    result.seconds = round(time.monotonic() - began, 3)
    return result.outcome()


class _CloneTarget(Protocol):
    """Target volume."""

    def fill(self, listener: FrameReader, hello: Hello, welcome: Callable[[Welcome], None]) -> bytes:
        """Process everything between HELLO and DONE and commit the volume; return the digest."""
        ...

    @property
    def safe(self) -> int: ...

    def invalidate(self) -> None:
        """Discard what was received: the source's content has changed."""
        ...

    def close(self) -> None: ...


def _receive(
    job: CopyTargetJob, control: TransferControl, result: OutcomeBuilder, ready: Callable[[int], None]
) -> None:
    context = server_context(job.tls)
    volume: _CloneTarget = (
        _Directory(job, control, result) if job.content_type == "archive" else _Disk(job, control, result)
    )
    try:
        door = _opened(job, context)
        try:
            ready(door.port)
            _ReceiveLoop(job, control, result, door, volume).run()
        finally:
            door.close()
    finally:
        volume.close()


def _opened(job: CopyTargetJob, context: ssl.SSLContext) -> PeerListener:
    try:
        return PeerListener(job.port, context, job.client_name)
    except OSError as error:
        raise InternalError(f"cannot listen on port {job.port}: {error.strerror}") from error


class _ReceiveLoop:
    """Loop that serves one source connection after the other until the volume is complete."""

    def __init__(
        self,
        job: CopyTargetJob,
        control: TransferControl,
        result: OutcomeBuilder,
        door: PeerListener,
        volume: _CloneTarget,
    ) -> None:
        self._job = job
        self._control = control
        self._result = result
        self._door = door
        self._volume = volume
        self._done: bytes | None = None

    def run(self) -> None:
        """Serve sources until the volume is complete; may raise `CdiError`."""
        refused = 0
        self._control.meter.message = "waiting for the source"
        while True:
            guest = self._door.next(self._job.patience, self._check)
            if guest is None:
                raise PeerUnreachable(f"no source connected for {self._job.patience:.0f} s")
            tls, address = guest
            line = PeerConnection(tls, address, stall=self._job.policy.stall_timeout, check=self._check_receiver)
            listener = FrameReader(line)
            try:
                self._serve_connection(listener)
                return
            except CdiError as error:
                if isinstance(error, Interrupted) and not self._control.cancelled.is_set():
                    error = PeerUnreachable("superseded by a newer source connection", where=address)
                elif not isinstance(error, (Interrupted, PeerUnreachable)) and not listener.peer_failed:
                    line.linger_close(frames.encode_message(Fail.of(error)))
                refused += isinstance(error, PeerProtocolError)
                if isinstance(error, SourceChanged):
                    self._volume.invalidate()
                if refused > self._job.policy.retries or not self._may_pass(error):
                    raise error from None
                self._result.warn(f"{error.code}: {error.what}")
                self._control.meter.record_failure(error, f"waiting for the source: {error.what}")
            finally:
                line.close()

    def _may_pass(self, error: CdiError) -> bool:
        """Return whether another source connection may succeed; failures of the volume need another attempt."""
        if isinstance(error, _SOURCE_ERRORS):
            return True
        return error.retry is Retry.BACKOFF and error.exit_status == SourceChanged.exit_status

    def _serve_connection(self, listener: FrameReader) -> None:
        hello = listener.hello()
        if hello.protocol != frames.PROTOCOL or hello.job != self._job.id or hello.content != self._job.content_type:
            raise PeerProtocolError(
                f"the source does not match this job: content {hello.content}, protocol {hello.protocol}, "
                f"job {hello.job[:100]!r}"
            )
        told = False

        def welcome(words: Welcome) -> None:
            nonlocal told
            with listener.lock:
                listener.line.send(frames.encode_message(words))
                told = True

        self._control.meter.clear_failure()
        with KeepAlive(listener, lambda: self._volume.safe if told else 0):
            digest = self._volume.fill(listener, hello, welcome)
        self._result.digest = format_digest(digest)
        self._send_done(listener, digest)

    def _send_done(self, listener: FrameReader, digest: bytes) -> None:
        """Report completion to the source, which may fail: the disk is already committed."""
        with suppress(CdiError):
            listener.send(frames.encode_message(Done(digest=digest.hex())))
            until = time.monotonic() + DONE_TIMEOUT
            while listener.line.header(until).kind is not Kind.BYE:
                pass

    def _check(self) -> None:
        if self._control.cancelled.is_set():
            raise Interrupted("the clone was interrupted")

    def _check_receiver(self) -> None:
        self._check()
        if self._door.has_pending():
            raise Interrupted("superseded by a newer source connection")


class _Disk:
    """Target that is a disk file or a device."""

    def __init__(self, job: CopyTargetJob, control: TransferControl, result: OutcomeBuilder) -> None:
        """Open the target, or raise its errors."""
        self._job = job
        self._control = control
        self._result = result
        self._target: Target = open_target(job.target)
        self._position = ResumePoint()
        self._validator: str | None = None
        """Validator of the content to which the position belongs; None if there is none yet."""
        self._receiver: DiskReceiver | None = None
        control.written = lambda: self._target.written

    @property
    def safe(self) -> int:
        return 0 if self._receiver is None else self._receiver.safe

    def invalidate(self) -> None:
        self._validator = None
        with map_os_errors(self._job.target.path):
            remove(self._job.journal)

    def close(self) -> None:
        written = self._target.written
        self._result.written = written
        self._control.written = lambda: written
        self._target.close()

    def fill(self, listener: FrameReader, hello: Hello, welcome: Callable[[Welcome], None]) -> bytes:
        """Receive the disk, verify and commit it; return the digest.

        Raises:
            TargetTooSmall: the disk does not fit; nothing was written.
            CdiError: the target or `DiskReceiver.run` failed.
        """
        target, result, meter = self._target, self._result, self._control.meter
        disk_size = self._disk_size(hello)
        result.format, result.virtual_size, result.validator = "raw", hello.size, hello.validator
        meter.total = hello.data
        resumed = not hello.fresh and self._resume(hello, disk_size)
        if not resumed:
            self._begin(hello, disk_size)
        position = self._position
        result.resumed_at = position.watermark
        meter.restart(f"resumed at {format_size(position.watermark)}" if position.watermark else "", position.data)
        meter.phase = "transferring"
        # Beyond the watermark there may be data of an earlier source where the content is zero now.
        receiver = DiskReceiver(
            listener,
            hello,
            target,
            position,
            meter,
            self._checkpoint(hello, disk_size),
            zeros=resumed or not target.reads_zero,
        )
        self._receiver = receiver
        state = "" if position.state is None or not position.watermark else position.state.hex()
        welcome(Welcome(watermark=position.watermark, state=state, data=position.data))
        digest = receiver.run()
        meter.phase = "verifying"
        result.verified("length")
        result.verified("content digest")
        if self._job.policy.preallocation:
            target.preallocate()
            result.preallocated = True
        meter.phase = "flushing"
        target.commit()
        meter.advance(hello.data)
        with map_os_errors(self._job.target.path):
            remove(self._job.journal)
        result.disk_size = disk_size
        return digest

    def _disk_size(self, hello: Hello) -> int:
        """Return the size of the disk on the volume, or raise `TargetTooSmall`.

        A disk file has its source's size to the byte, however large the volume is: it is the same file, and a virtual
        machine's disk is expanded by the program that runs the machine.
        """
        target, wanted = self._target, self._job.size
        if target.capacity is None:
            size, room = hello.size, hello.size if wanted is None else wanted
        else:
            size = target.capacity if wanted is None else wanted
            room = min(size, target.capacity)
        if hello.size > room:
            raise TargetTooSmall(
                f"the source disk has {format_size(hello.size)} ({hello.size} bytes), "
                f"the target {format_size(room)} ({room} bytes)",
                where=self._job.target.path,
                remedy="request at least the source's size",
            )
        return size

    def _resume(self, hello: Hello, disk_size: int) -> bool:
        """Find the resume point: in memory, or in the journal of an earlier attempt."""
        if self._validator is None:
            journal = None if self._job.journal is None else Journal.load(self._job.journal)
            if journal is None or journal.job != self._job.id or journal.path != PATH or journal.length != hello.size:
                return False
            found = ResumePoint.restored(journal.watermark, journal.digest_state)
            place = journal.watermark
            if found is None or place > hello.size or (place % CHUNK and place != hello.size):
                return False
            if journal.disk_size != disk_size:
                return False
            if self._target.capacity is None and self._target.size != disk_size:
                return False
            self._position, self._validator = found, journal.validator
            self._target.resize(disk_size)
            self._result.target_modified = True
        if self._validator != hello.validator:
            self._result.warn("the source changed since an earlier attempt; starting over")
            return False
        return self._position.watermark > 0

    def _begin(self, hello: Hello, disk_size: int) -> None:
        """Size and reset the disk, so that nothing of an earlier attempt remains."""
        target = self._target
        self._validator, self._position, self._receiver = None, ResumePoint(), None
        self._result.target_modified = True
        if self._job.journal is not None:
            with map_os_errors(self._job.journal):
                mark_dirty(self._job.journal)
        target.resize(disk_size)
        target.reset()
        if self._job.policy.preallocation:
            target.preallocate()
            self._result.preallocated = True
        # The disk must read as zeros beyond the source, and block devices keep old data.
        if not target.reads_zero and disk_size > hello.size:
            target.zero(hello.size, disk_size - hello.size)
        self._validator = hello.validator

    def _checkpoint(self, hello: Hello, disk_size: int) -> Callable[[int, bytes | None], None] | None:
        path = self._job.journal

        def checkpoint(watermark: int, state: bytes | None) -> None:
            self._target.flush()
            if path is None:
                return
            try:
                Journal(
                    job=self._job.id,
                    path=PATH,
                    validator=hello.validator,
                    length=hello.size,
                    watermark=watermark,
                    disk_size=disk_size,
                    algorithm=None,
                    digest_state=encode_state(state),
                ).save(path)
            except OSError as error:
                raise error_from_errno(error, path) from error

        return checkpoint


class _Directory:
    """Target that is a directory, filled from an archive."""

    safe = 0

    def __init__(self, job: CopyTargetJob, control: TransferControl, result: OutcomeBuilder) -> None:
        """Open the target, or raise its errors."""
        if not isinstance(job.target, DirectoryTargetSpec):
            raise TargetUnsuitable("an archive requires a directory, not a disk", where=job.target.path)
        self._target = DirectoryTarget(job.target)
        self._committed = False
        self._control = control
        self._result = result
        control.written = lambda: self._target.written

    def invalidate(self) -> None:
        """Do nothing: each attempt starts over."""

    def close(self) -> None:
        self._result.written = self._target.written
        try:
            if not self._committed:
                self._target.wipe()
        finally:
            self._target.close()

    def fill(self, listener: FrameReader, hello: Hello, welcome: Callable[[Welcome], None]) -> bytes:
        """Unpack the archive and return the digest; on an error of `ArchiveReceiver.run` the directory is unchanged."""
        from cdi.transfer.clone.archive import ArchiveReceiver

        meter = self._control.meter
        meter.total = hello.data
        meter.restart("")
        meter.phase = "transferring"
        self._result.format = "archive"
        receiver = ArchiveReceiver(listener, self._target, meter, listener.line.check)
        welcome(Welcome(watermark=0, state=""))
        digest = receiver.run()
        self._result.verified("content digest")
        meter.phase = "flushing"
        self._target.commit()
        self._committed = True
        meter.advance(hello.data)
        return digest
