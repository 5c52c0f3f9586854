"""Clone target: an import from a peer, `Job` → `Outcome`, and the report to the source at its end.

The source may disconnect and return as another process or pod; the target goes on from where it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from cdi.api.errors import CdiError, Interrupted, PeerUnreachable
from cdi.api.job import Job, Outcome
from cdi.api.peer import PeerSourceSpec
from cdi.source.peer import PeerSource
from cdi.source.peer_connections import PeerConnections
from cdi.source.peer_messages import PeerFailure, PeerResult
from cdi.transfer.control import TransferControl
from cdi.transfer.run import failure_of, transfer

REPORT_TIMEOUT: Final = 10.0
"""Seconds for which the target tries to report its end to the source; the result does not depend on it."""
_NOT_REPORTED: Final = (Interrupted.__name__, PeerUnreachable.__name__)


def receive(job: Job, control: TransferControl, ready: Callable[[int], None] = lambda _port: None) -> Outcome:
    """Run `job` and return its outcome; `ready` is called with the port once a source may connect.

    Never raises: the outcome contains the failure.
    """
    spec = job.source
    assert isinstance(spec, PeerSourceSpec)
    try:
        connections = PeerConnections(spec, stall_timeout=job.policy.stall_timeout)
    except CdiError as error:
        return Outcome(id=job.id, failure=failure_of(error))
    try:
        ready(connections.port)
        control.meter.message = "waiting for the source"
        sources: list[PeerSource] = []

        def opened() -> PeerSource:
            sources[:] = [PeerSource(connections, job.id, job.content_type)]
            return sources[0]

        outcome = transfer(job, control, opened)
        if outcome.failure is None and job.content_type == "archive":
            (source,) = sources
            verified = (*outcome.verified_by, "content digest")
            outcome = replace(outcome, digest=source.chain.end(source.position), verified_by=verified)
        _report(PeerSource(connections, job.id, job.content_type), outcome)
        return outcome
    finally:
        connections.close()


def _report(source: PeerSource, outcome: Outcome) -> None:
    """Tell the source how the target ended, which may fail: the disk is already committed."""
    failure = outcome.failure
    if failure is not None and failure.code in _NOT_REPORTED:
        return
    told = None if failure is None else PeerFailure(code=failure.code, what=failure.message, remedy="")
    # The source may be gone.
    watchdog = threading.Timer(REPORT_TIMEOUT, source.close)
    watchdog.start()
    try:
        while watchdog.is_alive():
            with suppress(CdiError):
                source.report(PeerResult(digest=outcome.digest or "", failure=told))
                return
    finally:
        watchdog.cancel()
