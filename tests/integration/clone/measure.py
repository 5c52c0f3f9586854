"""Benchmark of a copy from volume to volume, compared with ``tar | gzip`` through a TLS stream.

    python -m tests.integration.clone.measure DIRECTORY [ROUNDS]

The disk has 10 GiB, a tenth of it data: half text, half incompressible. Run it alone on a quiet machine; DIRECTORY
decides which disk is measured.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

from tests.integration.clone.peers import Certificates, Clone

MIB = 1 << 20
SIZE = 10 << 30
DATA = 1 << 30


def make(path: Path) -> None:
    """Write data in runs of 8 MiB, distributed over the disk."""
    dice, run = random.Random(1), 8 * MIB
    count = DATA // run
    with open(path, "wb") as file:
        for number in range(count):
            file.seek(SIZE // count * number)
            text = (b"line %08d of a log\n" % number * (run // 20))[:run].ljust(run)
            file.write(text if number % 2 else dice.randbytes(run))
        file.truncate(SIZE)


def same(one: Path, other: Path) -> None:
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", one, other], check=True, stdout=subprocess.DEVNULL)


def ours(base: Path, certificates: Certificates, source: Path, target: Path) -> tuple[float, int]:
    """Return seconds, and bytes of data that were copied."""
    clone = Clone(base / f"clone-{target.stem}", certificates, source, target)
    began = time.monotonic()
    filled, sent = clone.run(600)
    took = time.monotonic() - began
    assert filled.failure is None, filled
    assert sent.failure is None, sent
    return took, filled.fetched


def theirs(certificates: Certificates, source: Path, directory: Path) -> tuple[float, int]:
    """Return seconds, and bytes on the wire."""
    directory.mkdir()
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.integration.clone.measure", "--receive"]
    with subprocess.Popen(
        [*command, str(certificates.directory), str(directory)], stdout=subprocess.PIPE, text=True
    ) as receiver:
        assert receiver.stdout is not None
        sent = deliver(certificates, source, int(receiver.stdout.readline()))
        assert receiver.wait(600) == 0
    return time.monotonic() - began, sent


def deliver(certificates: Certificates, source: Path, port: int) -> int:
    context = ssl.create_default_context(cafile=certificates.server.ca)
    context.load_cert_chain(certificates.client.certificate, certificates.client.key)
    script = f'tar -C "{source.parent}" -cSf - "{source.name}" | gzip'
    sent = 0
    with (
        subprocess.Popen(["bash", "-o", "pipefail", "-c", script], stdout=subprocess.PIPE) as packing,
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        assert packing.stdout is not None
        while piece := packing.stdout.read(MIB):
            sock.sendall(piece)
            sent += len(piece)
        # Read the peer's session tickets, as closing with unread data would discard the data in flight.
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(MIB):
            pass
    assert packing.returncode == 0
    return sent


def receive(certificates: str, directory: str) -> None:
    """Print the port, then unpack the input and flush it to the disk."""
    base = Path(certificates)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(base / "server.crt", base / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        plain, _ = listener.accept()
    script = f'gzip -dc | tar -C "{directory}" -xSf -'
    with (
        context.wrap_socket(plain, server_side=True) as sock,
        subprocess.Popen(["bash", "-o", "pipefail", "-c", script], stdin=subprocess.PIPE) as unpacking,
    ):
        assert unpacking.stdin is not None
        while piece := sock.recv(MIB):
            unpacking.stdin.write(piece)
        unpacking.stdin.close()
        assert unpacking.wait() == 0
    (disk,) = Path(directory).iterdir()
    with open(disk, "rb") as file:
        os.fsync(file.fileno())


def main(directory: str, rounds: str = "3") -> None:
    base = Path(directory) / "measure-copy"
    base.mkdir(parents=True)
    try:
        certificates = Certificates(base / "tls")
        source = base / "source.img"
        make(source)
        for number in range(int(rounds)):
            target, other = base / f"ours-{number}.img", base / f"theirs-{number}"
            fast, few = ours(base, certificates, source, target)
            slow, many = theirs(certificates, source, other)
            for copy in (target, other / source.name):
                same(source, copy)
            print(
                f"{fast:.2f} s for {few / MIB:.0f} MiB of data, tar | gzip {slow:.2f} s and {many / MIB:.0f} MiB sent, "
                f"{fast / slow:.2f}; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            target.unlink()
            shutil.rmtree(other)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    if sys.argv[1] == "--receive":
        receive(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
