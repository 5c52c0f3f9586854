"""How a batch ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cdi.api.errors import Interrupted, LockMismatch, WaitTimeout
from cdi.api.job import Failure

Verdict = Literal["imported", "unchanged", "outdated", "failed", "refused", "running", "skipped"]
FAILED = 1
"""The exit status where images failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one image.  Sizes are bytes."""

    label: str
    namespace: str
    name: str
    url: str | None
    verdict: Verdict
    """imported; unchanged (it was there); outdated (it was there, and the source now has another); failed; refused (it
    is not what the lock file pins); running (left to the background); skipped (not begun)."""
    note: str = ""
    failure: Failure | None = None
    size: int | None = None
    """Of the disk."""
    format: str | None = None
    digest: str | None = None
    seconds: float | None = None
    fetched: int | None = None
    rate: float | None = None
    """Bytes per second."""

    def to_dict(self) -> dict[str, Any]:
        """For programs: every field, empty ones as null."""
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
    """Why the lock file could not be written."""
    interrupted: bool = False
    timed_out: bool = False
    seconds: float = 0.0

    def count(self, verdict: Verdict) -> int:
        return sum(result.verdict == verdict for result in self.results)

    @property
    def exit_status(self) -> int:
        """0 where every volume is there; the first of these otherwise: 130 interrupted, 5 not as the lock file pins it,
        8 out of time, 1 images failed or were not begun.
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
        """For programs."""
        return {
            "exitStatus": self.exit_status,
            "seconds": round(self.seconds, 3),
            "counts": {verdict: self.count(verdict) for verdict in _VERDICTS},
            "lockfile": str(self.lockfile),
            "lockfileError": None if self.lock_failure is None else self.lock_failure.message,
            "images": [result.to_dict() for result in self.results],
        }


_VERDICTS: tuple[Verdict, ...] = ("imported", "unchanged", "outdated", "failed", "refused", "running", "skipped")
