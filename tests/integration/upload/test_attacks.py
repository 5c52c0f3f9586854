"""Tests of attacks on uploads: each is rejected with its code, and a concurrent upload is not disturbed."""

import base64
import hashlib
import hmac
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

from cdi.api.upload_protocol import CLIENT_NAME
from cdi.kube.jwt import Operation, ResourceKind
from tests.integration.upload.installation import MIB, connected, progress, said, same, wait_until

DISK = 12 * MIB
FIRST = 300_000
TUS = "Tus-Resumable: 1.0.0\r\n"
SECRETS = ResourceKind(group="", version="v1", resource="secrets")


@pytest.fixture
def beside(installation, images):
    """Run an upload that begins before the attack, continues during it, and must succeed after it; yield its server."""
    image = images.get("qcow2-zlib")
    server = installation.start_server("beside", size=DISK)
    sent, tried = FIRST, threading.Event()
    with connected(installation) as sock:

        def go_on() -> None:
            nonlocal sent
            while not tried.wait(0.5):
                sock.sendall(image.content[sent : sent + 500])
                sent += 500

        sock.sendall(request(len(image.content), token=installation.token("beside")) + image.content[:FIRST])
        wait_until(lambda: progress(server)["progress"]["fetched"] > FIRST // 2)
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(go_on)
            try:
                yield server
            finally:
                tried.set()
            going.result()
        assert sent < len(image.content)
        assert progress(server)["upload"] == {"state": "receiving", "failure": None}
        sock.sendall(image.content[sent:])
        got = b""
        while b"\r\n\r\n" not in got and (piece := sock.recv(65536)):
            got += piece
        assert got.startswith(b"HTTP/1.1 200 ")
    outcome = server.outcome()
    assert (outcome.failure, outcome.fetched) == (None, len(image.content))
    same(server.disk, image.path, "qcow2")


@pytest.fixture
def server(installation, beside):
    """Yield the server of volume ``vm``, and check that the volume is still free for an upload after the attack."""
    made = installation.start_server(size=DISK)
    yield made
    assert made.process.poll() is None
    assert progress(made)["upload"]["state"] == "waiting"
    assert not made.disk.exists()


def request(length: object, *, token: str | None, path="/v1beta1/upload", method="POST", extra="") -> bytes:
    authorization = "" if token is None else f"Authorization: Bearer {token}\r\n"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{authorization}{extra}"
    return f"{head}Content-Length: {length}\r\n\r\n".encode()


def ask(installation, *pieces: bytes) -> bytes:
    """Send pieces and return everything received up to the end of the connection."""
    with connected(installation) as sock:
        for piece in pieces:
            sock.sendall(piece)
        return said(sock)


def refused(answer: bytes, status: int, code: str) -> bool:
    """Return whether this was the response, and the only one."""
    return (
        answer.startswith(f"HTTP/1.1 {status} ".encode())
        and f"\r\n\r\nerror[{code}]: ".encode() in answer
        and not re.search(rb"(?m)(?<!\A)^HTTP/", answer)
    )


# --- tokens -------------------------------------------------------------------------------------------------------


def part(data: object) -> str:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def private(installation):
    return serialization.load_pem_private_key(installation.authorities.key.pems["id_rsa"], None)


def pss(installation, text: bytes) -> bytes:
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    return private(installation).sign(text, scheme, hashes.SHA256())


def pkcs1(installation, text: bytes) -> bytes:
    return private(installation).sign(text, padding.PKCS1v15(), hashes.SHA256())


def public_as_secret(installation, text: bytes) -> bytes:
    return hmac.new(installation.authorities.key.pems["id_rsa.pub"], text, hashlib.sha256).digest()


def nothing(installation, text: bytes) -> bytes:
    del installation, text
    return b""


def forged(installation, header: dict, sign=pss, **claims: object) -> str:
    """Return a valid token for ``vm``, except for the given claims."""
    now = int(time.time())
    said = {
        "operation": "Upload", "namespace": "ns", "name": "vm", "iss": "cdi-apiserver",
        "resource": {"group": "", "version": "v1", "resource": "persistentvolumeclaims"},
        "iat": now, "nbf": now, "exp": now + 300, **claims,
    }  # fmt: skip
    text = f"{part(header)}.{part(said)}"
    return f"{text}.{part(sign(installation, text.encode()))}"


def altered(installation, **claims: object) -> str:
    """Replace claims of a valid token and keep its signature."""
    head, said, signature = installation.token().split(".")
    known = json.loads(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)))
    return f"{head}.{part({**known, **claims})}.{signature}"


