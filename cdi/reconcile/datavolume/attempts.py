"""The recorded history of the attempts to fill one volume.

Workers and their files are temporary, so a worker's result is written into an annotation of the PVC before anything
acts on it. Recording the same result twice changes nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Self

from cdi.api.annotations import ATTEMPTS
from cdi.api.errors import Retry, RetryBudgetSpent, WorkerLost
from cdi.api.job import Failure
from cdi.reconcile.pods.types import Worker
from cdi.reconcile.settings import Retries
from cdi.reconcile.types import PVC

ANNOTATION = ATTEMPTS.key
_MAX_MESSAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptHistory:
    """The attempts whose result is recorded."""

    attempt: int = 0
    """Number of the newest of them."""
    done: bool = False
    failure: Failure | None = None
    """The failure of the newest attempt; None if it succeeded or there was none."""
    ended: float = 0.0
    """Its end, in seconds since the epoch."""
    failures: int = 0
    """Number of consecutive failures without progress."""
    mark: int = 0
    """The furthest offset in the source that any attempt reached, in bytes."""
    fingerprint: str = ""
    """Digest of the inputs of the newest attempt."""
    upload: str = ""
    """Id of the upload request that these attempts belong to."""
    claim: str = ""
    """UID of the prime PVC, if one was filled in place of the PVC; set once it is complete."""
    volume: str = ""
    """Name of the PersistentVolume that holds the content; set with `claim`."""

    @classmethod
    def read(cls, text: str | None) -> Self:
        """Parse the annotation; a missing or invalid one gives an empty history."""
        return ATTEMPTS.parse(cls, text) or cls()

    def write(self) -> str:
        return ATTEMPTS.format(self)

    def with_result(self, worker: Worker | None) -> Self:
        """Return the attempt history with the result of `worker`'s attempt, if that is not recorded yet."""
        if worker is None or worker.running or worker.attempt <= self.attempt:
            return self
        mark = worker.progress.done if worker.progress is not None else 0
        failure = _claim_lost() if worker.outcome is None else worker.outcome.failure
        if failure is not None and len(failure.message) > _MAX_MESSAGE:
            failure = replace(failure, message=failure.message[:_MAX_MESSAGE])
        farther = mark > self.mark
        return replace(
            self,
            attempt=worker.attempt,
            done=failure is None,
            failure=failure,
            ended=worker.started if worker.ended is None else worker.ended,
            failures=0 if failure is None else 1 if farther else self.failures + 1,
            mark=max(mark, self.mark),
            fingerprint=worker.fingerprint,
            upload=worker.upload,
        )

    def for_upload(self, request: str) -> Self:
        """Return an empty history for another upload; the numbering of attempts continues."""
        return replace(type(self)(), attempt=self.attempt, upload=request)

    def completed_in(self, claim: PVC, volume: str) -> Self:
        """Return the attempt history marked as done, with the volume of `claim` that holds the content."""
        return replace(self, done=True, failure=None, claim=claim.uid, volume=volume)

    def reset(self) -> Self:
        """Return an empty history after the content was lost; the numbering of attempts continues."""
        return replace(type(self)(), attempt=self.attempt)

    def backoff(self, uid: str, retries: Retries) -> float:
        """Return the delay in seconds after the last failure.

        The delay doubles each time, with a jitter of 25 % either way so that a thousand volumes do not retry at once.
        The jitter depends only on the UID and the attempt.
        """
        passing = self.failure is None or self.failure.retry is Retry.BACKOFF
        base, longest = (
            (retries.base, retries.longest) if passing else (retries.base_on_change, retries.longest_on_change)
        )
        spread = int.from_bytes(hashlib.sha256(f"{uid}/{self.attempt}".encode()).digest()[:4], "big") / 0xFFFFFFFF
        exponent = min(max(self.failures - 1, 0), 32)
        return float(min(base * 2**exponent, longest) * (0.75 + spread / 2))

    def exhausted(self, retries: Retries) -> Failure | None:
        """Return the final failure if the retry budget is exhausted, else None."""
        if self.failure is None or retries.budget is None or self.failures < retries.budget:
            return None
        return Failure.from_error(
            RetryBudgetSpent(
                f"gave up after {self.failures} attempts without progress; the last error: {self.failure.message}"
            )
        )


def _claim_lost() -> Failure:
    return Failure.from_error(WorkerLost("the worker ended without an outcome"))
