"""Public keys in PEM files that signatures are verified with: ECDSA, Ed25519 and RSA."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from cdi.api.errors import VerificationKeyInvalid
from cdi.verify.ed25519ph import is_valid_ed25519ph

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

    SupportedKey = EllipticCurvePublicKey | Ed25519PublicKey | RSAPublicKey

MAX_KEYS = 64
MAX_KEY_FILE = 64 << 10
"""Maximum size of a PEM file in bytes."""
_MIN_RSA_BITS = 2048
_MAX_RSA_BITS = 16_384
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\s.*?-----END \1-----", re.DOTALL)
_PUBLIC = frozenset({b"PUBLIC KEY", b"RSA PUBLIC KEY"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A public key, and the name of the file that contains it."""

    name: str
    fingerprint: str
    """SHA-256 of the DER form (SubjectPublicKeyInfo) in lower-case hex."""
    key: SupportedKey = field(repr=False)

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Return whether the signature of the message was made with this key."""
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

        key = self.key
        if isinstance(key, ec.EllipticCurvePublicKey):
            return any(
                _succeeds(partial(key.verify, signature, message, ec.ECDSA(algorithm)))
                for algorithm in _ecdsa_hashes(key)
            )
        if isinstance(key, rsa.RSAPublicKey):
            return _succeeds(partial(key.verify, signature, message, padding.PKCS1v15(), _sha256()))
        # Versions of cosign differ in the variant that they use; the domain separates the two.
        if _succeeds(partial(key.verify, signature, message)):
            return True
        return is_valid_ed25519ph(key.public_bytes_raw(), message, signature)

    def has_signed_digest(self, sha256: bytes, signature: bytes) -> bool:
        """Return whether the signature was made with this key of a message with this SHA-256 digest.

        Neither variant of Ed25519 signs such a digest, so the answer for such a key is always False.
        """
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

        key, prehashed = self.key, utils.Prehashed(_sha256())
        if isinstance(key, ec.EllipticCurvePublicKey):
            return _succeeds(partial(key.verify, signature, sha256, ec.ECDSA(prehashed)))
        if isinstance(key, rsa.RSAPublicKey):
            return _succeeds(partial(key.verify, signature, sha256, padding.PKCS1v15(), prehashed))
        return False


def _succeeds(verify: Callable[[], None]) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        verify()
    except InvalidSignature:
        return False
    return True


def read_keys(paths: Iterable[str]) -> tuple[TrustedKey, ...]:
    """Return the keys in these files, and in every file of these directories.

    A directory is usually a mounted Secret, in which Kubernetes keeps its own entries under names that start with
    ``..``.

    Raises:
        VerificationKeyInvalid: A file cannot be read or contains something else than public keys, or there is no key.
    """
    keys: list[TrustedKey] = []
    shown = list(paths)
    for path in _files(shown):
        keys += parse_keys(_read(path), os.path.basename(path), where=path)
        if len(keys) > MAX_KEYS:
            raise VerificationKeyInvalid(f"more than {MAX_KEYS} public keys are given", where=path)
    if not keys:
        raise VerificationKeyInvalid("no public key is given", where=", ".join(shown)[:200] or None)
    return tuple(keys)


def parse_keys(pem: bytes, name: str, *, where: str | None = None) -> tuple[TrustedKey, ...]:
    """Return the public keys in a PEM file (RFC 7468).

    Raises:
        VerificationKeyInvalid: The file contains no public key, one of an unsupported kind, or a private key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    if len(pem) > MAX_KEY_FILE:
        raise VerificationKeyInvalid(f"the file is larger than {MAX_KEY_FILE} bytes", where=where or name)
    if b"PRIVATE KEY-----" in pem:
        raise VerificationKeyInvalid(
            "the file contains a private key",
            where=where or name,
            remedy="give the public key only (cosign.pub); a private key must not leave its owner",
        )
    keys = []
    for block in _PEM.finditer(pem):
        label = block[1]
        if label not in _PUBLIC:
            raise VerificationKeyInvalid(f"the file contains {label.decode()}, not PUBLIC KEY", where=where or name)
        try:
            key = serialization.load_pem_public_key(block[0] + b"\n")
        except (ValueError, UnsupportedAlgorithm) as error:
            raise VerificationKeyInvalid("the public key cannot be parsed", where=where or name) from error
        supported = _supported(key, where or name)
        keys.append(TrustedKey(name=name, fingerprint=fingerprint(supported), key=supported))
    if not keys:
        raise VerificationKeyInvalid("the file contains no public key in PEM form", where=where or name)
    return tuple(keys)


def fingerprint(key: SupportedKey) -> str:
    """Return the SHA-256 of a key's SubjectPublicKeyInfo in DER, in lower-case hex."""
    from cryptography.hazmat.primitives import serialization

    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _supported(key: PublicKeyTypes, where: str) -> SupportedKey:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPublicKey):
        if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
            raise VerificationKeyInvalid(
                f"the RSA key has {key.key_size} bits; {_MIN_RSA_BITS} to {_MAX_RSA_BITS} are accepted", where=where
            )
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not _ecdsa_hashes(key):
            raise VerificationKeyInvalid(
                f"the ECDSA key is on curve {key.curve.name}; P-256, P-384 and P-521 are accepted", where=where
            )
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise VerificationKeyInvalid("the key is neither ECDSA, Ed25519 nor RSA", where=where)


def _ecdsa_hashes(key: EllipticCurvePublicKey) -> tuple[HashAlgorithm, ...]:
    """Return the hashes that cosign signs with: SHA-256, and since bundles the one that suits the curve."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    match key.curve:
        case ec.SECP256R1():
            return (hashes.SHA256(),)
        case ec.SECP384R1():
            return (hashes.SHA256(), hashes.SHA384())
        case ec.SECP521R1():
            return (hashes.SHA256(), hashes.SHA512())
        case _:
            return ()


def _sha256() -> HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def _files(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        try:
            names = sorted(os.listdir(path))
        except NotADirectoryError:
            yield path
            continue
        except OSError as error:
            raise _unreadable(path, error) from error
        yield from (os.path.join(path, name) for name in names if not name.startswith(".."))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> VerificationKeyInvalid:
    return VerificationKeyInvalid(f"the file cannot be read: {error.strerror}", where=path)
