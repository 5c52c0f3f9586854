"""Peers that lie, repeat themselves, never end, or are silent."""

import os
import struct
import threading

import pytest

from cdi.api.errors import ChecksumMismatch, Interrupted, PeerProtocolError, PeerUnreachable, SourceNotFound, TargetFull
from cdi.transfer.clone import frames
from cdi.transfer.clone import receiver as receiver_module
from cdi.transfer.clone.compression import ChunkCompressor
from cdi.transfer.clone.digest import CHUNK, Chain, leaf_hash
from cdi.transfer.clone.frames import Done, Fail, Kind, Welcome
from cdi.transfer.clone.peer_connection import PeerConnection
from cdi.transfer.clone.receiver import DiskReceiver, FrameReader, ResumePoint
from cdi.transfer.progress import ProgressMeter
from tests.memory import MemoryTarget
from tests.unit.transfer.clone.peers import MemoryOrigin, Socket, deliver, lines, said

SIZE = 3 * CHUNK + 4096
BODY = b"a" * 4096


def chunk(offset=0, runs=((0, 4096),), body=BODY, leaf=None, encoding=frames.RAW):
    leaf = leaf_hash(runs, (body,)) if leaf is None else leaf
    return frames.data(offset, leaf, runs, len(body), encoding) + body


def end_of(*chunks, size=SIZE):
    chain = Chain()
    for offset, body in chunks:
        chain.add(offset, leaf_hash(((0, len(body)),), (body,)))
    return frames.end(size, chain.end(size))


def heard(*words, hang_up=True, size=SIZE, stall=20.0):
    """Return the target's disk, and its digest or error, after a source that sends these frames."""
    source, target = lines(stall=stall)
    disk, position = MemoryTarget(size), ResumePoint()
    receiver = DiskReceiver(
        FrameReader(target), said(MemoryOrigin(bytes(size))), disk, position, ProgressMeter(), None, zeros=False
    )

    def say():
        try:
            source.send(b"".join(words))
            if hang_up:
                source.close()
        except PeerUnreachable:
            pass

    speaker = threading.Thread(target=say)
    speaker.start()
    try:
        return disk, receiver.run()
    except Exception as error:
        return disk, error
    finally:
        target.close()
        speaker.join()
        source.close()


def test_an_honest_source_is_believed():
    disk, digest = heard(chunk(), chunk(CHUNK), frames.encode_zero(3 * CHUNK), end_of((0, BODY), (CHUNK, BODY)))
    assert isinstance(digest, bytes)
    assert disk.disk.count(b"a") == 8192


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(struct.pack(">BBHI", 99, 0, 0, 0), id="an unknown kind"),
        pytest.param(struct.pack(">BBHI", 3, 0, 1, 1 << 31), id="a length without bound"),
        pytest.param(struct.pack(">BBHI", 3, 0, 1, 48), id="a chunk without bytes"),
        pytest.param(struct.pack(">BBHI", 3, 2, 1, 4144), id="an unknown encoding"),
        pytest.param(struct.pack(">BBHI", 3, 0, 0, 4144), id="no runs"),
        pytest.param(struct.pack(">BBHI", 3, 0, 17, 4144), id="too many runs"),
        pytest.param(struct.pack(">BBHI", 9, 0, 0, 9000), id="a long document"),
        pytest.param(struct.pack(">BBHI", 4, 0, 1, 8), id="a mark with runs"),
        pytest.param(chunk(offset=512), id="an offset between chunks"),
        pytest.param(chunk(offset=4 * CHUNK), id="an offset past the end"),
        pytest.param(chunk(offset=1 << 63), id="an offset past everything"),
        pytest.param(chunk(offset=3 * CHUNK, runs=((0, 8192),), body=BODY * 2), id="bytes past the end"),
        pytest.param(chunk(runs=((CHUNK, CHUNK + 4096),)), id="bytes past the chunk"),
        pytest.param(chunk(runs=((4096, 4096),)), id="an empty run"),
        pytest.param(chunk(runs=((8192, 4096),)), id="a run that ends before it begins"),
        pytest.param(chunk(runs=((0, 2048), (1024, 3072))), id="runs that overlap"),
        pytest.param(chunk(runs=((4096, 6144), (0, 2048))), id="runs out of order"),
        pytest.param(chunk(runs=((0, 2048), (2048, 4096))), id="runs that touch"),
        pytest.param(chunk(runs=((0, 8192),)), id="fewer bytes than the runs have"),
        pytest.param(chunk(runs=((0, 1024),)), id="more bytes than the runs have"),
        pytest.param(chunk(CHUNK) + chunk(CHUNK), id="the same chunk again"),
        pytest.param(chunk(CHUNK) + chunk(0), id="a chunk from before"),
        pytest.param(frames.encode_zero(2 * CHUNK) + chunk(CHUNK), id="a chunk where there were zeros"),
        pytest.param(frames.encode_zero(CHUNK) + frames.encode_zero(CHUNK), id="the same mark again"),
        pytest.param(frames.encode_zero(4 * CHUNK), id="a mark past the end"),
        pytest.param(frames.encode_zero(4096), id="a mark between chunks"),
        pytest.param(chunk(encoding=frames.ZSTD, body=BODY[:100]), id="no zstd frame"),
        pytest.param(frames.ack(0), id="a target's word"),
        pytest.param(frames.encode_message(Welcome(watermark=0, state="")), id="a welcome"),
        pytest.param(frames.header(Kind.FAIL, 3) + b"{}x", id="a failure that is no JSON"),
        pytest.param(frames.header(Kind.FAIL, 2) + b"{}", id="a failure without a code"),
    ],
)
def test_what_the_protocol_does_not_allow_is_refused(words):
    disk, error = heard(words, end_of())
    assert isinstance(error, PeerProtocolError), error
    # Data before the invalid frame may have been written, but nothing else.
    assert disk.disk.count(b"a") in (0, 4096)


