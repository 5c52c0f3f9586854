"""A proxy and upload servers as processes on loopback, with certificates of their own, and curl."""

import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from cdi.api.job import DirectoryTargetSpec, FileTargetSpec, Job, Outcome, Policy, StreamSourceSpec
from cdi.api.upload_protocol import CLIENT_NAME
from cdi.kube.jwt import CLAIM, Operation, SigningKey, TokenClaims

ROOT = Path(__file__).parents[3]
MIB = 1 << 20


class Authorities:
    """The CAs and keys, made once because that takes time."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.public, self.servers, self.clients, self.strangers = (trustme.CA() for _ in range(4))
        self.key = SigningKey.generate()
        self.foreign_key = SigningKey.generate()
        self.public.cert_pem.write_to_path(base / "public-ca.crt")
        self.servers.cert_pem.write_to_path(base / "server-ca.crt")
        self.pair("proxy", self.public.issue_cert("localhost", "127.0.0.1"))
        self.pair("client", self.clients.issue_cert(CLIENT_NAME, common_name=CLIENT_NAME))
        self.pair("other-client", self.clients.issue_cert("other", common_name="somebody.else"))
        self.pair("foreign-client", self.strangers.issue_cert(CLIENT_NAME, common_name=CLIENT_NAME))
        self.pair("server", self.servers.issue_cert("localhost"), self.clients)
        (base / "id_rsa.pub").write_bytes(self.key.pems["id_rsa.pub"])

    def pair(self, name: str, leaf: trustme.LeafCert, trusts: trustme.CA | None = None) -> None:
        directory = self.base / name
        directory.mkdir(exist_ok=True)
        (directory / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(directory / "tls.key")
        if trusts is not None:
            trusts.cert_pem.write_to_path(directory / "ca.crt")


@dataclass
class Server:
    """An upload server: a worker's process."""

    name: str
    job: Job
    base: Path
    directory: Path
    process: subprocess.Popen[str]
    port: int = 0
    log: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

    @property
    def disk(self) -> Path:
        return self.directory / "disk.img"

    def read_log(self, listening: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"listening on port (\d+)", line)
            if found is not None:
                self.port = int(found[1])
                listening.set()
        self.process.stderr.close()
        listening.set()

    def outcome(self, seconds: float = 60) -> Outcome:
        """Return how the pod ended, from its termination message."""
        status = self.process.wait(seconds)
        self.join()
        words = json.loads((self.directory.parent / "last-words").read_text())
        found = Outcome.from_json(json.dumps(words["outcome"]))
        assert status == (found.failure.exit_status if found.failure else 0), self.log
        return found

    def join(self) -> None:
        if self.reader is not None:
            self.reader.join()

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(60)
        self.join()


@dataclass
class Answered:
    status: int
    body: str
    headers: dict[str, str]


