"""Tests of upload servers that end during a request and are replaced: the request waits for the next one."""

import http.client
import signal
import ssl
import threading
import time
from contextlib import contextmanager

import pytest

from tests.integration.upload.installation import MIB, connected, progress, said, same, wait_until

DISK = 12 * MIB
TRIES = 5
REPLAYED = 256 << 10
"""Bytes of a body that the proxy can send again."""
TUS = ("-H", "Tus-Resumable: 1.0.0")
WAITING = "cdi_uploadproxy_waiting"


@contextmanager
def replaced(installation, server, *, noticed=True, **how):
    """Replace a server as the controller does: after its end there is none for a while, and then another.

    Unless its end is `noticed` at once, the proxy's state lists it until a request has failed to reach it and waits.
    """
    failures = []

    def replace():
        try:
            server.process.wait(60)
            if not noticed:
                wait_until(lambda: installation.metrics()[WAITING] == 1)
            installation.show(server.name, "waiting")
            server.join()
            made.append(installation.start_server(server.name, size=server.job.size, **how))
        except BaseException as error:
            failures.append(error)
            raise

    made = []
    thread = threading.Thread(target=replace)
    thread.start()
    try:
        yield made
    finally:
        thread.join(120)
    assert not failures


def post(installation, content):
    """Upload as ``virtctl image-upload`` does, without its pauses; return the statuses of up to five attempts."""
    found = []
    for _ in range(TRIES):
        connection = http.client.HTTPSConnection(
            "localhost", installation.port, timeout=120, context=installation.context()
        )
        fields = {"Authorization": f"Bearer {installation.token()}", "Content-Type": "application/octet-stream"}
        try:
            connection.request("POST", "/v1beta1/upload-async", content, fields)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            pass  # the response came before all was sent
        with connection.getresponse() as answer:
            found.append(answer.status)
            answer.read()
        connection.close()
        if found[-1] == 200:
            break
        time.sleep(0.05)
    return found


# --- scratch space ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["plain", "gz", "xz", "zst", "tar.gz"])
@pytest.mark.parametrize("name", ["vmdk-2M", "vmdk-4M"])
def test_an_image_that_needs_scratch_space_is_uploaded_in_one_request(installation, images, name, wrapper):
    image = images.get(name, wrapper)
    first = installation.start_server(size=DISK)
    with replaced(installation, first, scratch=True) as made:
        assert post(installation, image.content) == [200]
    assert first.outcome().failure.code == "ScratchNeeded"
    outcome = made[0].outcome()
    assert (outcome.failure, outcome.path, outcome.wrappers) == (None, "qemu-spool", image.wrappers)
    same(made[0].disk, image.path.with_name("image.plain"), image.kind.format)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1beta1/upload", "/v1beta1/upload-form-async"])
def test_every_way_of_sending_is_sent_again(installation, images, path, chunked):
    image = images.get("vmdk-4M")
    how = ("-F", f"file=@{image.path}") if "form" in path else ("-X", "POST", "-T", str(image.path))
    first = installation.start_server(size=DISK)
    with replaced(installation, first, scratch=True) as made:
        answer = installation.curl(path, *how, *(("-H", "Transfer-Encoding: chunked") if chunked else ()))
    assert (answer.status, answer.body) == (200, "")
    assert made[0].outcome().failure is None
    same(made[0].disk, image.path, image.kind.format)


@pytest.mark.parametrize("creates", [False, True])
def test_a_resumable_upload_is_sent_again(installation, images, creates):
    image = images.get("vmdk-2M")
    first = installation.start_server(size=DISK)
    start, length = "/v1beta1/tus/ns/vm", ("-H", f"Upload-Length: {len(image.content)}")
    piece = ("-H", "Content-Type: application/offset+octet-stream", "-T", str(image.path))
    with replaced(installation, first, scratch=True) as made:
        if creates:
            answer = installation.curl(start, "-X", "POST", *TUS, *length, *piece)
        else:
            where = installation.curl(start, "-X", "POST", *TUS, *length).headers["location"]
            answer = installation.curl(where, "-X", "PATCH", *TUS, *piece, "-H", "Upload-Offset: 0")
    assert (answer.status, answer.headers["upload-offset"]) == (201 if creates else 204, str(len(image.content)))
    assert made[0].outcome().failure is None
    same(made[0].disk, image.path, image.kind.format)


