"""Results of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cdi.api.errors import Interrupted, LockMismatch, WaitTimeout
from cdi.api.job import Failure

Verdict = Literal["imported", "unchanged", "outdated", "failed", "refused", "running", "skipped"]
FAILED = 1
"""The exit status if images failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one image; sizes are bytes."""

    label: str
    namespace: str
    name: str
    url: str | None
    verdict: Verdict
    """One of the following.

    - imported;
    - unchanged: the volume existed;
    - outdated: the volume existed, and the source has a different image by now;
    - failed;
    - refused: the image differs from the pin in the lock file;
    - running: the import continues in the background;
    - skipped: the import was not started.
    """
    note: str = ""
    failure: Failure | None = None
    size: int | None = None
    """Size of the disk."""
    format: str | None = None
    digest: str | None = None
    seconds: float | None = None
    fetched: int | None = None
    rate: float | None = None
    """Bytes per second."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON representation with every field; empty ones are null."""
        failure = self.failure
        return {
            "name": self.name,
            "namespace": self.namespace,
            "url": self.url,
            "result": self.verdict,
            "note": self.note or None,
            "error": None
            if failure is None
            else {
                "code": failure.code,
                "message": failure.message,
                "retry": failure.retry.value,
                "exitStatus": failure.exit_status,
            },
            "size": self.size,
            "format": self.format,
            "digest": self.digest,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "fetched": self.fetched,
            "rate": None if self.rate is None else round(self.rate),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All results, in the order of the batch."""

    results: tuple[Result, ...]
    lockfile: Path
    locked: bool = False
    lock_changed: bool = False
    lock_failure: Failure | None = None
    """The reason why the lock file could not be written."""
    interrupted: bool = False
    timed_out: bool = False
    seconds: float = 0.0

    def count(self, verdict: Verdict) -> int:
        return sum(result.verdict == verdict for result in self.results)

    @property
    def exit_status(self) -> int:
        """The exit status: 0 if every volume exists, else the first that applies.

        130: interrupted; 5: an image differs from its pin; 8: timeout; 1: images failed or were not started.
        """
        if self.interrupted:
            return Interrupted.exit_status
        unlike = LockMismatch.exit_status
        failures = [result.failure for result in self.results if result.failure is not None]
        if self.count("refused") or (self.locked and any(failure.exit_status == unlike for failure in failures)):
            return unlike
        if self.timed_out:
            return WaitTimeout.exit_status
        return FAILED if self.count("failed") or self.count("skipped") or self.lock_failure is not None else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON representation."""
        return {
            "exitStatus": self.exit_status,
            "seconds": round(self.seconds, 3),
            "counts": {verdict: self.count(verdict) for verdict in _VERDICTS},
            "lockfile": str(self.lockfile),
            "lockfileError": None if self.lock_failure is None else self.lock_failure.message,
            "images": [result.to_dict() for result in self.results],
        }


_VERDICTS: tuple[Verdict, ...] = ("imported", "unchanged", "outdated", "failed", "refused", "running", "skipped")