class Stand:
    """Everything that one test needs."""

    def __init__(self, authorities: Authorities, base: Path, home: Path) -> None:
        """Create a stand; `home` is the proxy's directory, `base` that of the servers, which may be changed."""
        self.authorities = authorities
        self.base = base
        self.home = home
        for name in ("proxy", "client", "server-ca.crt", "id_rsa.pub"):
            (home / name).symlink_to(authorities.base / name)
        self.volumes: dict[str, object] = {}
        self._telling = threading.Lock()
        self._tell()
        self.servers: list[Server] = []
        self.proxy: subprocess.Popen[str] | None = None
        self.port = self.metrics_port = 0

    # --- processes ----------------------------------------------------------------------------------------------

    def start_proxy(self, stall: float = 30.0, replacement: float = 50.0, contention: float = 10.0) -> None:
        """Start the proxy.

        Args:
            stall: seconds without a byte from a client.
            replacement: seconds to wait for an upload server.
            contention: seconds to wait for the end of another upload.
        """
        command = [sys.executable, "-m", "tests.integration.upload.proxy_process"]
        with open(self.home / "proxy.log", "a") as log:
            self.proxy = subprocess.Popen(
                [*command, str(self.home), *map(str, (self.port, stall, replacement, contention))],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.proxy.stdout is not None
        self.metrics_port, self.port = (int(self.proxy.stdout.readline()) for _ in range(2))

    def stop_proxy(self, number: int = signal.SIGKILL) -> None:
        if self.proxy is not None:
            self.proxy.send_signal(number)
            self.proxy.wait(60)
            assert self.proxy.stdout is not None
            self.proxy.stdout.close()
            self.proxy = None

    def start_server(
        self,
        name: str = "vm",
        *,
        size: int | None = None,
        scratch: bool = False,
        archive: bool = False,
        checksum: str | None = None,
        policy: Policy | None = None,
        tls: str = "server",
    ) -> Server:
        directory = self.base / name / "data"
        directory.mkdir(parents=True, exist_ok=True)
        (self.base / name / "scratch").mkdir(exist_ok=True)
        job = Job(
            id=f"uid-of-{name}",
            source=StreamSourceSpec(),
            target=DirectoryTargetSpec(path=str(directory))
            if archive
            else FileTargetSpec(path=str(directory / "disk.img")),
            content_type="archive" if archive else "kubevirt",
            size=size,
            checksum=checksum,
            policy=policy or Policy(stall_timeout=30.0),
            journal=None if archive else str(directory / ".cdi" / "journal"),
            scratch=str(self.base / name / "scratch") if scratch else None,
        )
        (self.base / name / "job").write_text(job.to_json())
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cdi.worker", "upload", "--port", "0"),
                *("--job", str(self.base / name / "job"), "--tls", str(self.authorities.base / tls)),
                *("--termination-log", str(self.base / name / "last-words")),
                *("--limits", str(self.base / name / "limits")),
            ],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        server = Server(name=name, job=job, base=self.base, directory=directory, process=process)
        listening = threading.Event()
        server.reader = threading.Thread(target=server.read_log, args=(listening,), daemon=True)
        server.reader.start()
        assert listening.wait(60)
        assert server.port, server.log
        self.servers.append(server)
        self.show(name, server.port)
        return server

    def show(self, name: str, state: object) -> None:
        """Set what the proxy sees of a volume (`proxy_process`)."""
        with self._telling:
            self.volumes[f"ns/{name}"] = state
            self._tell()

    def _tell(self) -> None:
        path = self.home / "volumes.new"
        path.write_text(json.dumps(self.volumes))
        path.rename(self.home / "volumes.json")

    def stop_servers(self) -> None:
        for server in self.servers:
            if server.process.poll() is None:
                server.kill()
            server.join()
        self.servers.clear()
        with self._telling:
            self.volumes.clear()
            self._tell()

    # --- clients ------------------------------------------------------------------------------------------------

    def token(self, name: str = "vm", *, key: SigningKey | None = None, age: float = 0, **claims: object) -> str:
        said = {"operation": Operation.UPLOAD, "namespace": "ns", "name": name, "resource": CLAIM, **claims}
        return (key or self.authorities.key).sign(TokenClaims(**said), time.time() - age)  # type: ignore[arg-type]

    def url(self, path: str) -> str:
        return f"https://localhost:{self.port}{path}"

    def curl(self, path: str, *arguments: str, token: str | None = "", seconds: int = 60) -> Answered:
        """Run curl; a `token` of None sends none, and "" a valid one."""
        command = ["curl", "-sS", "--max-time", str(seconds), "--cacert", str(self.authorities.base / "public-ca.crt")]
        command += ["-D", "-", "-w", "\n%{http_code}"]
        if token is not None:
            command += ["-H", f"Authorization: Bearer {token or self.token()}"]
        done = subprocess.run([*command, *arguments, self.url(path)], capture_output=True, text=True)
        assert done.returncode == 0, (done.returncode, done.stderr, done.stdout)
        text, _, status = done.stdout.rpartition("\n")
        head, body = "", text
        while re.match(r"HTTP/1\.1 \d", body):
            head, _, body = body.replace("\r\n", "\n").partition("\n\n")
        fields = dict(line.split(": ", 1) for line in head.split("\n")[1:] if ": " in line)
        return Answered(int(status), body, {name.lower(): value for name, value in fields.items()})

    def metrics(self) -> dict[str, float]:
        """Return the proxy's metrics, by name and labels."""
        with urllib.request.urlopen(f"http://localhost:{self.metrics_port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authorities.base / "public-ca.crt"))


def same(disk: Path, image: Path, driver: str) -> None:
    """Compare the contents as QEMU reads them; the disk may be longer, with zeros."""
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", driver, str(disk), str(image)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def connected(installation):
    with socket.create_connection(("localhost", installation.port), 30) as plain:
        with installation.context().wrap_socket(plain, server_hostname="localhost") as sock:
            sock.settimeout(60)
            yield sock


def said(sock) -> bytes:
    """Return everything up to the end of the connection."""
    got = b""
    try:
        while piece := sock.recv(65536):
            got += piece
    except (ConnectionResetError, ssl.SSLEOFError):
        pass
    return got


def progress(server) -> dict:
    done = subprocess.run(
        ["curl", "-sS", "-k", "--max-time", "30", f"https://localhost:{server.port}/progress"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def wait_until(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)
