"""Tests against a misbehaving server: every response is validated, and every failure has its own error."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdi.api import errors
from cdi.api.job import HttpSourceSpec
from cdi.source.base import read_all
from cdi.source.http import HttpSource, open_http
from cdi.source.http_reader import HttpReader
from tests.faults.server import Fault, FaultServer

DATA = random.Random(2).randbytes(300_000)
CHUNKED = (
    b'HTTP/1.1 206 Partial Content\r\nETag: "v1"\r\nContent-Range: bytes 5000-5999/300000\r\n'
    b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + DATA[5000:5005]
)
"""A response with its first chunk, without the line end that follows it."""


def source_of(url: str, stall: float = 10.0, **attributes: object) -> HttpSource:
    return open_http(HttpSourceSpec(url=url, **attributes), stall)


def drain(reader: HttpReader, size: int = 64 << 10) -> bytes:
    data = bytearray()
    view = memoryview(bytearray(size))
    try:
        while count := reader.readinto(view):
            data += view[:count]
    finally:
        reader.close()
    return bytes(data)


def read(source: HttpSource, offset: int = 0, length: int | None = None, size: int = 64 << 10) -> bytes:
    return drain(source.open(offset, length), size)


# --- the probe --------------------------------------------------------------------------------------------------------


def test_head_is_never_asked(fault_server: FaultServer) -> None:
    url = fault_server.put("/signed", DATA, head_status=403)
    with source_of(url) as source:
        assert read(source) == DATA
    assert {request.method for request in fault_server.requests} == {"GET"}


def test_the_answer_to_the_probe_is_read_when_ranges_are_ignored(fault_server: FaultServer) -> None:
    url = fault_server.put("/once", DATA, ranges=False, faults=[Fault()], always=Fault(status=410))
    with source_of(url) as source:
        assert source.probe().ranges is False
        assert source.probe().length == len(DATA)
        assert read(source) == DATA
    assert len(fault_server.requests) == 1


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_a_length_that_is_not_told_is_not_invented(fault_server: FaultServer, framing: str) -> None:
    url = fault_server.put("/stream", DATA, ranges=False, always=Fault(framing=framing))
    with source_of(url) as source:
        facts = source.probe()
        assert (facts.length, facts.ranges) == (None, False)
        assert read(source) == DATA
        assert read(source, size=777) == DATA
        assert read(source, 0, 1000) == DATA[:1000]
        assert read_all(source, len(DATA)) == DATA
        with pytest.raises(errors.SourceRefused):
            read_all(source, len(DATA) - 1)


@pytest.mark.parametrize(
    "first",
    [
        Fault(status=416, body=b"no"),
        Fault(status=416, headers=(("Content-Range", "bytes */7"),)),
        Fault(headers=(("Content-Range", "bytes 0-0/*"),)),
        Fault(headers=(("Content-Range", "bytes 0-1023/300000"),)),
        Fault(headers=(("Content-Range", "rubbish"),)),
        Fault(headers=(("Content-Range", "bytes 0-0/0"),)),
        Fault(without=("Content-Range",)),
        Fault(announce=0, drop_after=0),
        Fault(status=206, headers=(("Content-Type", "multipart/byteranges; boundary=x"),), body=b"--x\r\n\r\n"),
    ],
)
def test_an_odd_answer_to_the_first_byte_leads_to_a_plain_request(fault_server: FaultServer, first: Fault) -> None:
    url = fault_server.put("/odd", DATA, always=lambda request: first if request.range in {(0, 0), (1, 1)} else None)
    with source_of(url) as source:
        facts = source.probe()
        assert facts.length == len(DATA)
        assert facts.ranges is False
        assert read(source) == DATA


def test_ranges_are_found_although_the_first_byte_was_answered_with_everything(fault_server: FaultServer) -> None:
    url = fault_server.put(
        "/odd", DATA, always=lambda request: Fault(ignore_range=True) if request.range == (0, 0) else None
    )
    with source_of(url) as source:
        assert source.probe().ranges is True
        assert read(source, 1000, 50) == DATA[1000:1050]


def test_accept_ranges_alone_is_not_believed(fault_server: FaultServer) -> None:
    url = fault_server.put("/odd", DATA, always=Fault(ignore_range=True))
    with source_of(url) as source:
        assert source.probe().ranges is False
        assert read(source) == DATA


@pytest.mark.parametrize(
    ("kind", "body", "refused"),
    [
        ("text/html", b" \r\n<!DOCTYPE HTML>\n<p>log in", True),
        ("text/html; charset=utf-8", b"\xef\xbb\xbf<html>", True),
        ("application/xhtml+xml", b"<?xml version='1.0'?><html/>", True),
        ("TEXT/HTML", b"", True),
        ("text/html", DATA[:2000], False),
        ("text/html", b"<\0\0\0" + DATA[:2000], False),
        ("application/octet-stream", b"<html>", False),
    ],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_a_page_is_told_from_an_image_that_is_called_one(
    fault_server: FaultServer, kind: str, body: bytes, refused: bool, ranges: bool
) -> None:
    url = fault_server.put("/x", body, content_type=kind, ranges=ranges)
    with source_of(url) as source:
        if refused:
            with pytest.raises(errors.SourceNotAnImage):
                source.probe()
        else:
            assert read(source) == body


def test_a_coding_that_wraps_the_image_is_passed_on_and_others_are_refused(fault_server: FaultServer) -> None:
    url = fault_server.put("/a.gz", DATA, always=Fault(headers=(("Content-Encoding", "x-gzip"),)))
    with source_of(url) as source:
        assert read(source) == DATA
    url = fault_server.put("/b", DATA, always=Fault(headers=(("Content-Encoding", "br"),)))
    with source_of(url) as source, pytest.raises(errors.SourceProtocolError, match="br"):
        source.probe()
    assert {r.header("Accept-Encoding") for r in fault_server.requests} == {"identity"}


def test_a_coding_that_comes_later_is_another_content(fault_server: FaultServer) -> None:
    url = fault_server.put("/a", DATA, faults=[Fault()], always=Fault(headers=(("Content-Encoding", "gzip"),)))
    with source_of(url) as source:
        assert source.probe().ranges
        with closing(source.open(0, 10)) as reader, pytest.raises(errors.SourceChanged, match="content encoding"):
            reader.readinto(memoryview(bytearray(10)))


# --- reading ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_range_in_any_framing_and_buffer_is_the_file(fault_server: FaultServer, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(DATA)))
    length = data.draw(st.one_of(st.none(), st.integers(0, len(DATA) - offset)))
    size = data.draw(st.sampled_from([1 << 20, 65537, 4096, 1013]))
    fault = Fault(
        framing=data.draw(st.sampled_from(["length", "chunked", "close"])),
        chunk=data.draw(st.sampled_from([100, 4096, 70_000])),
        version=data.draw(st.sampled_from(["HTTP/1.1", "HTTP/1.0"])),
        close=data.draw(st.booleans()),
        close_silently=data.draw(st.booleans()),
    )
    if fault.version == "HTTP/1.0" and fault.framing == "chunked":
        fault = Fault(framing="close", version="HTTP/1.0")
    url = fault_server.put("/any", DATA, always=fault)
    with source_of(url) as source:
        expected = DATA[offset:] if length is None else DATA[offset : offset + length]
        assert read(source, offset, length, size) == expected
        assert read(source, offset, length, size) == expected


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, len(DATA) - 1),
    framing=st.sampled_from(["length", "chunked", "close"]),
    ranges=st.booleans(),
    reset=st.booleans(),
)
def test_content_that_was_cut_off_is_never_taken_for_complete(
    fault_server: FaultServer, cut: int, framing: str, ranges: bool, reset: bool
) -> None:
    if framing == "close" and not ranges and not reset:
        return  # without a length, a closed connection looks like the end
    where = {"reset_after": cut} if reset else {"drop_after": cut}
    always = lambda r: None if r.range == (0, 0) and ranges else Fault(framing=framing, **where)  # noqa: E731
    url = fault_server.put("/cut", DATA, ranges=ranges, always=always)
    with source_of(url) as source:
        reader = source.open()
        got = bytearray()
        view = memoryview(bytearray(50_000))
        with pytest.raises((errors.SourceTruncated, errors.SourceUnreachable)):
            while count := reader.readinto(view):
                got += view[:count]
        reader.close()
        assert DATA.startswith(got)


def test_a_range_that_is_given_in_parts_is_asked_for_until_it_is_whole(fault_server: FaultServer) -> None:
    url = fault_server.put("/parts", DATA, always=Fault(shorten=70_000))
    with source_of(url) as source:
        assert read(source, 10) == DATA[10:]
    assert len(fault_server.requests) == 6
    url = fault_server.put("/crumbs", DATA, always=Fault(shorten=100))
    with source_of(url) as source, pytest.raises(errors.SourceProtocolError):
        read(source, 10)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(shift=1), errors.SourceProtocolError),
        (Fault(lie=1), errors.SourceProtocolError),
        (Fault(lie=-1), errors.SourceProtocolError),
        (Fault(total=len(DATA) + 1), errors.SourceChanged),
        (Fault(total=len(DATA) - 1), errors.SourceChanged),
        (Fault(without=("Content-Range",)), errors.SourceProtocolError),
        (Fault(headers=(("Content-Range", "bytes 1-x/5"),)), errors.SourceProtocolError),
        (Fault(headers=(("Content-Range", "bytes 9-5/300000"),)), errors.SourceProtocolError),
        (Fault(announce=999), errors.SourceProtocolError),
        (Fault(announce=1001), errors.SourceProtocolError),
        (Fault(headers=(("Content-Length", "1000, 7"),)), errors.SourceProtocolError),
        (Fault(headers=(("Content-Length", "-1000"),)), errors.SourceProtocolError),
        (Fault(headers=(("Content-Length", "1e3"),)), errors.SourceProtocolError),
        (Fault(framing="chunked", extra=b"more"), errors.SourceTooLong),
        (Fault(framing="close", extra=b"more"), errors.SourceTooLong),
        (Fault(headers=(("Transfer-Encoding", "gzip, chunked"),)), errors.SourceProtocolError),
        (Fault(etag='"v2"', ignore_if_range=True), errors.SourceChanged),
        (Fault(etag='"v2"'), errors.SourceChanged),
        (Fault(ignore_range=True), errors.SourceUnavailable),
        (Fault(data=DATA[:100]), errors.SourceChanged),
        (Fault(data=DATA[:-1], ignore_range=True), errors.SourceChanged),
        (Fault(data=DATA[:100], total=len(DATA)), errors.SourceProtocolError),
        (Fault(status=412), errors.SourceChanged),
        (Fault(status=404), errors.SourceNotFound),
        (Fault(status=410), errors.SourceNotFound),
        (Fault(status=401), errors.SourceUnauthorized),
        (Fault(status=403), errors.SourceForbidden),
        (Fault(status=407), errors.SourceUnauthorized),
        (Fault(status=400), errors.SourceRefused),
        (Fault(status=451), errors.SourceRefused),
        (Fault(status=501), errors.SourceRefused),
        (Fault(status=429), errors.SourceUnavailable),
        (Fault(status=500), errors.SourceUnavailable),
        (Fault(status=502), errors.SourceUnavailable),
        (Fault(status=503), errors.SourceUnavailable),
        (Fault(status=504), errors.SourceUnavailable),
        (Fault(status=599), errors.SourceUnavailable),
        (Fault(status=204), errors.SourceProtocolError),
        (Fault(status=202), errors.SourceProtocolError),
        (Fault(status=304), errors.SourceProtocolError),
        (Fault(status=302), errors.SourceProtocolError),
        (Fault(raw=b"SSH-2.0-OpenSSH\r\n"), errors.SourceProtocolError),
        (Fault(raw=b"HTTP/2.0 200 OK\r\n\r\n"), errors.SourceProtocolError),
        (Fault(raw=b"HTTP/1.1 2000 OK\r\n\r\n"), errors.SourceProtocolError),
        (Fault(raw=b"HTTP/1.1 206"), errors.SourceTruncated),
        (Fault(raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 50), errors.SourceProtocolError),
        (Fault(raw=b"HTTP/1.1 206 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), errors.SourceProtocolError),
        (Fault(raw=b"HTTP/1.1 206 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n"), errors.SourceProtocolError),
        (Fault(raw=CHUNKED), errors.SourceTruncated),
        (Fault(raw=CHUNKED + b"\r"), errors.SourceTruncated),
        (Fault(raw=CHUNKED + b"\r\n"), errors.SourceTruncated),
        (Fault(raw=CHUNKED + b"more"), errors.SourceProtocolError),
        (Fault(raw=b""), errors.SourceUnreachable),
    ],
    ids=lambda value: None if isinstance(value, Fault) else value.__name__,
)
def test_a_wrong_answer_to_a_range_has_its_error(
    fault_server: FaultServer, fault: Fault, error: type[errors.CdiError]
) -> None:
    url = fault_server.put("/x", DATA, faults=[Fault()], always=fault)
    with source_of(f"{url}?token=hunter2") as source:
        source.probe()
        with pytest.raises(errors.CdiError) as caught:
            read(source, 5000, 1000)
        assert type(caught.value) is error
        assert caught.value.where is not None
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("lie", [-1, 1, -5000])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_long_range_from_another_place_is_refused(fault_server: FaultServer, lie: int, framing: str) -> None:
    url = fault_server.put("/x", DATA, faults=[Fault()], always=Fault(lie=lie, framing=framing))
    with source_of(url) as source, pytest.raises(errors.SourceProtocolError):
        read(source, 5000, 200_000)


def test_a_length_beside_chunks_ends_the_connection(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA, always=Fault(framing="chunked", headers=(("Content-Length", "3"),)))
    with source_of(url) as source:
        assert read(source, 5, 50) == DATA[5:55]
    assert fault_server.connections == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"zz\r\n",
        b"-5\r\n",
        b"5",
        b"5\r\nhelloX",
        b"\r\n",
        b"ffffffffffffffffffff\r\n",
        b"5\r\nhello\r\n0\r\n" + b"a: b\r\n" * 1000,
        b"5;" + b"x" * 100_000 + b"\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_broken_chunks_are_refused(fault_server: FaultServer, raw: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    url = fault_server.put("/x", always=Fault(raw=head + raw))
    with source_of(url) as source, pytest.raises((errors.SourceTruncated, errors.SourceProtocolError)):
        read(source)


def test_lengths_that_agree_are_one(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", b"hello", ranges=False, always=Fault(headers=(("content-length", "5, 5"),)))
    with source_of(url) as source:
        assert read(source) == b"hello"


def test_interim_answers_are_passed_over(fault_server: FaultServer) -> None:
    raw = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
    url = fault_server.put("/x", always=Fault(raw=raw))
    with source_of(url) as source:
        assert read(source) == b"hello"


@pytest.mark.parametrize("retry_after", ["7", "Mon, 01 Jan 2001 00:00:00 GMT", "soon", "-1", "9" * 30, "100000"])
def test_retry_after_is_bounded(fault_server: FaultServer, retry_after: str) -> None:
    url = fault_server.put("/x", DATA, always=Fault(status=503, retry_after=retry_after, body=b"<b>later</b>"))
    with source_of(url) as source, pytest.raises(errors.SourceUnavailable, match="later") as caught:
        source.probe()
    expected = {"7": 7.0, "Mon, 01 Jan 2001 00:00:00 GMT": 0.0, "100000": 300.0}.get(retry_after)
    assert caught.value.retry_after == expected


def test_retry_after_may_be_a_date(fault_server: FaultServer) -> None:
    when = (datetime.now(UTC) + timedelta(seconds=100)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    url = fault_server.put("/x", DATA, always=Fault(status=429, retry_after=when))
    with source_of(url) as source, pytest.raises(errors.SourceUnavailable) as caught:
        source.probe()
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 100


def test_a_failure_is_not_remembered(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA, faults=[Fault(status=503), Fault(drop_after=0)])
    with source_of(url) as source:
        with pytest.raises(errors.SourceUnavailable):
            source.probe()
        assert source.probe().length == len(DATA)


@pytest.mark.parametrize("etag", [None, 'W/"weak"', "unquoted"])
def test_without_a_strong_tag_the_date_and_the_length_are_compared(fault_server: FaultServer, etag: str | None) -> None:
    url = fault_server.put("/x", DATA, etag=etag)
    with source_of(url) as source:
        validator = source.probe().validator
        assert validator is not None
        assert str(len(DATA)) in validator
        assert read(source, 10, 10) == DATA[10:20]
        if etag is None or etag == "unquoted":
            fault_server.file("/x").modified = "Tue, 02 Jan 2024 00:00:00 GMT"
        else:
            fault_server.file("/x").etag = 'W/"other"'
        with pytest.raises(errors.SourceChanged):
            read(source, 10, 10)
    assert all(request.header("If-Range") is None for request in fault_server.requests)


def test_no_validator_at_all_is_said(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA, etag=None, modified=None)
    with source_of(url) as source:
        assert source.probe().validator is None
        assert read(source, 10, 10) == DATA[10:20]


def test_a_server_that_dislikes_if_range_is_asked_without(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA, always=Fault(if_range_gives_all=True))
    with source_of(url) as source:
        for offset in (1000, 2000, 3000):
            assert read(source, offset, 10) == DATA[offset : offset + 10]
    assert sum(request.header("If-Range") is not None for request in fault_server.requests) == 1


def test_a_stall_ends_the_reading_and_keeps_what_came(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA, faults=[Fault()], always=Fault(stall_after=1000))
    with source_of(url, stall=0.3) as source:
        reader = source.open()
        view = memoryview(bytearray(5000))
        got = 0
        with pytest.raises(errors.SourceStalled):
            while True:
                got += reader.readinto(view[got:])
        assert view[:got] == DATA[:1000]
        with pytest.raises(errors.InternalError):
            reader.readinto(view)
        reader.close()


def test_a_head_that_drips_is_a_stall(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA)
    with source_of(url, stall=0.5) as source:
        source.probe()
        # Bytes keep arriving, each well within the time-out, but the head never ends.
        fault_server.put("/x", always=Fault(raw=b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100, drip=(1, 0.1)))
        with pytest.raises(errors.SourceStalled):
            read(source, 5, 5)


@pytest.mark.parametrize("when", ["connected", "reading"])
@pytest.mark.parametrize("how", ["abort", "close"])
def test_what_blocks_can_be_interrupted_at_once(fault_server: FaultServer, when: str, how: str) -> None:
    stalled = Fault(stall_after=1000) if when == "reading" else Fault(delay=30)
    url = fault_server.put("/x", DATA, faults=[Fault()], always=stalled)
    source = source_of(url, stall=60)
    reader = source.open()
    failures: list[BaseException] = []
    entered = threading.Event()

    def work() -> None:
        view = memoryview(bytearray(5000))
        try:
            entered.set()
            while reader.readinto(view):
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    while len(fault_server.requests) < 2:
        time.sleep(0.01)
    (reader.abort if how == "abort" else source.close)()
    thread.join(timeout=45)
    assert not thread.is_alive()
    assert isinstance(failures[0], errors.Interrupted)
    with pytest.raises(errors.Interrupted):
        reader.readinto(memoryview(bytearray(10)))
    reader.close()
    source.close()


def test_closing_interrupts_a_probe(fault_server: FaultServer) -> None:
    source = source_of(fault_server.put("/x", DATA, always=Fault(delay=30)), stall=60)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            source.probe()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not fault_server.requests:
        time.sleep(0.01)
    source.close()
    thread.join(timeout=45)
    assert isinstance(failures[0], errors.Interrupted)


# --- connections ------------------------------------------------------------------------------------------------------


def test_connections_are_used_again(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA)
    with source_of(url) as source:
        for offset in range(0, 100_000, 10_000):
            assert read(source, offset, 10_000) == DATA[offset : offset + 10_000]
    assert fault_server.connections == 1


def test_a_connection_that_was_closed_meanwhile_is_replaced(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA, always=Fault(close_silently=True))
    with source_of(url) as source:
        for offset in range(0, 100_000, 10_000):
            assert read(source, offset, 10_000) == DATA[offset : offset + 10_000]


def test_a_request_on_an_idle_connection_is_repeated_once(fault_server: FaultServer) -> None:
    # The server closes only after reading the second request, which no earlier check of the connection can detect.
    url = fault_server.put("/x", DATA, faults=[Fault(), Fault(raw=b"")])
    with source_of(url) as source:
        assert read(source, 5, 5) == DATA[5:10]
    assert [request.connection for request in fault_server.requests] == [0, 0, 1]


def test_nobody_listening_is_unreachable(fault_server: FaultServer) -> None:
    url = fault_server.url("/x")
    fault_server.__exit__()
    with source_of(url) as source, pytest.raises(errors.SourceUnreachable, match="refused"):
        source.probe()
    with (
        source_of("http://no-such-host.invalid/x") as source,
        pytest.raises(errors.SourceUnreachable, match="cannot resolve"),
    ):
        source.probe()


def test_ipv6_is_spoken() -> None:
    with FaultServer(host="::1") as server:
        url = server.put("/x", DATA)
        with source_of(url) as source:
            assert read(source) == DATA
        assert server.requests[0].header("Host") == f"[::1]:{server.port}"


# --- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/b", "b", "./b", "../b?x=y z", "//{host}/b", "http://{host}/b#frag"])
def test_redirects_are_followed_and_remembered(fault_server: FaultServer, status: int, location: str) -> None:
    location = location.format(host=fault_server.origin.removeprefix("http://"))
    url = fault_server.put("/a", always=Fault(status=status, location=location))
    fault_server.put("/b", DATA)
    with source_of(url) as source:
        assert source.probe().name == "a"
        assert read(source, 7, 7) == DATA[7:14]
    assert [request.path for request in fault_server.requests] == ["/a", "/b", "/b"]


def test_a_remembered_redirect_that_expired_is_asked_for_anew(fault_server: FaultServer) -> None:
    def link(request: object) -> Fault:
        return Fault(status=302, location=f"/b?n={len(fault_server.asked('/a'))}")

    url = fault_server.put("/a", always=link)
    fault_server.put("/b", DATA, faults=[Fault(), Fault(), Fault(status=403)])
    with source_of(url) as source:
        for offset in (0, 10, 20):
            assert read(source, offset, 10) == DATA[offset : offset + 10]
    assert len(fault_server.asked("/a")) == 2


def test_a_dead_mirror_is_left_after_a_while(fault_server: FaultServer) -> None:
    dead = FaultServer()
    with dead:
        mirror = dead.put("/b", DATA)
        url = fault_server.put(
            "/a", faults=[Fault(status=302, location=mirror)], always=Fault(status=302, location="/c")
        )
        fault_server.put("/c", DATA)
        source = source_of(url)
        assert read(source, 0, 10) == DATA[:10]
    failures = 0
    for _ in range(10):
        try:
            assert read(source, 10, 10) == DATA[10:20]
            break
        except errors.SourceUnreachable:
            failures += 1
    source.close()
    assert failures == 3


def test_credentials_and_own_headers_stay_with_the_origin(fault_server: FaultServer) -> None:
    with FaultServer() as other:
        target = other.put("/c", DATA)
        fault_server.put("/b", always=Fault(status=307, location=target))
        url = fault_server.put("/a", always=Fault(status=302, location="/b"))
        with source_of(url.replace("//", "//user:pw@"), headers=("X-Own: 1", "Cookie: c")) as source:
            assert read(source, 1, 1) == DATA[1:2]
        for request in fault_server.requests:
            assert (request.header("X-Own"), request.header("Cookie")) == ("1", "c")
            assert request.header("Authorization") == "Basic dXNlcjpwdw=="
        assert len(other.requests) == 2
        for request in other.requests:
            assert {"x-own", "cookie", "authorization"}.isdisjoint(name.lower() for name, _ in request.headers)


def test_credentials_do_not_come_back_by_a_detour(fault_server: FaultServer) -> None:
    with FaultServer() as other:
        back = other.put("/b", always=Fault(status=302, location=fault_server.url("/c")))
        url = fault_server.put("/a", always=Fault(status=302, location=back))
        fault_server.put("/c", always=Fault(status=302, location="/d"))
        fault_server.put("/d", DATA, authorization="Basic dXNlcjpwdw==")
        with source_of(url.replace("//", "//user:pw@")) as source, pytest.raises(errors.SourceUnauthorized) as caught:
            source.probe()
    assert "final URL" in caught.value.remedy


def test_redirects_come_to_an_end(fault_server: FaultServer) -> None:
    url = fault_server.put("/a", always=Fault(status=302, location="/a"))
    with source_of(url) as source, pytest.raises(errors.SourceTooManyRedirects):
        source.probe()
    assert len(fault_server.requests) == 11


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("ftp://example.com/x", errors.SourceUrlInvalid),
        ("file:///etc/passwd", errors.SourceUrlInvalid),
        ("http://[::1", errors.SourceUrlInvalid),
        ("http://a:99999/", errors.SourceUrlInvalid),
    ],
)
def test_a_redirect_to_nowhere_is_refused(
    fault_server: FaultServer, location: str, error: type[errors.CdiError]
) -> None:
    url = fault_server.put("/a", always=Fault(status=302, location=location))
    with source_of(url) as source, pytest.raises(error):
        source.probe()


def test_a_redirect_may_name_utf8_and_spaces(fault_server: FaultServer) -> None:
    url = fault_server.put("/a", always=Fault(status=302, location="/ü b".encode().decode("latin-1")))
    fault_server.put("/%C3%BC%20b", DATA)
    with source_of(url) as source:
        assert read(source, 3, 3) == DATA[3:6]


# --- concurrent connections -------------------------------------------------------------------------------------------


def test_threads_share_a_source_through_faults(fault_server: FaultServer) -> None:
    step = 10_000
    pick = random.Random(3)
    lock = threading.Lock()

    def fault(request: object) -> Fault | None:
        with lock:
            kind = pick.randrange(6)
        return {0: Fault(drop_after=5000), 1: Fault(status=503), 2: Fault(close_silently=True)}.get(kind)

    url = fault_server.put("/x", DATA, faults=[Fault()], always=fault)
    found: dict[int, bytes] = {}
    with source_of(url) as source:
        source.probe()

        def work(first: int) -> None:
            for start in range(first * step, len(DATA), 4 * step):
                while start not in found:
                    try:
                        found[start] = read(source, start, step)
                    except (errors.SourceTruncated, errors.SourceUnavailable):
                        pass

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert b"".join(found[start] for start in sorted(found)) == DATA
