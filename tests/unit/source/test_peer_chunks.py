"""The form of chunks, and the digest of a disk."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import PeerProtocolError
from cdi.source.peer_chunks import (
    CHUNK,
    HEADER_SIZE,
    Chain,
    ChunkHeader,
    leaf_hash,
    parse_header,
    table_size,
)
from tests.clone_digest import digest_of

LEAF = bytes(range(32))


def header(**fields):
    usual = {"offset": CHUNK, "leaf": LEAF, "runs": ((0, 4096),), "payload": 4096}
    return ChunkHeader(**(usual | fields))


def parsed(data, start=0, stop=4 * CHUNK, *, leaves=False):
    fixed = data[:HEADER_SIZE]
    return parse_header(data[: HEADER_SIZE + table_size(fixed)], start, stop, leaves=leaves)


@pytest.mark.parametrize(
    ("sent", "leaves"),
    [
        (header(), False),
        (header(runs=((0, 4096), (8192, CHUNK)), payload=CHUNK - 4096), False),
        (header(payload=100, compressed=True), False),
        (header(payload=0), True),
        (ChunkHeader(offset=2 * CHUNK), False),
        (ChunkHeader(offset=2 * CHUNK), True),
    ],
)
def test_there_and_back(sent, leaves):
    assert parsed(sent.encode(), leaves=leaves) == sent


@pytest.mark.parametrize(
    ("sent", "fields"),
    [
        pytest.param(header(offset=512), {}, id="an offset between chunks"),
        pytest.param(header(), {"stop": CHUNK}, id="an offset past the range"),
        pytest.param(header(), {"start": 2 * CHUNK}, id="an offset before the range"),
        pytest.param(header(offset=(1 << 64) - CHUNK), {}, id="an offset past everything"),
        pytest.param(header(runs=((0, 8192),), payload=8192), {"stop": CHUNK + 4096}, id="bytes past the end"),
        pytest.param(header(runs=((CHUNK, CHUNK + 4096),)), {}, id="bytes past the chunk"),
        pytest.param(header(runs=((4096, 4096),), payload=1), {}, id="an empty run"),
        pytest.param(header(runs=((8192, 4096),)), {}, id="a run that ends before it begins"),
        pytest.param(header(runs=((0, 2048), (1024, 3072))), {}, id="runs that overlap"),
        pytest.param(header(runs=((4096, 6144), (0, 2048))), {}, id="runs out of order"),
        pytest.param(header(runs=((0, 2048), (2048, 4096))), {}, id="runs that touch"),
        pytest.param(header(payload=4095), {}, id="fewer bytes than the runs have"),
        pytest.param(header(payload=4097), {}, id="more bytes than the runs have"),
        pytest.param(header(payload=4096, compressed=True), {}, id="a frame that saves nothing"),
        pytest.param(header(payload=0), {}, id="no bytes"),
        pytest.param(header(), {"leaves": True}, id="bytes where only a leaf was requested"),
        pytest.param(header(runs=(), payload=1), {}, id="a mark with bytes"),
        pytest.param(ChunkHeader(offset=4096), {}, id="a mark between chunks"),
        pytest.param(ChunkHeader(offset=CHUNK), {"start": 2 * CHUNK}, id="a mark before the range"),
        pytest.param(ChunkHeader(offset=5 * CHUNK), {}, id="a mark past the range"),
        pytest.param(header(runs=tuple((at, at + 1) for at in range(0, 34, 2)), payload=17), {}, id="too many runs"),
    ],
)
def test_what_the_protocol_does_not_allow_is_refused(sent, fields):
    with pytest.raises(PeerProtocolError):
        parsed(sent.encode(), **fields)


def test_an_unknown_kind_is_refused():
    data = bytearray(header().encode())
    data[14] = 9
    with pytest.raises(PeerProtocolError):
        parsed(bytes(data))


def plain_digest(data):
    return digest_of(lambda offset, length: data[offset : offset + length], len(data))


def test_two_disks_that_differ_have_two_digests():
    seen = {plain_digest(bytes(3 * CHUNK)), plain_digest(bytes(2 * CHUNK)), plain_digest(b"")}
    for place in (0, 4096, CHUNK, CHUNK + 1, 3 * CHUNK - 1):
        data = bytearray(3 * CHUNK)
        data[place] = 1
        seen.add(plain_digest(bytes(data)))
    assert len(seen) == 8


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), unique=True, min_size=1), st.integers(0, 1 << 32))
def test_a_chain_that_is_resumed_anywhere_ends_the_same(chunks, seed):
    made = random.Random(seed)
    leaves = [(at * CHUNK, leaf_hash(((0, 1),), (made.randbytes(1),))) for at in sorted(chunks)]
    whole = Chain()
    for leaf in leaves:
        whole.add(*leaf)
    resumed = Chain()
    for number, leaf in enumerate(leaves):
        if number == seed % len(leaves):
            resumed = Chain(resumed.state)
        resumed.add(*leaf)
    assert resumed.end(10 * CHUNK) == whole.end(10 * CHUNK)
