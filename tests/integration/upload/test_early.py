"""Tests of clients that receive a response before all was sent and send the rest nevertheless, as many programs do."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.upload.installation import MIB, connected, said, same

DISK = 12 * MIB


def send_all(installation, size: int, token: str, *, path: str = "/v1beta1/upload", first: bytes = b"") -> bytes:
    """Send everything, and read the response only then."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {size}\r\n\r\n"
    piece = first.ljust(MIB, b"x")
    with connected(installation) as sock:
        sock.sendall(head.encode())
        for _ in range(size // MIB):
            sock.sendall(piece)
        return said(sock)


def test_who_has_no_token(installation):
    answer = send_all(installation, 200 * MIB, "none")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"error[TokenInvalid]: " in answer


@pytest.mark.parametrize(
    ("first", "code"), [(b"", b"TargetTooSmall"), (b"<!DOCTYPE html>", b"SourceNotAnImage")], ids=["large", "no-image"]
)
def test_who_is_refused_by_the_upload_server(installation, first, code):
    server = installation.start_server(size=DISK if code == b"TargetTooSmall" else 256 * MIB)
    answer = send_all(installation, 200 * MIB, installation.token(), first=first)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"error[" + code + b"]: " in answer
    assert server.process.poll() is None


def test_many_at_once_beside_an_upload(installation, images):
    image = images.get("qcow2-zlib")
    server = installation.start_server(size=DISK)
    with ThreadPoolExecutor(24) as pool:
        refused = [pool.submit(send_all, installation, 20 * MIB, "none") for _ in range(24)]
        assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200
        assert all(one.result().startswith(b"HTTP/1.1 401 ") for one in refused)
    assert server.outcome().failure is None
    same(server.disk, image.path, "qcow2")
