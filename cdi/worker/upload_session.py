"""Upload session of one volume: one upload at a time, until one of them fills the volume.

An upload is a transfer whose source is fed by requests. After an upload that fails for a reason of its own (not an
image, too large, truncated) another may follow; any other failure, and success, end the session and so the pod.
"""

from __future__ import annotations

import enum
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


class SessionState(enum.Enum):
    """State of a session; the values are those of ``/progress``."""

    WAITING = "waiting"
    """There is no upload."""
    RECEIVING = "receiving"
    FINISHING = "finishing"
    """The whole content was received; its transfer goes on."""
    REMOVING = "removing"
    """The upload was cancelled, and what it has written is being removed."""
    DONE = "done"
    """The session has its outcome, and accepts no upload."""


class UploadTransfer:
    """One upload with its transfer, which runs in a thread of its own."""

    def __init__(
        self, job: Job, source: UploadSource, upload: UploadId | None, ended: Callable[[UploadTransfer], None]
    ) -> None:
        """Create the transfer; `ended` is called in its thread after it has ended, with `outcome` set."""
        self.source = source
        self.upload = upload
        self.job = job
        self.control = TransferControl(job)
        self.outcome: Outcome | None = None
        self._done = threading.Event()
        self._ended = ended
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)

    def __repr__(self) -> str:
        name = "an upload" if self.upload is None else f"upload {self.upload}"
        return f"<UploadTransfer of {name}: {self.control.meter.phase}, {self.source!r}>"

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        self.outcome = transfer(self.job, self.control, lambda: self.source)
        self.source.close()
        self._ended(self)
        self._done.set()
        self.control.validated.set()

    @property
    def failure(self) -> Failure | None:
        return self.outcome.failure if self.outcome is not None else None

    def wait(self, seconds: float | None = None) -> Failure | None:
        """Wait until the volume is complete or the upload has failed, at most for `seconds`; return the failure."""
        self._done.wait(seconds)
        return self.failure

    def wait_validated(self) -> Failure | None:
        """Wait until the content is complete and has been validated; return the failure.

        Only what can be validated before the conversion is waited for.
        """
        (self.control.validated if self.source.complete else self._done).wait()
        return self.failure


