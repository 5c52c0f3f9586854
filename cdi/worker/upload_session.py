"""The uploads into one volume: one at a time, until one of them is the volume.

An upload is a transfer whose source is fed by requests.  One that fails for a reason of its own (no image, too large,
cut off) makes room for the next; any other failure, and success, end the session, and with it the pod.
"""

from __future__ import annotations

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
from cdi.image.sizes import MAX_DISK, human, largest_file
from cdi.source.fed import FedSource
from cdi.transfer.abandon import abandon
from cdi.transfer.control import Control
from cdi.transfer.journal import Journal
from cdi.transfer.run import failure_of, transfer

EXPIRES = 24 * 3600.0
"""Seconds after which a resumable upload that nobody went on with is removed."""
GIVES_WAY = 60.0
"""Seconds after which it is removed for the sake of another."""
_STOPPING = 60.0
"""The longest that a transfer takes to end once it was told to, seconds."""
_FAILED_KEPT = 100
_LOOK_SECONDS = 0.02


class Attempt:
    """One upload and its transfer, which runs in a thread of its own."""

    def __init__(self, job: Job, source: FedSource, upload: UploadId | None, ended: Callable[[Attempt], None]) -> None:
        self.source = source
        self.upload = upload
        self.job = job
        self.control = Control(job)
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
        """Until the volume is done, or the upload has failed."""
        self.done.wait()
        return self.failure

    def wait_validated(self) -> Failure | None:
        """Until all of it has come and was looked at, as far as that is possible before it is converted."""
        while not self.done.wait(_LOOK_SECONDS):
            # Not "done": that is said of a failure too, a moment before it can be told which.
            if self.source.complete and self.control.meter.phase in {"converting", "flushing"}:
                return None
        return self.failure

    def stop(self) -> None:
        self.control.cancel()
        self.done.wait(_STOPPING)


