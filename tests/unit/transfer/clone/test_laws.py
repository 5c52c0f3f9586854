"""Laws for any disk, regardless of layout, chunking and resumption."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import PeerUnreachable, SourceChanged
from cdi.transfer.clone.digest import CHUNK, digest_of, format_digest
from cdi.transfer.clone.receiver import ResumePoint
from tests.memory import MemoryTarget
from tests.unit.transfer.clone.peers import MemoryOrigin, converse

PAGE = 4096
MAX_DISK = 5 * CHUNK


@st.composite
def disks(draw):
    """Generate bytes, and the ranges that a file system reports as data: they include all data, and maybe zeros."""
    size = draw(st.one_of(st.integers(0, MAX_DISK), st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK])))
    data = bytearray(size)
    seed = draw(st.integers(0, 1 << 32))
    made = random.Random(seed)
    extents = []
    at = 0
    for _ in range(draw(st.integers(0, 6))):
        begin = (at + made.randrange(0, CHUNK * 2)) // PAGE * PAGE
        end = min(size, begin + made.choice([PAGE, 16 * PAGE, 40 * PAGE, CHUNK, CHUNK + PAGE]))
        if begin >= end:
            break
        kind = made.randrange(4)
        for page in range(begin, end, PAGE):
            stop = min(page + PAGE, end)
            if kind == 0 or (kind == 1 and made.random() < 0.3):
                data[page:stop] = made.randbytes(stop - page)
            elif kind == 2:
                data[page:stop] = (b"text, which packs. " * 220)[: stop - page]
        extents.append((begin, end))
        at = end + PAGE
    return MemoryOrigin(bytes(data), extents if draw(st.booleans()) else None)


def plain_digest(data):
    def read(view, offset):
        view[:] = data[offset : offset + len(view)]

    return digest_of(read, len(data))


@settings(max_examples=40, deadline=None)
@given(disks(), st.booleans(), st.booleans())
def test_the_target_has_the_source_and_the_digest_is_that_of_its_bytes(origin, reads_zero, narrow):
    target = MemoryTarget(origin.size, reads_zero=reads_zero)
    sent, received = converse(origin, target, ResumePoint(), narrow=narrow)
    assert bytes(target.disk) == origin.data
    assert sent == received
    assert format_digest(sent) == plain_digest(origin.data)


@settings(max_examples=40, deadline=None)
@given(disks(), st.booleans(), st.lists(st.integers(1, 3 * CHUNK), max_size=4), st.booleans())
def test_a_connection_that_is_cut_anywhere_is_gone_on_with(origin, reads_zero, cuts, has_strong_validator):
    target = MemoryTarget(origin.size, reads_zero=reads_zero)
    position = ResumePoint()
    first = True
    for cut in cuts:
        _, received = converse(
            origin,
            target,
            position,
            cut=cut,
            has_strong_validator=has_strong_validator,
            zeros=not (first and reads_zero),
        )
        first = False
        if isinstance(received, bytes):
            break
        assert isinstance(received, PeerUnreachable)
        done = position.watermark
        assert bytes(target.disk[:done]) == origin.data[:done]
    else:
        sent, received = converse(
            origin, target, position, has_strong_validator=has_strong_validator, zeros=not (first and reads_zero)
        )
        assert sent == received
    assert bytes(target.disk) == origin.data
    assert format_digest(received) == plain_digest(origin.data)


@settings(max_examples=30, deadline=None)
@given(disks(), st.integers(1, 4 * CHUNK), st.integers(0, 1 << 32))
def test_only_what_is_safe_counts_after_a_kill(origin, cut, seed):
    """Leave anything beyond the last checkpoint: half of a write, or none of it."""
    target = MemoryTarget(origin.size)
    saved = [(0, None)]
    converse(origin, target, ResumePoint(), cut=cut, checkpoint=lambda *at: saved.append(at))
    watermark, state = saved[-1]
    garbage = random.Random(seed).randbytes(origin.size - watermark)
    target.disk[watermark:] = garbage
    position = ResumePoint() if state is None else ResumePoint(watermark=watermark, state=state[:32])
    sent, received = converse(origin, target, position, zeros=True)
    assert bytes(target.disk) == origin.data
    assert sent == received
    assert format_digest(sent) == plain_digest(origin.data)


@settings(max_examples=15, deadline=None)
@given(st.integers(0), st.integers(0, 1 << 32))
def test_a_device_that_was_written_to_meanwhile_is_not_gone_on_with(place, seed):
    data = bytearray(random.Random(seed).randbytes(6 * CHUNK))
    target, position = MemoryTarget(len(data)), ResumePoint()
    # Late enough for the first of the three chunks in flight to have arrived.
    converse(MemoryOrigin(bytes(data)), target, position, cut=5 * CHUNK + 10_000)
    assert position.watermark > 0
    data[place % position.watermark] ^= 1
    sent, _ = converse(MemoryOrigin(bytes(data)), target, position, has_strong_validator=False)
    assert isinstance(sent, SourceChanged)


def test_two_disks_that_differ_have_two_digests():
    empty = plain_digest(bytes(3 * CHUNK))
    seen = {empty, plain_digest(bytes(2 * CHUNK)), plain_digest(b"")}
    for place in (0, PAGE, CHUNK, CHUNK + 1, 3 * CHUNK - 1):
        data = bytearray(3 * CHUNK)
        data[place] = 1
        seen.add(plain_digest(bytes(data)))
    assert len(seen) == 8
