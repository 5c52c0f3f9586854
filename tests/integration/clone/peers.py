"""The two ends of a clone as processes, with certificates of their own CA."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import trustme

from cdi.api.copy import CopySourceJob, Ticket
from cdi.api.job import FileTargetSpec, Job, Outcome, Policy
from cdi.api.peer import CLIENT_NAME, PeerSourceSpec, TlsFiles
from tests.integration.clone.pair import write_roster


class Certificates:
    """Certificate files of a server and of a client, both signed by one CA."""

    def __init__(self, directory, server="127.0.0.1", client=CLIENT_NAME):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(self.directory / "ca.crt")
        self.server = self.files("server", self.ca.issue_cert(server))
        self.client = self.files("client", self.ca.issue_cert(common_name=client))

    def files(self, name, leaf):
        leaf.private_key_pem.write_to_path(self.directory / f"{name}.key")
        (self.directory / f"{name}.crt").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        return TlsFiles(
            certificate=str(self.directory / f"{name}.crt"),
            key=str(self.directory / f"{name}.key"),
            ca=str(self.directory / "ca.crt"),
        )


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Clone:
    """One clone, whose ends can be started, killed and restarted."""

    def __init__(self, directory, certificates, source, target, **fields):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        if not hasattr(target, "kind"):
            target = FileTargetSpec(path=str(target))
        port = free_port()
        policy = fields.pop("policy", Policy())
        content = fields.pop("content_type", "kubevirt")
        peer = PeerSourceSpec(port=port, tls=certificates.server, patience=fields.get("patience", 60))
        self.target = Job(
            id="clone-1",
            source=peer,
            target=target,
            journal=str(self.directory / "journal"),
            policy=policy,
            content_type=content,
            size=fields.pop("size", None),
        )
        self.source = CopySourceJob(
            id="reader",
            path=str(source),
            targets=str(self.directory / "targets"),
            tls=certificates.client,
            policy=policy,
            content_type=content,
            patience=fields.get("patience", 60),
        )
        write_roster(self.source.targets, Ticket(id="clone-1", address=f"127.0.0.1:{port}"))
        self.processes = {}

    def start(self, end):
        job = self.target if end == "target" else self.source
        (self.directory / f"{end}.json").write_text(job.to_json())
        (self.directory / f"{end}.end").unlink(missing_ok=True)
        log = open(self.directory / f"{end}.log", "ab")
        with log:
            self.processes[end] = subprocess.Popen(
                [
                    sys.executable,
                    *("-m", "cdi.worker", f"clone-{end}"),
                    f"--job={self.directory / f'{end}.json'}",
                    f"--termination-log={self.directory / f'{end}.end'}",
                    f"--limits={self.directory / f'{end}.limits'}",
                    f"--journal={self.directory / f'{end}.carried'}",
                    "--port=0",
                ],
                stderr=log,
            )
        return self

    def kill(self, end):
        """Send SIGKILL; return whether the process was still running."""
        process = self.processes[end]
        process.kill()
        return process.wait() == -signal.SIGKILL

    def running(self, end):
        return self.processes[end].poll() is None

    def wait(self, end, timeout=300):
        """Return the outcome of an end."""
        try:
            status = self.processes[end].wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.log(end)) from None
        words = (self.directory / f"{end}.end").read_text()
        assert len(words) <= 4096
        outcome = Outcome.from_json(json.dumps(json.loads(words)["outcome"]))
        assert status == (0 if outcome.failure is None else outcome.failure.exit_status), self.log(end)
        return outcome

    def run(self, timeout=100):
        """Return both outcomes, target first."""
        self.start("target").start("source")
        return self.wait("target", timeout), self.wait("source", timeout)

    def log(self, end):
        return (self.directory / f"{end}.log").read_text()

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
