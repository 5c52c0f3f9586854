"""The upload server: ``cdi-worker upload``, a pod that waits for an image and ends when the volume holds it.

It is made and read as the pod of an import is (`cdi.worker.pod`): the same files, options and last words; its job's
source is a stream.  Beside them:

    /var/run/cdi/tls/{tls.crt,tls.key,ca.crt}   its certificate, and who signs those of its clients; read again when
                                                they change
    :8443                                       uploads, for who shows a certificate with the name
                                                ``client.upload-server.cdi.kubevirt.io``; ``/progress``, ``/metrics``
                                                and ``/healthz`` for everybody

``/progress`` says beside what an import says: ``"upload": {"state": "waiting" | "receiving" | "finishing" | "done",
"failure": Failure | null}``, the failure being that of the last upload that made room for another.  The pod is ready
(``/healthz``) as soon as it listens.

An upload that fails for a reason of its own is answered and the next one waited for.  The pod ends with a failure
where another upload would fail too (`ScratchNeeded`, the volume's own errors), and without one when the volume is done.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

from cdi.api.errors import InternalError
from cdi.api.job import Job, Outcome
from cdi.source.inbound.certificates import FileContext
from cdi.source.inbound.reception import Reception
from cdi.source.inbound.turn import in_turns
from cdi.transfer.control import Control
from cdi.transfer.run import failure_of
from cdi.worker import log
from cdi.worker.pod import Errand, Options, attempt, journal_of, started
from cdi.worker.progress import answers
from cdi.worker.serve import Answer
from cdi.worker.upload_server import UploadServer
from cdi.worker.upload_session import Session

MOST_REQUESTS = 32
_ANSWERING = 10.0
"""Seconds that answers have to get out once all is done."""
_MOST_WAITING = 100


def main(arguments: list[str]) -> int:
    """Gives the exit status."""
    return started(arguments, run)


def run(options: Options) -> int:
    """Wait for one upload that succeeds, from the pod's files to its last words."""
    return attempt(
        # It serves its progress itself, beside the uploads.
        replace(options, port="0"),
        Errand(
            parse=Job.from_json,
            asked=lambda job: log.say(f"waits for an upload onto {job.target.kind} {job.target.path}"),
            control=Session,
            carry_out=partial(_carry_out, options),
            volume=lambda job: job,
        ),
    )


def _carry_out(options: Options, job: Job, control: Control) -> Outcome:
    assert isinstance(control, Session)
    files = [os.path.join(options.tls, name) for name in ("tls.crt", "tls.key", "ca.crt")]
    certificates = FileContext(files, _context)
    certificates()
    server = UploadServer(control, _answers(job, control))
    try:
        listener = _listen(int(options.port))
    except OSError as error:
        defect = InternalError(f"port {options.port} cannot be listened at: {error.strerror}")
        return Outcome(id=job.id, failure=failure_of(defect))
    reception = Reception(
        listener,
        certificates,
        in_turns(server.serve, at_once=("/healthz",)),
        most=MOST_REQUESTS,
        most_waiting=_MOST_WAITING,
        stall_timeout=job.policy.stall_timeout,
    )
    log.say(f"listens at port {reception.port}")
    control.ended.wait()
    reception.close(_ANSWERING)
    assert control.outcome is not None
    return control.outcome


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    return socket.create_server(("", port), backlog=128)


def _answers(job: Job, session: Session) -> Mapping[str, Callable[[], Answer]]:
    usual = answers(job, session, lambda: journal_of(job))

    def progress() -> Answer:
        told = usual["/progress"]()
        failure = session.last_failure
        upload = {"state": session.state, "failure": None if failure is None else asdict(failure)}
        document = {**json.loads(told.body), "upload": upload}  # noqa: TID251  our own
        return Answer(content_type=told.content_type, body=json.dumps(document, separators=(",", ":")).encode())

    return {**usual, "/progress": progress}


def _context(certificate: str, key: str, authorities: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authorities)
    # Whoever asks for the progress has no certificate.
    context.verify_mode = ssl.CERT_OPTIONAL
    # A body's own length tells whether it was cut off; the connection must stay good for the answer.
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(["http/1.1"])
    return context
