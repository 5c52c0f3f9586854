"""What a source sends of the chunks, and between them."""

import random
from types import SimpleNamespace

import pytest

from cdi.api.errors import Interrupted
from cdi.source.peer_chunks import CHUNK, HEADER_SIZE, leaf_hash, parse_header, table_size, unpack
from cdi.transfer.clone import server
from cdi.transfer.clone.compression import ChunkCompressor
from cdi.transfer.clone.server import _ChunkSender
from cdi.transfer.clone.window import Piece, WindowChunk

DATA = random.Random(1).randbytes(4096)


class Wire:
    """A response, and the link that it is sent over."""

    def __init__(self, *, narrow=False):
        self.sent = []
        self.narrow = lambda: narrow
        self.sending = len
        self.stopped = False

    def write(self, pieces, *, sending):
        head, *payload = pieces
        size = table_size(head[:HEADER_SIZE])
        leaves = not payload and size > 0
        self.sent.append((parse_header(head, 0, 1 << 40, leaves=leaves), b"".join(map(bytes, payload))))

    def check(self):
        if self.stopped:
            raise Interrupted("stopped")


def chunk(offset, data=b"", size=CHUNK):
    found = WindowChunk(SimpleNamespace(), offset, memoryview(bytearray(size)))
    found.buffer[: len(data)] = data
    runs = ((0, len(data)),) if data else ()
    found.piece = Piece(view=found.buffer, runs=runs, leaf=leaf_hash(runs, (data,)))
    return found


def sender_of(wire, start=0, *, leaves=False):
    return _ChunkSender(wire, wire, start, None if leaves else ChunkCompressor())


def test_only_data_is_sent():
    wire = Wire()
    sender = sender_of(wire)
    for each in (chunk(0), chunk(CHUNK, DATA), chunk(2 * CHUNK)):
        sender.send(each)
    ((header, payload),) = wire.sent
    assert (header.offset, payload, header.compressed) == (CHUNK, DATA, False)
    assert sender.position == 3 * CHUNK


def test_a_narrow_link_gets_frames_and_a_comparison_gets_leaves():
    text = b"text, which packs. " * 9000
    wire = Wire(narrow=True)
    sender_of(wire).send(chunk(0, text))
    ((header, payload),) = wire.sent
    assert header.compressed
    assert unpack(memoryview(payload), len(text)) == text
    wire = Wire(narrow=True)
    sender_of(wire, leaves=True).send(chunk(0, text))
    ((header, payload),) = wire.sent
    assert (header.leaf, payload) == (leaf_hash(((0, len(text)),), (text,)), b"")


def test_long_zeros_are_marked_so_that_a_target_can_resume_there():
    wire = Wire()
    sender = sender_of(wire, CHUNK)
    for number in range(1, 131):
        sender.send(chunk(number * CHUNK))
    assert [(header.offset // CHUNK, header.runs) for header, _ in wire.sent] == [(65, ()), (129, ())]


def test_a_target_that_waits_gets_a_mark_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(server.time, "monotonic", lambda: now[0])
    wire = Wire()
    sender = sender_of(wire)
    sender.send(chunk(0, DATA))
    for _ in range(44):
        now[0] += 0.25
        sender.idle()
    assert [(header.offset, bool(header.runs)) for header, _ in wire.sent] == [
        (0, True),
        (CHUNK, False),
        (CHUNK, False),
    ]
    wire.stopped = True
    with pytest.raises(Interrupted):
        sender.idle()
