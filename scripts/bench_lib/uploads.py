"""Uploads over TLS to an upload server of ours, directly or through a relay (`bench_lib.relay`).

The server and the relay are started before the clock. What counts is the time until the client has its response, and
the processor time of the client and the relay.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

_START_TIMEOUT = 60.0
_CLOCK_TICK = os.sysconf("SC_CLK_TCK")


class Upload:
    """One upload: its certificates, the processes that receive it, and the client's command."""

    def __init__(self, directory: Path, disk: Path, size: int, relay: str | None) -> None:
        """Start the server, which writes a disk of `size` bytes to `disk`, and a relay if one is named."""
        self._directory = directory
        self._relay: subprocess.Popen[bytes] | None = None
        self._token = _make_credentials(directory)
        self._server = self._start_server(disk, size)
        try:
            self._port = int(self._await_line("server.log", rb"listening on port (\d+)"))
            if relay is not None:
                command = [sys.executable, "-m", "bench_lib.relay", relay, str(directory), str(self._port)]
                with (directory / "relay.out").open("wb") as output, (directory / "relay.log").open("wb") as log:
                    self._relay = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=log)
                self._port = int(self._await_line("relay.out", rb"(\d+)\n"))
        except BaseException:
            self.close()
            raise

    def _start_server(self, disk: Path, size: int) -> subprocess.Popen[bytes]:
        base = self._directory
        job = {
            "id": "bench",
            "source": {"kind": "stream"},
            "target": {"kind": "file", "path": str(disk)},
            "size": size,
        }
        (base / "job").write_text(json.dumps(job))
        command = [sys.executable, "-m", "cdi.worker", "upload", "--port", "0", "--job", str(base / "job")]
        command += ["--tls", str(base / "server"), "--termination-log", str(base / "last-words")]
        command += ["--limits", str(base / "limits")]
        with (base / "server.log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _await_line(self, name: str, pattern: bytes) -> bytes:
        deadline, text = time.monotonic() + _START_TIMEOUT, b""
        while time.monotonic() < deadline:
            text = (self._directory / name).read_bytes()
            if (found := re.search(pattern, text)) is not None:
                return found[1]
            time.sleep(0.05)
        raise SystemExit(f"bench: the upload server or its relay has not started: {text[-300:]!r}")

    def command(self, image: Path) -> list[str]:
        """Return the client's command; it ends when the volume is complete."""
        command = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--request", "POST"]
        command += ["--cacert", str(self._directory / "ca.crt"), "--header", f"Authorization: Bearer {self._token}"]
        if self._relay is None:
            client = self._directory / "client"
            command += ["--cert", str(client / "tls.crt"), "--key", str(client / "tls.key")]
        return [*command, "--upload-file", str(image), f"https://localhost:{self._port}/v1beta1/upload"]

    def cpu(self) -> float:
        """Return the seconds of processor time that the relay has used so far."""
        if self._relay is None:
            return 0.0
        fields = Path(f"/proc/{self._relay.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICK

    def close(self) -> None:
        for process in (self._relay, self._server):
            if process is not None:
                process.kill()
                process.wait()


def _make_credentials(directory: Path) -> str:
    """Write the certificates of the server, the relay and its client, and the key of tokens; return a token."""
    from cdi.api.upload_protocol import CLIENT_NAME
    from cdi.kube.jwt import Operation, SigningKey, TokenClaims
    from cdi.kube.pki import AUTHORITY_LIFETIME, CERTIFICATE_LIFETIME, new_authority, new_certificate

    now = dt.datetime.now(dt.UTC)
    authority = new_authority("bench", AUTHORITY_LIFETIME, now)
    (directory / "ca.crt").write_bytes(authority.certificate)
    for name, usage in (("server", "server"), ("proxy", "server"), ("client", "client")):
        pair = new_certificate(
            authority,
            CLIENT_NAME if usage == "client" else "localhost",
            hosts=("localhost",) if usage == "server" else (),
            usage="client" if usage == "client" else "server",
            lifetime=CERTIFICATE_LIFETIME,
            now=now,
        )
        (directory / name).mkdir()
        (directory / name / "tls.crt").write_bytes(pair.certificate)
        (directory / name / "tls.key").write_bytes(pair.key)
        (directory / name / "ca.crt").write_bytes(authority.certificate)
    key = SigningKey.generate()
    (directory / "id_rsa.pub").write_bytes(key.pems["id_rsa.pub"])
    return key.sign(TokenClaims(operation=Operation.UPLOAD, namespace="ns", name="bench"), now.timestamp())
