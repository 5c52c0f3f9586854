"""Tests of checksum files and signatures beside the image: found, wrong, missing, required; on every pipeline."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from cdi.api.job import Policy
from tests.faults.server import Fault

RETRIES = {"retries": 1, "stall_timeout": 5}


class Keys:
    def __init__(self, home):
        home.mkdir(mode=0o700)
        self.home = home
        for name in ("alice", "mallory"):
            self.gpg("--quick-gen-key", f"{name}@example.org", "ed25519", "sign", "0")
        self.ring = home.parent / "ring"
        self.ring.write_bytes(self.gpg("--export", "alice@example.org"))

    def gpg(self, *arguments, given=b""):
        command = [
            "gpg",
            "--homedir",
            str(self.home),
            "--batch",
            "--yes",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
        ]
        return subprocess.run([*command, *arguments], input=given, capture_output=True, check=True).stdout

    def detached(self, content, name="alice"):
        return self.gpg("-u", f"{name}@example.org", "--output", "-", "--detach-sign", "-", given=content)

    def clear(self, content, name="alice"):
        return self.gpg("-u", f"{name}@example.org", "--output", "-", "--clear-sign", "-", given=content)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    assert shutil.which("gpg"), "gpg is not installed; scripts/setup installs it"
    made = Keys(tmp_path_factory.mktemp("gpg") / "home")
    yield made
    subprocess.run(["gpgconf", "--homedir", str(made.home), "--kill", "all"], check=False)


def sums(case, digest=None, name="disk"):
    return f"{'1' * 64}  other.img\n{digest or case.image.sha256} *{name}\n".encode()


# --- without signatures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SHA256SUMS", "disk.sha256", "CHECKSUM"])
def test_a_checksum_file_is_found_and_believed(case, name):
    case.serve()
    case.server.put(f"/{name}", sums(case))
    outcome = case.run(Policy(**RETRIES))
    case.succeeded(outcome)
    assert name in outcome.verified_by
    assert outcome.digest == f"sha256:{case.image.sha256}"


def test_a_checksum_file_that_says_otherwise_wipes(case):
    case.serve()
    case.server.put("/SHA256SUMS", sums(case, "0" * 64))
    outcome = case.run(Policy(**RETRIES))
    case.failed(outcome, "ChecksumMismatch", "never")
    assert "SHA256SUMS" in outcome.failure.message


def test_two_promises_that_differ_touch_nothing(case, keys):
    case.serve()
    content = sums(case, "0" * 64)
    case.server.put("/SHA256SUMS", content)
    case.server.put("/SHA256SUMS.gpg", keys.detached(content))
    policy = Policy(signature="require", keyring=str(keys.ring), **RETRIES)
    outcome = case.run(policy, checksum=f"sha256:{case.image.sha256}")
    case.failed(outcome, "ChecksumMismatch", "never", touched=False)
    assert outcome.written == 0


def test_without_a_checksum_file_it_is_imported_all_the_same(case):
    case.serve()
    outcome = case.run(Policy(**RETRIES))
    case.succeeded(outcome)
    assert outcome.verified_by == ("length",)
    assert len(case.server.requests) > 5, "it was looked for"


def test_a_checksum_that_is_required_and_missing_touches_nothing(case):
    case.serve()
    case.server.put("/SHA256SUMS", sums(case, name="another.img"))
    outcome = case.run(Policy(require_checksum=True, **RETRIES))
    case.failed(outcome, "ChecksumMissing", "never", touched=False)
    assert outcome.written == 0


@pytest.mark.parametrize("required", [False, True])
def test_a_server_that_answers_everything_with_a_page(case, required):
    case.serve()
    case.server.put("*", always=Fault(data=b"<html>not here</html>", headers=(("Content-Type", "text/html"),)))
    outcome = case.run(Policy(require_checksum=required, **RETRIES))
    if required:
        case.failed(outcome, "ChecksumMissing", "never", touched=False)
    else:
        case.succeeded(outcome)


@pytest.mark.parametrize("text", ["sha256:123", "crc32:00000000", "0" * 64, ""])
def test_a_malformed_checksum_touches_nothing(make_case, text):
    case = make_case("qcow2", "block512")
    case.serve()
    case.failed(case.run(checksum=text), "ChecksumInvalid", "never", touched=False)


# --- with signatures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["require", "if-present"])
@pytest.mark.parametrize("form", ["gpg", "asc", "clear"])
@pytest.mark.parametrize("way", ["raw", "qcow2", "qcow2-stream", "qemu"])
def test_a_good_signature(make_case, keys, way, form, policy):
    case = make_case(way, "file")
    case.serve()
    content = sums(case)
    if form == "clear":
        case.server.put("/SHA256SUMS", keys.clear(content))
    else:
        case.server.put("/SHA256SUMS", content)
        case.server.put(f"/SHA256SUMS.{form}", keys.detached(content))
    outcome = case.run(Policy(signature=policy, keyring=str(keys.ring), **RETRIES))
    case.succeeded(outcome)
    assert "SHA256SUMS" in outcome.verified_by
    assert any(by.startswith("signature by ") for by in outcome.verified_by)


@pytest.mark.parametrize("policy", ["require", "if-present"])
@pytest.mark.parametrize("fault", ["other content", "other key", "rubbish"])
def test_a_bad_signature_touches_nothing(case, keys, fault, policy):
    case.serve()
    content = sums(case)
    case.server.put("/SHA256SUMS", content)
    signature = {
        "other content": lambda: keys.detached(content + b"\n"),
        "other key": lambda: keys.detached(content, "mallory"),
        "rubbish": lambda: b"no signature at all",
    }[fault]()
    case.server.put("/SHA256SUMS.gpg", signature)
    outcome = case.run(Policy(signature=policy, keyring=str(keys.ring), **RETRIES))
    case.failed(outcome, "SignatureInvalid", "never", touched=False)
    assert outcome.failure.exit_status == 5
    assert outcome.written == 0


def test_a_signature_that_is_required_and_missing_touches_nothing(case, keys):
    case.serve()
    case.server.put("/SHA256SUMS", sums(case))
    outcome = case.run(Policy(signature="require", keyring=str(keys.ring), **RETRIES))
    case.failed(outcome, "SignatureMissing", "never", touched=False)


def test_a_signature_that_is_missing_and_not_required(case, keys):
    case.serve()
    case.server.put("/SHA256SUMS", sums(case))
    outcome = case.run(Policy(signature="if-present", keyring=str(keys.ring), **RETRIES))
    case.succeeded(outcome)
    assert "SHA256SUMS" in outcome.verified_by


def test_a_good_signature_of_another_image_wipes(case, keys):
    case.serve()
    content = sums(case, "0" * 64)
    case.server.put("/SHA256SUMS", content)
    case.server.put("/SHA256SUMS.gpg", keys.detached(content))
    outcome = case.run(Policy(signature="require", keyring=str(keys.ring), **RETRIES))
    case.failed(outcome, "ChecksumMismatch", "never")


def test_without_a_key_ring_nothing_is_signed(case):
    case.serve()
    case.server.put("/SHA256SUMS", sums(case))
    outcome = case.run(Policy(signature="require", **RETRIES))
    case.failed(outcome, "SignatureMissing", "never", touched=False)
