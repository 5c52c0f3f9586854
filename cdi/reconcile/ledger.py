"""What is remembered of the attempts at one volume.

Workers come and go and their files with them, so what they told is written into an annotation of the claim before
anything follows from it.  Recording the same end twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Self

from cdi.api.decode import DecodeError, decode
from cdi.api.errors import Retry, RetryBudgetSpent, WorkerLost
from cdi.api.job import Failure
from cdi.api.names import GROUP
from cdi.reconcile.failure import as_failure
from cdi.reconcile.world import Claim, Retries, Worker

ANNOTATION = f"{GROUP}/storage.attempts"
_LONGEST_MESSAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The attempts whose end is known."""

    attempt: int = 0
    """The newest of them."""
    done: bool = False
    failure: Failure | None = None
    """How it failed."""
    ended: float = 0.0
    """Seconds since the epoch."""
    failures: int = 0
    """In a row, without progress."""
    mark: int = 0
    """The farthest that any of them came, bytes of the source."""
    fingerprint: str = ""
    """Of what it was started with."""
    upload: str = ""
    """The upload that these attempts are for."""
    starts: int = 0
    """How often a worker's pod was asked for.  Each time is written down first, under the claim's version that was
    read: so nobody who looks at an old state begins what was done already."""
    claim: str = ""
    """Where another claim was filled in the place of this one: its uid, once it is done."""
    volume: str = ""
    """And the PersistentVolume that holds the content."""

    @classmethod
    def read(cls, text: str | None) -> Self:
        """One that was never written, or that somebody has altered beyond reading, is empty."""
        if not text:
            return cls()
        try:
            return decode(cls, text)
        except DecodeError:
            return cls()

    def write(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def after(self, worker: Worker | None) -> Self:
        """With the end of `worker`'s attempt, if that is news."""
        if worker is None or worker.running or worker.attempt <= self.attempt:
            return self
        mark = worker.progress.done if worker.progress is not None else 0
        failure = _lost() if worker.outcome is None else worker.outcome.failure
        if failure is not None and len(failure.message) > _LONGEST_MESSAGE:
            failure = replace(failure, message=failure.message[:_LONGEST_MESSAGE])
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
        """Another upload is another story; attempts are still counted on."""
        return replace(type(self)(), attempt=self.attempt, starts=self.starts, upload=request)

    def held_by(self, claim: Claim, volume: str) -> Self:
        """Done, and what was done is in this volume of `claim`."""
        return replace(self, done=True, failure=None, claim=claim.uid, volume=volume)

    def begun_anew(self) -> Self:
        """The content is gone: it is as if nothing had been done, but attempts are still counted on."""
        return replace(type(self)(), attempt=self.attempt, starts=self.starts)

    def begins(self) -> Self:
        """Another start is about to be asked for."""
        return replace(self, starts=self.starts + 1)

    def pause(self, uid: str, retries: Retries) -> float:
        """Return the seconds to wait after the last failure.

        They double each time, and are spread by a quarter either way so that a thousand volumes do not come back at
        once.  The same uid and attempt always wait as long.
        """
        passing = self.failure is None or self.failure.retry is Retry.BACKOFF
        base, longest = (
            (retries.base, retries.longest) if passing else (retries.base_on_change, retries.longest_on_change)
        )
        spread = int.from_bytes(hashlib.sha256(f"{uid}/{self.attempt}".encode()).digest()[:4], "big") / 0xFFFFFFFF
        exponent = min(max(self.failures - 1, 0), 32)
        return float(min(base * 2**exponent, longest) * (0.75 + spread / 2))

    def spent(self, retries: Retries) -> Failure | None:
        """The failure that ends it all once the budget is used up."""
        if self.failure is None or retries.budget is None or self.failures < retries.budget:
            return None
        return as_failure(
            RetryBudgetSpent(
                f"gave up after {self.failures} attempts without progress; the last: {self.failure.message}"
            )
        )


def _lost() -> Failure:
    return as_failure(WorkerLost("the worker ended without an outcome"))
