"""Uploads on one machine: the embedded mode's worker, whose standard input is a socket that is listened at.

Who connects, as the same user, speaks to it as the upload proxy speaks to an upload server, with all that this has: an
upload that breaks off is gone on with, and one that fails for a reason of its own makes room for the next.  Where
nobody goes on for a while the worker makes room for others and ends as one that was interrupted; what it has done is
kept, and gone on with by the worker that an upload of the same name is brought to next.
"""

from __future__ import annotations

import os
import socket
import stat
import time

from cdi.api.job import Job, Outcome, StreamSourceSpec
from cdi.source.inbound.plain import OwnContext
from cdi.source.inbound.reception import Reception
from cdi.source.inbound.turn import in_turns
from cdi.worker.upload_server import UploadServer
from cdi.worker.upload_session import Session

LEFT_ALONE = 60.0
"""Seconds without a request after which the worker ends."""
_MOST_REQUESTS = 32
_ANSWERING = 10.0
_LOOK_SECONDS = 0.2


def listens(job: Job) -> bool:
    """Whether the job's stream is a socket that is listened at."""
    if not isinstance(job.source, StreamSourceSpec):
        return False
    try:
        if not stat.S_ISSOCK(os.fstat(job.source.descriptor).st_mode):
            return False
        with socket.socket(fileno=os.dup(job.source.descriptor)) as sock:
            return sock.family == socket.AF_UNIX and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def receive(job: Job, session: Session, *, left_alone: float = LEFT_ALONE) -> Outcome:
    """Take uploads until one of them is the volume, or nobody brings any more."""
    assert isinstance(job.source, StreamSourceSpec)
    listener = socket.socket(fileno=os.dup(job.source.descriptor))
    reception = Reception(
        listener,
        lambda: OwnContext(os.geteuid()),
        in_turns(UploadServer(session, {}).serve),
        most=_MOST_REQUESTS,
        stall_timeout=job.policy.stall_timeout,
    )
    asked = time.monotonic()
    while not session.ended.wait(_LOOK_SECONDS):
        if reception.busy or session.state == "finishing":
            asked = time.monotonic()
        elif time.monotonic() - asked > left_alone:
            session.cancel()
    reception.close(_ANSWERING)
    assert session.outcome is not None
    return session.outcome
