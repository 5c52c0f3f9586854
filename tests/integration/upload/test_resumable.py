"""Tests of tus, with curl, tuspy, and a socket that is cut."""

import base64
import hashlib
import io
import random
import signal
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from cdi.api.job import Policy
from tests.integration.upload.installation import MIB, connected, progress, said, same, wait_until

DISK = 12 * MIB
LARGE = 64 * MIB
_TUS = ("-H", "Tus-Resumable: 1.0.0")
_PIECE = ("-H", "Content-Type: application/offset+octet-stream")
START = "/v1beta1/tus/ns/vm"


@pytest.fixture(scope="session")
def large():
    """Return an incompressible raw disk, in whole sectors."""
    return random.Random(5).randbytes(MIB) * (LARGE // MIB)


def begin(installation, length, *more):
    answer = installation.curl(START, "-X", "POST", *_TUS, "-H", f"Upload-Length: {length}", *more)
    assert answer.status == 201, answer
    assert answer.headers["upload-expires"]
    return answer.headers["location"]


def patch(installation, where, offset, path, *more):
    return installation.curl(
        where, "-X", "PATCH", *_TUS, *_PIECE, "-H", f"Upload-Offset: {offset}", "--data-binary", f"@{path}", *more
    )


def head(installation, where):
    answer = installation.curl(where, "-I", *_TUS)
    return int(answer.headers["upload-offset"]) if answer.status == 200 else answer.status


@pytest.fixture
def client(installation):
    return TusClient(installation.url(START), headers={"Authorization": f"Bearer {installation.token()}"})


@pytest.fixture(autouse=True)
def trusted(authorities, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authorities.base / "public-ca.crt"))


# --- protocol -----------------------------------------------------------------------------------------------------


def test_what_the_server_can(installation):
    answer = installation.curl(START, "-X", "OPTIONS", token=None)
    assert answer.status == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert set(answer.headers["tus-extension"].split(",")) == {
        "creation", "creation-with-upload", "termination", "checksum", "expiration",
    }  # fmt: skip
    assert answer.headers["tus-checksum-algorithm"] == "sha1,sha256,md5"


def test_in_pieces(installation, images, tmp_path):
    image = images.get("qcow2-zlib")
    server = installation.start_server(size=DISK)
    where = begin(installation, len(image.content))
    assert head(installation, where) == 0
    third = len(image.content) // 3
    offset = 0
    for size in (third, 1, len(image.content) - third - 1):
        (tmp_path / "piece").write_bytes(image.content[offset : offset + size])
        answer = patch(installation, where, offset, tmp_path / "piece")
        offset += size
        assert (answer.status, answer.headers["upload-offset"]) == (204, str(offset))
    assert server.outcome().failure is None
    same(server.disk, image.path, "qcow2")


def test_begun_with_the_first_piece(installation, images, tmp_path):
    image = images.get("raw")
    server = installation.start_server(size=DISK)
    answer = installation.curl(
        START, "-X", "POST", *_TUS, *_PIECE, "-H", f"Upload-Length: {len(image.content)}", "-T", str(image.path)
    )
    assert (answer.status, answer.headers["upload-offset"]) == (201, str(len(image.content)))
    assert answer.headers["location"].startswith(f"{START}/")
    assert server.outcome().failure is None
    same(server.disk, image.path, "raw")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("-X", "POST", "-H", "Upload-Length: 5"), 412),
        (("-X", "POST", "-H", "Tus-Resumable: 0.2.2", "-H", "Upload-Length: 5"), 412),
        (("-X", "POST", *_TUS), 400),
        (("-X", "POST", *_TUS, "-H", "Upload-Length: many"), 400),
        (("-X", "POST", *_TUS, "-H", "Upload-Length: -1"), 400),
        (("-X", "POST", *_TUS, "-H", "Upload-Defer-Length: 1"), 400),
        (("-X", "POST", *_TUS, "-H", "Upload-Length: 5", "-H", "Upload-Metadata: checksum !"), 400),
        (("-X", "GET", *_TUS), 405),
    ],
)
def test_beginnings_that_are_none(installation, arguments, status):
    installation.start_server(size=DISK)
    assert installation.curl(START, *arguments).status == status


@pytest.mark.parametrize("length", [DISK * 8, 1 << 59, 1 << 62, 10**25])
def test_one_that_is_too_long_for_the_volume_is_refused_at_once_and_does_not_take_it(installation, images, length):
    server = installation.start_server(size=DISK)
    answer = installation.curl(START, "-X", "POST", *_TUS, "-H", f"Upload-Length: {length}")
    assert (answer.status, answer.body.startswith("error[TargetTooSmall]: ")) == (413, True)
    assert str(length) in answer.body
    assert str(DISK) in answer.body
    assert progress(server)["upload"]["state"] == "waiting"
    image = images.get("raw")
    assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200


