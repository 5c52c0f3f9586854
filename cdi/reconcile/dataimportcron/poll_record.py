"""The recorded results of a DataImportCron's polls.

Jobs and pods of polls are temporary, so a result is written into the annotation `POLL_RECORD` of the DataImportCron,
by the same request as the times of the polls. A task whose result is recorded is not evaluated again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from cdi.api.annotations import POLL_RECORD
from cdi.api.job import Failure
from cdi.api.poll import PollResult

FIRST_DELAY: Final = 30.0
"""Delay in seconds of the second attempt after a failure; it doubles with each further failure."""
LONGEST_DELAY: Final = 6 * 3600.0
"""Maximum of these delays, in seconds."""
_MAX_MESSAGE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PollRecord:
    """Results of the newest polls."""

    task: str = ""
    """UID of the Job or pod, or start of the process, of the newest result."""
    found: PollResult | None = None
    """The newest success."""
    failures: int = 0
    """Number of failures since then."""
    failure: Failure | None = None
    """The newest failure; None after a success."""

    @classmethod
    def read(cls, annotations: Mapping[str, str]) -> Self:
        """Return the record of a DataImportCron; a missing or invalid annotation gives an empty one."""
        return POLL_RECORD.read(cls, annotations) or cls()

    def write(self) -> dict[str, str]:
        return POLL_RECORD.write(self)

    def with_success(self, task: str, found: PollResult) -> Self:
        """Return the record after a success, which ends a series of failures.

        Facts that a poll leaves out because the digest is the same are kept.
        """
        same = self.found is not None and self.found.digest == found.digest and found.resolved is None
        return replace(self, task=task, found=self.found if same else found, failures=0, failure=None)

    @property
    def known(self) -> str | None:
        """The digest of a registry's manifest that was found last; None for other sources."""
        return self.found.digest if self.found is not None and self.found.identity == "manifest" else None

    def with_failure(self, task: str, failure: Failure) -> Self:
        """Return the record after a failure; the newest success is kept."""
        shortened = replace(failure, message=failure.message[:_MAX_MESSAGE])
        return replace(self, task=task, failures=self.failures + 1, failure=shortened)

    def with_obstacle(self, failure: Failure) -> Self:
        """Return the record while something keeps a poll from being started, which is no failed poll."""
        return replace(self, failure=replace(failure, message=failure.message[:_MAX_MESSAGE]))

    def delay(self, uid: str) -> float:
        """Return the seconds until the next attempt after a failure.

        The jitter of 25 % either way depends only on the UID and the number of failures, so that many DataImportCrons
        whose registry was down do not all retry at once.
        """
        exponent = min(max(self.failures - 1, 0), 32)
        return float(min(FIRST_DELAY * 2**exponent, LONGEST_DELAY) * (0.75 + spread(uid, self.failures) / 2))


def spread(uid: str, number: int) -> float:
    """Return a fraction from 0 to 1 that depends on the arguments only and is spread evenly over UIDs."""
    digest = hashlib.sha256(f"{uid}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 0xFFFFFFFF