PS256 = {"alg": "PS256", "typ": "JWT"}
TOKENS = {
    "none": (lambda _: None, 400, "UploadMalformed"),
    "empty": (lambda _: "", 400, "UploadMalformed"),
    "nonsense": (lambda _: "not-a-token", 401, "TokenInvalid"),
    "two-parts": (lambda installation: installation.token().rpartition(".")[0], 401, "TokenInvalid"),
    "huge": (lambda installation: installation.token() + "A" * 9000, 401, "TokenInvalid"),
    "expired": (lambda installation: installation.token(age=301), 401, "TokenInvalid"),
    "of-tomorrow": (lambda installation: installation.token(age=-86400), 401, "TokenInvalid"),
    "foreign": (lambda installation: installation.token(key=installation.authorities.foreign_key), 401, "TokenInvalid"),
    "foreign-issuer": (lambda installation: forged(installation, PS256, iss="kubernetes/serviceaccount"), 401, "TokenInvalid"),
    "altered-name": (lambda installation: altered(installation, name="beside"), 401, "TokenInvalid"),
    "altered-end": (lambda installation: altered(installation, exp=int(time.time()) + 10**9), 401, "TokenInvalid"),
    "no-signature": (lambda installation: installation.token().rpartition(".")[0] + ".", 401, "TokenInvalid"),
    "no-algorithm": (lambda installation: forged(installation, {"alg": "none"}, nothing), 401, "TokenInvalid"),
    "no-algorithm-in-odd-letters": (lambda installation: forged(installation, {"alg": "nOnE"}, nothing), 401, "TokenInvalid"),
    "public-key-as-secret": (lambda installation: forged(installation, {"alg": "HS256"}, public_as_secret), 401, "TokenInvalid"),
    "public-key-as-secret-unsaid": (lambda installation: forged(installation, PS256, public_as_secret), 401, "TokenInvalid"),
    "another-padding": (lambda installation: forged(installation, {"alg": "RS256"}, pkcs1), 401, "TokenInvalid"),
    "another-padding-unsaid": (lambda installation: forged(installation, PS256, pkcs1), 401, "TokenInvalid"),
    "extension": (lambda installation: forged(installation, {**PS256, "crit": ["exp"]}), 401, "TokenInvalid"),
    "of-a-clone": (lambda installation: installation.token(operation=Operation.CLONE), 400, "TokenMisused"),
    "for-a-secret": (lambda installation: installation.token(resource=SECRETS), 400, "TokenMisused"),
    "for-no-volume": (lambda installation: installation.token(""), 400, "TokenMisused"),
    "for-a-volume-that-is-none": (lambda installation: installation.token("another"), 503, "UploadNotReady"),
    "up-and-down-again": (lambda installation: installation.token("../ns/vm"), 503, "UploadNotReady"),
}  # fmt: skip


def test_tokens(installation, server):
    for name, (make, status, code) in TOKENS.items():
        token = make(installation)
        answer = ask(installation, request(5, token=token), b"bytes")
        assert refused(answer, status, code), (name, answer)
        # The response must not reveal either whether the volume exists.
        probe = request(0, token=token, path="/v1beta1/upload-async", method="HEAD")
        answer = ask(installation, probe)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), (name, answer)


def test_what_is_forged_here_would_be_good_if_nothing_were_wrong(installation, beside):
    installation.start_server(size=DISK)
    sent = request(5, token=forged(installation, PS256)) + b"bytes"
    assert ask(installation, sent).startswith(b"HTTP/1.1 200 ")


def test_a_token_that_is_used_again(installation, beside, images):
    """It is rejected while its upload is in progress, and when the volume is filled."""
    content = images.get("raw").content
    server, token = installation.start_server(size=DISK), installation.token()
    with connected(installation) as sock:
        sock.sendall(request(len(content), token=token) + content[:FIRST])
        wait_until(lambda: progress(server)["upload"]["state"] == "receiving")
        assert refused(ask(installation, request(5, token=token), b"bytes"), 503, "UploadUnderWay")
        begin = request(0, token=token, path="/v1beta1/tus/ns/vm", extra=f"{TUS}Upload-Length: 5\r\n")
        assert refused(ask(installation, begin), 503, "UploadUnderWay")
        sock.sendall(content[FIRST:])
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert server.outcome().failure is None
    installation.show("vm", "done")
    assert refused(ask(installation, request(5, token=token), b"bytes"), 503, "AlreadyUploaded")
    assert server.disk.read_bytes()[: len(content)] == content