def test_one_whose_image_is_longer_than_its_disk_is_taken(installation, images):
    """Every format has tables, and compressed data may be larger."""
    image = images.get("vhdx-fixed")
    server = installation.start_server(size=len(image.disk), scratch=True)
    assert len(image.content) > len(image.disk)
    assert patch(installation, begin(installation, len(image.content)), 0, image.path).status == 204
    assert server.outcome().failure is None
    same(server.disk, image.path, "vhdx")


def test_an_upload_that_is_complete_is_told_so_for_ever(installation, images):
    """A client that lost the last response may ask while the volume is finished, after the server's end, and later."""
    image = images.get("qcow2-v3")
    server = installation.start_server(size=DISK)
    size = str(len(image.content))
    where = begin(installation, len(image.content))
    assert patch(installation, where, 0, image.path).status == 204
    asked = []
    with ThreadPoolExecutor(1) as pool:
        while server.process.poll() is None or not asked:
            asked.append(pool.submit(installation.curl, where, "-I", *_TUS))
            wait([asked[-1]], timeout=0.2)
        installation.show("vm", ["done", server.outcome().validator])
        asked.append(pool.submit(installation.curl, where, "-I", *_TUS))
    for answer in (each.result() for each in asked):
        assert (answer.status, answer.headers["upload-offset"], answer.headers["upload-length"]) == (200, size, size)
    assert installation.curl(where.replace("/ns/vm/", "/ns/vm/0")[: len(where)], "-I", *_TUS).status in {404, 409}
    assert server.outcome().failure is None
    same(server.disk, image.path, "qcow2")


def test_pieces_that_do_not_fit(installation, tmp_path):
    installation.start_server(size=DISK)
    (tmp_path / "piece").write_bytes(b"x" * 100)
    where = begin(installation, 1000)
    assert patch(installation, where, 0, tmp_path / "piece").status == 204
    answer = patch(installation, where, 0, tmp_path / "piece")
    assert (answer.status, answer.headers["upload-offset"]) == (409, "100")
    (tmp_path / "long").write_bytes(b"x" * 901)
    assert patch(installation, where, 100, tmp_path / "long").status == 413
    typed = ("-X", "PATCH", *_TUS, "-H", "Upload-Offset: 100", "-H", "Content-Type: text/plain", "-d", "x")
    assert installation.curl(where, *typed).status == 415
    assert installation.curl(where, "-X", "PATCH", *_TUS, *_PIECE, "-d", "x").status == 400
    assert head(installation, where) == 100


def test_an_upload_that_is_removed(installation, images, tmp_path):
    image = images.get("raw")
    server = installation.start_server(size=DISK)
    (tmp_path / "piece").write_bytes(image.content[: 5 * MIB])
    where = begin(installation, len(image.content))
    assert patch(installation, where, 0, tmp_path / "piece").status == 204
    assert installation.curl(where, "-X", "DELETE", *_TUS).status == 204
    assert head(installation, where) == 404
    assert patch(installation, where, 0, tmp_path / "piece").status == 404
    assert not list(server.directory.glob("**/*.partial"))
    assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200
    same(server.disk, image.path, "raw")


def test_method_override(installation):
    installation.start_server(size=DISK)
    where = begin(installation, 1000)
    answer = installation.curl(where, "-X", "POST", *_TUS, "-H", "X-HTTP-Method-Override: DELETE")
    assert answer.status == 204
    assert head(installation, where) == 404


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
@pytest.mark.parametrize("size", [100_000, 17 * MIB])
def test_a_piece_with_a_checksum(installation, large, tmp_path, algorithm, size):
    server = installation.start_server(size=LARGE)
    where = begin(installation, LARGE)
    first, piece = large[:MIB], large[MIB : MIB + size]
    (tmp_path / "first").write_bytes(first)
    (tmp_path / "piece").write_bytes(piece)
    (tmp_path / "wrong").write_bytes(piece[:-1] + b"?")
    assert patch(installation, where, 0, tmp_path / "first").status == 204
    right = base64.b64encode(hashlib.new(algorithm, piece).digest()).decode()
    checked = ("-H", f"Upload-Checksum: {algorithm} {right}")
    answer = patch(installation, where, MIB, tmp_path / "wrong", *checked)
    assert (answer.status, answer.body.startswith("error[ChecksumMismatch]")) == (460, True)
    # A small piece is discarded; of a large one a part was written already, so the upload starts over.
    offset = head(installation, where)
    assert offset == (MIB if size == 100_000 else 0)
    if not offset:
        assert patch(installation, where, 0, tmp_path / "first").status == 204
    assert patch(installation, where, MIB, tmp_path / "piece", *checked).status == 204
    (tmp_path / "rest").write_bytes(large[MIB + size :])
    assert patch(installation, where, MIB + size, tmp_path / "rest").status == 204
    assert server.outcome().failure is None
    assert server.disk.read_bytes() == large


