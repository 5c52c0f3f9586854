"""Ranges of a file that are read."""

import os

import pytest

from cdi.api.errors import SourceChanged, SourceNotFound, SourceNotSupported
from cdi.source.peer_chunks import CHUNK
from cdi.transfer.clone.clone_source import DiskSource
from cdi.transfer.clone.disk_reader import DiskReader

PAGE = 4096


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.truncate(20 * CHUNK)
        for at in (0, 3 * CHUNK + 8 * PAGE, 3 * CHUNK + 100 * PAGE, 7 * CHUNK - PAGE):
            file.seek(at)
            file.write(b"x" * 2 * PAGE)
    return path


@pytest.fixture
def chunks(disk):
    """Return the numbers of the chunks that may have data."""
    source = DiskSource(str(disk), "claim")

    def chunks(start, stop=20):
        return [offset / CHUNK for offset in source.chunks(start * CHUNK, stop * CHUNK)]

    yield chunks
    source.close()


def test_only_chunks_with_data_once_each_and_in_order(chunks):
    assert chunks(0) == [0, 3, 6, 7]
    assert chunks(4) == [6, 7]
    assert chunks(0, 7) == [0, 3, 6]
    assert chunks(7) == [7]
    assert chunks(20) == []


def test_an_empty_file(tmp_path):
    (tmp_path / "disk.img").touch()
    source = DiskSource(str(tmp_path / "disk.img"), "claim")
    assert list(source.chunks(0, 0)) == []
    source.check()
    source.close()


def test_a_file_that_was_written_to(disk):
    with DiskReader(str(disk)) as origin:
        origin.check()
        before = origin.validator("claim")
        os.utime(disk)
        with pytest.raises(SourceChanged):
            origin.check()
    with DiskReader(str(disk)) as origin:
        assert origin.validator("claim") != before
        assert origin.validator("claim") != origin.validator("another")


def test_a_file_that_became_shorter(disk):
    with DiskReader(str(disk)) as origin:
        os.truncate(disk, PAGE)
        assert list(origin.extents(0)) == [(0, PAGE)]
        with pytest.raises(SourceChanged):
            origin.read(memoryview(bytearray(CHUNK)), 0)


def test_what_is_no_disk(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.symlink(tmp_path / "fifo", tmp_path / "link")
    for name, error in (("nothing", SourceNotFound), ("fifo", SourceNotSupported), ("link", SourceNotSupported)):
        with pytest.raises(error):
            DiskReader(str(tmp_path / name))
    with pytest.raises(SourceNotSupported):
        DiskReader(str(tmp_path))
