"""Authorization: which source may fill a volume, and which target may receive one."""

import contextlib
import os
import select
import socket
import ssl
import threading

import pytest

from cdi.api.peer import TlsFiles
from cdi.http.mutual_tls import client_context
from cdi.source import peer_connections
from cdi.source.peer_messages import PROTOCOL, PeerFacts
from cdi.transfer.clone import receive as receive_module
from cdi.transfer.clone.send import send
from cdi.transfer.control import TransferControl
from tests.integration.clone.pair import Target, source_job
from tests.integration.clone.peers import Certificates

CONTENT = os.urandom(3 << 20)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source.img").write_bytes(CONTENT)
    return tmp_path / "source.img"


@pytest.fixture
def target(tmp_path, certificates):
    target = Target(certificates, tmp_path / "disk.img")
    yield target
    target.control.cancel()
    target.join(20)


def sent_by(job):
    return send(job, TransferControl(job))


def done(certificates, source, target, tmp_path):
    """Run the right source, and check that the clone succeeds."""
    sent = sent_by(source_job(certificates, source, target.port))
    assert (sent.failure, target.end().failure) == (None, None)
    assert (tmp_path / "disk.img").read_bytes() == CONTENT


def test_a_source_of_another_name(tmp_path, certificates, source, target):
    other = Certificates.__new__(Certificates)
    other.directory, other.ca = certificates.directory, certificates.ca
    files = other.files("other", certificates.ca.issue_cert(common_name="somebody.else"))
    refused = sent_by(source_job(certificates, source, target.port, tls=files))
    assert refused.failure.code == "PeerUntrusted"
    assert "somebody.else" in refused.failure.message
    done(certificates, source, target, tmp_path)


def test_a_source_of_another_authority(tmp_path, certificates, source, target):
    other = Certificates(tmp_path / "other")
    mixed = TlsFiles(certificate=other.client.certificate, key=other.client.key, ca=certificates.client.ca)
    refused = sent_by(source_job(certificates, source, target.port, tls=mixed, patience=1.0))
    assert refused.failure.code == "PeerUnreachable"
    done(certificates, source, target, tmp_path)


def test_a_target_of_another_authority(tmp_path, certificates, source, target):
    other = Certificates(tmp_path / "other")
    mixed = TlsFiles(certificate=certificates.client.certificate, key=certificates.client.key, ca=other.client.ca)
    refused = sent_by(source_job(certificates, source, target.port, tls=mixed))
    assert refused.failure.code == "PeerUntrusted"
    assert refused.written == 0


def test_a_target_of_another_name(certificates, source, target):
    refused = sent_by(source_job(certificates, source, target.port, server_name="cdi-upload-x.ns.svc"))
    assert refused.failure.code == "PeerUntrusted"
    assert refused.written == 0


def test_a_name_in_the_job_counts(tmp_path, source):
    certificates = Certificates(tmp_path / "tls", server="cdi-upload-x.ns.svc")
    target = Target(certificates, tmp_path / "disk.img")
    sent = sent_by(source_job(certificates, source, target.port, server_name="cdi-upload-x.ns.svc"))
    assert sent.failure is None
    assert target.end().failure is None


@pytest.mark.parametrize("missing", ["certificate", "key", "ca"])
def test_a_certificate_that_is_not_there(tmp_path, certificates, source, missing):
    from dataclasses import replace

    files = replace(certificates.client, **{missing: str(tmp_path / "nothing")})
    assert sent_by(source_job(certificates, source, 1, tls=files)).failure.code == "PeerUntrusted"


def test_a_source_of_another_clone(tmp_path, certificates, source, target):
    refused = sent_by(source_job(certificates, source, target.port, id="another"))
    assert refused.failure.code == "PeerProtocolError"
    assert not (tmp_path / "disk.img").exists()
    done(certificates, source, target, tmp_path)


