"""Tests of the number of concurrent pieces: the plan, the limits, and the available memory."""

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import SourceNotFound
from cdi.api.job import Limits
from cdi.image.block_map import RUN_LIMIT, FileChunk
from cdi.transfer.pipeline import ranged
from cdi.transfer.pipeline.cluster_writer import writer_memory
from cdi.transfer.pipeline.ranged import CHUNK_SIZE, MEMORY, MIN_CHUNK, fit_connections
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Watermark
from cdi.verify.hashing import ResumableHash
from tests.memory import MemorySource, control_of

MIB = 1 << 20
BLOCK = 4096


@given(st.integers(1, 64), st.integers(0, 8 * MIB))
def test_all_pieces_fit_the_memory(wanted, beside):
    connections, size = fit_connections(wanted, beside)
    assert 1 <= connections <= wanted
    assert connections * (size + beside) <= MEMORY
    assert MIN_CHUNK <= size <= CHUNK_SIZE
    assert size % BLOCK == 0
    # One more connection would exceed the memory.
    assert connections == wanted or (connections + 1) * (MIN_CHUNK + beside) > MEMORY


def test_as_many_as_there_may_be_fit_where_nothing_else_is_needed():
    assert fit_connections(64, 0)[0] == 64
    assert fit_connections(8, 0) == (8, CHUNK_SIZE)


def test_the_documented_numbers_of_connections_fit():
    raw, qcow2, compressed, larger = (
        fit_connections(64, beside)[0]
        for beside in (0, RUN_LIMIT, RUN_LIMIT + writer_memory(256 << 10), RUN_LIMIT + writer_memory(512 << 10))
    )
    page = " ".join((Path(__file__).parents[4] / "docs/how-to/limits.md").read_text().split())
    assert f"{raw} connections for raw images, {qcow2} for qcow2 and {compressed} for qcow2 with compressed" in page
    assert larger < compressed


class Running:
    """A transfer of `count` blocks whose handlers block until they are released."""

    def __init__(self, count, connections, *, digest=None):
        self.data = bytes(range(256)) * 16 * count
        control = control_of()
        self.cancelled, self.throttle = control.cancelled, control.throttle
        self.source = MemorySource(self.data)
        self.fetcher = ResumingReader(self.source, control)
        self.watermark = Watermark(0, digest, control.meter, self.cancelled, None)
        self.held, self.cuts, self.handled = 0, [], []
        self.gate = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.error = None
        self.thread = threading.Thread(target=self.run, args=(connections,))
        self.thread.start()

    def run(self, connections):
        try:
            ranged.run_ranged(
                self.fetcher, self.cut, self.watermark, lambda: self.handle, connections=connections, overhead_bytes=0
            )
        except BaseException as error:
            self.error = error

    def cut(self, begin, size):
        self.cuts.append((begin, size))
        return (FileChunk(at, at + BLOCK, at + BLOCK, 0, 0) for at in range(begin, len(self.data), BLOCK))

    def handle(self, piece, view):
        with self.lock:
            self.held += 1
            self.handled.append(piece.start)
        self.gate.acquire()
        with self.lock:
            self.held -= 1

    def settles_at(self, count):
        """Wait until this many pieces are in progress, and check that no more start."""
        end = time.monotonic() + 20
        while self.held != count:
            assert time.monotonic() < end, f"{self.held} are under way, not {count}"
            time.sleep(0.005)
        for _ in range(20):
            time.sleep(0.005)
            assert self.held == count

    def release(self, count):
        self.gate.release(count)

    def end(self):
        self.release(1 << 20)
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.mark.parametrize("hashed", [False, True])
def test_a_limit_goes_up_and_down_while_it_runs(hashed):
    running = Running(400, 3, digest=ResumableHash("sha256") if hashed else None)
    try:
        running.settles_at(3)
        running.throttle.change(Limits(connections=40))
        running.settles_at(40)
        running.throttle.change(Limits(connections=2))
        running.release(40)
        running.settles_at(2)
        # Without limits the plan applies again.
        running.throttle.change(Limits())
        running.settles_at(3)
    finally:
        running.end()
    assert running.error is None
    assert sorted(running.handled) == list(range(0, len(running.data), BLOCK))
    assert running.watermark.value == len(running.data)
    # With more connections the pieces are smaller, beginning where the others end.
    assert [size for _, size in running.cuts] == [CHUNK_SIZE, MEMORY // 40 // BLOCK * BLOCK, CHUNK_SIZE]


def test_a_limit_that_was_set_before_goes_before_the_plan():
    running = Running(50, 3)
    running.throttle.change(Limits(connections=9))
    try:
        running.settles_at(9)
    finally:
        running.end()
    assert running.error is None


def test_no_more_threads_than_there_is_memory_for(monkeypatch):
    monkeypatch.setattr(ranged, "MEMORY", 5 * MIN_CHUNK)
    running = Running(100, 2)
    try:
        running.throttle.change(Limits(connections=64))
        running.settles_at(5)
    finally:
        running.end()
    assert running.error is None


def test_a_thread_that_cannot_be_started_fails_the_transfer_and_leaves_none(monkeypatch):
    running = Running(100, 2)
    running.settles_at(2)

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ranged.threading.Thread, "start", start)
    running.throttle.change(Limits(connections=3))
    while not running.watermark._failed:
        time.sleep(0.005)
    running.end()
    assert isinstance(running.error, RuntimeError)


def test_readers_that_are_opened_after_a_failure_end_as_well():
    """One thread fails at once; the other opens a reader a moment later, from a source that sends nothing."""
    entered, first, silent, aborted = (threading.Event() for _ in range(4))

    class Reader:
        def readinto(self, view):
            silent.set()
            assert aborted.wait(20)
            raise SourceNotFound("never asked for")

        def abort(self):
            aborted.set()

        def close(self):
            pass

    class Source(MemorySource):
        def open(self, offset=0, length=None):
            if offset == 0:
                assert entered.wait(20)
                raise SourceNotFound("gone")
            entered.set()
            assert first.wait(20)
            return Reader()

    class Telling(ResumingReader):
        def abort(self):
            super().abort()
            first.set()

    control = control_of(retries=0)
    fetcher = Telling(Source(bytes(8 * BLOCK)), control)
    watermark = Watermark(0, None, control.meter, control.cancelled, None)

    def cut(begin, size):
        return iter([FileChunk(at, at + BLOCK, at + BLOCK, 0, 0) for at in (0, BLOCK)])

    with pytest.raises(SourceNotFound):
        ranged.run_ranged(fetcher, cut, watermark, lambda: lambda piece, view: None, connections=2, overhead_bytes=0)
    assert silent.is_set() and aborted.is_set()