@pytest.mark.parametrize("kept", [4095, 4097, 1 << 20])
def test_a_compressed_chunk_gives_what_it_says_and_no_more(kept):
    frame = ChunkCompressor().pack(
        [memoryview(bytes(kept - 1) + b"x" + BODY[:50])[:kept] if kept < 4096 else memoryview(b"x" * kept)]
    )
    if frame is None:
        frame = frames.ZSTD.to_bytes(1, "big") * 50
    disk, error = heard(chunk(runs=((0, 4096),), body=frame[:4095], encoding=frames.ZSTD), end_of())
    assert isinstance(error, PeerProtocolError)
    assert not any(disk.disk)


def test_bytes_that_are_not_those_of_the_leaf_are_not_written():
    disk, error = heard(chunk(leaf=b"x" * 32), end_of())
    assert isinstance(error, ChecksumMismatch)
    assert not any(disk.disk)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(end_of(), id="a chunk too many"),
        pytest.param(end_of((0, BODY), (CHUNK, BODY)), id="a chunk too few"),
        pytest.param(end_of((CHUNK, BODY)), id="another place"),
        pytest.param(end_of((0, BODY), size=SIZE - 1), id="another size"),
    ],
)
def test_the_whole_has_to_be_what_the_source_says_that_it_is(end):
    _, error = heard(chunk(), end)
    assert isinstance(error, ChecksumMismatch)


def test_pings_have_an_end(monkeypatch):
    monkeypatch.setattr(receiver_module, "MAX_PINGS", 10)
    assert isinstance(heard(*[frames.header(Kind.PING)] * 9, end_of())[1], bytes)
    assert isinstance(heard(*[frames.header(Kind.PING)] * 10, end_of())[1], PeerProtocolError)


def test_the_sources_own_failure_is_told_as_it_is():
    _, error = heard(frames.encode_message(Fail.of(SourceNotFound("no disk", where="/x"))))
    assert isinstance(error, SourceNotFound)
    assert error.where == "/x"


def test_a_failure_of_an_unknown_code_is_one_of_ours():
    assert Fail(code="Whatever", what="x" * 100_000).error().what == "x" * 1000
    frame = frames.encode_message(Fail(code="TargetFull", what="\0" * 3000))
    assert len(frame) <= frames.MAX_MESSAGE + frames.HEADER_SIZE


@pytest.mark.parametrize("cut", [0, 3, 8, 30, 60, 200])
def test_half_a_frame_is_a_broken_connection(cut):
    disk, error = heard(chunk()[:cut])
    assert isinstance(error, PeerUnreachable)
    assert not any(disk.disk)


@pytest.mark.parametrize("words", [b"", chunk()[:100], chunk()])
def test_a_silent_source_is_given_up(words):
    _, error = heard(words, hang_up=False, stall=0.05)
    assert isinstance(error, PeerUnreachable)


def test_a_source_that_lets_a_byte_drop_now_and_then_is_given_up():
    seconds = iter(range(1_000_000))
    source, _ = lines()
    target = PeerConnection(
        Socket(_._tls.plain, most=1), "peer", stall=1000, check=lambda: None, clock=lambda: next(seconds)
    )
    source.send(bytes(60_000))

    def slow():
        next(seconds)

    target._tls.recv_into = lambda view, inner=target._tls.recv_into: (slow(), inner(view))[1]
    with pytest.raises(PeerUnreachable):
        target.receive(memoryview(bytearray(70_000)))
    source.close()
    target.close()


