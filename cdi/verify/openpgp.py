"""Verification of OpenPGP signatures by ``gpgv`` with a key ring that the policy names.

Only gpgv's machine-readable status lines are trusted (``doc/DETAILS`` of GnuPG, section "Format of the --status-fd
output"), and only those about complete signatures by keys that are currently valid.
"""

from __future__ import annotations

import base64
import binascii
import os
import shutil
import subprocess
import tempfile

from cdi.api.errors import SignatureInvalid, SignatureMissing, ToolMissing
from cdi.verify.checksum_file import MAX_SUMS, SIGNED_BEGIN, signed_text

MAX_KEYRING = 16 << 20
MAX_SIGNATURE = 1 << 20
TIMEOUT = 60.0
"""Timeout of gpgv in seconds."""

_STATUS = "[GNUPG:] "
_BAD = frozenset({"BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "FAILURE", "UNEXPECTED", "NO_PUBKEY"})
_WEAK_HASHES = frozenset({"1", "2", "3"})
# MD5, SHA-1, RIPEMD-160 (RFC 9580, section 9.5).
_ARMOUR = b"-----BEGIN PGP "


def verify_detached(content: bytes, signature: bytes, keyring: str) -> tuple[str, ...]:
    """Verify a detached signature of `content`, binary or armoured, and return the fingerprints of its primary keys.

    At least one signature must be good and none may be bad; those by keys that are not in the ring are ignored. A
    fingerprint has 40 or 64 upper-case hex digits. `keyring` is the path of a file of public keys, binary or armoured.

    Raises:
        SignatureInvalid: the signature or the key ring is not acceptable.
        SignatureMissing: the signature is empty.
        ToolMissing: gpgv is not installed.
    """
    if not signature.strip():
        raise SignatureMissing("the signature is empty")
    if len(signature) > MAX_SIGNATURE:
        raise SignatureInvalid(f"the signature is larger than {MAX_SIGNATURE} bytes")
    with tempfile.TemporaryDirectory(prefix="cdi-gpgv-") as home:
        _write(home, "content", content)
        _write(home, "signature", signature)
        return _gpgv(home, keyring, ["signature", "content"])


def verify_clearsigned(content: bytes, keyring: str) -> tuple[str, ...]:
    """Verify a clear-signed message and return the fingerprints, as `verify_detached` does.

    The signed text is `cdi.verify.checksum_file.signed_text(content)`, and only that may be used: text outside it is
    not authenticated. Part of the check is that gpgv extracts the same text.
    """
    if len(content) > MAX_SUMS:
        raise SignatureInvalid(f"the signed message is larger than {MAX_SUMS} bytes")
    if not is_clearsigned(content):
        raise SignatureMissing("the message is not signed")
    with tempfile.TemporaryDirectory(prefix="cdi-gpgv-") as home:
        _write(home, "content", content)
        keys = _gpgv(home, keyring, ["content"], output="signed")
        with open(os.path.join(home, "signed"), "rb") as file:
            signed = file.read(MAX_SUMS + 1)
    # An attacker could exploit differences between the two parsers.
    if signed_text(signed).rstrip("\n") != signed_text(content).rstrip("\n"):
        raise SignatureInvalid("ambiguous clear-signed message")
    return keys


def is_clearsigned(content: bytes) -> bool:
    """Return whether the text contains its own signature."""
    return any(line.rstrip(b" \t\r") == SIGNED_BEGIN.encode() for line in content.split(b"\n"))


def dearmour(raw: bytes) -> bytes:
    """Return the binary keys of a key ring that may be armoured, in one or several blocks (RFC 9580, section 6).

    Raises:
        SignatureInvalid: the armour is damaged, or contains something else than public keys.
    """
    if _ARMOUR not in raw:
        return raw
    parts: list[bytes] = []
    body: list[bytes] = []
    inside = False
    for line in (line.strip() for line in raw.split(b"\n")):
        if line.startswith(_ARMOUR):
            if line != b"-----BEGIN PGP PUBLIC KEY BLOCK-----":
                raise SignatureInvalid("the key ring contains data other than public keys")
            inside, body = True, []
        elif line.startswith(b"-----END PGP ") and inside:
            # The content follows an empty line. RFC 9580 tells readers to ignore the checksum after it ("=" and
            # four characters), which protects nothing.
            start = body.index(b"") + 1 if b"" in body else 0
            data = b"".join(line for line in body[start:] if not line.startswith(b"="))
            try:
                parts.append(base64.b64decode(data, validate=True))
            except binascii.Error as error:
                raise SignatureInvalid("the key ring's armour is damaged") from error
            inside = False
        elif inside:
            body.append(line)
    if inside or not parts:
        raise SignatureInvalid("the key ring's armour has no end line")
    return b"".join(parts)


def _read_keyring(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_KEYRING + 1)
    except OSError as error:
        raise SignatureInvalid(
            f"cannot read the key ring: {error.strerror}", where=path, remedy="name a readable file of public keys"
        ) from error
    if len(raw) > MAX_KEYRING:
        raise SignatureInvalid(f"the key ring is larger than {MAX_KEYRING} bytes", where=path)
    if not raw:
        raise SignatureInvalid("the key ring is empty", where=path, remedy="name a file of public keys")
    return dearmour(raw)


def _write(home: str, name: str, content: bytes) -> None:
    with open(os.path.join(home, name), "wb") as file:
        file.write(content)


def _gpgv(home: str, keyring: str, files: list[str], output: str | None = None) -> tuple[str, ...]:
    program = shutil.which("gpgv")
    if program is None:
        raise ToolMissing("gpgv is not installed, so signatures cannot be verified", remedy="apt-get install gpgv")
    _write(home, "keyring", _read_keyring(keyring))
    command = [program, "--homedir", home, "--keyring", os.path.join(home, "keyring"), "--status-fd", "1"]
    try:
        ended = subprocess.run(
            [*command, *(["--output", output] if output else []), "--", *files],
            cwd=home,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": home, "GNUPGHOME": home},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SignatureInvalid(f"gpgv did not finish within {TIMEOUT:.0f} seconds") from error
    return parse_status(ended.stdout.decode("utf-8", "replace"))


def parse_status(status: str) -> tuple[str, ...]:
    """Return the fingerprints of the good signatures in gpgv's status lines.

    Each signature begins with NEWSIG. It is good if it has GOODSIG, VALIDSIG and no bad status. It is ignored if its
    key is unknown (ERRSIG with reason 9, NO_PUBKEY), as images are often signed by an old and a new key. In every other
    case it is bad.

    Raises:
        SignatureInvalid: a signature is bad, or none is good.
    """
    good: list[str] = []
    unknown: list[str] = []
    signatures: list[list[list[str]]] = []
    for line in status.splitlines():
        if not line.startswith(_STATUS):
            continue
        words = line[len(_STATUS) :].split(" ")
        if words[0] == "NEWSIG":
            signatures.append([])
        elif signatures:
            signatures[-1].append(words)
        elif words[0] in _BAD:
            raise SignatureInvalid(f"the signature cannot be verified ({words[0]})")
    for words_of in signatures:
        keys = {words[0] for words in words_of}
        missing = [words for words in words_of if words[0] == "ERRSIG" and len(words) > 6 and words[6] == "9"]
        valid = [words for words in words_of if words[0] == "VALIDSIG"]
        if missing and not valid and keys & _BAD <= {"ERRSIG", "NO_PUBKEY"}:
            unknown.append(missing[0][1])
        elif keys & _BAD or "GOODSIG" not in keys or len(valid) != 1 or len(valid[0]) < 2:
            reason = ", ".join(sorted(keys & _BAD)) or "incomplete"
            raise SignatureInvalid(f"the signature is not good ({reason})")
        elif len(valid[0]) > 8 and valid[0][8] in _WEAK_HASHES:
            raise SignatureInvalid("the signature uses a weak hash (MD5 or SHA-1)")
        else:
            # The last field is the primary key's fingerprint, the first that of the signing subkey.
            good.append(valid[0][10] if len(valid[0]) > 10 else valid[0][1])
    if not good:
        if unknown:
            raise SignatureInvalid(f"the signing key is not trusted ({', '.join(unknown)[:200]})")
        raise SignatureInvalid("the file contains no signature")
    return tuple(dict.fromkeys(good))
