"""Upload server: ``cdi-worker upload``, a pod that waits for an image and ends when it is written to the volume.

It uses the same files, options and termination message as an import's pod (`cdi.worker.pod`); its job's source is a
stream. In addition it has:

    /var/run/cdi/tls/{tls.crt,tls.key,ca.crt}   its certificate and its clients' CA; read again when they change
    :8443                                       uploads from clients whose certificate has the name
                                                ``client.upload-server.cdi.kubevirt.io``; ``/progress``, ``/metrics``
                                                and ``/healthz`` for any client

``/progress`` has one more field than in an import: ``"upload": {"state": "waiting" | "receiving" | "finishing" |
"removing" | "done", "failure": Failure | null}`` (`cdi.worker.upload_session.SessionState`), where the failure is that
of the last upload that failed and allowed another. The pod is ready (``/healthz``) as soon as it listens.

After an upload that fails for a reason of its own, the server responds and waits for the next upload. The pod ends with
a failure if another upload would fail too (`ScratchNeeded`, errors of the volume), and without one when the volume is
complete.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

from cdi.api.errors import InternalError
from cdi.api.job import Job, Outcome
from cdi.http.server.certificates import ReloadingSSLContext
from cdi.http.server.listener import HttpListener
from cdi.http.server.turn import in_turns
from cdi.http.sockets import listen
from cdi.transfer.control import TransferControl
from cdi.transfer.run import failure_of
from cdi.worker.pod import Options, WorkerTask, journal_of, parse_and_run, run_task
from cdi.worker.progress import endpoints
from cdi.worker.status_server import Response
from cdi.worker.upload_server import UploadServer
from cdi.worker.upload_session import Session

LOG = logging.getLogger(__name__)

MAX_REQUESTS = 32
_ANSWERING = 10.0
"""Seconds in which responses must be sent after the end of the session."""
_MAX_WAITING = 100


def main(arguments: list[str]) -> int:
    """Run ``upload`` and return the exit status."""
    return parse_and_run(arguments, run)


def run(options: Options) -> int:
    """Wait for a successful upload, from reading the job to the termination message, and return the exit status."""
    return run_task(
        # The progress is served on the same port as the uploads.
        replace(options, port="0"),
        WorkerTask(
            parse=Job.from_json,
            asked=lambda job: LOG.info(f"waiting for an upload onto {job.target.kind} {job.target.path}"),
            control=Session,
            execute=partial(_carry_out, options),
            volume=lambda job: job,
        ),
    )


def _carry_out(options: Options, job: Job, control: TransferControl) -> Outcome:
    assert isinstance(control, Session)
    files = [os.path.join(options.tls, name) for name in ("tls.crt", "tls.key", "ca.crt")]
    certificates = ReloadingSSLContext(files, _context)
    certificates()
    server = UploadServer(control, _answers(job, control))
    try:
        listener = listen(int(options.port))
    except OSError as error:
        defect = InternalError(f"cannot listen on port {options.port}: {error.strerror}")
        return Outcome(id=job.id, failure=failure_of(defect))
    reception = HttpListener(
        listener,
        certificates,
        in_turns(server.serve, at_once=("/healthz",)),
        most=MAX_REQUESTS,
        max_pending=_MAX_WAITING,
        stall_timeout=job.policy.stall_timeout,
    )
    LOG.info(f"listening on port {reception.port}")
    control.wait_done()
    reception.close(_ANSWERING)
    assert control.outcome is not None
    return control.outcome


def _answers(job: Job, session: Session) -> Mapping[str, Callable[[], Response]]:
    usual = endpoints(job, session, lambda: journal_of(job))

    def progress() -> Response:
        told = usual["/progress"]()
        failure = session.last_failure
        upload = {"state": session.state.value, "failure": None if failure is None else asdict(failure)}
        document = {**json.loads(told.body), "upload": upload}  # noqa: TID251  our own
        return Response(content_type=told.content_type, body=json.dumps(document, separators=(",", ":")).encode())

    return {**usual, "/progress": progress}


def _context(certificate: str, key: str, authorities: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authorities)
    # Clients that only read the progress have no certificate.
    context.verify_mode = ssl.CERT_OPTIONAL
    # A truncated body is detected by its length, and the connection must stay usable for the response.
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(["http/1.1"])
    return context