# --- hostile targets ----------------------------------------------------------------------------------------------


def told(*words, data=b"x" * CHUNK, hang_up=True, patient=False):
    """Return the source's result for a target that sends these frames, the last one after END if `patient`."""
    source, target = lines(stall=20.0 if hang_up else 0.1)

    def say():
        try:
            target.send(b"".join(words[:-1] if patient else words))
            if patient:
                for _ in range(3):
                    head = target.header()
                    target.receive(memoryview(bytearray(head.length)))
                assert head.kind is Kind.END
                target.send(words[-1])
            while True:
                target.receive(memoryview(bytearray(CHUNK)))
        except PeerUnreachable:
            pass

    speaker = threading.Thread(target=say)
    speaker.start()
    try:
        return deliver(MemoryOrigin(data), source)
    except Exception as error:
        return error
    finally:
        source.close()
        speaker.join()
        target.close()


WELCOME = frames.encode_message(Welcome(watermark=0, state=""))


def digest_of_x():
    chain = Chain()
    chain.add(0, leaf_hash(((0, CHUNK),), (b"x" * CHUNK,)))
    return chain.end(CHUNK)


def test_an_honest_target_is_believed():
    assert told(WELCOME, frames.encode_message(Done(digest=digest_of_x().hex())), patient=True) == digest_of_x()
    error = told(WELCOME, frames.encode_message(Done(digest="00" * 32)), patient=True)
    assert isinstance(error, PeerProtocolError)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(frames.encode_message(Welcome(watermark=2 * CHUNK, state="0" * 64)), id="further than the disk"),
        pytest.param(frames.encode_message(Welcome(watermark=4096, state="0" * 64)), id="between chunks"),
        pytest.param(frames.encode_message(Done(digest="00" * 32)), id="a disk that exists already"),
        pytest.param(frames.encode_message(Welcome(watermark=CHUNK, state="00")), id="half a state"),
        pytest.param(frames.encode_message(Welcome(watermark=CHUNK, state="zz" * 32)), id="no state"),
        pytest.param(frames.header(Kind.WELCOME, 2) + b"{}", id="an empty welcome"),
        pytest.param(chunk(), id="a source's word"),
        pytest.param(WELCOME + WELCOME, id="two welcomes"),
        pytest.param(WELCOME + frames.ack(5 * CHUNK), id="more than was sent"),
        pytest.param(frames.ack(CHUNK), id="something before anything was sent"),
        pytest.param(WELCOME + frames.ack(0) + frames.encode_message(Done(digest="00" * 32)), id="another digest"),
        pytest.param(WELCOME + frames.encode_message(Done(digest="xyz")), id="no digest"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(words):
    assert isinstance(told(words), PeerProtocolError)


def test_the_targets_failure_is_the_sources():
    assert isinstance(told(frames.encode_message(Fail.of(TargetFull("full")))), TargetFull)
    assert isinstance(told(WELCOME, frames.encode_message(Fail.of(TargetFull("full")))), TargetFull)


def test_a_silent_target_is_given_up():
    assert isinstance(told(hang_up=False), PeerUnreachable)
    assert isinstance(told(WELCOME, hang_up=False), PeerUnreachable)


def test_a_target_that_reads_nothing_but_says_that_it_lives_is_waited_for():
    seconds = [0.0]
    source, target = lines()
    source = PeerConnection(source._tls, "peer", stall=10, check=lambda: tick(), clock=lambda: seconds[0])
    said_words = []

    def tick():
        # Each poll takes six seconds and receives a frame; after fifty of them the target continues to read.
        seconds[0] += 6
        if len(said_words) < 50:
            target.send(frames.ack(0))
            said_words.append(1)
        elif len(said_words) == 50:
            said_words.append(1)
            reader = threading.Thread(target=lambda: target.receive(memoryview(bytearray(8 << 20))), daemon=True)
            reader.start()
            said_words.append(reader)

    source.send(os.urandom(8 << 20))
    said_words[-1].join()
    assert source.has_frame()
    source.close()
    target.close()


def test_a_target_that_reads_nothing_and_says_nothing_is_not():
    source, target = lines(stall=0.05)
    with pytest.raises(PeerUnreachable):
        source.send(bytes(8 << 20))
    source.close()
    target.close()


def test_a_stop_is_seen_while_waiting():
    source, target = lines()

    def stop():
        raise Interrupted("stop")

    source.check = stop
    for act in (lambda: source.receive(memoryview(bytearray(1))), lambda: source.send(bytes(8 << 20))):
        with pytest.raises(Interrupted):
            act()
    source.close()
    target.close()
