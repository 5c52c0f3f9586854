"""A peer source, against sources that are honest, lie, or break off."""

import itertools
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import (
    CdiError,
    ChecksumMismatch,
    PeerProtocolError,
    SourceChanged,
    SourceNotFound,
    SourceTruncated,
)
from cdi.source.peer import PeerReplaced, PeerSource, verified
from cdi.source.peer_chunks import CHUNK, ChunkHeader, leaf_hash
from cdi.source.peer_messages import PROTOCOL, PeerFacts, PeerResult, parse_result
from cdi.target.buffer import data_runs
from cdi.transfer.clone.compression import ChunkCompressor

FACTS = {
    "protocol": PROTOCOL,
    "content": "kubevirt",
    "size": 3 * CHUNK + 4096,
    "data": 0,
    "validator": "v",
    "is_strong": True,
    "tag": "v",
}


class Wire:
    """Connections of a peer that answers each request with the next response."""

    def __init__(self, *responses):
        self.responses = list(responses)
        self.asked = []
        self.released = 0

    def exchange(self, method, target, headers, cancel, body=b""):
        self.asked.append((method, target, dict(headers), body))
        status, data = self.responses.pop(0)
        left = memoryview(data)

        def readinto(view):
            nonlocal left
            # At most one TLS record at a time.
            count = min(len(view), len(left), 16 << 10)
            view[:count] = left[:count]
            left = left[count:]
            return count

        return SimpleNamespace(
            status=status, body=SimpleNamespace(readinto=readinto), read_prefix=lambda limit: bytes(data[:limit])
        )

    def release(self, response):
        self.released += 1


def source_of(*responses, content="kubevirt", **fields):
    facts = PeerFacts(**(FACTS | {"content": content} | fields))
    wire = Wire((200, facts.to_json().encode()), *responses)
    source = PeerSource(wire, "job", content)
    source.probe()
    return source, wire


def encoded(data, *, narrow=False, leaves=False, start=0):
    """Return the chunks with data as a source sends them."""
    sent, packer = b"", ChunkCompressor()
    for offset in range(start, len(data), CHUNK):
        view = memoryview(data)[offset : offset + CHUNK]
        runs = tuple(data_runs(view))
        if not runs:
            continue
        pieces = [view[begin:end] for begin, end in runs]
        leaf = leaf_hash(runs, pieces)
        packed = packer.pack(pieces) if narrow else None
        body = b"" if leaves else packed or b"".join(pieces)
        sent += ChunkHeader(offset=offset, leaf=leaf, runs=runs, payload=len(body), compressed=bool(packed)).encode()
        sent += body
    return sent


def read_all(reader, sizes):
    got = b""
    for size in sizes:
        view = memoryview(bytearray(b"?" * size))
        count = reader.readinto(view)
        if not count:
            return got
        got += view[:count]
    raise AssertionError("endless")


@st.composite
def disks(draw):
    data = bytearray(draw(st.sampled_from([1, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])))
    made = random.Random(draw(st.integers(0, 1 << 32)))
    for _ in range(draw(st.integers(0, 4))):
        begin = made.randrange(len(data))
        piece = made.choice([made.randbytes(70_000), b"text, which packs. " * 9000])[: len(data) - begin]
        data[begin : begin + len(piece)] = piece
    return bytes(data)


def disk_of(source):
    """Return the disk that a source sends."""
    data, reader = bytearray(source.facts.size), source.open()
    while (header := reader.next_header()) is not None:
        payload, taken = memoryview(bytearray(header.payload)), 0
        reader.fill(payload)
        plain = verified(header, payload) if header.runs else b""
        for start, stop in header.runs:
            data[header.offset + start : header.offset + stop] = plain[taken : taken + stop - start]
            taken += stop - start
    return data


@settings(max_examples=40, deadline=None)
@given(disks(), st.booleans())
def test_the_chunks_are_those_of_the_disk(data, narrow):
    source, _ = source_of((206, encoded(data, narrow=narrow)), size=len(data))
    assert disk_of(source) == data


def test_a_range_is_requested_with_the_tag():
    data = random.Random(1).randbytes(2 * CHUNK)
    source, wire = source_of((206, encoded(data, start=CHUNK)), size=len(data))
    assert source.open(CHUNK).next_header().offset == CHUNK
    headers = wire.asked[-1][2]
    assert headers == {"If-Match": '"v"', "Range": f"bytes={CHUNK}-{2 * CHUNK - 1}"}


def test_nothing_is_requested_after_the_end():
    source, wire = source_of(size=CHUNK)
    assert source.open(CHUNK).next_header() is None
    assert len(wire.asked) == 1


def test_bytes_that_are_not_those_of_the_leaf_are_not_returned():
    sent = bytearray(encoded(random.Random(1).randbytes(CHUNK)))
    sent[-1] ^= 1
    for content, read in (("kubevirt", disk_of), ("archive", lambda source: read_all(source.open(), [CHUNK]))):
        source, _ = source_of((206, bytes(sent)), size=CHUNK, content=content)
        with pytest.raises(ChecksumMismatch):
            read(source)


