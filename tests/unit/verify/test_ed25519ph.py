"""Tests of Ed25519ph with the vector of RFC 8032, and of its arithmetic against the cryptography library."""

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.verify.ed25519ph import is_valid, is_valid_ed25519ph

# RFC 8032, section 7.3.
KEY = bytes.fromhex("ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf")
SIGNATURE = bytes.fromhex(
    "98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae41"
    "31f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406"
)
ORDER = 2**252 + 27742317777372353535851937790883648493


def test_the_vector_of_the_rfc():
    assert is_valid_ed25519ph(KEY, b"abc", SIGNATURE)
    assert not is_valid_ed25519ph(KEY, b"abd", SIGNATURE)
    assert not is_valid(KEY, b"abc", SIGNATURE)


@pytest.mark.parametrize("at", range(0, 64, 7))
def test_a_changed_signature_is_invalid(at):
    changed = bytearray(SIGNATURE)
    changed[at] ^= 1
    assert not is_valid_ed25519ph(KEY, b"abc", bytes(changed))


def test_a_second_encoding_of_the_same_signature_is_invalid():
    larger = int.from_bytes(SIGNATURE[32:], "little") + ORDER
    assert not is_valid_ed25519ph(KEY, b"abc", SIGNATURE[:32] + larger.to_bytes(32, "little"))


@given(st.binary(max_size=70), st.binary(max_size=100))
def test_any_key_and_signature_are_invalid_without_an_exception(key, signature):
    assert not is_valid_ed25519ph(key, b"abc", signature)
    assert not is_valid_ed25519ph(KEY, b"abc", signature)


@settings(max_examples=40)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100), st.integers(0, 511), st.booleans())
def test_plain_signatures_are_judged_as_by_the_cryptography_library(seed, message, bit, change):
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = private.public_key().public_bytes_raw(), bytearray(private.sign(message))
    if change:
        signature[bit // 8] ^= 1 << bit % 8
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(bytes(signature), message)
        expected = True
    except InvalidSignature:
        expected = False
    assert is_valid(public, message, bytes(signature)) is expected
    assert not is_valid_ed25519ph(public, message, bytes(signature))