def test_an_image_that_the_next_server_refuses_is_refused(installation, images):
    image = images.get("vmdk-2M")
    first = installation.start_server(size=MIB * 9)  # the disk is larger by a few sectors
    sent = ("-X", "POST", "-T", str(image.path))
    with replaced(installation, first, scratch=True):
        first.kill()
        answer = installation.curl("/v1beta1/upload", *sent)
    assert (answer.status, answer.body.startswith("error[TargetTooSmall]: ")) == (400, True)


def test_where_no_other_server_comes_the_client_is_told_what_was_last_in_the_way(lone, images):
    lone.stop_proxy()
    lone.start_proxy(replacement=1.0)
    server = lone.start_server(size=DISK)
    answer = lone.curl("/v1beta1/upload", "-X", "POST", "-T", str(images.get("vmdk-2M").path))
    assert server.outcome().failure.code == "ScratchNeeded"
    assert (answer.status, answer.body.startswith("error[UploadNotReady]: ")) == (503, True)
    assert "did not become ready within 1 s: " in answer.body


def test_servers_that_all_end_are_not_waited_for_for_ever(installation, images, tmp_path):
    """None of the servers gets scratch space."""
    image = images.get("vmdk-2M")
    servers = [installation.start_server(size=DISK)]
    ended = threading.Event()

    def replace():
        while not ended.is_set() and len(servers) < 9:
            servers[-1].process.wait(60)
            servers[-1].join()
            servers.append(installation.start_server(size=DISK))

    thread = threading.Thread(target=replace)
    thread.start()
    answer = installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path), seconds=120)
    ended.set()
    for server in servers[-1:]:
        server.kill()
    thread.join(60)
    assert answer.status == 503
    assert "4 upload servers ended during the upload" in answer.body
    assert "which is not available yet" in answer.body


# --- killed servers -----------------------------------------------------------------------------------------------