class Session(Control):
    """The control of a pod that takes uploads: what is asked of it is passed on to the upload under way."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.job = job
        self.ended = threading.Event()
        self.outcome: Outcome | None = None
        self.last_failure: Failure | None = None
        """Of an upload that made room for the next."""
        self._limits: Limits | None = None
        self._current: Attempt | None = None
        self._turn = threading.RLock()
        self._gone: dict[str, str] = {}
        """Names of uploads that are no more, and why."""
        self._finished: UploadId | None = None

    # --- as a control -------------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        current = self._current
        if current is None:
            return Progress(phase="preparing", done=0, total=None, note="waits for an upload")
        return current.control.progress()

    def limit(self, limits: Limits) -> None:
        self._limits = limits
        current = self._current
        if current is not None:
            current.control.limit(limits)

    def cancel(self) -> None:
        """The pod is to end; what can be gone on with is kept."""
        super().cancel()
        with self._turn:
            current = self._current
        if current is not None:
            current.stop()
        self._end(Outcome(id=self.job.id, failure=failure_of(Interrupted("the upload server was stopped"))))

    # --- as a session -------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``waiting``, ``receiving``, ``finishing`` or ``done``."""
        if self.ended.is_set():
            return "done"
        current = self._current
        if current is None:
            return "waiting"
        return "finishing" if current.source.complete else "receiving"

    def check_free(self) -> None:
        """Raises `AlreadyUploaded`, `UploadUnderWay`, `UploadNotReady`; an upload that was left alone makes way."""
        with self._turn:
            self._expire()
            if self.ended.is_set():
                if self.outcome is not None and self.outcome.failure is None:
                    raise AlreadyUploaded("the volume has been filled")
                raise UploadNotReady("the upload server is about to end", remedy="send it again in a few seconds")
            current = self._current
            if current is None:
                return
            if current.upload is None or current.source.complete or current.source.idle < GIVES_WAY:
                raise UploadUnderWay("another upload is under way")
            self._drop(current, "another upload was begun")

    def check_room(self, length: int) -> None:
        """Raise `TargetTooSmall` where no image in a file of `length` bytes fits the volume.

        What the file holds is not known yet: a compressed image is shorter than its disk, others are a little longer.
        """
        disk = min(self._room(), MAX_DISK)
        if length > largest_file(disk):
            raise TargetTooSmall(
                f"the upload has {length} bytes ({human(length)}) and the disk may have {disk} ({human(disk)})",
                remedy="make a larger volume; an image file much larger than its disk is shortened by qemu-img convert",
            )

    def _room(self) -> int:
        """Return how many bytes the volume holds at most; what cannot be found out is found out by the transfer."""
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

    def begin(self, *, length: int | None, announced: int | None, digests: tuple[Digest, ...]) -> Attempt:
        """An upload in one request; raises as `check_free`."""
        source = FedSource(location="the upload", length=length, announced=announced, digests=digests)
        return self._begin(source, None)

    def begin_resumable(self, length: int, digest: Digest | None) -> UploadId:
        """Raises as `check_free`."""
        upload = UploadId(nonce=secrets.token_hex(16), length=length, digest=digest)
        self._begin_named(upload)
        return upload

    def _begin_named(self, upload: UploadId) -> Attempt:
        source = FedSource(
            location="the upload",
            length=upload.length,
            digests=(upload.digest,) if upload.digest is not None else (),
            validator=str(upload),
            resumes=True,
        )
        return self._begin(source, upload)

    def _begin(self, source: FedSource, upload: UploadId | None) -> Attempt:
        with self._turn:
            self.check_free()
            spec = StreamSourceSpec(length=source.probe().length)
            attempt = Attempt(replace(self.job, source=spec), source, upload, self._attempt_ended)
            if self._limits is not None:
                attempt.control.limit(self._limits)
            self._current = attempt
            attempt.start()
        return attempt

    def find(self, upload: UploadId) -> Attempt | None:
        """The transfer of a resumable upload; None where it has become the volume.

        One that is not known here was begun at an earlier pod: it is gone on with where that one left a journal of it,
        or begun again at its first byte.  Raises `UploadUnknown`.
        """
        name = str(upload)
        with self._turn:
            self._expire()
            if self._finished == upload:
                return None
            current = self._current
            if current is not None and current.upload == upload:
                return current
            if name in self._gone:
                raise UploadUnknown(f"the upload is no more: {self._gone[name]}")
            journal = None if self.job.journal is None else Journal.load(self.job.journal)
            another = journal is not None and journal.job == self.job.id and journal.validator not in {None, name}
            if current is not None or another or self.ended.is_set():
                raise UploadUnknown("another upload is under way")
            return self._begin_named(upload)

    def drop(self, upload: UploadId, why: str = "its client removed it") -> None:
        """End a resumable upload; nothing of it is left on the volume.  Raises `UploadUnknown`."""
        with self._turn:
            attempt = self.find(upload)
            if attempt is None or attempt.source.complete:
                raise UploadUnknown("the upload has ended")
            self._drop(attempt, why)

    def begin_again(self, attempt: Attempt) -> None:
        """From the first byte, under the same name: what came is not what was meant."""
        with self._turn:
            if attempt.upload is not None and self._current is attempt:
                self._drop(attempt, "")
                del self._gone[str(attempt.upload)]
                self._begin_named(attempt.upload)

    def _drop(self, attempt: Attempt, why: str) -> None:
        attempt.dropped = True
        attempt.stop()
        abandon(attempt.job, UploadUnknown(why), begun=True)
        self._forget(attempt, why)
        self._current = None

    def _forget(self, attempt: Attempt, why: str) -> None:
        if attempt.upload is not None:
            self._gone[str(attempt.upload)] = why
            while len(self._gone) > _FAILED_KEPT:
                del self._gone[next(iter(self._gone))]

    def _expire(self) -> None:
        current = self._current
        if current is not None and not current.source.complete and current.source.idle > EXPIRES:
            self._drop(current, "nobody went on with it")

    def _attempt_ended(self, attempt: Attempt) -> None:
        """Called by a transfer's own thread; whoever drops an upload holds the lock and waits for it."""
        if attempt.dropped:
            return
        outcome, failure = attempt.outcome, attempt.failure
        assert outcome is not None
        if failure is None:
            self._finished = attempt.upload
            self._end(outcome)
        elif is_of_the_upload(_error_of(failure)):
            while not self._turn.acquire(timeout=_LOOK_SECONDS):
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


def told(failure: Failure) -> Failure:
    """A transfer's failure, in words for the client."""
    if failure.code != ScratchNeeded.__name__:
        return failure
    return failure_of(
        ScratchNeeded(
            "an image of this kind is kept aside before it is converted, and there is no room for that yet",
            remedy="send it again in a minute: the room is being made",
        )
    )