def test_noise_and_silence_keep_nobody_out(tmp_path, certificates, source, target, monkeypatch):
    monkeypatch.setattr(peer_connections, "HANDSHAKE_TIMEOUT", 0.3)
    with contextlib.ExitStack() as stack:
        for words in [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 100] * 10:
            knocking = stack.enter_context(socket.create_connection(("127.0.0.1", target.port)))
            with contextlib.suppress(OSError):
                knocking.sendall(words)
        done(certificates, source, target, tmp_path)
    assert threading.active_count() < 20


def test_a_refused_source_that_has_sent_data_receives_the_reason(certificates, target):
    other = certificates.files("other", certificates.ca.issue_cert(common_name="somebody.else"))
    context = client_context(other)
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", target.port)), server_hostname="127.0.0.1"
    ) as refused:
        refused.sendall(bytes(1000))
        # A connection that is closed with unread data is reset; give a reset the time to arrive.
        broken = select.poll()
        broken.register(refused, 0)
        broken.poll(1000)
        received = refused.recv(1000)
    assert b"PeerUntrusted" in received
    assert b"somebody.else" in received


def connected(certificates, port):
    """Connect as a source, which is asked for the facts about its volume."""
    context = client_context(certificates.client)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname="127.0.0.1")


def answer(peer, body, status="200 OK"):
    """Read a request and answer it."""
    assert peer.recv(10_000).startswith(b"GET /x HTTP/1.1\r\n")
    peer.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


def test_a_source_that_says_nothing_is_not_waited_for(tmp_path, certificates, source):
    from cdi.api.job import Policy

    target = Target(certificates, tmp_path / "disk.img", policy=Policy(stall_timeout=0.3))
    silent = connected(certificates, target.port)
    assert silent.recv(10_000)
    done(certificates, source, target, tmp_path)
    silent.close()


def test_the_newest_source_counts(tmp_path, certificates, source, target):
    """The connections of a source whose node failed stay open until their timeout."""
    facts = PeerFacts(
        protocol=PROTOCOL,
        content="kubevirt",
        size=len(CONTENT),
        data=0,
        validator="/other-content",
        is_strong=True,
        tag="/other-content",
    )
    dead = [connected(certificates, target.port) for _ in range(2)]
    asked, _, _ = select.select(dead, [], [], 20)
    answer(asked[0], facts.to_json().encode())
    done(certificates, source, target, tmp_path)
    for one in dead:
        one.close()


@pytest.mark.parametrize("body", [b"", b"{}", b'{"protocol": 99}', b"x" * 20_000])
def test_a_source_that_breaks_the_protocol_again_and_again(tmp_path, certificates, body, monkeypatch):
    from cdi.api.job import Policy

    monkeypatch.setattr(receive_module, "REPORT_TIMEOUT", 0.3)
    target = Target(certificates, tmp_path / "disk.img", policy=Policy(retries=2))
    for _ in range(3):
        liar = connected(certificates, target.port)
        answer(liar, body)
        liar.close()
    assert target.end().failure.code == "PeerProtocolError"


def test_a_request_for_another_target_is_refused(tmp_path, certificates, source):
    """A target cannot ask for what the ticket of another one is for."""
    target = Target(certificates, tmp_path / "disk.img", id="y", patience=1.0)
    refused = sent_by(source_job(certificates, source, target.port))
    assert refused.failure.code == "PeerProtocolError"
    assert refused.fetched == refused.written == 0
    target.control.cancel()
    target.join(20)


def test_no_source_comes(tmp_path, certificates):
    target = Target(certificates, tmp_path / "disk.img", patience=0.3)
    assert target.end().failure.code == "PeerUnreachable"


def test_no_target_comes(certificates, source):
    failed = sent_by(source_job(certificates, source, 1, patience=0.3))
    assert failed.failure.code == "PeerUnreachable"
    assert failed.failure.retry == "backoff"


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:x", "host:70000", "host:0", ""])
def test_an_address_that_is_none(certificates, source, address):
    assert sent_by(source_job(certificates, source, 1, address=address)).failure.code == "InvalidManifest"


def test_both_ends_want_the_newest_tls(certificates, target):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(certificates.client.certificate, certificates.client.key)
    context.load_verify_locations(certificates.client.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", target.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")
