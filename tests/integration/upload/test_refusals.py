"""Tests of rejected requests, by status and code, and that they disturb no other upload."""

import json
import socket
import subprocess

import pytest

from cdi.api.job import Policy
from cdi.image.sizes import largest_file
from cdi.kube.jwt import Operation
from tests.integration.fixtures_images import KINDS
from tests.integration.upload.installation import MIB, connected, progress, said, same, wait_until

DISK = 12 * MIB


def request(installation, length: object, *, path="/v1beta1/upload", extra="", token="") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token or installation.token()}\r\n{extra}"
    )
    return f"{head}Content-Length: {length}\r\n\r\n".encode()


# --- tokens -------------------------------------------------------------------------------------------------------


def tampered(token: str) -> str:
    head, body, signature = token.split(".")
    return ".".join((head, body[:-2] + ("AA" if body[-2:] != "AA" else "BB"), signature))


@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (lambda installation: None, 400, "UploadMalformed"),
        (lambda installation: "not-a-token", 401, "TokenInvalid"),
        (lambda installation: installation.token(age=301), 401, "TokenInvalid"),
        (lambda installation: installation.token(key=installation.authorities.foreign_key), 401, "TokenInvalid"),
        (lambda installation: tampered(installation.token()), 401, "TokenInvalid"),
        (lambda installation: installation.token(operation=Operation.CLONE), 400, "TokenMisused"),
        (lambda installation: installation.token("another"), 503, "UploadNotReady"),
    ],
    ids=["none", "nonsense", "expired", "foreign", "forged", "clone", "other-volume"],
)
def test_tokens(installation, tmp_path, make, status, code):
    server = installation.start_server(size=DISK)
    (tmp_path / "image").write_bytes(b"x" * MIB)
    sending = ("-X", "POST", "-T", str(tmp_path / "image"))
    answer = installation.curl("/v1beta1/upload", *sending, token=make(installation))
    assert answer.status == status
    assert answer.body.startswith(f"error[{code}]: ")
    assert server.process.poll() is None
    assert installation.curl("/v1beta1/upload", *sending).status == 200


@pytest.mark.parametrize("field", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer  ", "token"])
def test_a_malformed_authorization(installation, field):
    answer = installation.curl("/v1beta1/upload", "-d", "x", "-H", f"Authorization: {field}", token=None)
    assert answer.status == 400


def test_a_token_is_good_for_one_volume_of_a_resumable_upload(installation):
    installation.start_server(size=DISK)
    answer = installation.curl(
        "/v1beta1/tus/ns/other", "-X", "POST", "-H", "Tus-Resumable: 1.0.0", "-H", "Upload-Length: 5"
    )
    assert (answer.status, "TokenInvalid" in answer.body) == (401, True)


def test_a_refusal_as_json(installation):
    answer = installation.curl("/v1beta1/upload", "-d", "x", "-H", "Accept: application/json", token=None)
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["code"] == "UploadMalformed"


# --- volumes ------------------------------------------------------------------------------------------------------


def test_volumes_that_are_not_ready(installation):
    installation.show("vm", "done")
    assert installation.curl("/v1beta1/upload", "-d", "x").status == 503
    installation.show("vm", "missing")
    answer = installation.curl("/v1beta1/upload", "-d", "x")
    assert (answer.status, "the PersistentVolumeClaim does not exist" in answer.body) == (503, True)
    assert answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("state", "why"), [("waiting", "its scratch space is being made"), (1, "cannot be reached: Connection refused")]
)
def test_an_upload_server_that_does_not_come_in_time_is_answered_with_the_cause(lone, state, why):
    lone.stop_proxy()
    lone.start_proxy(replacement=1.0)
    lone.show("vm", state)
    answer = lone.curl("/v1beta1/upload", "-d", "x")
    assert (answer.status, answer.body.startswith("error[UploadNotReady]: ")) == (503, True)
    assert "within 1 s" in answer.body
    assert why in answer.body
    assert answer.headers["retry-after"]


# --- images -------------------------------------------------------------------------------------------------------


