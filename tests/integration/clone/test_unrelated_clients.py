"""Authorization: which source may fill a volume, and which target may receive one."""

import contextlib
import os
import select
import socket
import ssl
import threading

import pytest

from cdi.api.copy import TlsFiles
from cdi.api.errors import PeerUnreachable
from cdi.transfer.clone import frames
from cdi.transfer.clone import listener as listener_module
from cdi.transfer.clone import receiver as receiver_module
from cdi.transfer.clone.frames import Hello
from cdi.transfer.clone.peer_connection import PeerConnection
from cdi.transfer.clone.send import send
from cdi.transfer.clone.tls import client_context
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
    assert sent.failure is None
    assert target.end().failure is None
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
    monkeypatch.setattr(listener_module, "HANDSHAKE_TIMEOUT", 0.3)
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
    context = client_context(certificates.client)
    tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1")
    return PeerConnection(tls, "target", stall=20, check=lambda: None)


def test_a_source_that_says_nothing_is_not_waited_for(tmp_path, certificates, source, target, monkeypatch):
    monkeypatch.setattr(receiver_module, "HELLO_TIMEOUT", 0.2)
    silent = connected(certificates, target.port)
    with pytest.raises(PeerUnreachable):
        silent.header()
    silent.close()
    done(certificates, source, target, tmp_path)


def test_the_newest_source_counts(tmp_path, certificates, source, target):
    """The connection of a source whose node failed stays open until its timeout."""
    dead = connected(certificates, target.port)
    dead.send(
        frames.encode_message(
            Hello(job="x", content="kubevirt", size=len(CONTENT), data=0, validator="/other-content", fresh=False)
        )
    )
    assert dead.header().kind is frames.Kind.WELCOME
    done(certificates, source, target, tmp_path)
    dead.close()


def test_a_source_that_breaks_the_protocol_again_and_again(tmp_path, certificates):
    from cdi.api.job import Policy

    target = Target(certificates, tmp_path / "disk.img", policy=Policy(retries=2))
    for _ in range(3):
        liar = connected(certificates, target.port)
        liar.send(frames.ack(0))
        with contextlib.suppress(PeerUnreachable):
            liar.header()
        liar.close()
    assert target.end().failure.code == "PeerProtocolError"


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
