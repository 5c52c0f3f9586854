import threading

import pytest

from cdi.api.errors import InternalError, Interrupted, SourceTruncated, SourceUnreachable
from cdi.source.upload import UploadSource


class Piece:
    def __init__(self, data: bytes, *, breaks: bool = False) -> None:
        self.data, self.breaks = data, breaks

    def readinto(self, view):
        if not self.data and self.breaks:
            raise SourceTruncated("cut")
        count = min(len(view), len(self.data), 7)
        view[:count], self.data = self.data[:count], self.data[count:]
        return count

    def interrupt(self): ...


def everything(reader) -> bytes:
    got, view = b"", memoryview(bytearray(10))
    while count := reader.readinto(view):
        got += bytes(view[:count])
    return got


def bringing(source, *bodies, last=False):
    said = []

    def bring():
        for number, body in enumerate(bodies):
            try:
                said.append(source.feed(body, last=last or number == len(bodies) - 1))
            except SourceTruncated:
                said.append("cut")

    thread = threading.Thread(target=bring)
    thread.start()
    return thread, said


def test_one_body():
    source = UploadSource()
    thread, said = bringing(source, Piece(b"a" * 30), last=True)
    assert everything(source.open()) == b"a" * 30
    thread.join()
    assert said == [True]
    assert source.complete


CLOSING = b"\r\n------------------------d74496d66958873e--"


@pytest.mark.parametrize("start", [b"", b"image", bytes(200), b"\r\n--d74496d66958873e--\r\n" * 3 + b"x"])
@pytest.mark.parametrize(
    ("end", "kept"),
    [
        (b"", b""),
        (CLOSING, b""),
        (CLOSING + b"\r\n", b""),
        (b"\r\n--" + b"x" * 70 + b"--\r\n", b""),
        (CLOSING + b"\r\n\0", CLOSING + b"\r\n\0"),
        (b"\r\n--" + b"x" * 71 + b"--", b"\r\n--" + b"x" * 71 + b"--"),
        (b"\r\n--b", b"\r\n--b"),
    ],
)
@pytest.mark.parametrize("room", [1, 10, 1000])
def test_the_end_of_a_form_is_cut_off_at_the_end_only(start, end, kept, room):
    sent = start + end
    source = UploadSource(body_length=len(sent))
    facts = source.probe()
    thread, said = bringing(source, Piece(sent), last=True)
    reader, got, view = source.open(), b"", memoryview(bytearray(room))
    while count := reader.readinto(view):
        got += bytes(view[:count])
    thread.join()
    assert (got, said, source.complete) == (start + kept, [True], True)
    assert facts.min_length <= len(got) <= facts.max_length


def test_a_body_that_breaks_in_the_end_of_a_form_breaks_the_source():
    source = UploadSource(body_length=40)
    thread, said = bringing(source, Piece(b"a" * 30 + CLOSING[:5], breaks=True), last=True)
    with pytest.raises(SourceTruncated):
        everything(source.open())
    thread.join()
    assert said == ["cut"]


def test_without_a_length_of_the_body_nothing_is_cut_off():
    source = UploadSource()
    thread, _ = bringing(source, Piece(b"image" + CLOSING), last=True)
    assert everything(source.open()) == b"image" + CLOSING
    thread.join()


def test_bodies_that_come_apart():
    source = UploadSource(length=40, resumes=True)
    thread, said = bringing(source, Piece(b"a" * 10, breaks=True), Piece(b"b" * 20), Piece(b"c" * 99))
    assert everything(source.open(5)) == b"a" * 10 + b"b" * 20 + b"c" * 5
    thread.join()
    assert said == ["cut", True, True]
    assert source.offset == 40


def test_one_that_breaks_breaks_the_source():
    source = UploadSource()
    thread, said = bringing(source, Piece(b"a" * 10, breaks=True), last=True)
    with pytest.raises(SourceTruncated):
        everything(source.open())
    thread.join()
    assert said == ["cut"]


def test_a_transfer_that_ends_lets_everybody_go():
    source = UploadSource()
    reader = source.open()
    thread, said = bringing(source, Piece(b"a" * 10))
    assert reader.readinto(memoryview(bytearray(4)))
    source.close()
    thread.join()
    assert said == [False]
    assert source.feed(Piece(b"more"), last=True) is False


def test_a_reader_that_is_interrupted():
    source = UploadSource()
    reader = source.open()
    threading.Timer(0.01, reader.abort).start()
    with pytest.raises(Interrupted):
        reader.readinto(memoryview(bytearray(4)))


def test_who_brings_something_when_reading_is_interrupted_is_told_that_it_ended():
    """The transfer reports the reason when it ends; until then the body must not be taken for a consumed one."""
    reading, interrupted = threading.Event(), threading.Event()

    class Waiting(Piece):
        def readinto(self, view):
            reading.set()
            assert interrupted.wait(60)
            raise SourceTruncated("interrupted")

        def interrupt(self):
            interrupted.set()

    source = UploadSource(length=40, resumes=True)
    reader = source.open()
    thread, said = bringing(source, Waiting(b""))
    aborting = threading.Thread(target=lambda: reading.wait(60) and reader.abort())
    aborting.start()
    with pytest.raises(Interrupted):
        reader.readinto(memoryview(bytearray(4)))
    aborting.join()
    thread.join()
    assert said == [False]


def test_it_is_opened_once_and_from_the_start():
    source = UploadSource()
    assert not source.wait_open(0)
    with pytest.raises(InternalError):
        source.open(5)
    source.open()
    assert source.wait_open(0)
    with pytest.raises(SourceUnreachable):
        source.open()


def test_nothing_is_missing_of_an_empty_one():
    source = UploadSource(length=0, resumes=True)
    assert everything(source.open()) == b""
