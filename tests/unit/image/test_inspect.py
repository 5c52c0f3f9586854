"""Laws of inspection over the whole corpus, over qcow2 headers with flipped bits, and over arbitrary bytes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import CdiError, ImageError
from cdi.image.formats.content import BUDGET, HEAD, RandomAccessContent
from cdi.image.inspect import Inspector
from tests.corpus import MIB, SAMPLES, Sample, qcow2, vdi, vhd_dynamic, vhd_fixed, vhdx, vmdk, vmdk_stream, with_iso

BASES = [qcow2, vmdk, vmdk_stream, vdi, vhd_dynamic, vhd_fixed, vhdx]


def outcome(inspector: Inspector) -> object:
    try:
        return inspector.result()
    except CdiError as error:
        return type(error), error.what


def by_wants(content: bytes, piece: int | None = None) -> Inspector:
    """Answer every request, at most `piece` bytes at a time, and check the requests themselves."""
    inspector = Inspector(len(content))
    total, last = 0, -1
    while (want := inspector.next_range()) is not None:
        offset, size = want
        assert size > 0
        assert 0 <= offset
        assert offset + size <= len(content), "asks beyond the length"
        assert (offset, -size) > (last, 0), "asks for the same twice"
        last = offset
        size = size if piece is None else min(size, piece)
        total += size
        inspector.feed(offset, content[offset : offset + size])
    assert total <= BUDGET
    return inspector


def by_stream(content: bytes, pieces: list[int], length: int | None = None) -> Inspector:
    """Feed sequentially in pieces of these sizes, repeated, until no more is requested."""
    inspector = Inspector(length, seekable=False)
    at, turn = 0, 0
    while inspector.next_range() is not None:
        data = content[at : at + pieces[turn % len(pieces)]]
        inspector.feed(at, data)
        at += len(data)
        turn += 1
    return inspector


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_every_sample_meets_its_fate(sample: Sample) -> None:
    inspector = by_wants(sample.build())
    if sample.refusal is None:
        info = inspector.result()
        assert info.format == sample.format
        assert all(check.passed for check in info.checks)
        assert info.virtual_size is not None
    else:
        with pytest.raises(CdiError) as caught:
            inspector.result()
        assert type(caught.value) is sample.refusal
        assert sample.says in caught.value.what
        assert caught.value.what.isprintable()
        assert len(caught.value.what) < 1000


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_verdict_does_not_depend_on_the_pieces(sample: Sample) -> None:
    content = sample.build()
    whole = outcome(by_wants(content))
    assert outcome(by_wants(content, 4099)) == whole
    streams = [[len(content) + 1], [4096], [1, 65536, 511], [HEAD, 1], [1000003]]
    assert len({repr(outcome(by_stream(content, pieces))) for pieces in streams}) == 1


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_flipped_bytes_give_a_verdict(base) -> None:
    content = base()
    rng = random.Random(base.__name__)
    for _ in range(150 if len(content) < MIB else 25):
        spoilt = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            at = rng.choice([rng.randrange(min(len(content), 600)), rng.randrange(len(content)), len(content) - 200])
            spoilt[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        whole = outcome(by_wants(bytes(spoilt)))
        assert outcome(by_wants(bytes(spoilt), 70_001)) == whole


@given(st.binary(max_size=3000), st.sampled_from([base()[:2048] for base in BASES]), st.integers(0, 600), st.data())
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_give_a_verdict_or_an_image_error(noise, base, at, data) -> None:
    content = base[:at] + noise
    pieces = data.draw(st.lists(st.integers(1, 2000), min_size=1, max_size=4))
    result = outcome(by_wants(content))
    assert outcome(by_wants(content, pieces[0])) == result
    if isinstance(result, tuple):
        assert issubclass(result[0], ImageError)
    assert outcome(by_stream(content, pieces)) == outcome(by_stream(content, [4096]))


def test_first_want_is_the_head() -> None:
    assert Inspector(None).next_range() == (0, HEAD)
    assert Inspector(10 * MIB).next_range() == (0, HEAD)
    assert Inspector(100).next_range() == (0, 100)


def test_empty_content_wants_nothing() -> None:
    assert Inspector(0).next_range() is None


def test_verdict_before_its_time_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="not finished"):
        Inspector(None).result()


def test_bytes_elsewhere_are_passed_over() -> None:
    inspector = Inspector(MIB)
    inspector.feed(HEAD, bytes(100))
    inspector.feed(0, b"")  # the end, at the requested offset
    assert inspector.next_range() is None
    inspector = Inspector(MIB)
    inspector.feed(HEAD + 7, b"")  # an end beyond the requested range
    assert inspector.next_range() == (0, HEAD)


def test_raw_of_known_length_looks_for_a_footer_and_a_stream_does_not() -> None:
    inspector = Inspector(MIB)
    inspector.feed(0, bytes(HEAD))
    assert inspector.next_range() == (MIB - 512, 512)
    inspector = Inspector(MIB, seekable=False)
    inspector.feed(0, bytes(HEAD))
    assert inspector.next_range() is None
    assert inspector.result().virtual_size == MIB


def test_raw_of_odd_length_has_no_footer_to_look_for() -> None:
    inspector = Inspector(MIB + 100)
    inspector.feed(0, bytes(HEAD))
    assert inspector.next_range() is None
    assert inspector.result().raw_extent == (0, MIB + 100)


def test_stream_of_unknown_length_has_no_size_unless_its_end_was_met() -> None:
    long = by_stream(bytes(MIB), [HEAD]).result()
    assert (long.virtual_size, long.raw_extent) == (None, None)
    short = by_stream(bytes(1024), [HEAD]).result()
    assert (short.virtual_size, short.raw_extent) == (1024, (0, 1024))


def test_vhdx_too_deep_for_a_stream_tells_what_it_can() -> None:
    content = vhdx(metadata_at=8 * MIB)
    info = by_stream(content, [MIB]).result()
    assert (info.format, info.virtual_size) == ("vhdx", None)
    assert "too far from the start" in info.notes[0]
    assert by_wants(content).result().virtual_size == 10 * MIB


def test_vhdx_in_a_stream_is_read_where_its_metadata_is_near() -> None:
    assert by_stream(vhdx(), [100_000]).result().virtual_size == 10 * MIB


def test_stream_does_not_see_the_end() -> None:
    """The footer of a vmdk is checked while the image is read."""
    assert by_stream(vmdk_stream(), [5000]).result().virtual_size == 10 * MIB
    assert by_stream(vmdk_stream()[:-512], [5000]).result().virtual_size == 10 * MIB
    with pytest.raises(ImageError, match="footer"):
        by_wants(vmdk_stream()[:-512]).result()


def test_known_length_of_a_stream_is_used_for_the_checks() -> None:
    with pytest.raises(ImageError, match="L1 table"):
        by_stream(qcow2(l1_offset=1 << 40), [HEAD], length=4 << 16).result()
    # Without the length only the decoder can detect it.
    assert by_stream(qcow2(l1_offset=1 << 40), [HEAD]).result().format == "qcow2"


def test_errors_name_the_place_that_the_caller_gave() -> None:
    inspector = Inspector(None, where="http://example.org/disk.qcow2")
    inspector.feed(0, qcow2(backing=b"x"))
    inspector.feed(4 << 16, b"")
    with pytest.raises(ImageError) as caught:
        inspector.result()
    assert caught.value.where == "http://example.org/disk.qcow2, qcow2"


def test_every_failed_check_is_in_the_one_error() -> None:
    with pytest.raises(ImageError) as caught:
        by_wants(qcow2(backing=b"/dev/sda", crypt=1, incompatible=1)).result()
    for part in ("/dev/sda", "AES", "dirty"):
        assert part in caught.value.what


def test_iso_in_a_data_cluster_is_the_guests_own() -> None:
    # With 4 KiB clusters, offset 32 KiB holds guest data and not the image's header.
    content = with_iso(qcow2(cluster_bits=12, clusters=16, size=MIB))
    assert by_wants(content).result().format == "qcow2"


def test_raw_tells_what_stands_in_it() -> None:
    details = {
        name: dict(by_wants(sample.build()).result().details)
        for name in ("raw-mbr", "raw-gpt", "raw-iso", "raw-zeros")
        for sample in SAMPLES
        if sample.name == name
    }
    assert details == {
        "raw-mbr": {"partition table": "mbr, 1 partitions"},
        "raw-gpt": {"partition table": "gpt, 1 partitions"},
        "raw-iso": {"iso9660 volume": "DEBIAN 13"},
        "raw-zeros": {},
    }


@pytest.mark.parametrize("length", range(512, 1100, 4))
def test_raw_may_end_inside_its_partition_table(length: int) -> None:
    (gpt,) = (sample.build() for sample in SAMPLES if sample.name == "raw-gpt")
    assert by_wants(gpt[:length]).result().format == "raw"


def test_label_of_an_iso_cannot_hold_control_characters() -> None:
    info = by_wants(with_iso(bytes(128 << 10), label=b"\x1b[2Jboo\n")).result()
    assert dict(info.details)["iso9660 volume"] == "?[2Jboo?"


def test_what_a_stream_has_passed_is_not_asked_for_again() -> None:
    content = RandomAccessContent(None, seekable=False)
    head = content.begin()
    next(head)
    with pytest.raises(StopIteration):
        head.send(bytes(HEAD))
    far = content.read(MIB, 10)
    assert next(far) == (MIB, 10)
    with pytest.raises(StopIteration) as done:
        far.send(b"0123456789")
    assert done.value.value == b"0123456789"
    assert not content.reachable(HEAD, 10)
    with pytest.raises(StopIteration) as gone:
        next(content.read(HEAD - 4, 10))
    assert gone.value.value == bytes(4), "only what the head still has"
