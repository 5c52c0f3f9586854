"""Tests of signatures made by the real gpg and checked by the real gpgv."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cdi.api.errors import SignatureInvalid, SignatureMissing, ToolMissing
from cdi.verify.checksum_file import signed_text
from cdi.verify.openpgp import dearmour, parse_status, verify_clearsigned, verify_detached

CONTENT = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  disk.img\n"


class Keys:
    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)

    def gpg(self, *arguments: str, given: bytes = b"") -> bytes:
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

    def make(self, name: str, *, expires: str = "0", when: str | None = None) -> str:
        fake = ["--faked-system-time", when] if when else []
        self.gpg(*fake, "--quick-gen-key", f"{name} <{name}@example.org>", "ed25519", "sign", expires)
        listing = self.gpg("--with-colons", "--fingerprint", f"{name}@example.org").decode()
        return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr"))

    def export(self, path: Path, *names: str, armour: bool = False) -> str:
        path.write_bytes(self.gpg(*(["--armor"] if armour else []), "--export", *[f"{n}@example.org" for n in names]))
        return str(path)

    def detached(self, name: str, *options: str) -> bytes:
        return self.gpg(*options, "-u", f"{name}@example.org", "--output", "-", "--detach-sign", "-", given=CONTENT)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    if not (shutil.which("gpg") and shutil.which("gpgv")):
        pytest.skip("gpg and gpgv are not installed")
    made = Keys(tmp_path_factory.mktemp("gpg") / "home")
    made.fingerprints = {
        "alice": made.make("alice"),
        "bob": made.make("bob"),
        "old": made.make("old", expires="1d", when="20200101T000000!"),
    }
    yield made
    subprocess.run(["gpgconf", "--homedir", str(made.home), "--kill", "all"], check=False)


@pytest.mark.parametrize("armour_keys", [False, True])
@pytest.mark.parametrize("options", [[], ["--armor"]])
def test_a_good_signature_names_its_key(keys, tmp_path, armour_keys, options):
    ring = keys.export(tmp_path / "ring", "alice", "bob", armour=armour_keys)
    assert verify_detached(CONTENT, keys.detached("alice", *options), ring) == (keys.fingerprints["alice"],)


def test_armoured_keys_may_follow_one_another(keys, tmp_path):
    one = Path(keys.export(tmp_path / "one", "alice", armour=True)).read_bytes()
    two = Path(keys.export(tmp_path / "two", "bob", armour=True)).read_bytes()
    (tmp_path / "ring").write_bytes(b"two keys:\r\n" + one.replace(b"\n", b"\r\n") + b"\n" + two)
    ring = str(tmp_path / "ring")
    assert verify_detached(CONTENT, keys.detached("bob"), ring) == (keys.fingerprints["bob"],)


def test_changed_content_is_refused(keys, tmp_path):
    ring = keys.export(tmp_path / "ring", "alice")
    with pytest.raises(SignatureInvalid, match="BADSIG"):
        verify_detached(CONTENT + b"x", keys.detached("alice"), ring)


def test_a_key_outside_of_the_ring_is_not_trusted(keys, tmp_path):
    ring = keys.export(tmp_path / "ring", "bob")
    with pytest.raises(SignatureInvalid, match="not trusted"):
        verify_detached(CONTENT, keys.detached("alice"), ring)


def test_of_two_signatures_one_known_key_is_enough(keys, tmp_path):
    ring = keys.export(tmp_path / "ring", "bob")
    both = keys.detached("alice") + keys.detached("bob")
    assert verify_detached(CONTENT, both, ring) == (keys.fingerprints["bob"],)
    ring = keys.export(tmp_path / "ring", "alice", "bob")
    assert set(verify_detached(CONTENT, both, ring)) == {keys.fingerprints["alice"], keys.fingerprints["bob"]}


def test_a_bad_signature_beside_a_good_one_is_refused(keys, tmp_path):
    ring = keys.export(tmp_path / "ring", "alice", "bob")
    bad = keys.gpg("-u", "alice@example.org", "--output", "-", "--detach-sign", "-", given=b"other")
    with pytest.raises(SignatureInvalid):
        verify_detached(CONTENT, bad + keys.detached("bob"), ring)


def test_a_signature_by_an_expired_key_is_refused(keys, tmp_path):
    ring = keys.export(tmp_path / "ring", "old")
    signature = keys.detached("old", "--faked-system-time", "20200101T010000!")
    with pytest.raises(SignatureInvalid, match="EXPKEYSIG"):
        verify_detached(CONTENT, signature, ring)


def test_an_expired_signature_is_refused(keys, tmp_path):
    ring = keys.export(tmp_path / "ring", "alice")
    signature = keys.detached("alice", "--default-sig-expire", "seconds=1")
    import time

    time.sleep(2)
    with pytest.raises(SignatureInvalid, match="EXPSIG"):
        verify_detached(CONTENT, signature, ring)


def test_a_weak_hash_is_refused(keys, tmp_path):
    ring = keys.export(tmp_path / "ring", "alice")
    with pytest.raises(SignatureInvalid):
        verify_detached(CONTENT, keys.detached("alice", "--digest-algo", "SHA1", "--allow-weak-key-signatures"), ring)


@pytest.mark.parametrize(
    "signature", [b"garbage", b"-----BEGIN PGP SIGNATURE-----\n\nxxxx\n-----END PGP SIGNATURE-----\n"]
)
def test_what_is_no_signature_is_refused(keys, tmp_path, signature):
    ring = keys.export(tmp_path / "ring", "alice")
    with pytest.raises(SignatureInvalid):
        verify_detached(CONTENT, signature, ring)


def test_no_signature_is_missing(keys, tmp_path):
    ring = keys.export(tmp_path / "ring", "alice")
    with pytest.raises(SignatureMissing):
        verify_detached(CONTENT, b"\n", ring)
    with pytest.raises(SignatureMissing):
        verify_clearsigned(CONTENT, ring)


def test_a_clear_signed_message_gives_what_is_signed_and_nothing_else(keys, tmp_path):
    ring = keys.export(tmp_path / "ring", "alice")
    text = b"# Fedora\n- dashed\n" + CONTENT
    message = keys.gpg("-u", "alice@example.org", "--output", "-", "--clear-sign", "-", given=text)
    assert verify_clearsigned(message, ring) == (keys.fingerprints["alice"],)
    assert signed_text(message).rstrip("\n") == text.decode().rstrip("\n")
    around = b"ffff  before\n" + message + b"ffff  after\n"
    assert verify_clearsigned(around, ring) == (keys.fingerprints["alice"],)
    assert signed_text(around) == signed_text(message)
    with pytest.raises(SignatureInvalid):
        verify_clearsigned(message.replace(b"disk.img", b"mine.img"), ring)


def test_key_rings_that_cannot_be_used(keys, tmp_path):
    signature = keys.detached("alice")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut").write_bytes(keys.gpg("--armor", "--export")[:100])
    (tmp_path / "junk").write_bytes(b"no keys at all")
    for ring in ("missing", "empty", "cut", "junk"):
        with pytest.raises(SignatureInvalid):
            verify_detached(CONTENT, signature, str(tmp_path / ring))


def test_dearmour_gives_what_gpg_exports(keys):
    assert dearmour(keys.gpg("--armor", "--export")) == keys.gpg("--export")
    assert dearmour(keys.gpg("--export")) == keys.gpg("--export")


def test_without_gpgv_the_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match="gpgv"):
        verify_detached(CONTENT, b"x", str(tmp_path / "ring"))


@pytest.mark.parametrize(
    "status",
    [
        "",
        "[GNUPG:] NEWSIG\n",
        "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG A name\n",
        "[GNUPG:] NEWSIG\n[GNUPG:] VALIDSIG ABCD\n",
        "[GNUPG:] GOODSIG A name\n[GNUPG:] VALIDSIG ABCD\n",
        "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG A\n[GNUPG:] VALIDSIG AB\n[GNUPG:] EXPKEYSIG A\n",
        "gpgv: [GNUPG:] NEWSIG\nx[GNUPG:] GOODSIG A\nx[GNUPG:] VALIDSIG AB\n",
    ],
)
def test_status_lines_that_do_not_prove_a_signature(status):
    with pytest.raises(SignatureInvalid):
        parse_status(status)


def test_text_that_two_readers_see_differently_is_refused(keys, tmp_path, monkeypatch):
    from cdi.verify import openpgp

    ring = keys.export(tmp_path / "ring", "alice")
    message = keys.gpg("-u", "alice@example.org", "--output", "-", "--clear-sign", "-", given=CONTENT)
    monkeypatch.setattr(openpgp, "signed_text", lambda content: content.decode())
    with pytest.raises(SignatureInvalid, match="ambiguous"):
        verify_clearsigned(message, ring)
