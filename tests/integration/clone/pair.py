"""Both ends in threads of this process, over real TLS."""

import os
import tempfile
import threading

from cdi.api.copy import CopySourceJob, Ticket
from cdi.api.job import FileTargetSpec, Job
from cdi.api.peer import PeerSourceSpec
from cdi.transfer.clone.receive import receive
from cdi.transfer.clone.send import send
from cdi.transfer.clone.tickets import line_of
from cdi.transfer.control import TransferControl


class Target(threading.Thread):
    """Receiving end, which listens on `port`."""

    def __init__(self, certificates, target, **fields):
        super().__init__(daemon=True)
        if not hasattr(target, "kind"):
            target = FileTargetSpec(path=str(target))
        peer = {"tls": certificates.server, "patience": 20.0, "port": 0}
        peer = {name: fields.pop(name, value) for name, value in peer.items()}
        self.job = Job(**({"id": "x", "target": target, "source": PeerSourceSpec(**peer)} | fields))
        self.control = TransferControl(self.job)
        self.outcome = None
        self.port = 0
        self._ready = threading.Event()
        self.start()
        self._ready.wait(20)

    def run(self):
        self.outcome = receive(self.job, self.control, self._listening)
        self._ready.set()

    def _listening(self, port):
        self.port = port
        self._ready.set()

    def end(self):
        """Return its outcome; cancel it if it is still running after a minute."""
        self.join(60)
        if self.is_alive():
            self.control.cancel()
            self.join(20)
        return self.outcome


def write_roster(path, *tickets):
    """Replace the file atomically, as a kubelet does."""
    with open(f"{path}.new", "w") as file:
        file.write("".join(map(line_of, tickets)))
    os.replace(f"{path}.new", path)


def source_job(certificates, path, port, **fields):
    """Return a job for one target on this machine."""
    ticket = {"id": fields.pop("id", "x"), "address": fields.pop("address", f"127.0.0.1:{port}")}
    ticket |= {name: fields.pop(name) for name in ("server_name", "bandwidth") if name in fields}
    descriptor, ticket_file = tempfile.mkstemp(prefix="roster-")
    os.close(descriptor)
    write_roster(ticket_file, Ticket(**ticket))
    usual = {
        "id": "reader",
        "path": str(path),
        "targets": ticket_file,
        "tls": certificates.client,
        "patience": 10.0,
    }
    return CopySourceJob(**(usual | fields))


def clone(certificates, source, target, *, from_fields=(), watch=None, **fields):
    """Return both outcomes, target first; `watch` receives the source's control before the start."""
    filled = Target(certificates, target, **fields)
    both = {key: value for key, value in fields.items() if key in ("content_type", "id")}
    job = source_job(certificates, source, filled.port, **(both | dict(from_fields)))
    control = TransferControl(job)
    if watch is not None:
        watch(control)
    sent = send(job, control)
    return filled.end(), sent
