"""Upload session of one volume: one upload at a time, until one of them fills the volume.

An upload is a transfer whose source is fed by requests. After an upload that fails for a reason of its own (not an
image, too large, truncated) another may follow; any other failure, and success, end the session and so the pod.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace

from cdi.api.digest import Digest
from cdi.api.errors import (
    AlreadyUploaded,
    CdiError,
    Interrupted,
    ScratchNeeded,
    TargetTooSmall,
    UploadNotReady,
    UploadUnderWay,
    UploadUnknown,
    by_code,
)
from cdi.api.importer_messages import upload_log_text, upload_response_text
from cdi.api.job import (
    BlockTargetSpec,
    DirectoryTargetSpec,
    Failure,
    Job,
    Limits,
    Outcome,
    Progress,
    StreamSourceSpec,
)
from cdi.api.upload_protocol import UploadId, is_of_the_upload
from cdi.image.sizes import MAX_DISK, format_size, largest_file
from cdi.source.upload import UploadSource
from cdi.transfer.cleanup import discard_unfinished
from cdi.transfer.control import TransferControl
from cdi.transfer.journal import Journal
from cdi.transfer.run import failure_of, transfer

LOG = logging.getLogger(__name__)

EXPIRES = 24 * 3600.0
"""Seconds without a request after which a resumable upload is removed."""
PREEMPT_AFTER = 60.0
"""Seconds without a request after which another upload may replace it."""
_STOPPING = 60.0
"""Seconds that a cancelled transfer has to end."""
_MAX_TOMBSTONES = 100
_POLL_INTERVAL = 0.02


class UploadTransfer:
    """One upload with its transfer, which runs in a thread of its own."""

    def __init__(
        self, job: Job, source: UploadSource, upload: UploadId | None, ended: Callable[[UploadTransfer], None]
    ) -> None:
        self.source = source
        self.upload = upload
        self.job = job
        self.control = TransferControl(job)
        self.outcome: Outcome | None = None
        self.dropped = False
        self.done = threading.Event()
        self._ended = ended
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        self.outcome = transfer(self.job, self.control, self.source)
        self.source.close()
        self._ended(self)
        self.done.set()

    @property
    def failure(self) -> Failure | None:
        return self.outcome.failure if self.outcome is not None else None

    def wait(self) -> Failure | None:
        """Wait until the volume is complete or the upload has failed; return the failure."""
        self.done.wait()
        return self.failure

    def wait_validated(self) -> Failure | None:
        """Wait until the content is complete and has been validated; return the failure.

        Only what can be validated before the conversion is waited for.
        """
        while not self.done.wait(_POLL_INTERVAL):
            # The phase "done" does not count: it is set after a failure too, just before the outcome is.
            if self.source.complete and self.control.meter.phase in {"converting", "flushing"}:
                return None
        return self.failure

    def stop(self) -> None:
        self.control.cancel()
        self.done.wait(_STOPPING)


class Session(TransferControl):
    """Control of an upload server, which forwards requests to the control of the current upload."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.job = job
        self.ended = threading.Event()
        self.outcome: Outcome | None = None
        self.last_failure: Failure | None = None
        """Failure of the latest upload that allowed another one."""
        self._limits: Limits | None = None
        self._current: UploadTransfer | None = None
        self._turn = threading.RLock()
        self._tombstones: dict[str, str] = {}
        """Names of removed uploads, with the reason."""
        self._finished: UploadId | None = None

    # --- control ------------------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        current = self._current
        if current is None:
            return Progress(phase="preparing", done=0, total=None, note="waiting for an upload")
        return current.control.progress()

    def limit(self, limits: Limits) -> None:
        self._limits = limits
        current = self._current
        if current is not None:
            current.control.limit(limits)

    def cancel(self) -> None:
        """Stop the current upload, keep its progress, and end the session."""
        super().cancel()
        with self._turn:
            current = self._current
        if current is not None:
            current.stop()
        self._end(Outcome(id=self.job.id, failure=failure_of(Interrupted("the upload server was stopped"))))

    # --- uploads ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``waiting``, ``receiving``, ``finishing`` or ``done``."""
        if self.ended.is_set():
            return "done"
        current = self._current
        if current is None:
            return "waiting"
        return "finishing" if current.source.complete else "receiving"

    def require_idle(self) -> None:
        """Check that an upload may begin, and remove a resumable one that has been idle for `PREEMPT_AFTER`.

        Raises:
            AlreadyUploaded: The volume is complete.
            UploadUnderWay: Another upload is in progress.
            UploadNotReady: The session has ended with a failure.

        """
        with self._turn:
            self._expire()
            if self.ended.is_set():
                if self.outcome is not None and self.outcome.failure is None:
                    raise AlreadyUploaded("the volume is already populated")
                raise UploadNotReady("the upload server is shutting down", remedy="send it again in a few seconds")
            current = self._current
            if current is None:
                return
            if current.upload is None or current.source.complete or current.source.idle < PREEMPT_AFTER:
                raise UploadUnderWay("another upload is in progress")
            self._drop(current, "superseded by a newer upload")

    def check_room(self, length: int) -> None:
        """Raise `TargetTooSmall` if no image in a file of `length` bytes fits the volume.

        The content is not known yet: a compressed image is shorter than its disk, other formats are a little longer.
        """
        disk = min(self._room(), MAX_DISK)
        if length > largest_file(disk):
            raise TargetTooSmall(
                f"the upload has {length} bytes ({format_size(length)}) and the disk can have at most {disk} "
                f"({format_size(disk)})",
                remedy=(
                    "create a larger volume; if the image file is much larger than its disk, shrink it with "
                    "qemu-img convert"
                ),
            )

    def _room(self) -> int:
        """Return the maximum number of bytes on the volume, or `MAX_DISK` if it is unknown.

        The transfer checks the size again.
        """
        target = self.job.target
        if self.job.size is not None:
            return self.job.size
        try:
            if isinstance(target, BlockTargetSpec):
                with open(target.path, "rb", buffering=0) as device:
                    return device.seek(0, os.SEEK_END)
            directory = target.path if isinstance(target, DirectoryTargetSpec) else os.path.dirname(target.path)
            found = os.statvfs(directory or ".")
        except OSError:
            return MAX_DISK
        return found.f_blocks * found.f_frsize

    def begin(
        self, *, length: int | None = None, body_length: int | None = None, digests: tuple[Digest, ...] = ()
    ) -> UploadTransfer:
        """Begin an upload in one request.

        Args:
            length: Length of the content in bytes, if it is known.
            body_length: Length of the request's body in bytes, if the end of a form may follow the content in it.
            digests: Digests that the content must have.

        Raises:
            CdiError: The errors of `require_idle`.

        """
        source = UploadSource(location="the upload", length=length, body_length=body_length, digests=digests)
        return self._begin(source, None)

    def begin_resumable(self, length: int, digest: Digest | None) -> UploadId:
        """Begin a resumable upload and return its id; raises the errors of `require_idle`."""
        upload = UploadId(nonce=secrets.token_hex(16), length=length, digest=digest)
        self._begin_named(upload)
        return upload

    def _begin_named(self, upload: UploadId) -> UploadTransfer:
        source = UploadSource(
            location="the upload",
            length=upload.length,
            digests=(upload.digest,) if upload.digest is not None else (),
            validator=str(upload),
            resumes=True,
        )
        return self._begin(source, upload)

    def _begin(self, source: UploadSource, upload: UploadId | None) -> UploadTransfer:
        with self._turn:
            self.require_idle()
            spec = StreamSourceSpec(length=source.probe().length)
            attempt = UploadTransfer(replace(self.job, source=spec), source, upload, self._attempt_ended)
            if self._limits is not None:
                attempt.control.limit(self._limits)
            self._current = attempt
            attempt.start()
        return attempt

    def find(self, upload: UploadId) -> UploadTransfer | None:
        """Return the transfer of a resumable upload; None if that upload has filled the volume.

        An upload that this session does not know was begun at an earlier pod: it continues from the journal that the
        pod has left, or starts again at byte 0.

        Raises:
            UploadUnknown: It was removed, or another upload is in progress.

        """
        name = str(upload)
        with self._turn:
            self._expire()
            if self._finished == upload:
                return None
            current = self._current
            if current is not None and current.upload == upload:
                return current
            if name in self._tombstones:
                raise UploadUnknown(f"the upload no longer exists: {self._tombstones[name]}")
            journal = None if self.job.journal is None else Journal.load(self.job.journal)
            another = journal is not None and journal.job == self.job.id and journal.validator not in {None, name}
            if current is not None or another or self.ended.is_set():
                raise UploadUnknown("another upload is in progress")
            return self._begin_named(upload)

    def terminate(self, upload: UploadId, why: str = "terminated by its client") -> None:
        """End a resumable upload and remove what it has written to the volume.

        Raises:
            UploadUnknown: It has ended or been removed.

        """
        with self._turn:
            attempt = self.find(upload)
            if attempt is None or attempt.source.complete:
                raise UploadUnknown("the upload has ended")
            self._drop(attempt, why)

    def restart(self, attempt: UploadTransfer) -> None:
        """Restart a resumable upload at byte 0 under the same name, because the received data is wrong."""
        with self._turn:
            if attempt.upload is not None and self._current is attempt:
                self._drop(attempt, "")
                del self._tombstones[str(attempt.upload)]
                self._begin_named(attempt.upload)

    def _drop(self, attempt: UploadTransfer, why: str) -> None:
        attempt.dropped = True
        attempt.stop()
        discard_unfinished(attempt.job, UploadUnknown(why), begun=True)
        self._forget(attempt, why)
        self._current = None

    def _forget(self, attempt: UploadTransfer, why: str) -> None:
        if attempt.upload is not None:
            self._tombstones[str(attempt.upload)] = why
            while len(self._tombstones) > _MAX_TOMBSTONES:
                del self._tombstones[next(iter(self._tombstones))]

    def _expire(self) -> None:
        current = self._current
        if current is not None and not current.source.complete and current.source.idle > EXPIRES:
            self._drop(current, "expired")

    def _attempt_ended(self, attempt: UploadTransfer) -> None:
        """Record the outcome; called by the transfer's own thread.

        A thread that drops an upload holds the lock while it waits for this one, so the lock must not be awaited then.
        """
        if attempt.dropped:
            return
        outcome, failure = attempt.outcome, attempt.failure
        assert outcome is not None
        if failure is not None:
            LOG.info(upload_log_text(failure))
        if failure is None:
            self._finished = attempt.upload
            self._end(outcome)
        elif is_of_the_upload(_error_of(failure)):
            while not self._turn.acquire(timeout=_POLL_INTERVAL):
                if attempt.dropped:
                    return
            try:
                self._forget(attempt, failure.message)
                self.last_failure = failure
                if self._current is attempt:
                    self._current = None
            finally:
                self._turn.release()
        else:
            self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
        self.ended.set()


def _error_of(failure: Failure) -> CdiError:
    return by_code(failure.code)(failure.message)


def client_failure(failure: Failure) -> Failure:
    """Return a transfer's failure with a message for the client."""
    if failure.code != ScratchNeeded.__name__:
        return replace(failure, message=upload_response_text(failure))
    return failure_of(
        ScratchNeeded(
            "this image needs scratch space, which is not available yet",
            remedy="send it again in a minute: the scratch space is being created",
        )
    )