def test_an_image_that_is_too_large_is_refused_with_both_sizes_and_the_next_is_taken(installation, images, tmp_path):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / "large"), "64M"], check=True)
    (tmp_path / "raw").write_bytes(b"x" * (13 * MIB))
    server = installation.start_server(size=DISK)
    for name, size in (("large", 64 * MIB), ("raw", 13 * MIB)):
        for path in ("/v1beta1/upload", "/v1beta1/upload-async"):
            answer = installation.curl(path, "-X", "POST", "-T", str(tmp_path / name))
            assert answer.status == 400
            words = "effective image size is larger than the reported available storage: "
            assert answer.body.startswith(f"error[TargetTooSmall]: {words}")
            assert str(size) in answer.body
            assert str(DISK) in answer.body
    image = images.get("qcow2-v3")
    assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200
    same(server.disk, image.path, "qcow2")
    server.outcome()
    assert sum(f"Saving stream failed: {words}" in line for line in server.log) == 4


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"<!DOCTYPE html><html><body>Log in</body></html>", "SourceNotAnImage"),
        (b"\x1f\x8b\x08\x00" + b"\x00" * 6 + b"\xff" * 1000, "DecoderFailed"),
        (b"QFI\xfb\x00\x00\x00\x03" + b"\xff" * 500, None),
        (b"PK\x03\x04" + b"\x00" * 1000, "FormatUnsupported"),
    ],
)
def test_what_is_no_image(installation, tmp_path, content, code):
    (tmp_path / "some").write_bytes(content)
    server = installation.start_server(size=DISK)
    answer = installation.curl("/v1beta1/upload-async", "-X", "POST", "-T", str(tmp_path / "some"))
    assert answer.status == 400
    assert code is None or answer.body.startswith(f"error[{code}]: ")
    assert not server.disk.exists()
    assert server.process.poll() is None


@pytest.mark.parametrize(
    ("field", "good"),
    [
        ("Content-MD5: {md5}", True),
        ("Digest: SHA-256={sha256}", True),
        ("Content-Digest: sha-256=:{sha256}:", True),
        ("Content-Digest: unknown=:AAAA:, sha-512=:{sha512}:", True),
        ("Content-MD5: {bad}", False),
        ("Digest: md5={bad}", False),
    ],
)
def test_digests(installation, images, field, good):
    import base64
    import hashlib

    image = images.get("raw")
    values = {
        name: base64.b64encode(hashlib.new(name, image.content).digest()).decode()
        for name in ("md5", "sha256", "sha512")
    }
    values["bad"] = base64.b64encode(bytes(16)).decode()
    server = installation.start_server(size=DISK)
    answer = installation.curl(
        "/v1beta1/upload-async", "-X", "POST", "-H", field.format(**values), "-T", str(image.path)
    )
    if good:
        assert answer.status == 200
        assert "length" in server.outcome().verified_by
        same(server.disk, image.path, "raw")
    else:
        assert (answer.status, answer.body.startswith("error[ChecksumMismatch]")) == (400, True)
        assert not server.disk.exists()


def test_the_volumes_own_checksum(installation, images):
    image = images.get("qcow2-zlib", "gz")
    installation.start_server(size=DISK, checksum=f"sha256:{'0' * 64}")
    answer = installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path))
    assert (answer.status, answer.body.startswith("error[ChecksumMismatch]")) == (400, True)
    server = installation.start_server("another", size=DISK, checksum=f"sha256:{image.sha256}")
    answer = installation.curl(
        "/v1beta1/upload", "-X", "POST", "-T", str(image.path), token=installation.token("another")
    )
    assert answer.status == 200
    assert "checksum" in server.outcome().verified_by


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/", "/v1beta1", "/v1beta1/", "/v1beta1/upload/", "/v1beta1//upload", "/v1beta1/../v1beta1/upload", "/v1beta1/%75pload",
     "/v1alpha1/upload-archive", "/v2/upload", "/v1beta1/tus/ns", "/v1beta1/tus/ns/../vm", "/v1beta1/tus/ns/vm/..%2f",
     "/v1beta1/tus/ns/vm/0-5", "/progress", "/metrics", "/v1beta1/tus/NS/vm"],
)  # fmt: skip
def test_other_paths(installation, path):
    installation.start_server(size=DISK)
    with connected(installation) as sock:
        sock.sendall(request(installation, 0, path=path, extra="Connection: close\r\n"))
        assert said(sock).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"GET /healthz HTTP/2.0\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", 400),
        (b"POST /v1beta1/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /v1beta1/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /v1beta1/upload HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1beta1/upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /v1beta1/upload HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n", 417),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000, 431),
        (b"PATCH /v1beta1/upload HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\nConnection: close\r\n\r\n", 401),
    ],
)  # fmt: skip
def test_requests_that_are_none(installation, text, status):
    with connected(installation) as sock:
        sock.sendall(text)
        assert said(sock).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"zz\r\nxx\r\n", "invalid chunk size"),
        (b"2\r\nxxxxx\r\n", "invalid end of a chunk"),
        (b"2\nxx\r\n", "invalid line end between two chunks"),
        (b"2\r\nxx\r\n0\r\n" + b"A: b\r\n" * 101, "more than 100 trailer fields follow the last chunk"),
    ],
)
def test_chunks_that_cannot_be_read_are_told_in_words_for_a_client(installation, body, why):
    installation.start_server(size=DISK)
    with connected(installation) as sock:
        head = f"POST /v1beta1/upload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {installation.token()}\r\n"
        sock.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + body)
        answer = said(sock).decode()
    assert answer.startswith("HTTP/1.1 400 ")
    assert f"error[UploadMalformed]: {why} (the client). Try: send Content-Length" in answer