def test_one_volumes_token_at_another_ones_upload(installation, server):
    fields = f"{TUS}Upload-Length: 5\r\nUpload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\n"
    for method in ("POST", "HEAD", "PATCH", "DELETE"):
        where = "/v1beta1/tus/ns/beside" + ("" if method == "POST" else f"/{'0' * 32}-5")
        answer = ask(installation, request(0, token=installation.token(), path=where, method=method, extra=fields))
        assert answer.startswith(b"HTTP/1.1 401 "), (method, answer)
        assert method == "HEAD" or refused(answer, 401, "TokenInvalid"), (method, answer)


# --- the upload server itself -------------------------------------------------------------------------------------


@pytest.fixture
def reach(installation, tmp_path):
    """Return a function that sends requests to an upload server directly, with a choice of certificates."""

    def ask_directly(server, client: str | None, text: bytes) -> bytes:
        context = ssl.create_default_context(cafile=str(installation.authorities.base / "server-ca.crt"))
        if client == "own":
            trustme.CA().issue_cert(CLIENT_NAME, common_name=CLIENT_NAME).private_key_and_cert_chain_pem.write_to_path(
                tmp_path / "own"
            )
            context.load_cert_chain(tmp_path / "own")
        elif client is not None:
            base = installation.authorities.base / client
            context.load_cert_chain(base / "tls.crt", base / "tls.key")
        with socket.create_connection(("localhost", server.port), 30) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as sock:
                sock.sendall(text)
                return said(sock)

    return ask_directly


DIRECT = (
    ("POST", "/v1beta1/upload"), ("POST", "/v1alpha1/upload-form-async"), ("POST", "/v1beta1/tus/ns/vm"),
    ("DELETE", f"/v1beta1/tus/ns/vm/{'0' * 32}-5"), ("POST", "/progress"), ("GET", "/"),
)  # fmt: skip


def test_who_passes_the_proxy_by(installation, beside, server, reach):
    """Requests with a token or with another name's certificate are rejected; one of another CA fails the handshake."""
    for aim in (server, beside):
        for method, path in DIRECT:
            fields = f"{TUS}Upload-Length: 5\r\n"
            text = request(5, token=installation.token(aim.name), path=path, method=method, extra=fields) + b"bytes"
            for client in (None, "other-client"):
                answer = reach(aim, client, text)
                assert refused(answer, 401, "TokenInvalid"), (aim.name, method, path, client, answer)
        for client in ("own", "foreign-client"):
            try:
                assert reach(aim, client, text) == b""
            except (ssl.SSLError, ConnectionError):
                pass


def test_who_speaks_no_tls_to_it(beside, server):
    with socket.create_connection(("localhost", server.port), 30) as plain:
        plain.sendall(request(5, token=None) + b"bytes")
        assert b"HTTP/1.1 2" not in said(plain)


# --- paths --------------------------------------------------------------------------------------------------------


PATHS = (
    "/v1beta1/upload/", "/v1beta1//upload", "//v1beta1/upload", "/v1beta1/./upload", "/v1beta1/x/../upload",
    "/v1beta1/%75pload", "/v1beta1/upload%00", "/v1beta1/upload;x=y", "/V1BETA1/upload", "/v1beta1\\upload",
    "/progress", "/metrics/../progress", "/v1beta1/tus/ns/vm/../beside", "/v1beta1/tus/ns/..%2fns/beside",
    "/v1beta1/tus/../../etc/passwd", f"/v1beta1/tus/ns/vm/{'0' * 32}-5/../../beside",
    f"/v1beta1/tus/ns/vm/{'0' * 32}-{'9' * 30}", "/v1beta1/tus/ns/vm%0d%0aX:%20y", "/page/../v1beta1/upload",
)  # fmt: skip
NO_PATHS = ("v1beta1/upload", "*", "ftp://host/v1beta1/upload", "localhost:443", "/a b", "/a\tb")


def test_paths(installation, server):
    wrong = {}
    for path in (*PATHS, *NO_PATHS):
        answer = ask(installation, request(5, token=installation.token(), path=path), b"bytes")
        if not refused(answer, 404 if path in PATHS else 400, "UploadMalformed"):
            wrong[path] = answer
    assert not wrong


