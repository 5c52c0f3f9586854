"""Tests of unwrapping layer after layer until an image is recognised."""

import gzip
import io
import lzma
import random
import tarfile

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import (
    CdiError,
    DiskNotInImage,
    FormatUnsupported,
    ImageError,
    NestedTooDeep,
    SourceNotAnImage,
)
from cdi.source.base import SourceFacts
from cdi.transfer.unwrap import DEPTH, DiskNotInLayer, NoDiskInLayer, inspect_ranged, peek, unwrap_stream
from tests.memory import MemorySource
from tests.qcow2_writer import Layout, write
from tests.unit.transfer.test_reader import fetcher_of

FACTS = SourceFacts(location="memory:", length=None, ranges=False)
RAW = random.Random(11).randbytes(200_000)
QCOW2 = write(Layout(1 << 20, 12, {3: (b"x" * 4096, False), 9: (b"y" * 4096, True)}))


def tar(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


WRAP = {
    "gz": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zst": lambda data: zstd.compress(data, 1),
    "tar": lambda data: tar(("disk.img", data)),
}


def chunked(data, step):
    return (memoryview(data)[at : at + step] for at in range(0, len(data), step))


def peel(data, step=5000, **options):
    return unwrap_stream(chunked(data, step), FACTS, archive=False, **options)


def rest(peeled):
    return b"".join(bytes(piece) for piece in peeled.stream)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(sorted(WRAP)), max_size=DEPTH),
    st.sampled_from([RAW, QCOW2]),
    st.sampled_from([1, 100, 513, 5000, 1 << 20]),
)
def test_any_nesting_and_any_cutting(wrappers, image, step):
    data = image[:20_000] if image is RAW else image
    packed = data
    for wrapper in reversed(wrappers):
        packed = WRAP[wrapper](packed)
    peeled = peel(packed, max(step, len(packed) // 2000 + 1))
    assert peeled.wrappers == tuple(wrappers)
    assert peeled.image.format == ("raw" if image is RAW else "qcow2")
    assert rest(peeled) == data


def test_one_wrapper_more_is_too_deep():
    packed = RAW
    for _ in range(DEPTH + 1):
        packed = WRAP["gz"](packed)
    with pytest.raises(NestedTooDeep) as caught:
        peel(packed)
    assert "gz in gz" in str(caught.value)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"<!doctype html><html><body>log in</body></html>" + b" " * 600, SourceNotAnImage),
        (b"PK\x03\x04" + bytes(600), FormatUnsupported),
        (b"BZh91AY&SY" + bytes(600), FormatUnsupported),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), FormatUnsupported),
    ],
)
def test_strangers_are_refused_wrapped_or_not(data, error, wrapped):
    with pytest.raises(error):
        peel(gzip.compress(data) if wrapped else data)


@pytest.mark.parametrize("size", [0, 1, 100, 511])
@pytest.mark.parametrize("wrapper", [None, *sorted(WRAP)])
def test_very_little_is_an_image_or_an_error(size, wrapper):
    data = RAW[:size] if wrapper is None else WRAP[wrapper](RAW[:size])
    try:
        peeled = peel(data)
    except CdiError:
        return
    assert rest(peeled) == RAW[:size]


def test_two_files_in_a_tar_are_one_too_many():
    with pytest.raises(DiskNotInImage) as caught:
        rest(peel(tar(("a.img", RAW), ("b.img", RAW))))
    assert "a.img" in str(caught.value) and "b.img" in str(caught.value)


def test_a_tar_without_a_file_has_no_disk():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        directory = tarfile.TarInfo("disk/")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
    with pytest.raises(DiskNotInLayer):
        rest(peel(out.getvalue()))


def named(name):
    """Return a layer whose disk is the member of that name."""

    def layer(members):
        found = False
        for member in members:
            if member.name == name:
                found = True
                yield from member.read()
        if not found:
            raise NoDiskInLayer

    return layer