def test_what_breaks_off_is_told_in_words_for_a_client(installation):
    server = installation.start_server(size=DISK)
    with connected(installation) as sock:
        sock.sendall(request(installation, MIB) + b"x" * 1000)
        wait_until(lambda: progress(server)["upload"]["state"] == "receiving")
    wait_until(lambda: progress(server)["upload"]["failure"])
    message = progress(server)["upload"]["failure"]["message"]
    assert message.endswith("Try: send it again"), message


def test_what_stalls_is_told_in_words_for_a_client(installation):
    installation.start_server(size=DISK, policy=Policy(stall_timeout=1.0))
    with connected(installation) as sock:
        sock.sendall(request(installation, MIB) + b"x" * 1000)
        answer = said(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"Try: send it again, over a connection that does not pause as long" in answer


@pytest.mark.parametrize("wrapper", ["plain", "gz"])
def test_no_image_is_longer_than_the_longest_that_is_taken(images, wrapper):
    for name in KINDS:
        image = images.get(name, wrapper)
        assert len(image.content) <= largest_file(len(image.disk)), name


def test_an_image_that_no_volume_of_this_size_can_hold_is_refused_before_its_body(installation):
    """The client never receives 100 Continue."""
    server = installation.start_server(size=DISK)
    with connected(installation) as sock:
        sock.sendall(request(installation, 1 << 40, extra="Expect: 100-continue\r\nConnection: close\r\n"))
        answer = said(sock)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"error[TargetTooSmall]: " in answer
    assert progress(server)["upload"] == {"state": "waiting", "failure": None}


def test_a_body_that_is_shorter_than_it_said(installation, images):
    image = images.get("raw")
    server = installation.start_server(size=DISK)
    with connected(installation) as sock:
        sock.sendall(request(installation, len(image.content) + 5) + image.content)
    wait_until(lambda: progress(server)["upload"]["failure"])
    assert progress(server)["upload"]["failure"]["code"] == "SourceTruncated"
    assert not server.disk.exists()
    assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200
    same(server.disk, image.path, "raw")


def test_a_body_that_is_longer_than_it_said(installation, images):
    """The bytes beyond are taken for another request, which is malformed."""
    image = images.get("qcow2-v3")
    server = installation.start_server(size=DISK)
    with connected(installation) as sock:
        sock.sendall(request(installation, len(image.content)) + image.content + b"beyond\r\n\r\n")
        answers = said(sock)
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in answers
    same(server.disk, image.path, "qcow2")


def test_two_requests_on_one_connection(installation):
    with connected(installation) as sock:
        sock.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 2
            + b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        assert said(sock).count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 70_000, 3 * MIB, -1])
@pytest.mark.parametrize("name", ["raw", "qcow2-zlib"])
def test_a_connection_that_is_cut_anywhere(installation, images, name, cut):
    image = images.get(name)
    server = installation.start_server(size=DISK)
    with connected(installation) as sock:
        sock.sendall(request(installation, len(image.content)) + image.content[:cut])
        # The upload must have begun, or the next one would be the first.
        wait_until(lambda: progress(server)["upload"]["state"] == "receiving")
    wait_until(lambda: progress(server)["upload"]["state"] == "waiting")
    assert not server.disk.exists()
    assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200
    same(server.disk, image.path, image.kind.format)


