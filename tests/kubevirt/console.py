"""The serial console of a machine, through the API server's ``console`` subresource of KubeVirt."""

from __future__ import annotations

import codecs
import contextlib
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import websocket
from kubernetes.client import Configuration
from kubernetes.config import load_kube_config

from tests.cluster.kubectl import Kubectl

BOOT = 420.0
"""Seconds until an emulated guest is at its login, on a busy machine."""
_COMMAND = 90.0
"""Seconds for a command in the guest."""
_NUDGE_INTERVAL = 15.0
"""Seconds without output after which Enter is sent: what was printed before the connection is not repeated."""
_PROTOCOL = "plain.kubevirt.io"
_SHOWN = 6000
"""Characters of the transcript in a failure's message."""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[\r\x00]")
_INCOMPLETE = re.compile(r"\x1b(\[[0-9;?]*|[()])?\Z")
"""The beginning of a control sequence, whose rest comes with the next message."""


@dataclass(slots=True, kw_only=True)
class Console:
    """A connection to the console, which is renewed if it breaks; one client has the console at a time."""

    kubectl: Kubectl
    machine: str
    transcript: str = ""
    """All output without control sequences."""
    _incomplete: str = ""
    _searched: int = 0
    _commands: int = 0
    _socket: websocket.WebSocket | None = None
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def wait(self, pattern: str, timeout: float, *, nudge: bool = False) -> re.Match[str]:
        """Return the first match in the output that follows the previous match.

        Args:
            pattern: A regular expression.
            timeout: Seconds.
            nudge: Send Enter where nothing is printed for a while.

        Raises:
            AssertionError: There was none; the message has the end of the transcript.
        """
        compiled = re.compile(pattern, re.MULTILINE)
        until = time.monotonic() + timeout
        printed = time.monotonic()
        while True:
            if found := compiled.search(self.transcript, self._searched):
                self._searched = found.end()
                return found
            now = time.monotonic()
            if now > until:
                shown = self.transcript[-_SHOWN:]
                raise AssertionError(
                    f"the console of {self.machine} had no {pattern!r} after {timeout:.0f} s:\n{shown}"
                )
            if self._receive(min(1.0, until - now)):
                printed = time.monotonic()
            elif nudge and now - printed > _NUDGE_INTERVAL:
                self.send("")
                printed = now

    def send(self, line: str) -> None:
        """Send a line, unless there is no connection now."""
        if self._socket is not None:
            with contextlib.suppress(OSError, websocket.WebSocketException):
                self._socket.send_binary(f"{line}\n".encode())

    def login(self, user: str = "root", password: str = "", timeout: float = BOOT) -> None:
        """Wait for the login, log in, and start a shell that prints neither a prompt nor what it reads."""
        self.wait(r"login: *\Z", timeout, nudge=True)
        self.send(user)
        if password:
            self.wait(r"assword: *\Z", _COMMAND)
            self.send(password)
        self.wait(r"[#$] *\Z", _COMMAND)
        self.send("stty -echo; echo rea''dy; while IFS= read -r line; do eval \"$line\"; done")
        self.wait(r"^ready$", _COMMAND)

    def run(self, command: str, timeout: float = _COMMAND) -> str:
        """Return the output of a shell command in the guest.

        Raises:
            AssertionError: It failed or took too long.
        """
        self._commands += 1
        number = self._commands
        # A line feed first: the kernel may have printed on the same line.
        self.send(f"echo; echo BEGIN-{number}; ( {command} ) 2>&1; echo; echo END-{number}-$?")
        found = self.wait(rf"^BEGIN-{number}$\n?([\s\S]*?)\n?^END-{number}-(\d+)$", timeout)
        output = found.group(1).strip()
        assert found.group(2) == "0", f"{command!r} ended with {found.group(2)} in {self.machine}: {output}"
        return output

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError, websocket.WebSocketException):
                self._socket.close()
            self._socket = None

    def _receive(self, timeout: float) -> bool:
        """Add output to the transcript; return whether there was any within `timeout` seconds."""
        try:
            if self._socket is None:
                self._socket = _connect(self.kubectl, self.machine)
            self._socket.settimeout(timeout)
            data = self._socket.recv()
        except websocket.WebSocketTimeoutException:
            return False
        except (OSError, websocket.WebSocketException):
            # The machine has no process yet, has restarted, or another client has taken the console.
            self.close()
            time.sleep(min(timeout, 1.0))
            return False
        text = self._decoder.decode(data) if isinstance(data, bytes) else data
        text = self._incomplete + text
        end = found.start() if (found := _INCOMPLETE.search(text)) else len(text)
        self._incomplete = text[end:]
        self.transcript += _CONTROL.sub("", text[:end])
        if not data:
            self.close()
        return bool(data)


@contextlib.contextmanager
def console(kubectl: Kubectl, machine: str) -> Iterator[Console]:
    """Yield the console of a VirtualMachineInstance, which need not run yet."""
    opened = Console(kubectl=kubectl, machine=machine)
    try:
        yield opened
    finally:
        opened.close()


def _connect(kubectl: Kubectl, machine: str) -> websocket.WebSocket:
    settings = Configuration()
    load_kube_config(  # type: ignore[no-untyped-call]  # the library annotates it only in part
        str(kubectl.kubeconfig), client_configuration=settings, persist_config=False
    )
    path = f"/apis/subresources.kubevirt.io/v1/namespaces/{kubectl.namespace}/virtualmachineinstances/{machine}/console"
    options = {"ca_certs": settings.ssl_ca_cert, "cert_reqs": ssl.CERT_REQUIRED}
    if settings.cert_file:
        options |= {"certfile": settings.cert_file, "keyfile": settings.key_file}
    headers = [f"Authorization: {token}"] if (token := settings.get_api_key_with_prefix("authorization")) else []
    return websocket.create_connection(
        settings.host.replace("http", "ws", 1) + path,
        timeout=30, subprotocols=[_PROTOCOL], header=headers, sslopt=options, suppress_origin=True,
        http_no_proxy=["*"],
    )  # fmt: skip