def test_another_host_is_nothing_to_go_by(installation, server):
    """The target of a request is determined by its token alone."""
    fields = "X-Forwarded-Host: beside\r\nX-Original-URL: /v1beta1/tus/ns/beside\r\nForwarded: host=beside\r\n"
    elsewhere = request(5, token=installation.token("another"), path="https://beside:8443/v1beta1/upload", extra=fields)
    assert refused(ask(installation, elsewhere, b"bytes"), 503, "UploadNotReady")


# --- heads and bodies ---------------------------------------------------------------------------------------------

HEADS = {
    "long-target": (lambda good: b"POST /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "long-field": (lambda good: good(5, extra=f"X: {'y' * 20_000}\r\n"), 431),
    "long-name": (lambda good: good(5, extra=f"{'y' * 20_000}: x\r\n"), 431),
    "many-fields": (lambda good: good(5, extra="X: y\r\n" * 101), 431),
    "endless": (lambda good: b"POST /v1beta1/upload HTTP/1.1\r\n" + b"X: y\r\n" * 100_000, 431),
    "no-lines": (lambda good: b"y" * 1_000_000, 431),
    "two-lengths": (lambda good: good(5, extra="Content-Length: 6\r\n"), 400),
    "a-list-of-lengths": (lambda good: good("5, 5"), 400),
    "a-signed-length": (lambda good: good("+5"), 400),
    "a-length-in-hex": (lambda good: good("0x5"), 400),
    "a-negative-length": (lambda good: good(-5), 400),
    "a-length-beyond-numbers": (lambda good: good("9" * 30), 400),
    "length-and-chunks": (lambda good: good(5, extra="Transfer-Encoding: chunked\r\n"), 400),
    "chunks-twice": (lambda good: good(5, extra="Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400),
    "a-blank-before-the-colon": (lambda good: good(5, extra="Transfer-Encoding : chunked\r\n"), 400),
    "a-folded-field": (lambda good: good(5, extra="X: y\r\n Transfer-Encoding: chunked\r\n"), 400),
    "a-bare-line-feed": (lambda good: good(5, extra="X: y\nTransfer-Encoding: chunked\r\n"), 400),
    "a-zero-byte": (lambda good: good(5, extra="X: \0\r\n"), 400),
    "two-tokens": (lambda good: good(5, extra="Authorization: Bearer x\r\n"), 400),
}  # fmt: skip


def test_heads(installation, server):
    wrong = {}
    for name, (make, status) in HEADS.items():
        answer = ask(
            installation,
            make(lambda length, extra="": request(length, token=installation.token(), extra=extra)),
            b"bytes",
        )
        if not refused(answer, status, "UploadMalformed"):
            wrong[name] = answer
    assert not wrong


BODIES = {
    "more-than-the-volume": (f"Content-Length: {DISK + MIB}", [b"x" * (DISK + MIB)], "TargetTooSmall"),
    "a-length-that-nothing-has": (f"Content-Length: {9 * 10**18}", [b"x" * 5 * MIB], "TargetTooSmall"),
    "more-than-the-volume-in-chunks": (
        "Transfer-Encoding: chunked", [b"%x\r\n" % MIB + b"x" * MIB + b"\r\n"] * 20, "TargetTooSmall",
    ),
    "a-chunk-without-a-size": ("Transfer-Encoding: chunked", [b"5\r\nbytes\r\nhello\r\n"], "UploadMalformed"),
    "a-chunk-of-negative-size": ("Transfer-Encoding: chunked", [b"-5\r\nbytes\r\n0\r\n\r\n"], "UploadMalformed"),
    "a-chunk-of-any-size": ("Transfer-Encoding: chunked", [b"f" * 16 + b"\r\nbytes\r\n"], "UploadMalformed"),
    "a-chunk-that-is-longer-than-its-size": (
        "Transfer-Encoding: chunked", [b"2\r\nbytes\r\n0\r\n\r\n"], "UploadMalformed",
    ),
    "a-chunk-without-its-carriage-return": (
        "Transfer-Encoding: chunked", [b"5\nbytes\r\n0\r\n\r\n"], "UploadMalformed",
    ),
    "a-bare-line-feed-behind-a-chunk": (
        "Transfer-Encoding: chunked", [b"5\r\nbytes\n0\r\n\r\n"], "UploadMalformed",
    ),
    "a-blank-before-a-size": ("Transfer-Encoding: chunked", [b" 5\r\nbytes\r\n0\r\n\r\n"], "UploadMalformed"),
    "a-trailer-without-its-carriage-return": (
        "Transfer-Encoding: chunked", [b"5\r\nbytes\r\n0\r\nX: y\n\r\n"], "UploadMalformed",
    ),
    "an-endless-line-before-a-chunk": (
        "Transfer-Encoding: chunked", [b"5;" + b"x" * 100_000 + b"\r\nbytes\r\n"], "SourceTruncated",
    ),
    "endless-trailers": (
        "Transfer-Encoding: chunked", [b"5\r\nbytes\r\n0\r\n" + b"X: y\r\n" * 10_000], "UploadMalformed",
    ),
}  # fmt: skip


def test_bodies(installation, server):
    wrong = {}
    for name, (field, pieces, code) in BODIES.items():
        head = f"POST /v1beta1/upload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {installation.token()}\r\n"
        answer = ask(installation, f"{head}{field}\r\n\r\n".encode(), *pieces)
        if not refused(answer, 400, code):
            wrong[name] = answer
        # The upload server notices the proxy's rejection a moment later.
        wait_until(lambda: progress(server)["upload"]["state"] == "waiting")
    assert not wrong


def test_a_request_within_a_body_is_none(installation, server):
    """Data after a rejected head belongs to the rejected request."""
    within = request(5, token=installation.token()) + b"bytes"
    assert refused(ask(installation, request(len(within), token="none") + within), 401, "TokenInvalid")


def test_a_form_whose_parts_have_endless_heads(installation, server):
    start = b'--b\r\nContent-Disposition: form-data; name="file"\r\n'
    many = b"--b" + b"\r\nX: y\r\n\r\n\r\n--b" * 200
    for body in (start + b"X: y\r\n" * 100_000, start + b"X: " + b"y" * 1_000_000, many):
        head = request(
            len(body), token=installation.token(), path="/v1beta1/upload-form",
            extra="Content-Type: multipart/form-data; boundary=b\r\n",
        )  # fmt: skip
        answer = ask(installation, head, body)
        assert refused(answer, 431, "UploadMalformed") or refused(answer, 400, "UploadMalformed"), answer


# --- those who take their time ------------------------------------------------------------------------------------


def test_those_who_drip_are_cut_off(installation, server):
    """Handshake and head share one time limit, however the client spreads its bytes."""
    with ExitStack() as stack:
        hello = ssl_hello()
        plain = [stack.enter_context(socket.create_connection(("localhost", installation.port), 30)) for _ in range(40)]
        shaken = [stack.enter_context(connected(installation)) for _ in range(10)]
        dripping = [(sock, hello) for sock in plain[:20]] + [(sock, b"POST /" + b"x" * 1000) for sock in shaken]
        gone: set[int] = set()
        for at in range(1000):
            for number, (sock, text) in enumerate(dripping):
                if number not in gone and is_gone(sock, text[at % len(text) : at % len(text) + 1]):
                    gone.add(number)
            if len(gone) == len(dripping):
                break
            time.sleep(0.1)
        assert len(gone) == len(dripping)
        # Clients that sent nothing at all are disconnected too.
        assert all(said(sock) == b"" for sock in plain[20:])


def is_gone(sock, byte: bytes) -> bool:
    try:
        sock.sendall(byte)
        return False
    except OSError:
        return True


def ssl_hello() -> bytes:
    """Return the first message of a handshake, without its last byte."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()[:-1]


def test_more_connections_than_there_is_room_for(installation, beside, server):
    held = []
    try:
        for number in range(1200):
            held.append(socket.create_connection(("localhost", installation.port), 30))
            if number % 100 == 0:
                assert installation.curl("/healthz", token=None).status == 200
        # The upload servers themselves accept fewer connections, and pods in the cluster can reach them.
        for aim in (server, beside):
            for _ in range(150):
                held.append(socket.create_connection(("localhost", aim.port), 30))
            assert progress(aim)["upload"]["failure"] is None
        assert refused(
            ask(installation, request(15, token=installation.token()), b"<!DOCTYPE html>"), 400, "SourceNotAnImage"
        )
    finally:
        for sock in held:
            sock.close()


def test_the_proxy_says_nothing_of_what_it_runs_on(installation, beside):
    done = subprocess.run(
        ["curl", "-sS", "-i", "-k", installation.url("/v1beta1/upload")], capture_output=True, text=True, check=True
    )
    assert not {"server", "x-powered-by", "date"} & {
        line.partition(":")[0].lower() for line in done.stdout.splitlines() if ":" in line
    }
