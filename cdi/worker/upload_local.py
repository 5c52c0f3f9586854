"""Uploads on one machine: a worker in embedded mode whose standard input is a listening socket.

Clients of the same user send requests as the upload proxy does to an upload server. So an upload that breaks off can be
continued, and after one that fails for a reason of its own another may follow. After a time without requests the worker
ends as interrupted; its progress is kept, and the next worker for an upload of the same name continues it.
"""

from __future__ import annotations

import os
import socket
import stat
import time

from cdi.api.job import Job, Outcome, StreamSourceSpec
from cdi.http.server.listener import HttpListener
from cdi.http.server.plaintext import SameUserContext
from cdi.http.server.turn import in_turns
from cdi.worker.upload_server import UploadServer
from cdi.worker.upload_session import Session, SessionState

IDLE_TIMEOUT = 60.0
"""Seconds without a request after which the worker ends."""
_MAX_REQUESTS = 32
_ANSWERING = 10.0
_POLL_INTERVAL = 0.2


def is_listening_socket(job: Job) -> bool:
    """Return whether the job's stream is a listening socket."""
    if not isinstance(job.source, StreamSourceSpec):
        return False
    try:
        if not stat.S_ISSOCK(os.fstat(job.source.descriptor).st_mode):
            return False
        with socket.socket(fileno=os.dup(job.source.descriptor)) as sock:
            return sock.family == socket.AF_UNIX and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def receive(job: Job, session: Session, *, left_alone: float = IDLE_TIMEOUT) -> Outcome:
    """Receive uploads until one of them fills the volume, or no request has arrived for `left_alone` seconds."""
    assert isinstance(job.source, StreamSourceSpec)
    listener = socket.socket(fileno=os.dup(job.source.descriptor))
    reception = HttpListener(
        listener,
        lambda: SameUserContext(os.geteuid()),
        in_turns(UploadServer(session, {}).serve),
        most=_MAX_REQUESTS,
        stall_timeout=job.policy.stall_timeout,
    )
    asked = time.monotonic()
    while not session.wait_done(_POLL_INTERVAL):
        if reception.busy or session.state is SessionState.FINISHING:
            asked = time.monotonic()
        elif time.monotonic() - asked > left_alone:
            session.cancel()
    reception.close(_ANSWERING)
    assert session.outcome is not None
    return session.outcome
