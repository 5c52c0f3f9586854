"""Verification of Ed25519ph signatures (RFC 8032, section 5.1), which `cosign sign` makes with Ed25519 keys.

The cryptography library and OpenSSL before 3.2 verify only plain Ed25519. Only public values are processed here, so the
arithmetic need not take constant time. Names of values are those of the RFC.
"""

from __future__ import annotations

import hashlib

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_SQRT_MINUS_1 = pow(2, (_P - 1) // 4, _P)
_DOM2 = b"SigEd25519 no Ed25519 collisions\x01\x00"
"""Domain of the prehashed variant with an empty context."""

_Point = tuple[int, int, int, int]
"""Extended homogeneous coordinates X, Y, Z, T."""
_NEUTRAL: _Point = (0, 1, 1, 0)


def is_valid_ed25519ph(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether the signature of the message was made with this raw public key, and an empty context."""
    return is_valid(public_key, hashlib.sha512(message).digest(), signature, _DOM2)


def is_valid(public_key: bytes, message: bytes, signature: bytes, domain: bytes = b"") -> bool:
    """Verify a signature as section 5.1.7 describes; without a domain it is one of plain Ed25519."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    a = _decode(public_key)
    s = int.from_bytes(signature[32:], "little")
    if a is None or s >= _L:
        return False
    hashed = hashlib.sha512(domain + signature[:32] + public_key + message).digest()
    k = int.from_bytes(hashed, "little") % _L
    # The encoding of R = [S]B - [k]A is compared, so a signature with another encoding of R is rejected.
    return _encode(_add(_multiply(s, _BASE), _multiply(k, _negate(a)))) == signature[:32]


def _add(p: _Point, q: _Point) -> _Point:
    a = (p[1] - p[0]) * (q[1] - q[0]) % _P
    b = (p[1] + p[0]) * (q[1] + q[0]) % _P
    c = 2 * p[3] * q[3] * _D % _P
    d = 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _negate(p: _Point) -> _Point:
    return -p[0] % _P, p[1], p[2], -p[3] % _P


def _multiply(factor: int, p: _Point) -> _Point:
    product = _NEUTRAL
    while factor:
        if factor & 1:
            product = _add(product, p)
        p = _add(p, p)
        factor >>= 1
    return product


def _encode(p: _Point) -> bytes:
    inverse = pow(p[2], -1, _P)
    x, y = p[0] * inverse % _P, p[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decode(encoded: bytes) -> _Point | None:
    """Return the point (section 5.1.3); None if there is none, or if the encoding is not canonical."""
    value = int.from_bytes(encoded, "little")
    sign, y = value >> 255, value & (1 << 255) - 1
    if y >= _P:
        return None
    x2 = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(x2, (_P + 3) // 8, _P)
    if (x * x - x2) % _P:
        x = x * _SQRT_MINUS_1 % _P
    if (x * x - x2) % _P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def _base() -> _Point:
    base = _decode((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    assert base is not None, "RFC 8032 defines it"
    return base


_BASE = _base()
