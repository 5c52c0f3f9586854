"""What a watch prints is taken apart however it is cut up."""

import json
import os
import threading
import time

import pytest

from tests.cluster.kubectl import _documents

EVENTS = [{"type": "ADDED", "object": {"name": "ü" * count, "more": {"n": count}}} for count in (1, 300, 0)]


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


@pytest.mark.parametrize("size", [1, 7, 4096])
@pytest.mark.parametrize("indent", [None, 4])
def test_every_document_comes_out_once(pipe, size, indent):
    reader, writer = pipe
    text = "".join(json.dumps(each, indent=indent, ensure_ascii=False) + "\n" for each in EVENTS).encode()

    def write():
        for start in range(0, len(text), size):
            os.write(writer, text[start : start + size])
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert list(_documents(reader, time.monotonic() + 60)) == EVENTS
    thread.join()


def test_a_document_is_seen_before_the_next_one_comes(pipe):
    reader, writer = pipe
    os.write(writer, json.dumps(EVENTS[0]).encode() + b'\n{"type"')
    documents = _documents(reader, time.monotonic() + 60)
    assert next(documents) == EVENTS[0]
    documents.close()
    os.close(writer)


def test_it_ends_when_the_time_is_up(pipe):
    reader, writer = pipe
    assert list(_documents(reader, time.monotonic() + 0.05)) == []
    os.close(writer)