@pytest.mark.parametrize("text", ["crc32 AAAA", "sha1 short", "sha1"])
def test_a_checksum_that_is_none(installation, tmp_path, text):
    installation.start_server(size=DISK)
    (tmp_path / "piece").write_bytes(b"x" * 100)
    assert (
        patch(installation, begin(installation, 1000), 0, tmp_path / "piece", "-H", f"Upload-Checksum: {text}").status
        == 400
    )


@pytest.mark.parametrize("good", [True, False])
def test_the_whole_has_a_digest(installation, images, good):
    image = images.get("qcow2-v3")
    digest = f"sha256:{image.sha256 if good else '0' * 64}"
    server = installation.start_server(size=DISK)
    metadata = f"filename {base64.b64encode(b'image').decode()},checksum {base64.b64encode(digest.encode()).decode()}"
    where = begin(installation, len(image.content), "-H", f"Upload-Metadata: {metadata}")
    answer = patch(installation, where, 0, image.path)
    if good:
        assert answer.status == 204
        assert server.outcome().digest == digest
    else:
        assert (answer.status, answer.body.startswith("error[ChecksumMismatch]")) == (400, True)
        assert head(installation, where) == 404
        assert not server.disk.exists()


def test_an_image_that_is_refused_while_it_comes(installation, tmp_path):
    server = installation.start_server(size=DISK)
    (tmp_path / "piece").write_bytes(b"<!DOCTYPE html>" + b" " * (4 * MIB))
    answer = patch(installation, begin(installation, 40 * MIB), 0, tmp_path / "piece")
    assert (answer.status, answer.body.startswith("error[SourceNotAnImage]")) == (400, True)
    assert progress(server)["upload"]["failure"]["code"] == "SourceNotAnImage"


# --- cut connections ----------------------------------------------------------------------------------------------