def test_two_clients_at_once(lone, images):
    installation = lone
    installation.stop_proxy()
    installation.start_proxy(contention=1.0)
    image = images.get("qcow2-zlib")
    server = installation.start_server(size=DISK)
    with connected(installation) as sock:
        sock.sendall(request(installation, len(image.content)) + image.content[:100_000])
        wait_until(lambda: progress(server)["upload"]["state"] == "receiving")
        answer = installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path))
        assert (answer.status, answer.body.startswith("error[UploadUnderWay]")) == (503, True)
        answer = installation.curl(
            "/v1beta1/tus/ns/vm", "-X", "POST", "-H", "Tus-Resumable: 1.0.0", "-H", "Upload-Length: 5"
        )
        assert answer.status == 503
        sock.sendall(image.content[100_000:])
        got = b""
        while b"\r\n\r\n" not in got:
            got += sock.recv(65536)
        assert got.startswith(b"HTTP/1.1 200 ")
    same(server.disk, image.path, "qcow2")


def test_a_client_that_stalls(lone):
    lone.stop_proxy()
    lone.start_proxy(stall=1.0)
    server = lone.start_server(size=DISK)
    with connected(lone) as sock:
        sock.sendall(request(lone, MIB) + b"x" * 1000)
        assert said(sock).startswith(b"HTTP/1.1 408 ")
    assert server.process.poll() is None
    wait_until(lambda: progress(server)["upload"]["state"] == "waiting")


def test_a_server_whose_own_client_stalls(installation):
    """The proxy waits longer than the upload server does, so the server's error is passed on at once."""
    server = installation.start_server(size=DISK, policy=Policy(stall_timeout=1.0))
    with connected(installation) as sock:
        sock.sendall(request(installation, MIB) + b"x" * 1000)
        answer = said(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    # The message is the upload server's, which waited for a second, not the proxy's.
    assert b"no data received for 1 s" in answer
    assert progress(server)["upload"]["failure"]["code"] == "SourceStalled"


def test_those_who_say_nothing_do_not_hold_up_the_others(installation, images):
    """There are more than can wait: some have finished the handshake, some have sent half a head, some nothing."""
    image = images.get("qcow2-zlib")
    server = installation.start_server(size=DISK)
    held = []
    try:
        for number in range(1100):
            plain = socket.create_connection(("localhost", installation.port), 30)
            held.append(plain)
            if number % 20 == 0:
                held[-1] = sock = installation.context().wrap_socket(plain, server_hostname="localhost")
                sock.sendall(b"POST /v1beta1/upload HTTP/1.1\r\nHost:")
        assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200
    finally:
        for sock in held:
            sock.close()
    same(server.disk, image.path, "qcow2")


def test_an_upload_at_a_snails_pace_leaves_the_others_alone(installation, images):
    image = images.get("raw")
    slow = installation.start_server("slow", size=DISK)
    fast = installation.start_server("fast", size=DISK)
    with connected(installation) as sock:
        sock.sendall(request(installation, 600_000, token=installation.token("slow")))
        for _ in range(20):
            sock.sendall(b"x" * 3)
        answer = installation.curl(
            "/v1beta1/upload", "-X", "POST", "-T", str(image.path), token=installation.token("fast")
        )
        assert answer.status == 200
        assert fast.outcome().failure is None
        sock.sendall(b"x" * (600_000 - 60))
        got = b""
        while b"\r\n\r\n" not in got:
            got += sock.recv(65536)
        assert got.startswith(b"HTTP/1.1 200 ")
    assert slow.outcome().failure is None


# --- forms --------------------------------------------------------------------------------------------------------


def form(installation, body: bytes, content_type: str = "multipart/form-data; boundary=b") -> bytes:
    head = request(installation, len(body), path="/v1beta1/upload-form", extra=f"Content-Type: {content_type}\r\n")
    with connected(installation) as sock:
        sock.sendall(head + body)
        got = b""
        while b"\r\n\r\n" not in got and (piece := sock.recv(65536)):
            got += piece
        return got


FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (FILE + b"x" * 5000, "multipart/form-data; boundary=b"),
        (b"--b--\r\n", "multipart/form-data; boundary=b"),
        (
            b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
        ),
        (b"nothing of the sort", "multipart/form-data; boundary=b"),
        (FILE + b"x\r\n--b--\r\n", "multipart/form-data"),
        (FILE + b"x\r\n--b--\r\n", "application/octet-stream"),
        (FILE + b"x\r\n--b--\r\n", "multipart/mixed; boundary=b"),
    ],
)
def test_forms_that_are_none(installation, body, content_type):
    server = installation.start_server(size=DISK)
    assert form(installation, body, content_type).startswith(b"HTTP/1.1 400 ")
    assert not server.disk.exists()
    assert server.process.poll() is None


