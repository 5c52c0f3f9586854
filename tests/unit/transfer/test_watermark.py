"""Tests of the watermark: pieces complete in any order, digest and journal see them in sequence."""

import hashlib
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import Interrupted, TargetFull
from cdi.transfer import watermark as module
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.watermark import Watermark
from cdi.verify.hashing import ResumableHash


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Write a checkpoint as soon as the one before it is done."""
    monkeypatch.setattr(module, "CHECKPOINT_INTERVAL", 0)


def cut(data, sizes):
    at, stops = 0, []
    for size in sizes:
        stops.append((at, min(len(data), at + size)))
        at += size
        if at >= len(data):
            return stops
    return [*stops, (at, len(data))]


def in_threads(watermark, data, stops, order, threads):
    """Complete the pieces from several threads, each in its own order; return the exceptions."""
    errors = []

    def work(mine):
        try:
            for index in mine:
                start, stop = stops[index]
                watermark.commit(index, memoryview(data)[start:stop], stop)
        except Exception as error:
            errors.append(error)

    shares = [sorted(order[number::threads]) for number in range(threads)]
    running = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(30)
        assert not thread.is_alive()
    return errors


@settings(deadline=None, max_examples=40)
@given(
    st.binary(min_size=1, max_size=4000), st.lists(st.integers(1, 300), max_size=30), st.integers(1, 5), st.randoms()
)
def test_digest_and_checkpoints_are_those_of_the_bytes_in_order(data, sizes, threads, rng):
    stops = cut(data, sizes)
    saved = []
    digest, meter = ResumableHash("sha256"), ProgressMeter()
    watermark = Watermark(0, digest, meter, threading.Event(), lambda at, state: saved.append((at, state)))
    order = list(range(len(stops)))
    rng.shuffle(order)
    assert in_threads(watermark, data, stops, order, threads) == []
    watermark.close(final=False)
    assert watermark.value == meter.done == len(data)
    assert digest.digest().hex == hashlib.sha256(data).hexdigest()
    assert saved == sorted(saved, key=lambda entry: entry[0])
    for at, state in saved:
        assert at in {stop for _, stop in stops}
        again = ResumableHash.restore("sha256", state)
        again.update(data[at:])
        assert again.digest() == digest.digest()


@given(st.permutations(list(range(12))))
def test_without_a_digest_nobody_waits_and_the_value_is_the_end_of_what_is_complete(order):
    watermark = Watermark(100, None, ProgressMeter(), threading.Event(), None)
    done = set()
    for index in order:
        watermark.commit(index, memoryview(b""), 100 + 10 * (index + 1))
        done.add(index)
        first = next(number for number in range(13) if number not in done)
        assert watermark.value == 100 + 10 * first
    watermark.close(final=False)


def test_a_checkpoint_never_names_what_is_not_complete():
    seen = []
    watermark = Watermark(0, None, ProgressMeter(), threading.Event(), lambda at, _: seen.append(at))
    for index in (1, 2, 3):
        watermark.commit(index, memoryview(b""), (index + 1) * 10)
    watermark.close(final=True)
    assert seen == []


@pytest.mark.parametrize("by", ["fail", "cancel"])
def test_those_that_wait_for_their_turn_are_let_go(by):
    cancelled = threading.Event()
    watermark = Watermark(0, ResumableHash("md5"), ProgressMeter(), cancelled, None)
    raised = []

    def wait(index):
        try:
            watermark.commit(index, memoryview(b"x"), index + 1)
        except Interrupted as error:
            raised.append(error)

    threads = [threading.Thread(target=wait, args=(index,)) for index in (1, 2, 3)]
    for thread in threads:
        thread.start()
    watermark.abort() if by == "fail" else cancelled.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(raised) == 3
    assert watermark.value == 0


def test_the_last_word_of_a_broken_transfer_is_how_far_it_came(monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_INTERVAL", 3600)
    data, seen = random.Random(0).randbytes(100), []
    watermark = Watermark(
        0, ResumableHash("sha1"), ProgressMeter(), threading.Event(), lambda *entry: seen.append(entry)
    )
    watermark.commit(0, memoryview(data[:40]), 40)
    assert seen == []
    watermark.close(final=True)
    ((at, state),) = seen
    digest = ResumableHash.restore("sha1", state)
    digest.update(data[40:])
    assert (at, digest.digest().hex) == (40, hashlib.sha1(data).hexdigest())


def test_nothing_new_is_not_saved_again():
    seen = []
    watermark = Watermark(7, None, ProgressMeter(), threading.Event(), lambda *entry: seen.append(entry))
    watermark.close(final=True)
    assert seen == []


def test_a_checkpoint_that_cannot_be_made_is_told_at_the_end():
    def full(_at, _state):
        raise TargetFull("no space left")

    watermark = Watermark(0, None, ProgressMeter(), threading.Event(), full)
    watermark.commit(0, memoryview(b""), 1)
    with pytest.raises(TargetFull):
        watermark.close(final=False)
    watermark = Watermark(0, None, ProgressMeter(), threading.Event(), full)
    watermark.commit(0, memoryview(b""), 1)
    while watermark._error is None:
        pass
    # The transfer reports a failure of its own instead.
    watermark.close(final=True)


def test_a_last_checkpoint_that_cannot_be_made_does_not_hide_the_failure(monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_INTERVAL", 3600)
    for error in (OSError(28, "full"), TargetFull("no space left")):

        def full(_at, _state, error=error):
            raise error

        watermark = Watermark(0, None, ProgressMeter(), threading.Event(), full)
        watermark.commit(0, memoryview(b""), 1)
        watermark.close(final=True)


def test_checkpoints_are_not_made_for_every_piece(monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_INTERVAL", 10)
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 1000)
    now, seen, wrote = [0.0], [], threading.Event()

    def checkpoint(at, _state):
        seen.append(at)
        wrote.set()

    watermark = Watermark(0, None, ProgressMeter(), threading.Event(), checkpoint, clock=lambda: now[0])

    def piece(index, stop):
        wrote.clear()
        watermark.commit(index, memoryview(b""), stop)

    piece(0, 900)
    assert watermark._pending is None
    piece(1, 1000)
    assert wrote.wait(60)
    while watermark._pending is not None:
        pass
    piece(2, 1900)
    now[0] = 10.0
    piece(3, 1901)
    assert wrote.wait(60)
    watermark.close(final=False)
    assert seen == [1000, 1901]
