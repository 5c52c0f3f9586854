"""Tests of the sources other than HTTP, files and descriptors, and of reading small sources whole."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from cdi.api import errors
from cdi.api.job import BlankSourceSpec, FileSourceSpec, HttpSourceSpec, Policy, RegistrySourceSpec, StreamSourceSpec
from cdi.source.base import Reader, read_all
from cdi.source.file import FileSource
from cdi.source.open import open_source
from cdi.source.stream import PipeSource

DATA = os.urandom(100_000)


def drain(reader: Reader, size: int = 30_000) -> bytes:
    data = bytearray()
    view = memoryview(bytearray(size))
    try:
        while count := reader.readinto(view):
            data += view[:count]
    finally:
        reader.close()
    return bytes(data)


# --- files ------------------------------------------------------------------------------------------------------------


def test_any_part_of_a_file_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    with FileSource(str(path)) as source:
        facts = source.probe()
        assert (facts.length, facts.ranges, facts.name, facts.location) == (len(DATA), True, "disk.img", str(path))
        assert drain(source.open()) == DATA
        assert drain(source.open(99_999)) == DATA[99_999:]
        assert drain(source.open(5, 50_000)) == DATA[5:50_005]
        assert drain(source.open(len(DATA))) == b""
        for offset, length in ((0, len(DATA) + 1), (len(DATA) + 1, None), (-1, 1), (5, -1)):
            with pytest.raises(errors.InternalError):
                source.open(offset, length)


def test_readers_outlive_their_source_and_see_the_file_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    source = FileSource(str(path))
    reader = source.open()
    source.close()
    other = tmp_path / "other"
    other.write_bytes(b"other")
    other.rename(path)
    assert drain(reader) == DATA
    with pytest.raises(errors.InternalError):
        source.open()


def test_a_file_that_is_written_to_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    with FileSource(str(path)) as source:
        before = source.probe().validator
        reader = source.open()
        assert reader.readinto(memoryview(bytearray(10))) == 10
        os.utime(path, ns=(1, 1))
        with pytest.raises(errors.SourceChanged):
            drain(reader)
        reader = source.open(50_000)
        os.truncate(path, 40_000)
        with pytest.raises((errors.SourceTruncated, errors.SourceChanged)):
            drain(reader)
    with FileSource(str(path)) as source:
        assert source.probe().validator != before


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, error in (
        (tmp_path, errors.SourceNotSupported),
        (tmp_path / "fifo", errors.SourceNotSupported),
        (Path("/dev/null"), errors.SourceNotSupported),
        (tmp_path / "nothing", errors.SourceNotFound),
        (tmp_path / "nothing" / "x", errors.SourceNotFound),
        (Path("a\0b"), errors.SourceNotFound),
    ):
        with FileSource(str(path)) as source, pytest.raises(error):
            source.probe()


def test_the_file_beside_a_file(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(DATA)
    (tmp_path / "SHA256SUMS").write_bytes(b"sums")
    source = FileSource(str(tmp_path / "disk.img"))
    sibling = source.sibling("SHA256SUMS")
    assert sibling is not None
    with sibling:
        assert read_all(sibling, 100) == b"sums"
        assert read_all(sibling, 4) == b"sums"
        with pytest.raises(errors.SourceRefused):
            read_all(sibling, 3)
    for name in ("", ".", "..", "../x", "/etc/passwd", "a\0"):
        assert source.sibling(name) is None


def test_an_aborted_file_reader_stops(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    with FileSource(str(tmp_path / "x")) as source:
        reader = source.open()
        reader.abort()
        with pytest.raises(errors.Interrupted):
            reader.readinto(memoryview(bytearray(10)))
        reader.close()


# --- streams ----------------------------------------------------------------------------------------------------------


def write_later(fd: int, data: bytes) -> threading.Thread:
    def work() -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        except BrokenPipeError:
            pass
        finally:
            os.close(fd)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("length", [None, len(DATA)])
def test_a_pipe_is_read_once_from_front_to_back(length: int | None) -> None:
    ours, theirs = os.pipe()
    thread = write_later(theirs, DATA)
    with PipeSource(ours, length=length, stall_timeout=60) as source:
        facts = source.probe()
        assert (facts.length, facts.ranges, facts.validator) == (length, False, None)
        reader = source.open()
        assert drain(reader) == DATA
        with pytest.raises(errors.SourceUnreachable):
            source.open()
        assert source.sibling("SHA256SUMS") is None
    thread.join()
    os.close(ours)


def test_a_stream_keeps_its_promise_or_fails() -> None:
    for promised, error in ((len(DATA) + 1, errors.SourceTruncated), (len(DATA) - 1, errors.SourceTooLong)):
        ours, theirs = os.pipe()
        thread = write_later(theirs, DATA)
        with PipeSource(ours, length=promised, stall_timeout=60) as source, pytest.raises(error):
            drain(source.open(), 1 << 20)
        os.close(ours)
        thread.join()


def test_a_sender_may_keep_its_end_open_for_an_answer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(DATA[:1000])
        with PipeSource(ours.fileno(), length=1000, stall_timeout=60) as source:
            assert drain(source.open()) == DATA[:1000]


def test_the_beginning_of_a_stream_can_be_had_alone() -> None:
    ours, theirs = os.pipe()
    thread = write_later(theirs, DATA)
    with PipeSource(ours, stall_timeout=60) as source:
        assert drain(source.open(0, 500)) == DATA[:500]
    os.close(ours)
    thread.join()


def test_a_silent_stream_is_a_stall_and_can_be_interrupted() -> None:
    ours, theirs = os.pipe()
    with PipeSource(ours, stall_timeout=0.1) as source:
        reader = source.open()
        with pytest.raises(errors.SourceStalled):
            reader.readinto(memoryview(bytearray(10)))
        reader.close()
    reader = PipeSource(ours).open()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            reader.readinto(memoryview(bytearray(10)))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.05)
    reader.abort()
    thread.join(timeout=60)
    assert isinstance(failures[0], errors.Interrupted)
    reader.close()
    os.close(ours)
    os.close(theirs)


def test_descriptors_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.SourceNotFound):
        PipeSource(987).probe()
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(errors.SourceNotSupported):
        PipeSource(fd).probe()
    os.close(fd)


def test_a_regular_file_may_be_a_stream(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    with open(tmp_path / "x", "rb") as file, PipeSource(file.fileno(), stall_timeout=60) as source:
        assert drain(source.open()) == DATA


# --- by kind ----------------------------------------------------------------------------------------------------------


def test_each_kind_of_job_gets_its_source(tmp_path: Path) -> None:
    policy = Policy()
    with open_source(FileSourceSpec(path=str(tmp_path)), policy) as source:
        assert isinstance(source, FileSource)
    with open_source(StreamSourceSpec(descriptor=0), policy) as source:
        assert isinstance(source, PipeSource)
    with open_source(HttpSourceSpec(url="http://u:hunter2@h/x?token=hunter2"), policy) as source:
        assert type(source).__name__ == "HttpSource"
    for spec in (BlankSourceSpec(), RegistrySourceSpec(url="docker://x")):
        with pytest.raises(errors.InternalError):
            open_source(spec, policy)