def test_what_follows_a_form_is_passed_over(installation, images):
    image = images.get("raw")
    server = installation.start_server(size=DISK)
    body = b"preamble\r\n" + FILE + image.content + b"\r\n--b--\r\n" + b"epilogue" * 1000
    assert form(installation, body).startswith(b"HTTP/1.1 200 ")
    same(server.disk, image.path, "raw")


# --- the upload server itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [None, "other-client", "foreign-client"])
def test_only_the_proxy_is_let_in(installation, client):
    server = installation.start_server(size=DISK)
    base = installation.authorities.base
    command = [
        "curl",
        "-sS",
        "--max-time",
        "30",
        "--cacert",
        str(base / "server-ca.crt"),
        "-w",
        "%{http_code}",
        "-d",
        "x",
    ]
    if client:
        command += ["--cert", str(base / client / "tls.crt"), "--key", str(base / client / "tls.key")]
    for path in ("/v1beta1/upload", "/v1beta1/tus/ns/vm"):
        done = subprocess.run([*command, f"https://localhost:{server.port}{path}"], capture_output=True, text=True)
        assert done.stdout.endswith("401") or done.returncode != 0
        assert client != "other-client" or done.stdout.startswith("error[TokenInvalid]")
    assert progress(server)["upload"]["state"] == "waiting"


def test_anybody_may_ask_a_server_how_it_is(installation):
    server = installation.start_server(size=DISK)
    for path, expected in (("/healthz", "ok"), ("/metrics", "kubevirt_cdi_import_progress_total")):
        done = subprocess.run(
            ["curl", "-sS", "-k", f"https://localhost:{server.port}{path}"], capture_output=True, text=True, check=True
        )
        assert expected in done.stdout


def test_certificates_are_replaced_while_it_runs(lone, images, tmp_path):
    """An upload continues under the old ones; the next connection uses the new."""
    from cdi.api.upload_protocol import CLIENT_NAME

    authorities = lone.authorities
    image = images.get("raw")
    authorities.pair("rotating", authorities.servers.issue_cert("localhost"), authorities.clients)
    first = lone.start_server("first", size=DISK, tls="rotating")
    second = lone.start_server("second", size=DISK, tls="rotating")
    (lone.home / "client").unlink()
    authorities.pair("rotating-client", authorities.clients.issue_cert(CLIENT_NAME, common_name=CLIENT_NAME))
    (lone.home / "client").symlink_to(authorities.base / "rotating-client")
    with connected(lone) as sock:
        sock.sendall(request(lone, len(image.content), token=lone.token("first")) + image.content[:100_000])
        wait_until(lambda: progress(first)["upload"]["state"] == "receiving")
        # Both are replaced at once: server certificates, and the CA of the clients.
        authorities.pair("rotating", authorities.servers.issue_cert("localhost"), authorities.strangers)
        authorities.pair("rotating-client", authorities.strangers.issue_cert(CLIENT_NAME, common_name=CLIENT_NAME))
        answer = lone.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path), token=lone.token("second"))
        assert answer.status == 200
        sock.sendall(image.content[100_000:])
        got = b""
        while b"\r\n\r\n" not in got:
            got += sock.recv(65536)
        assert got.startswith(b"HTTP/1.1 200 ")
    same(first.disk, image.path, "raw")
    same(second.disk, image.path, "raw")


def test_preflight(installation):
    answer = installation.curl(
        "/v1beta1/upload-form-async", "-X", "OPTIONS", "-H", "Origin: https://console", "-H", "Access-Control-Request-Method: POST",
        token=None,
    )  # fmt: skip
    assert answer.status in {200, 204}
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    assert installation.curl("/v1beta1/upload", "-d", "x", token=None).headers["access-control-allow-origin"] == "*"