@contextmanager
def sending(installation, where, content, size, offset=0):
    """Announce all of the content and send `size` bytes; the connection is cut at the end of the context."""
    with connected(installation) as sock:
        text = (
            f"PATCH {where} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {installation.token()}\r\n"
            f"Tus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\n"
            f"Upload-Offset: {offset}\r\nContent-Length: {len(content) - offset}\r\n\r\n"
        )
        sock.sendall(text.encode() + content[offset : offset + size])
        yield sock


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [("raw", "plain"), ("qcow2-zlib", "plain"), ("qcow2-v3", "gz"), ("raw", "xz"), ("vmdk-sparse", "plain")],
)
def test_a_cut_connection_is_gone_on_with(installation, images, tmp_path, name, wrapper):
    image = images.get(name, wrapper)
    dice = random.Random(name + wrapper)
    server = installation.start_server(size=DISK, scratch=image.kind.engine == "qemu")
    where = begin(installation, len(image.content))
    offset = 0
    for _ in range(4):
        size = dice.randrange(1, max(2, (len(image.content) - offset) // 2))
        with sending(installation, where, image.content, size, offset):
            pass
        # Bytes in flight are lost: the offset is where the server wants the upload to continue.
        reached = head(installation, where)
        assert offset <= reached <= offset + size
        offset = reached
    assert offset
    for _ in range(5):
        (tmp_path / "rest").write_bytes(image.content[offset:])
        answer = patch(installation, where, offset, tmp_path / "rest")
        if answer.status != 409:
            break
        # The server received the request that was cut last after the query for the offset: a client queries once more
        # then.
        offset = head(installation, where)
    assert answer.status == 204
    outcome = server.outcome()
    assert (outcome.failure, outcome.fetched) == (None, len(image.content))
    same(server.disk, image.path.with_name("image.plain"), image.kind.format)


def test_a_connection_that_hangs_is_taken_over(installation, images, tmp_path):
    """The client's network failed without notice, and is back before the server has noticed."""
    image = images.get("qcow2-v3")
    server = installation.start_server(size=DISK)
    where = begin(installation, len(image.content))
    with sending(installation, where, image.content, 300_000):
        wait_until(lambda: progress(server)["progress"]["fetched"] >= 200_000)
        offset = head(installation, where)
        assert 200_000 <= offset <= 300_000
        (tmp_path / "rest").write_bytes(image.content[offset:])
        assert patch(installation, where, offset, tmp_path / "rest").status == 204
    assert server.outcome().failure is None
    same(server.disk, image.path, "qcow2")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_proxy_is_started_again(lone, images, tmp_path, number):
    image = images.get("qcow2-zlib")
    server = lone.start_server(size=DISK)
    where = begin(lone, len(image.content))
    with sending(lone, where, image.content, 2 * MIB) as sock:
        wait_until(lambda: progress(server)["progress"]["fetched"] >= MIB)
        if number == signal.SIGTERM:
            # The proxy completes requests in progress.
            lone.proxy.send_signal(number)
            sock.sendall(image.content[2 * MIB :])
            got = said(sock)
            assert got.startswith(b"HTTP/1.1 204 ")
            lone.proxy.wait(30)
            lone.stop_proxy()
        else:
            lone.stop_proxy()
            lone.start_proxy()
            offset = head(lone, where)
            assert offset >= MIB
            (tmp_path / "rest").write_bytes(image.content[offset:])
            assert patch(lone, where, offset, tmp_path / "rest").status == 204
    assert server.outcome().failure is None
    same(server.disk, image.path, "qcow2")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("digest", [False, True])
def test_the_server_of_a_raw_upload_is_started_again(installation, large, tmp_path, number, digest):
    """The upload resumes at the watermark; everything after it is sent again."""
    checksum = f"sha256:{hashlib.sha256(large).hexdigest()}" if digest else None
    first = installation.start_server(size=LARGE, checksum=checksum)
    where = begin(installation, LARGE)
    with sending(installation, where, large, 60 * MIB):
        wait_until(lambda: progress(first)["progress"]["done"] >= 50 * MIB)
        wait_until(lambda: (first.directory / ".cdi" / "journal").exists())
        first.kill(number)
    second = installation.start_server(size=LARGE, checksum=checksum)
    offset = head(installation, where)
    assert 8 * MIB < offset <= 60 * MIB
    (tmp_path / "rest").write_bytes(large[offset:])
    assert patch(installation, where, offset, tmp_path / "rest").status == 204
    outcome = second.outcome()
    assert (outcome.failure, outcome.resumed_at) == (None, offset)
    assert outcome.fetched == LARGE - offset
    assert outcome.digest == checksum
    assert second.disk.read_bytes() == large
    assert not (second.directory / ".cdi").exists()


def test_the_server_of_another_format_begins_at_the_first_byte(installation, images, tmp_path):
    """No decoder's state can be saved, so the server reports offset 0 and the client resends all to the same URL."""
    image = images.get("qcow2-zlib")
    first = installation.start_server(size=DISK)
    where = begin(installation, len(image.content))
    with sending(installation, where, image.content, 2 * MIB):
        wait_until(lambda: progress(first)["progress"]["fetched"] >= MIB)
        first.kill()
    second = installation.start_server(size=DISK)
    assert head(installation, where) == 0
    assert patch(installation, where, 0, image.path).status == 204
    assert second.outcome().failure is None
    same(second.disk, image.path, "qcow2")


def test_after_a_restart_the_volume_belongs_to_who_left_a_journal(installation, large):
    first = installation.start_server(size=LARGE)
    where = begin(installation, LARGE)
    with sending(installation, where, large, 60 * MIB):
        wait_until(lambda: (first.directory / ".cdi" / "journal").exists())
        first.kill()
    installation.start_server(size=LARGE)
    another = where.replace(where.rpartition("/")[2][:32], "0" * 32)
    assert head(installation, another) == 404
    assert head(installation, where) > 0


def test_an_upload_under_a_limit(installation, images):
    server = installation.start_server(size=DISK, policy=Policy(bandwidth=100 << 20, stall_timeout=30.0))
    image = images.get("raw")
    assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200
    same(server.disk, image.path, "raw")


# --- tuspy --------------------------------------------------------------------------------------------------------


def test_tuspy(installation, client, authorities, images):
    image = images.get("qcow2-zlib")
    server = installation.start_server(size=DISK)
    uploader = client.uploader(file_stream=io.BytesIO(image.content), chunk_size=MIB, upload_checksum=True)
    uploader.upload()
    assert server.outcome().failure is None
    same(server.disk, image.path, "qcow2")


def test_tuspy_goes_on_by_another_process(installation, client, images):
    image = images.get("raw")
    server = installation.start_server(size=DISK)
    uploader = client.uploader(file_stream=io.BytesIO(image.content), chunk_size=MIB)
    uploader.upload(stop_at=3 * MIB)
    again = client.uploader(file_stream=io.BytesIO(image.content), chunk_size=MIB, url=uploader.url)
    assert again.offset == 3 * MIB
    again.upload()
    assert server.outcome().failure is None
    same(server.disk, image.path, "raw")


def test_tuspy_is_told_of_a_bad_token(installation, images):
    installation.start_server(size=DISK)
    client = TusClient(installation.url(START), headers={"Authorization": f"Bearer {installation.token(age=400)}"})
    with pytest.raises(TusCommunicationError) as failure:
        client.uploader(file_stream=io.BytesIO(images.get("raw").content), chunk_size=MIB).upload()
    assert failure.value.status_code == 401