@pytest.mark.parametrize("content", ["kubevirt", "archive"])
@pytest.mark.parametrize("cut", [3, 46, 50, 60, CHUNK])
def test_half_a_chunk_is_a_broken_response(content, cut):
    sent = encoded(random.Random(1).randbytes(CHUNK))[:cut]
    source, _ = source_of((206, sent), size=CHUNK, content=content)
    with pytest.raises(SourceTruncated):
        disk_of(source) if content == "kubevirt" else read_all(source.open(), [CHUNK])


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(noise):
    source, _ = source_of((206, noise))
    try:
        got = disk_of(source)
    except CdiError:
        return
    assert got == bytes(source.facts.size)
    assert not noise


def test_a_chunk_that_is_repeated_is_refused():
    sent = encoded(random.Random(1).randbytes(CHUNK))
    source, _ = source_of((206, sent + sent), size=2 * CHUNK)
    with pytest.raises(PeerProtocolError):
        disk_of(source)


def test_marks_are_passed_on_by_a_disk_and_skipped_by_the_others():
    sent = ChunkHeader(offset=0).encode() + ChunkHeader(offset=2 * CHUNK).encode()
    reader = source_of((206, sent))[0].open()
    assert [reader.next_header().offset for _ in range(2)] == [0, 2 * CHUNK]
    assert reader.next_header() is None
    assert source_of((206, sent))[0].leaves_of(0, 3 * CHUNK) == []
    data = b"x" * 512
    sent = ChunkHeader(offset=0).encode() + encoded(data) + ChunkHeader(offset=512).encode()
    assert read_all(source_of((200, sent), content="archive")[0].open(), itertools.repeat(1000)) == data


@pytest.mark.parametrize("offset", [0, CHUNK + 1, 5 * CHUNK])
def test_a_mark_out_of_order_is_refused(offset):
    sent = encoded(b"x" * CHUNK) + ChunkHeader(offset=CHUNK).encode() + ChunkHeader(offset=offset).encode()
    source, _ = source_of((206, sent))
    with pytest.raises(PeerProtocolError):
        disk_of(source)


def test_an_archive_ends_with_its_response():
    data = b"x" * (CHUNK + 512)
    source, _ = source_of((200, encoded(data)), content="archive", validator="")
    assert read_all(source.open(), itertools.repeat(10_000)) == data
    assert source.position == len(data)


@pytest.mark.parametrize("start", [CHUNK, 4096])
def test_an_archive_has_no_gaps(start):
    header = ChunkHeader(offset=start, leaf=bytes(32), runs=((0, 1),), payload=1).encode() + b"x"
    source, _ = source_of((200, header), content="archive", validator="")
    with pytest.raises(PeerProtocolError):
        source.open().readinto(memoryview(bytearray(CHUNK)))


def test_only_leaves_are_read_for_a_comparison():
    data = bytes(CHUNK) + b"x" * CHUNK
    source, _ = source_of((206, encoded(data, leaves=True)), size=len(data))
    ((offset, leaf),) = source.leaves_of(0, len(data))
    assert (offset, leaf) == (CHUNK, leaf_hash(((0, CHUNK),), (b"x" * CHUNK,)))


def refusal(error):
    return PeerResult.of(error).to_json().encode()


@pytest.mark.parametrize(
    ("response", "fields", "wanted"),
    [
        ((412, b""), {}, SourceChanged),
        ((412, b""), {"is_strong": False}, PeerReplaced),
        ((500, refusal(SourceNotFound("gone", where="/x"))), {}, SourceNotFound),
        ((500, b"nonsense"), {}, PeerProtocolError),
        ((500, b"{}"), {}, PeerProtocolError),
        ((204, b""), {}, PeerProtocolError),
    ],
)
def test_what_the_source_reports_is_raised(response, fields, wanted):
    source, wire = source_of(response, **fields)
    with pytest.raises(wanted):
        source.open().next_header()
    assert wire.released == 2


@pytest.mark.parametrize("changed", [{"protocol": 1}, {"content": "archive"}, {"size": -1}, {"tag": 5}])
def test_facts_that_do_not_match_are_refused(changed):
    import json

    wire = Wire((200, json.dumps(FACTS | changed).encode()))
    with pytest.raises(PeerProtocolError):
        PeerSource(wire, "job", "kubevirt").probe()


def test_a_failure_there_and_back():
    found = parse_result(refusal(SourceNotFound("no disk", where="/x"))).failure.error()
    assert isinstance(found, SourceNotFound)
    assert (found.what, found.where) == ("no disk", "/x")
    unknown = parse_result(b'{"failure": {"code": "Whatever", "what": "' + b"x" * 9000 + b'"}}').failure.error()
    assert (unknown.code, unknown.what) == ("InternalError", "x" * 1000)
