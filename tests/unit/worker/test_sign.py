"""Tests of the worker that signs records of origin."""

from __future__ import annotations

import base64
import hashlib
import subprocess

import pytest

from cdi.api.errors import UsageError
from cdi.api.origin import MAX_STATEMENT, PAYLOAD_TYPE, Envelope, Signature, SignResult
from cdi.verify.dsse import verify
from cdi.worker.__main__ import _main
from cdi.worker.termination import LIMIT

STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'


@pytest.fixture
def pod(tmp_path):
    """The files of a signing pod, as the kubelet mounts them."""
    (tmp_path / "keys" / "..data").mkdir(parents=True)
    (tmp_path / "statement").write_bytes(STATEMENT)
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "keys/tls.key"], check=True)
    return tmp_path


def run(pod):
    log = pod / "termination-log"
    status = _main(["sign-record", str(pod / "statement"), str(pod / "keys"), "uid-1", str(log)])
    text = log.read_text()
    assert len(text) <= LIMIT
    return status, SignResult.from_json(text)


def test_the_termination_message_is_a_valid_signature_of_the_statement(pod):
    status, result = run(pod)
    public = subprocess.run(
        ["openssl", "pkey", "-in", pod / "keys/tls.key", "-pubout"], capture_output=True, check=True
    ).stdout
    signature = Signature(keyid=result.keyid, value=base64.b64decode(result.signature))
    envelope = Envelope(payload=STATEMENT, payload_type=PAYLOAD_TYPE, signatures=(signature,))
    assert verify(envelope, public, where="record") == result.keyid
    assert (status, result.id, result.statement) == (0, "uid-1", hashlib.sha256(STATEMENT).hexdigest())


@pytest.mark.parametrize("fault", ["no key", "no directory", "not a key", "no statement", "large statement"])
def test_what_prevents_signing_is_the_result(pod, fault):
    key = pod / "keys/tls.key"
    match fault:
        case "no key":
            key.unlink()
        case "no directory":
            key.unlink()
            (pod / "keys/..data").rmdir()
            (pod / "keys").rmdir()
        case "not a key":
            key.write_text("secret-content")
        case "no statement":
            (pod / "statement").unlink()
        case "large statement":
            (pod / "statement").write_bytes(b"x" * (MAX_STATEMENT + 1))
    status, result = run(pod)
    assert status == result.failure.exit_status != 0
    assert result.failure.code == "SigningKeyInvalid"
    assert "secret-content" not in result.to_json()
    assert result.signature == ""


def test_wrong_arguments_are_a_usage_error():
    assert _main(["sign-record", "statement"]) == UsageError.exit_status