def head(installation, length, extra=""):
    return (
        f"POST /v1beta1/upload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {installation.token()}\r\n"
        f"Connection: close\r\n{extra}Content-Length: {length}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("name", ["raw", "qcow2-zlib"])
def test_a_server_that_is_killed_at_the_start_of_an_upload_is_not_noticed(installation, images, name, number):
    image = images.get(name)
    first = installation.start_server(size=DISK)
    with replaced(installation, first) as made, connected(installation) as sock:
        sock.sendall(head(installation, len(image.content)) + image.content[:100_000])
        wait_until(lambda: progress(first)["progress"]["fetched"] > 0)
        first.process.send_signal(number)
        first.process.wait(60)
        sock.sendall(image.content[100_000:])
        assert said(sock).startswith(b"HTTP/1.1 200 ")
    assert made[0].outcome().failure is None
    same(made[0].disk, image.path, image.kind.format)


def test_a_server_that_is_killed_when_it_has_all_of_a_small_upload_is_not_noticed(installation, tmp_path):
    """The response waits for the last byte, which the client withholds; all others are sent again."""
    content = b"x" * REPLAYED
    first = installation.start_server(size=DISK)
    with replaced(installation, first) as made, connected(installation) as sock:
        sock.sendall(head(installation, len(content)) + content[:-1])
        wait_until(lambda: progress(first)["upload"]["state"] == "receiving")
        first.process.kill()
        sock.sendall(content[-1:])
        assert said(sock).startswith(b"HTTP/1.1 200 ")
    assert made[0].outcome().failure is None
    assert made[0].disk.read_bytes()[:REPLAYED] == content


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_is_killed_in_the_middle_costs_one_try_of_five(installation, images, number):
    """The bytes after the kept start of the body are lost; the next attempt waits for the next server."""
    image = images.get("raw")
    first = installation.start_server(size=DISK)
    with replaced(installation, first) as made:
        with connected(installation) as sock:
            sock.sendall(head(installation, len(image.content)) + image.content[: 4 * MIB])
            wait_until(lambda: progress(first)["progress"]["fetched"] > 2 * MIB)
            first.process.send_signal(number)
            answer = said(sock)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Try: " in answer
        assert post(installation, image.content) == [200]
    assert made[0].outcome().failure is None
    same(made[0].disk, image.path, "raw")


def test_a_request_that_comes_while_there_is_no_server_waits_for_one(installation, images):
    image = images.get("qcow2-zlib")
    first = installation.start_server(size=DISK)
    first.kill()
    with replaced(installation, first, noticed=False) as made:
        assert post(installation, image.content) == [200]
    assert made[0].outcome().failure is None
    same(made[0].disk, image.path, "qcow2")


def test_a_question_that_comes_while_there_is_no_server_waits_for_one(installation):
    """The client asks for the offset (tus)."""
    first = installation.start_server(size=DISK)
    where = installation.curl("/v1beta1/tus/ns/vm", "-X", "POST", *TUS, "-H", f"Upload-Length: {DISK}").headers[
        "location"
    ]
    first.kill()
    with replaced(installation, first, noticed=False):
        answer = installation.curl(where, "-I", *TUS)
    assert (answer.status, answer.headers["upload-offset"]) == (200, "0")


# --- waiting clients ----------------------------------------------------------------------------------------------


def test_the_client_is_not_told_to_send_before_there_is_a_server(installation, images):
    image = images.get("qcow2-zlib")
    installation.show("vm", "waiting")
    with connected(installation) as sock:
        sock.sendall(head(installation, len(image.content), "Expect: 100-continue\r\n"))
        wait_until(lambda: installation.metrics()[WAITING] == 1)
        sock.settimeout(1.0)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        server = installation.start_server(size=DISK)
        sock.settimeout(60)
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert installation.metrics()[WAITING] == 0
        sock.sendall(image.content)
        assert said(sock).startswith(b"HTTP/1.1 200 ")
    same(server.disk, image.path, "qcow2")


@pytest.mark.parametrize("sent", [b"", b"x" * MIB], ids=["nothing", "all"])
def test_a_client_that_goes_gives_its_turn_back(installation, sent):
    installation.show("vm", "waiting")
    with connected(installation) as sock:
        sock.sendall(head(installation, MIB) + sent)
        wait_until(lambda: installation.metrics()[WAITING] == 1)
    wait_until(lambda: installation.metrics()[WAITING] == 0)


@pytest.mark.parametrize("state", ["done", "missing"])
def test_a_volume_that_will_have_no_server_is_not_waited_for_any_longer(installation, state):
    installation.show("vm", "waiting")
    with connected(installation) as sock:
        sock.sendall(head(installation, MIB))
        wait_until(lambda: installation.metrics()[WAITING] == 1)
        installation.show("vm", state)
        assert said(sock).startswith(b"HTTP/1.1 503 ")


def test_a_proxy_that_ends_does_not_wait_on(lone):
    lone.show("vm", "waiting")
    with connected(lone) as sock:
        sock.sendall(head(lone, MIB))
        wait_until(lambda: lone.metrics()[WAITING] == 1)
        lone.proxy.send_signal(signal.SIGTERM)
        answer = said(sock)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"the upload proxy is shutting down" in answer
    lone.proxy.wait(30)
    lone.stop_proxy()


def test_an_upload_that_was_refused_is_cleared_away_before_the_next_is_refused_for_it(installation, images):
    """The next one comes while the first is being cleaned up: its client disconnected without notice to the server."""
    image = images.get("raw")
    server = installation.start_server(size=DISK)
    with connected(installation) as sock:
        sock.sendall(head(installation, len(image.content)) + image.content[:MIB])
        wait_until(lambda: progress(server)["upload"]["state"] == "receiving")
        with connected(installation) as next_one:
            next_one.sendall(head(installation, len(image.content)))
            wait_until(lambda: installation.metrics()[WAITING] == 1)
            sock.close()
            next_one.sendall(image.content)
            assert said(next_one).startswith(b"HTTP/1.1 200 ")
    same(server.disk, image.path, "raw")
