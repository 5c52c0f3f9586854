"""Benchmark of an upload through the proxy and the upload server, compared with the upstream importer.

    python -m tests.integration.upload.measure DIRECTORY [ROUNDS [MEBIBYTES]]

It also compares resuming an upload whose connection was cut at nine tenths with sending all of it again. The other
importer receives through the same proxy, writes to a scratch file, and has ``qemu-img convert -t writeback`` make the
disk. Run it alone on a quiet machine; DIRECTORY decides which disk is measured.
"""

import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

from tests.integration.upload.installation import MIB, Authorities, Stand, connected, said, same

SIZE = 1 << 30
CUT = 0.9


def images(directory: Path, size: int) -> dict[str, Path]:
    """Make a disk of a third holes, a third text and a third incompressible data, raw and as compressed qcow2."""
    raw, qcow2 = directory / "raw", directory / "qcow2"
    dice = random.Random(1)
    with open(raw, "wb") as file:
        for number in range(size // MIB):
            match number % 3:
                case 0:
                    file.seek(MIB, os.SEEK_CUR)
                case 1:
                    file.write((b"line %08d of a log\n" % number * (MIB // 20))[:MIB].ljust(MIB))
                case _:
                    file.write(dice.randbytes(MIB))
        file.truncate(size)
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)], check=True)
    return {"raw": raw, "qcow2": qcow2}


def receive_old(tls: str, directory: str, driver: str) -> None:
    """Serve one upload that is spooled and converted; print the port."""
    base, place = Path(tls), Path(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(base / "tls.crt", base / "tls.key")
    context.load_verify_locations(base / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        print(listener.getsockname()[1], flush=True)
        plain, _ = listener.accept()
    with context.wrap_socket(plain, server_side=True) as sock:
        text = b""
        while b"\r\n\r\n" not in text:
            text += sock.recv(65536)
        head, _, rest = text.partition(b"\r\n\r\n")
        left = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        buffer = memoryview(bytearray(MIB))
        with open(place / "scratch", "wb", buffering=0) as file:
            left -= file.write(rest)
            while left:
                filled = 0
                while filled < min(MIB, left):
                    filled += sock.recv_into(buffer[filled : min(MIB, left)])
                left -= file.write(buffer[:filled])
        command = ["qemu-img", "convert", "-t", "writeback", "-f", driver, "-O", "raw"]
        subprocess.run([*command, str(place / "scratch"), str(place / "disk.img")], check=True)
        with open(place / "disk.img", "rb") as disk:
            os.fsync(disk.fileno())
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def send(installation: Stand, image: Path, name: str) -> float:
    began = time.monotonic()
    sending = ("-X", "POST", "-T", str(image))
    answer = installation.curl("/v1beta1/upload", *sending, token=installation.token(name), seconds=600)
    assert answer.status == 200, answer
    return time.monotonic() - began


def resume(installation: Stand, image: Path, name: str) -> float:
    """Start a resumable upload, cut it, and resume it; return the seconds from the cut to the last response."""
    size = image.stat().st_size
    tus = "Tus-Resumable: 1.0.0"
    create = ("-X", "POST", "-H", tus, "-H", f"Upload-Length: {size}")
    begun = installation.curl(f"/v1beta1/tus/ns/{name}", *create, token=installation.token(name))
    assert begun.status == 201, begun
    where = begun.headers["location"]
    # The connection is cut, so there is no response to wait for.
    assert patch(installation, image, where, name, 0, int(CUT * size)) == b""
    began = time.monotonic()
    while True:
        told = installation.curl(where, "-I", "-H", tus, token=installation.token(name))
        assert told.status == 200, told
        answer = patch(installation, image, where, name, int(told.headers["upload-offset"]), size)
        # The last bytes of the cut request may be processed after the offset was queried.
        if not answer.startswith(b"HTTP/1.1 409 "):
            break
    seconds = time.monotonic() - began
    assert answer.startswith(b"HTTP/1.1 204 "), answer
    return seconds


def patch(installation: Stand, image: Path, where: str, name: str, offset: int, end: int) -> bytes:
    """Announce everything from `offset` on and send it up to `end`; return the response if that is all."""
    size = image.stat().st_size
    head = (
        f"PATCH {where} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTus-Resumable: 1.0.0\r\n"
        f"Authorization: Bearer {installation.token(name)}\r\nContent-Type: application/offset+octet-stream\r\n"
        f"Upload-Offset: {offset}\r\nContent-Length: {size - offset}\r\n\r\n"
    )
    with connected(installation) as sock, open(image, "rb", buffering=0) as file:
        sock.settimeout(600)
        sock.sendall(head.encode())
        file.seek(offset)
        while offset < end and (piece := file.read(min(MIB, end - offset))):
            sock.sendall(piece)
            offset += len(piece)
        return said(sock) if end == size else b""


def old_way(installation: Stand, image: Path, driver: str, name: str) -> tuple[float, Path]:
    directory = installation.base / name
    directory.mkdir()
    command = [sys.executable, "-m", "tests.integration.upload.measure", "--old"]
    command += [str(installation.authorities.base / "server"), str(directory), driver]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        installation.show(name, int(server.stdout.readline()))
        return send(installation, image, name), directory / "disk.img"


def main(directory: str, rounds: str = "3", mebibytes: str = str(SIZE // MIB)) -> None:
    base, size = Path(directory) / "measure", int(mebibytes) * MIB
    home = base / "home"
    home.mkdir(parents=True)
    installation = Stand(Authorities(base), base, home)
    installation.start_proxy()
    try:
        for driver, image in images(base, size).items():
            image.read_bytes()  # fill the page cache
            for number in range(int(rounds)):
                name = f"{driver}-{number}"
                server = installation.start_server(name, size=size)
                ours = send(installation, image, name)
                assert server.outcome().scratch == 0
                cut = installation.start_server(f"cut-{name}", size=size)
                rest = resume(installation, image, f"cut-{name}")
                assert cut.outcome().fetched == image.stat().st_size
                same(cut.disk, image, driver)
                cut.disk.unlink()
                theirs, disk = old_way(installation, image, driver, f"old-{name}")
                same(server.disk, disk, "raw")
                load = os.getloadavg()[0]
                print(f"{driver}: {ours:.2f} s, the old way {theirs:.2f} s, {ours / theirs:.2f}; load {load:.1f}")
                print(
                    f"{driver}, cut at {CUT:.0%} and resumed: {rest:.2f} s, {rest / ours:.2f} of the whole", flush=True
                )
                server.disk.unlink()
                shutil.rmtree(disk.parent)
    finally:
        installation.stop_servers()
        installation.stop_proxy()
        shutil.rmtree(base)


if __name__ == "__main__":
    if sys.argv[1] == "--old":
        receive_old(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
