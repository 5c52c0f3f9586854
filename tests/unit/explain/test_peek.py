from __future__ import annotations

import os
import random
import threading

import pytest

from cdi.explain import peek
from cdi.explain.peek import PeekedPipe

CONTENT = random.Random(6).randbytes(3 << 20)


def read_all(descriptor):
    parts = []
    while part := os.read(descriptor, 70_001):
        parts.append(part)
    return b"".join(parts)


@pytest.fixture
def pipe():
    """Yield the read end of a pipe that a thread writes CONTENT into."""
    reading, writing = os.pipe()

    def write():
        view = memoryview(CONTENT)
        try:
            with open(writing, "wb", buffering=0) as file:
                while view:
                    view = view[file.write(view) :]
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=write)
    thread.start()
    yield reading
    os.close(reading)
    thread.join()


@pytest.mark.parametrize("looked", [0, 1, 65_536, 1_000_000, len(CONTENT)])
def test_what_was_looked_at_flows_all_the_same(pipe, looked):
    with PeekedPipe(pipe) as peeked:
        for _ in range(2):
            with peeked.looking() as descriptor, open(descriptor, "rb", closefd=False) as file:
                assert file.read(looked) == CONTENT[:looked]
        assert read_all(peeked.flow()) == CONTENT


def test_without_a_look_everything_flows(pipe):
    with PeekedPipe(pipe) as peeked:
        assert read_all(peeked.flow()) == CONTENT


def test_a_look_to_the_end_and_without_one(pipe):
    with PeekedPipe(pipe) as peeked:
        with peeked.looking() as descriptor:
            assert read_all(descriptor) == CONTENT
        assert read_all(peeked.flow()) == CONTENT


def test_a_look_is_bounded(pipe, monkeypatch):
    monkeypatch.setattr(peek, "MAX_BUFFERED", 1 << 20)
    with PeekedPipe(pipe) as peeked:
        with peeked.looking() as descriptor:
            assert 1 << 20 <= len(read_all(descriptor)) < len(CONTENT)
        assert read_all(peeked.flow()) == CONTENT


def test_a_look_ends_although_nothing_more_comes():
    reading, writing = os.pipe()
    try:
        os.write(writing, b"beginning")
        with PeekedPipe(reading) as peeked, peeked.looking() as descriptor:
            assert os.read(descriptor, 100) == b"beginning"
    finally:
        os.close(reading)
        os.close(writing)


def test_nobody_who_takes_it_is_no_reason_to_wait(pipe):
    with PeekedPipe(pipe) as peeked:
        os.read(peeked.flow(), 10)


def test_a_failure_does_not_wait_for_the_sender():
    reading, writing = os.pipe()
    try:
        with pytest.raises(KeyError), PeekedPipe(reading) as peeked:
            peeked.flow()
            raise KeyError
    finally:
        os.close(writing)
        peeked._thread.join()
        os.close(reading)
