"""Tests that a digest that was saved and restored equals hashlib's."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.digest import HEX_LENGTH
from cdi.api.errors import ChecksumInvalid
from cdi.verify import hashing
from cdi.verify.hashing import ResumableHash

ALGORITHMS = sorted(HEX_LENGTH)


def test_every_algorithm_can_be_saved_here():
    for algorithm in ALGORITHMS:
        assert ResumableHash(algorithm).save() is not None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.binary(max_size=400), max_size=8), data=st.data())
def test_any_split_and_any_interruption_gives_the_same_digest(algorithm, parts, data):
    made = ResumableHash(algorithm)
    for part in parts:
        made.update(data.draw(st.sampled_from([bytes, memoryview, lambda raw: memoryview(bytearray(raw))]))(part))
        if data.draw(st.booleans()):
            made = ResumableHash.restore(algorithm, made.save())
    assert made.hexdigest() == hashlib.new(algorithm, b"".join(parts)).hexdigest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_digest_can_be_asked_for_on_the_way(algorithm):
    made = ResumableHash(algorithm)
    made.update(b"one")
    assert made.hexdigest() == hashlib.new(algorithm, b"one").hexdigest()
    made.update(b"two")
    assert str(made.digest()) == f"{algorithm}:{hashlib.new(algorithm, b'onetwo').hexdigest()}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_damaged_state_is_refused(algorithm):
    made = ResumableHash(algorithm)
    made.update(b"x" * 1000)
    state = made.save()
    for at in range(len(state)):
        damaged = bytearray(state)
        damaged[at] ^= 0x10
        assert ResumableHash.restore(algorithm, bytes(damaged)) is None
    for end in range(len(state)):
        assert ResumableHash.restore(algorithm, state[:end]) is None


def test_the_state_of_another_algorithm_is_refused():
    for one in ALGORITHMS:
        for other in ALGORITHMS:
            restored = ResumableHash.restore(other, ResumableHash(one).save())
            assert (restored is not None) == (one == other)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_forged_state_cannot_reach_past_its_block(algorithm):
    import struct
    import zlib

    made = ResumableHash(algorithm)
    made.update(b"x" * 70)
    body = bytearray(made.save()[:-4])
    layout = hashing._LAYOUTS[algorithm]
    struct.pack_into("=I", body, len(body) - layout.size + layout.fill, 1 << 20)
    forged = bytes(body) + struct.pack(">I", zlib.crc32(body))
    assert ResumableHash.restore(algorithm, forged) is None


def test_without_libcrypto_there_is_a_digest_and_no_state(monkeypatch):
    monkeypatch.setattr(hashing, "_native", lambda algorithm: None)
    made = ResumableHash("sha256")
    made.update(memoryview(b"content"))
    assert made.save() is None
    assert made.hexdigest() == hashlib.sha256(b"content").hexdigest()
    assert ResumableHash.restore("sha256", b"anything") is None


def test_an_unknown_algorithm_is_named():
    with pytest.raises(ChecksumInvalid, match="crc32"):
        ResumableHash("crc32")
