"""Results of boot proofs, and the record of attempts that ended without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Self

from cdi.api.annotations import PROOF_ATTEMPTS
from cdi.api.dataimportcron import GoldenVersion, ProofStatus
from cdi.api.errors import BootFailed, Retry, render
from cdi.api.golden import RETRY
from cdi.api.job import Failure
from cdi.api.phases import Reason
from cdi.api.proof import ProofResult
from cdi.api.timestamps import timestamp
from cdi.reconcile.actions import Action, Event, PatchObject
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.pods.types import PodBlocker
from cdi.reconcile.settings import CLUSTER_RETRIES
from cdi.reconcile.types import PVC

MAX_FAILURES: Final = 3
"""Consecutive attempts that end with an error of the emulator, after which the version is unproven."""
MAX_EVENT: Final = 1024
"""Characters of an event's message."""
BOOT_PROVEN: Final = "BootProven"
RUNNING: Final = "ProofRunning"
QUEUED: Final = "ProofQueued"
REGULAR: Final = frozenset({RUNNING, QUEUED, Reason.PENDING, Reason.CONTAINER_CREATING})
"""Reasons of `ProofStep.blocker` in the course of a proof that goes well."""
_MAX_FAILURE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofStep:
    """The next step of a version's proof."""

    actions: tuple[Action, ...] = ()
    result: ProofStatus | None = None
    """Set once the proof was made; the version is then available or unproven."""
    reason: str = ""
    """Code of the failure, if the result is that the version is unproven."""
    message: str = ""
    """Cause and remedy, or what was seen of a successful boot; set with `result`."""
    blocker: PodBlocker | None = None
    """What the proof is waiting for; None if there is a result."""
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofAttempts:
    """The attempts that ended without a result."""

    attempt: int = 0
    """Number of the newest of them."""
    failures: int = 0
    """Number of consecutive failures of the emulator itself."""
    ended: float = 0.0
    """End of the newest attempt in seconds since the epoch."""
    failure: Failure | None = None
    """Why it has no result."""
    emulate: bool = False
    """Whether the next attempt does without KVM, because no node had it free."""

    @classmethod
    def read(cls, annotations: Mapping[str, str]) -> Self:
        """Return the record of a PVC; a missing or invalid annotation means that there were no attempts."""
        return PROOF_ATTEMPTS.read(cls, annotations) or cls()

    def left(self, uid: str, now: float) -> float:
        """Return the seconds until the next attempt is due; 0 if it is.

        Args:
            uid: UID of the PVC.
            now: Seconds since the epoch.

        """
        if self.failure is None:
            return 0.0
        history = AttemptHistory(attempt=self.attempt, failure=self.failure, failures=self.attempt)
        delay = history.backoff(uid, CLUSTER_RETRIES)
        # The limit also holds if the clock was set back.
        return max(0.0, min(self.ended + delay - now, delay))


def report_result(version: GoldenVersion, claim: PVC, result: ProofResult, ended: float) -> ProofStep:
    """Return the step after a worker has reported whether the virtual machine booted."""
    status = ProofStatus(
        booted=result.booted,
        message=result.message[:_MAX_FAILURE] or None,
        accelerator=result.accelerator or None,
        finished=_time(ended),
    )
    if result.booted:
        message = f"booted in {result.seconds:.1f} s with {result.accelerator}: {result.message}"
        event = Event(type="Normal", reason=BOOT_PROVEN, message=about(version, message))
        return ProofStep(actions=forget_attempts(claim), result=status, message=result.message, events=(event,))
    code = BootFailed.__name__
    remedy = f"correct the image; annotation {RETRY} repeats the proof of this version"
    message = render(result.message, None, remedy)
    console = " | ".join(line.strip() for line in result.console.splitlines() if line.strip())
    if console:
        room = MAX_EVENT - len(about(version, message)) - len("  Console: …")
        message += f" Console: …{console[-room:]}" if len(console) > room > 0 else f" Console: {console}"
    event = Event(type="Warning", reason=code, message=about(version, message))
    return ProofStep(actions=forget_attempts(claim), result=status, reason=code, message=message, events=(event,))


def report_failure(
    now: float, version: GoldenVersion, claim: PVC, attempts: ProofAttempts, number: int, failure: Failure, ended: float
) -> tuple[ProofAttempts, ProofStep]:
    """Return the attempts with one that has no result, and the step: to wait for the next attempt, or to give up.

    Args:
        now: Seconds since the epoch.
        version: The version.
        claim: Its PVC.
        attempts: The recorded attempts.
        number: Number of the attempt that has ended.
        failure: Why it has no result.
        ended: Its end in seconds since the epoch.

    """
    known = attempts
    if number > attempts.attempt:
        attempts = replace(
            attempts,
            attempt=number,
            failures=attempts.failures + 1 if failure.retry is Retry.NEVER else 0,
            ended=ended,
            failure=replace(failure, message=failure.message[:_MAX_FAILURE], upstream=""),
        )
    record = () if attempts == known else (record_attempts(claim, attempts),)
    if attempts.failures >= MAX_FAILURES:
        return attempts, replace(_give_up(version, attempts.failures, failure, ended), actions=record)
    left = attempts.left(claim.uid, now)
    step = ProofStep(actions=record, blocker=failing(failure), requeue_after=left if left > 0 else None)
    if record:
        event = Event(type="Warning", reason=failure.code, message=about(version, failure.message))
        step = replace(step, events=(event,))
    return attempts, step


def _give_up(version: GoldenVersion, failures: int, failure: Failure, ended: float) -> ProofStep:
    """Return the final result after the emulator itself has failed again and again."""
    message = f"the boot proof failed {failures} times: {failure.message}"[:MAX_EVENT]
    status = ProofStatus(booted=False, message=message[:_MAX_FAILURE], finished=_time(ended))
    event = Event(type="Warning", reason=failure.code, message=about(version, message))
    return ProofStep(result=status, reason=failure.code, message=message, events=(event,))


def is_recorded(version: GoldenVersion, ended: float) -> bool:
    """Return whether a worker that ended then gave the result in the status, so that another proof was requested."""
    finished = version.proof.finished if version.proof is not None else None
    return finished is not None and _time(ended) <= finished


def record_attempts(claim: PVC, attempts: ProofAttempts | None) -> PatchObject:
    """Return the action that records attempts on the version's PVC, or with None removes the record."""
    written = {PROOF_ATTEMPTS.key: None} if attempts is None else PROOF_ATTEMPTS.write(attempts)
    return PatchObject.of_claim(claim, written, version=claim.version)


def forget_attempts(claim: PVC) -> tuple[PatchObject, ...]:
    """Return the action that removes the record, if there is one."""
    return (record_attempts(claim, None),) if PROOF_ATTEMPTS.key in claim.annotations else ()


def waiting_for(message: str) -> PodBlocker:
    """Return what a proof that goes well is waiting for."""
    return PodBlocker(reason=RUNNING, message=message)


def failing(failure: Failure) -> PodBlocker:
    """Return the failure of the newest attempt as what a proof is waiting for."""
    return PodBlocker(reason=failure.code, message=failure.message)


def about(version: GoldenVersion, message: str) -> str:
    """Return an event's message."""
    text = f'Version "{version.name}": {message}'
    return text if len(text) <= MAX_EVENT else f"{text[: MAX_EVENT - 1]}…"


def _time(seconds: float) -> str:
    return timestamp(datetime.fromtimestamp(seconds, UTC))
