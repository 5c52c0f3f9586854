"""Nginx over four lines: loopback with and without byte ranges, a line of 100 MB/s, and one with 20 ms of latency.

The line is a network namespace behind a veth pair whose sender is shaped with `tc tbf`.  Latency is `tc netem` where
the kernel has it, else a delaying proxy of our own (`delay`).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from bench_lib.cases import Line

LINE_RATE = 100_000_000
"""Bytes per second of the slow line."""
ROUND_TRIP = 0.020
"""Seconds."""

_NAMESPACE = "cdi-bench"
_OUTER = "10.213.77.1"
_INNER = "10.213.77.2"


class Unavailable(Exception):
    """This machine cannot provide such a line; the text says why."""


class Server:
    """Nginx that serves a directory over a line."""

    def __init__(self, root: Path, work: Path, line: Line) -> None:
        self.root = root
        self.work = work / f"nginx-{line}"
        self.line = line
        self.how = {"full": "loopback", "line": "", "latency": "", "stream": "loopback, no byte ranges"}[line]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._namespace = False
        self._log_offset = 0
        self.base = ""

    def __enter__(self) -> Self:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._namespace:
            self._drop_namespace()

    def url(self, path: Path) -> str:
        return f"{self.base}/{path.name}"

    def traffic(self) -> tuple[int, int]:
        """Return the bytes of bodies sent, and the connections with at least 1 MiB, since the last call."""
        time.sleep(0.1)  # nginx logs a request after its last byte has left
        with (self.work / "access.log").open() as log:
            log.seek(self._log_offset)
            text = log.read()
            self._log_offset = log.tell()
        by_connection: dict[str, int] = {}
        for connection, size in re.findall(r"^(\d+) (\d+)$", text, re.MULTILINE):
            by_connection[connection] = by_connection.get(connection, 0) + int(size)
        return sum(by_connection.values()), sum(1 for size in by_connection.values() if size >= 1 << 20)

    # --- how it starts --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self.line in {"full", "stream"}:
            self.base = self._nginx("127.0.0.1", [])
        elif self.line == "line":
            prefix = self._make_namespace(["tbf", "rate", f"{LINE_RATE}bps", "burst", "256kb", "latency", "100ms"])
            self.how = "network namespace, tc tbf"
            self.base = self._nginx(_INNER, prefix)
        else:
            try:
                prefix = self._make_namespace(["netem", "delay", f"{ROUND_TRIP * 1000:g}ms", "limit", "100000"])
            except Unavailable:
                self._drop_namespace()
                direct = self._nginx("127.0.0.1", [])
                self.how = "a delaying proxy (the kernel has no netem)"
                self.base = self._proxy(direct)
            else:
                self.how = "network namespace, tc netem"
                self.base = self._nginx(_INNER, prefix)

    def _nginx(self, address: str, prefix: list[str]) -> str:
        port = _free_port()
        user = "user root;" if os.geteuid() == 0 else ""
        ranges = "max_ranges 0;" if self.line == "stream" else ""
        temporary = "".join(
            f"{name}_temp_path {self.work}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.work / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; pid {self.work}/pid; error_log {self.work}/error.log; {user}\n"
            "events { worker_connections 512; }\n"
            "http {\n"
            "  log_format bench '$connection $body_bytes_sent';\n"
            f"  access_log {self.work}/access.log bench; {temporary}\n"
            "  sendfile on; sendfile_max_chunk 2m; tcp_nopush on; keepalive_requests 100000;\n"
            f"  server {{ listen {address}:{port}; root {self.root}; {ranges} }}\n"
            "}\n"
        )
        self._spawn([*prefix, "nginx", "-e", f"{self.work}/error.log", "-c", f"{self.work}/nginx.conf"])
        _await_port(address, port)
        return f"http://{address}:{port}"

    def _proxy(self, target: str) -> str:
        port = _free_port()
        self._spawn(
            [
                sys.executable,
                str(Path(__file__).with_name("delay.py")),
                str(port),
                target.rpartition(":")[2],
                str(ROUND_TRIP),
            ]
        )
        _await_port("127.0.0.1", port)
        return f"http://127.0.0.1:{port}"

    def _spawn(self, command: list[str]) -> None:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._processes.append(process)

    def _make_namespace(self, shape: list[str]) -> list[str]:
        self._drop_namespace()
        inside = ["ip", "netns", "exec", _NAMESPACE]
        steps = (
            ["ip", "netns", "add", _NAMESPACE],
            ["ip", "link", "add", "cdib0", "type", "veth", "peer", "name", "cdib1", "netns", _NAMESPACE],
            ["ip", "address", "add", f"{_OUTER}/30", "dev", "cdib0"],
            ["ip", "link", "set", "cdib0", "up"],
            [*inside, "ip", "address", "add", f"{_INNER}/30", "dev", "cdib1"],
            [*inside, "ip", "link", "set", "cdib1", "up"],
            [*inside, "tc", "qdisc", "add", "dev", "cdib1", "root", *shape],
        )
        for step in steps:
            try:
                done = subprocess.run(step, check=False, capture_output=True, text=True)
            except FileNotFoundError as error:
                raise Unavailable(f"{step[0]} is not installed") from error
            if done.returncode != 0:
                raise Unavailable(f"{' '.join(step)}: {done.stderr.strip()}")
            self._namespace = True
        return inside

    def _drop_namespace(self) -> None:
        if shutil.which("ip"):
            subprocess.run(["ip", "netns", "delete", _NAMESPACE], check=False, capture_output=True)
            # The pair goes with the namespace, a moment later.
            for _ in range(50):
                if not Path("/sys/class/net/cdib0").exists():
                    break
                time.sleep(0.1)
        self._namespace = False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_port(address: str, port: int) -> None:
    deadline = time.monotonic() + 15
    while True:
        try:
            socket.create_connection((address, port), 1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no server responds at {address}:{port}") from error
            time.sleep(0.05)