class Session(TransferControl):
    """Control of an upload server, which forwards requests to the control of the current upload.

    Its states are those of `SessionState`::

                 begin            all received                success, or a failure
        WAITING ───────► RECEIVING ──────────► FINISHING ───► of the volume: DONE
           ▲                 │  │ a failure of    │
           │                 │  └ the upload ─────┤
           ├─────────────────│────────────────────┘
           └── REMOVING ◄────┘ terminated, expired, superseded, restarted

    A stop of the server leads from every state to DONE.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.job = job
        self.outcome: Outcome | None = None
        self.last_failure: Failure | None = None
        """Failure of the latest upload that allowed another one."""
        self._limits: Limits | None = None
        self._current: UploadTransfer | None = None
        """The upload of the states RECEIVING, FINISHING and REMOVING."""
        self._state = SessionState.WAITING
        self._cond = threading.Condition()
        """Notified of every change of the state.  A thread waits for a transfer on this condition, because the transfer
        needs its lock to end.
        """
        self._tombstones: dict[str, str] = {}
        """Names of removed uploads, with the reason."""
        self._finished: UploadId | None = None

    def __repr__(self) -> str:
        return f"<Session of {self.job.id}: {self._state.value}, {self._current!r}>"

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
        with self._cond:
            current = self._current
        if current is not None:
            current.control.cancel()
            current.wait(_STOPPING)
        self._end(Outcome(id=self.job.id, failure=failure_of(Interrupted("the upload server was stopped"))))

    # --- uploads ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        return self._state

    def wait_done(self, seconds: float | None = None) -> bool:
        """Wait until the session has its outcome, at most for `seconds`; return whether it has."""
        with self._cond:
            return self._cond.wait_for(lambda: self._state is SessionState.DONE, seconds)

    def require_idle(self) -> None:
        """Check that an upload may begin, and remove a resumable one that has been idle for `PREEMPT_AFTER`.

        Raises:
            AlreadyUploaded: The volume is complete.
            UploadUnderWay: Another upload is in progress.
            UploadNotReady: The session has ended with a failure.

        """
        with self._cond:
            self._expire()
            if self._state is SessionState.WAITING:
                return
            if self._state is SessionState.DONE:
                if self.outcome is not None and self.outcome.failure is None:
                    raise AlreadyUploaded("the volume is already populated")
                raise UploadNotReady("the upload server is shutting down", remedy="send it again in a few seconds")
            current = self._current
            assert current is not None
            receiving = self._state is SessionState.RECEIVING
            if current.upload is None or not receiving or current.source.idle < PREEMPT_AFTER:
                raise UploadUnderWay("another upload is in progress")
            self._remove(current, "superseded by a newer upload")

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
        source = UploadSource(
            length=length,
            body_length=body_length,
            digests=digests,
            on_complete=lambda: self._received(source),
        )
        return self._begin(source, None)

    def begin_resumable(self, length: int, digest: Digest | None) -> UploadId:
        """Begin a resumable upload and return its id; raises the errors of `require_idle`."""
        upload = UploadId(nonce=secrets.token_hex(16), length=length, digest=digest)
        self._begin_named(upload)
        return upload

    def _begin_named(self, upload: UploadId) -> UploadTransfer:
        source = UploadSource(
            length=upload.length,
            digests=(upload.digest,) if upload.digest is not None else (),
            validator=str(upload),
            resumes=True,
            on_complete=lambda: self._received(source),
        )
        return self._begin(source, upload)

    def _begin(self, source: UploadSource, upload: UploadId | None) -> UploadTransfer:
        with self._cond:
            self.require_idle()
            spec = StreamSourceSpec(length=source.probe().length)
            attempt = UploadTransfer(replace(self.job, source=spec), source, upload, self._transfer_ended)
            if self._limits is not None:
                attempt.control.limit(self._limits)
            self._enter(SessionState.RECEIVING, attempt)
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
        with self._cond:
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
            if another or self._state is not SessionState.WAITING:
                raise UploadUnknown("another upload is in progress")
            return self._begin_named(upload)

    def terminate(self, upload: UploadId, why: str = "terminated by its client") -> None:
        """End a resumable upload and remove what it has written to the volume.

        Raises:
            UploadUnknown: It has ended or been removed.

        """
        with self._cond:
            attempt = self.find(upload)
            if attempt is None or self._state is not SessionState.RECEIVING:
                raise UploadUnknown("the upload has ended")
            self._remove(attempt, why)

    def restart(self, attempt: UploadTransfer) -> None:
        """Restart a resumable upload at byte 0 under the same name, because the received data is wrong."""
        with self._cond:
            self._expire()
            if attempt.upload is not None and self._current is attempt and self._state is not SessionState.DONE:
                self._remove(attempt, "")
                del self._tombstones[str(attempt.upload)]
                self._begin_named(attempt.upload)

    # --- changes of the state; `_cond` is held ---------------------------------------------------------------------

    def _enter(self, state: SessionState, current: UploadTransfer | None) -> None:
        LOG.debug("upload session: %s -> %s", self._state.value, state.value)
        self._state, self._current = state, current
        self._cond.notify_all()

    def _expire(self) -> None:
        """Wait until no upload is being removed, then remove one that has expired."""
        self._cond.wait_for(lambda: self._state is not SessionState.REMOVING)
        current = self._current
        if self._state is SessionState.RECEIVING and current is not None and current.source.idle > EXPIRES:
            self._remove(current, "expired")

    def _remove(self, attempt: UploadTransfer, why: str) -> None:
        """Stop an upload and remove what it has written; other threads wait for that in `_expire`."""
        self._enter(SessionState.REMOVING, attempt)
        attempt.control.cancel()
        self._cond.wait_for(lambda: attempt.outcome is not None, _STOPPING)
        discard_unfinished(attempt.job, UploadUnknown(why), begun=True)
        self._record_removal(attempt, why)
        if self._state is SessionState.REMOVING:
            self._enter(SessionState.WAITING, None)

    def _record_removal(self, attempt: UploadTransfer, why: str) -> None:
        if attempt.upload is not None:
            self._tombstones[str(attempt.upload)] = why
            while len(self._tombstones) > _MAX_TOMBSTONES:
                del self._tombstones[next(iter(self._tombstones))]

    # --- changes of the state by the transfer's thread -------------------------------------------------------------

    def _received(self, source: UploadSource) -> None:
        with self._cond:
            if self._state is SessionState.RECEIVING and self._current is not None and self._current.source is source:
                self._enter(SessionState.FINISHING, self._current)

    def _transfer_ended(self, attempt: UploadTransfer) -> None:
        outcome, failure = attempt.outcome, attempt.failure
        assert outcome is not None
        with self._cond:
            self._cond.notify_all()
            if self._current is not attempt or self._state not in {SessionState.RECEIVING, SessionState.FINISHING}:
                return
            if failure is not None:
                LOG.info(upload_log_text(failure))
            if failure is not None and is_of_the_upload(_error_of(failure)):
                self._record_removal(attempt, failure.message)
                self.last_failure = failure
                self._enter(SessionState.WAITING, None)
                return
            if failure is None:
                self._finished = attempt.upload
            self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        with self._cond:
            if self.outcome is None:
                self.outcome = outcome
            self._enter(SessionState.DONE, self._current)


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
