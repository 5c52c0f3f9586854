"""Tests of tar members, from archives written by Python's tarfile and from crafted ones."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import CdiError, ContentTruncated, FormatUnsupported, ImageCorrupt, ImageUnsafe
from cdi.codec.base import MAX_CHUNK
from cdi.codec.tar import MAX_EXTENDED, members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def entry(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def archive(
    *entries: tuple[tarfile.TarInfo, bytes], layout: int = tarfile.PAX_FORMAT, pax: dict | None = None
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=layout, pax_headers=pax) as made:
        for info, content in entries:
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


def header(name: bytes, flag: bytes, size: int = 0, **patches: bytes) -> bytes:
    raw = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    raw[0:100] = name.ljust(100, b"\0")
    raw[124:136] = b"%011o\0" % size
    raw[156:157] = flag
    for place, value in patches.items():
        at = int(place[1:])
        raw[at : at + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 512)


END = bytes(1024)


def cut(packed: bytes, step: int):
    return (packed[at : at + step] for at in range(0, len(packed), step))


def read(packed: bytes, step: int = 1 << 16) -> list[tuple[str, str, bytes]]:
    return [(m.name, m.kind, b"".join(m.read())) for m in members(cut(packed, step))]


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/\n"), min_size=1, max_size=180)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=5),
    layout=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    step=st.integers(1, 2000),
)
def test_any_chunking_of_any_members_gives_their_content(entries, layout, step):
    packed = archive(*(entry(name, content) for name, content in entries), layout=layout)
    assert read(packed, step) == [(name, "file", content) for name, content in entries]


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
def test_every_kind_of_member(layout):
    packed = archive(
        entry("dir", type=tarfile.DIRTYPE, mode=0o755),
        entry("dir/file", b"content", mode=0o4755, mtime=1234567890),
        entry("dir/link", type=tarfile.SYMTYPE, linkname="file"),
        entry("hard", type=tarfile.LNKTYPE, linkname="dir/file"),
        entry("tty", type=tarfile.CHRTYPE),
        entry("disk", type=tarfile.BLKTYPE),
        entry("pipe", type=tarfile.FIFOTYPE),
        layout=layout,
    )
    found = {m.name: m for m in members(cut(packed, 700))}
    kinds = {name: m.kind for name, m in found.items()}
    directory = next(name for name in found if name.rstrip("/") == "dir")
    assert kinds == {
        directory: "directory",
        "dir/file": "file",
        "dir/link": "symlink",
        "hard": "hardlink",
        "tty": "character",
        "disk": "block",
        "pipe": "fifo",
    }
    file = found["dir/file"]
    assert (file.size, file.mode, file.mtime) == (7, 0o4755, 1234567890.0)
    assert packed[file.offset : file.offset + 7] == b"content"
    assert found["dir/link"].link == "file"
    assert found["hard"].link == "dir/file"


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_strange_names(layout):
    long, target = "d/" * 300 + "ö" * 50, "t/" * 200 + "end"
    strange = b"\xff\xfe name\n".decode("utf-8", "surrogateescape")
    packed = archive(
        entry(long, b"1"), entry("link", type=tarfile.SYMTYPE, linkname=target), entry(strange, b"2"), layout=layout
    )
    found = list(members(cut(packed, 511)))
    assert [m.name for m in found[:2]] == [long, "link"]
    assert found[1].link == target
    assert found[2].name == strange


def test_a_ustar_prefix_is_part_of_the_name():
    name = "p" * 120 + "/" + "n" * 90
    assert read(archive(entry(name, b"x"), layout=tarfile.USTAR_FORMAT))[0][0] == name


def test_what_is_not_read_is_skipped():
    packed = archive(entry("a", bytes(5 << 20)), entry("b", b"wanted"))
    found = []
    for member in members(cut(packed, 100_000)):
        if member.name == "b":
            found.append(b"".join(member.read()))
        else:
            assert len(next(member.read())) <= MAX_CHUNK
    assert found == [b"wanted"]


def test_pax_headers_override():
    packed = archive(entry("x", b"content", pax_headers={"path": "renamed", "mtime": "12.5", "size": "7"}))
    (member,) = list(members(iter([packed])))
    assert (member.name, member.mtime, member.size) == ("renamed", 12.5, 7)


def test_a_global_header_holds_for_all_members():
    packed = archive(entry("a"), entry("b", mtime=5), pax={"mtime": "99"})
    assert [m.mtime for m in members(iter([packed]))] == [99.0, 99.0]


@pytest.mark.parametrize("end", [END, b""])
def test_a_global_header_may_stand_alone(end):
    assert read(tarfile.TarInfo.create_pax_global_header({"comment": "of an empty tree"}) + end) == []


def test_sizes_above_8_gib_are_read():
    for packed in (
        header(b"big", b"0", x124=b"\x80" + (1 << 40).to_bytes(11, "big")),
        header(b"x", b"x", 22) + padded(b"22 size=1099511627776\n") + header(b"big", b"0"),
    ):
        member = next(members(iter([packed])))
        assert member.size == 1 << 40


@pytest.mark.parametrize("more", [False, True])
def test_old_gnu_sparse(more):
    def number(value):
        return b"%011o\0" % value

    parts = [(0, 3), (1000, 4), (5000, 5)]
    real = 6000
    body = b"abc" + b"defg" + b"hijkl"
    if more:
        first = b"".join(number(v) for part in parts[:1] for v in part)
        second = b"".join(number(v) for part in parts[1:] for v in part).ljust(512, b"\0")
        packed = header(b"s", b"S", len(body), x386=first, x482=b"\x01", x483=number(real)) + second
    else:
        first = b"".join(number(v) for part in parts for v in part)
        packed = header(b"s", b"S", len(body), x386=first, x483=number(real))
    packed += padded(body) + archive(entry("next", b"content"))
    found = read(packed, 99)
    content = found[0][2]
    assert len(content) == real
    assert (content[:3], content[1000:1004], content[5000:5005]) == (b"abc", b"defg", b"hijkl")
    assert content.count(0) == real - len(body)
    assert found[1] == ("next", "file", b"content")


def pax(*records: tuple[str, str]) -> bytes:
    out = b""
    for key, value in records:
        body = f" {key}={value}\n".encode()
        size = len(body)
        while size != len(str(size)) + len(body):
            size = len(str(size)) + len(body)
        out += str(size).encode() + body
    return header(b"x", b"x", len(out)) + padded(out)


def test_pax_sparse_of_every_version():
    body = b"abcdefg"
    zero_zero = pax(
        ("GNU.sparse.size", "5000"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "10"),
        ("GNU.sparse.numbytes", "3"),
        ("GNU.sparse.offset", "4000"),
        ("GNU.sparse.numbytes", "4"),
    )
    zero_one = pax(("GNU.sparse.size", "5000"), ("GNU.sparse.map", "10,3,4000,4"), ("GNU.sparse.name", "s"))
    one = pax(
        ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "5000"), ("GNU.sparse.name", "s")
    )
    table = padded(b"2\n10\n3\n4000\n4\n")
    expected = bytes(10) + b"abc" + bytes(3987) + b"defg" + bytes(996)
    for packed in (
        zero_zero + header(b"s", b"0", 7) + padded(body),
        zero_one + header(b"GNUSparseFile.1/s", b"0", 7) + padded(body),
        one + header(b"GNUSparseFile.1/s", b"0", 7 + len(table)) + table + padded(body),
    ):
        found = read(packed + archive(entry("next", b"n")), 100)
        assert found == [("s", "file", expected), ("next", "file", b"n")]


def test_a_sparse_map_of_many_parts():
    count = 3000
    table = padded(b"%d\n" % count + b"".join(b"%d\n1\n" % (at * 10) for at in range(count)))
    head = pax(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", str(count * 10)))
    packed = head + header(b"s", b"0", count + len(table)) + table + padded(b"x" * count) + END
    assert read(packed, 1000)[0][2] == (b"x" + bytes(9)) * count


@pytest.mark.parametrize(
    "packed",
    [
        pax(("GNU.sparse.size", "10"), ("GNU.sparse.map", "5,10")) + header(b"s", b"0", 10) + bytes(512),
        pax(("GNU.sparse.size", "99"), ("GNU.sparse.map", "5,10,7,1")) + header(b"s", b"0", 11) + bytes(512),
        pax(("GNU.sparse.size", "99"), ("GNU.sparse.map", "5,10")) + header(b"s", b"0", 11) + bytes(512),
        pax(("GNU.sparse.size", "99"), ("GNU.sparse.map", "5")) + header(b"s", b"0", 11) + bytes(512),
        pax(("GNU.sparse.size", "99"), ("GNU.sparse.map", "-5,1")) + header(b"s", b"0", 1) + bytes(512),
        pax(("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")) + header(b"s", b"0", 512) + b"1" * 1024,
        pax(("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")) + header(b"s", b"0", 9) + padded(b"1\n0\n9\n"),
        pax(("GNU.sparse.major", "1")) + header(b"s", b"0", 512) + padded(b"0\n"),
        pax(("size", "-1")) + header(b"f", b"0"),
        pax(("size", "1_0")) + header(b"f", b"0"),
        pax(("size", "9" * 30)) + header(b"f", b"0"),
        pax(("mtime", "nan")) + header(b"f", b"0"),
        pax(("mtime", "soon")) + header(b"f", b"0"),
        header(b"x", b"x", 5) + padded(b"99 a="),
        header(b"x", b"x", 5) + padded(b"0 a=b"),
        header(b"x", b"x", 6) + padded(b"6 abc\n"),
        header(b"f", b"0", x124=b"\xff" * 12),
        header(b"f", b"0", x124=b"9zz"),
        pax(("path", "y")) * 17 + header(b"f", b"0"),
        b"this is no archive".ljust(512),
    ],
)
def test_what_is_malformed_is_refused(packed):
    with pytest.raises(ImageCorrupt):
        read(packed + END)


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K", b"V"])
def test_extended_headers_are_bounded(flag):
    with pytest.raises(ImageUnsafe):
        read(header(b"x", flag, MAX_EXTENDED + 1) + bytes(2 << 20))


def test_a_sparse_map_is_bounded():
    head = pax(("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "1"))
    with pytest.raises(ImageUnsafe):
        read(head + header(b"s", b"0", 1 << 30) + padded(b"99999999\n") + END)


def test_every_truncation_inside_a_member_is_seen():
    packed = archive(entry("a" * 150, b"content" * 100), layout=tarfile.GNU_FORMAT)
    stop = next(members(iter([packed]))).offset + 700
    for end in range(stop):
        with pytest.raises(ContentTruncated):
            read(packed[:end])


def test_an_archive_without_end_mark_ends_at_a_member():
    packed = archive(entry("a", b"content"))[:1024]
    assert read(packed) == [("a", "file", b"content")]


def test_what_follows_the_end_is_consumed_and_dropped():
    pieces = iter([archive(entry("a", b"content")), b"\r\n--boundary--\r\n", b"more"])
    assert [m.name for m in members(pieces)] == ["a"]
    assert next(pieces, None) is None


def test_an_absurd_time_is_bounded():
    (member,) = list(members(iter([header(b"f", b"0", x136=b"\x80" + b"\x7f" * 11) + END])))
    assert member.mtime == float(1 << 33)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_damage_ends_in_members_or_an_error(data):
    packed = bytearray(
        archive(
            entry("a" * 120, b"content" * 50), entry("b", type=tarfile.SYMTYPE, linkname="a"), entry("c", b"x" * 600)
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(packed), 333)
    except CdiError:
        pass


class TestVolumes:
    def test_a_label_is_no_member(self):
        packed = header(b"label", b"V") + archive(entry("a", b"content"))
        assert read(packed, 511) == [("a", "file", b"content")]

    def test_a_later_volume_is_refused_by_what_it_goes_on_with(self):
        packed = header(b"big.raw", b"M", 600, _369=b"00000453000\0") + padded(bytes(600)) + END
        with pytest.raises(FormatUnsupported, match="a later volume of several, and continues 'big.raw'"):
            read(packed)

    def test_a_later_volume_in_the_pax_format(self):
        fields = {"GNU.volume.filename": "big.raw", "GNU.volume.size": "600", "GNU.volume.offset": "300"}
        with pytest.raises(FormatUnsupported, match="continues 'big.raw'"):
            read(archive(entry("big.raw", bytes(300)), pax=fields))
        with pytest.raises(FormatUnsupported, match="continues 'big.raw'"):
            read(archive(entry("big.raw", bytes(300), pax_headers=fields)))