class TestLayers:
    @pytest.mark.parametrize("wrapper", [None, "gz", "zst"])
    def test_a_layer_is_a_tar_compressed_or_not(self, wrapper):
        data = tar(("etc/passwd", b"x"), ("disk/vm.qcow2", QCOW2), ("etc/group", b"y"))
        peeled = peel(data if wrapper is None else WRAP[wrapper](data), layer=named("disk/vm.qcow2"))
        assert (peeled.wrappers, peeled.image.format) == ((*((wrapper,) if wrapper else ()), "tar"), "qcow2")
        assert rest(peeled) == QCOW2

    def test_within_the_layer_any_wrapper_is_one_of_the_disk(self):
        data = tar(("disk/vm.tar.gz", WRAP["gz"](WRAP["tar"](QCOW2))))
        peeled = peel(data, layer=named("disk/vm.tar.gz"))
        assert peeled.wrappers == ("tar", "gz", "tar")
        assert rest(peeled) == QCOW2

    def test_a_tar_without_the_disk(self):
        with pytest.raises(NoDiskInLayer):
            rest(peel(tar(("etc/passwd", b"x")), layer=named("disk/x")))

    @pytest.mark.parametrize("wrap", [bytes, gzip.compress, zstd.compress])
    @pytest.mark.parametrize("size", [0, 1024, 10240, 3 << 20])
    def test_zeros_are_a_tar_without_members(self, size, wrap):
        with pytest.raises(NoDiskInLayer):
            peel(wrap(bytes(size)), layer=named("disk/x"))

    @pytest.mark.parametrize("wrap", [bytes, gzip.compress, zstd.compress])
    @pytest.mark.parametrize(
        ("content", "name"),
        [
            (QCOW2, "a qcow2 image"),
            (RAW, "unknown content"),
            (bytes(1024) + b"x", "unknown content"),
            (bytes(3 << 20) + b"x", "unknown content"),
            (b'{"a": 1}' + b" " * 600, "a JSON document"),
            (b"BZh91AY&SY" + bytes(600), "a bzip2 stream"),
        ],
    )
    def test_what_is_no_tar_is_refused_by_name(self, content, name, wrap):
        with pytest.raises(FormatUnsupported, match="not a tar archive") as caught:
            peel(wrap(content), layer=named("disk/x"))
        assert name in caught.value.what

    def test_a_layer_is_compressed_once(self):
        with pytest.raises(FormatUnsupported, match="a gzip stream around a zstd stream once more"):
            peel(gzip.compress(zstd.compress(tar(("disk/x", RAW)))), layer=named("disk/x"))


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_a_wrapper_that_is_cut_is_told(kind):
    packed = WRAP[kind](RAW)
    with pytest.raises(ImageError):
        rest(peel(packed[: len(packed) // 2]))


def test_an_archive_is_a_tar_and_nothing_else():
    data = tar(("a", b"x"))
    peeled = unwrap_stream(chunked(gzip.compress(data), 100), FACTS, archive=True)
    assert peeled.wrappers == ("gz", "tar")
    assert rest(peeled) == data
    with pytest.raises(FormatUnsupported):
        unwrap_stream(chunked(RAW, 1000), FACTS, archive=True)


def test_looking_loses_nothing():
    for size in (0, 1, 5000, 5001, 300_000):
        head, pieces = peek(chunked(RAW, 5000), size)
        assert head == RAW[:size]
        assert b"".join(bytes(piece) for piece in pieces) == RAW


def test_a_source_with_ranges_is_looked_at_without_reading_it_whole():
    source = MemorySource(QCOW2 + bytes(8 << 20))
    fetcher = fetcher_of(source)
    peeled = inspect_ranged(fetcher, source.facts, archive=False)
    assert (peeled.image.format, peeled.stream) == ("qcow2", None)
    assert peeled.head == QCOW2[: len(peeled.head)] + bytes(len(peeled.head) - len(QCOW2[: len(peeled.head)]))
    assert fetcher._meter.fetched < 1 << 20


@pytest.mark.parametrize("kind", sorted(WRAP))
def test_a_wrapped_source_with_ranges_is_left_to_the_stream(kind):
    source = MemorySource(WRAP[kind](RAW))
    assert inspect_ranged(fetcher_of(source), source.facts, archive=False) is None


def test_an_archive_is_left_to_the_stream():
    source = MemorySource(tar(("a", b"x")))
    assert inspect_ranged(fetcher_of(source), source.facts, archive=True) is None
