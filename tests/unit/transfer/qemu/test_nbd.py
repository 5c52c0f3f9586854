import errno
import random
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import InternalError, SourceUnavailable
from cdi.transfer.qemu import nbd

FILE = random.Random(7).randbytes(100_001)
DATA = FILE + bytes(100_352 - len(FILE))
"""Exported data: padded to a sector."""


class Memory:
    """Bytes, of which some are unreadable."""

    length = len(FILE)

    def __init__(self, error=None):
        self.error = error
        self.released = 0

    def read_at(self, offset, length):
        if self.error is not None:
            raise self.error
        assert 0 < length <= len(FILE) - offset
        view = memoryview(FILE)[offset : offset + length]
        return [view[: length // 3], view[length // 3 :]]

    def release(self):
        self.released += 1


class Client:
    """Part of the protocol that the tests need, written from the specification and not from the server."""

    def __init__(self, sock):
        self.sock = sock
        sock.settimeout(20)
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        (flags,) = struct.unpack(">H", self.take(2))
        assert flags == 3
        self.sock.sendall(struct.pack(">I", 3))

    def take(self, length):
        data = b""
        while len(data) < length:
            more = self.sock.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def option(self, number, data=b""):
        self.sock.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)

    def reply(self):
        magic, option, kind, length = struct.unpack(">QIII", self.take(20))
        assert magic == 0x3E889045565A9
        return option, kind, self.take(length)

    def go(self, name=b""):
        self.option(7, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        replies = []
        while True:
            option, kind, data = self.reply()
            assert option == 7
            replies.append((kind, data))
            if kind == 1 or kind >> 31:
                return replies

    def request(self, command, offset=0, length=0, payload=b"", cookie=0x0102030405060708):
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length) + payload)

    def answer(self, length=0, cookie=0x0102030405060708):
        magic, error, back = struct.unpack(">IIQ", self.take(16))
        assert (magic, back) == (0x67446698, cookie)
        return error, b"" if error else self.take(length)

    def read(self, offset, length):
        self.request(0, offset, length)
        return self.answer(length)

    def gone(self):
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def server(memory):
    with nbd.NbdServer(memory, max_request=1 << 16) as server:
        yield server


@pytest.fixture
def client(server):
    with server.attach() as sock:
        yield Client(sock)


def test_go_tells_size_flags_and_block_sizes(client):
    replies = client.go()
    info = {struct.unpack(">H", data[:2])[0]: data[2:] for kind, data in replies if kind == 3}
    size, flags = struct.unpack(">QH", info[0])
    assert size == len(DATA)
    assert flags & 0b11 == 0b11  # has flags, read only
    assert flags & 1 << 8  # supports multiple connections
    minimum, preferred, maximum = struct.unpack(">III", info[3])
    assert (minimum, maximum) == (1, 1 << 16)
    assert minimum <= preferred <= maximum
    assert client.read(0, 10) == (0, DATA[:10])


def test_info_then_go_on_one_connection(client):
    client.option(6, struct.pack(">IH", 0, 0))
    kinds = []
    while not kinds or kinds[-1] != 1:
        kinds.append(client.reply()[1])
    client.go()
    assert client.read(5, 5) == (0, DATA[5:10])


@pytest.mark.parametrize("no_zeroes", [False, True])
def test_the_old_way_to_name_an_export(server, no_zeroes):
    with server.attach() as sock:
        assert sock.recv(18, socket.MSG_WAITALL)
        sock.sendall(struct.pack(">I", 3 if no_zeroes else 1) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
        reply = sock.recv(10 if no_zeroes else 134, socket.MSG_WAITALL)
        assert struct.unpack(">Q", reply[:8]) == (len(DATA),)
        sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 50, 4))
        assert sock.recv(20, socket.MSG_WAITALL)[16:] == DATA[50:54]


def test_the_list_has_the_one_export(client):
    client.option(3)
    assert client.reply() == (3, 2, struct.pack(">I", 0))
    assert client.reply() == (3, 1, b"")


def test_an_unknown_export_is_refused_and_negotiation_goes_on(client):
    assert client.go(b"other")[-1][0] == 2**31 + 6
    assert client.go()[-1][0] == 1


@pytest.mark.parametrize("option", [5, 8, 10, 99])
def test_an_unknown_option_is_refused_and_negotiation_goes_on(client, option):
    client.option(option, b"whatever")
    assert client.reply()[1] == 2**31 + 1
    assert client.go()[-1][0] == 1


@pytest.mark.parametrize("data", [b"", b"\0\0\0\xff\0\0", struct.pack(">IH", 0, 3)])
def test_a_malformed_option_is_refused_and_negotiation_goes_on(client, data):
    client.option(7, data)
    assert client.reply()[1] == 2**31 + 3
    assert client.go()[-1][0] == 1


def test_abort_is_acknowledged(client):
    client.option(2)
    assert client.reply()[1] == 1
    assert client.gone()


def test_a_client_that_never_comes_to_the_point_is_hung_up_on(client):
    for _ in range(64):
        client.option(99)
        client.reply()
    assert client.gone()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff", b"IHAVEOPT\0\0\0\x01\0\0\0\x01x"]
)
def test_what_is_not_the_protocol_is_hung_up_on(client, garbage):
    client.sock.sendall(garbage)
    assert client.gone()


def test_reads_anywhere(client):
    client.go()
    for offset, length in [
        (0, 1),
        (1, 65536),
        (len(DATA) - 1, 1),
        (len(DATA) - 65536, 65536),
        (len(FILE) - 2, 5),
        (77, 0),
    ]:
        assert client.read(offset, length) == (0, DATA[offset : offset + length])


def test_requests_in_flight_are_each_answered_once(client):
    client.go()
    for cookie in range(50):
        client.request(0, cookie * 1000, 1000, cookie=cookie)
    got = {}
    for _ in range(50):
        _, error, cookie = struct.unpack(">IIQ", client.take(16))
        assert not error
        got[cookie] = client.take(1000)
    assert got == {cookie: DATA[cookie * 1000 : cookie * 1000 + 1000] for cookie in range(50)}


@pytest.mark.parametrize(("offset", "length"), [(len(DATA), 1), (len(DATA) - 1, 2), (2**63, 1), (0, 65537)])
def test_reads_out_of_bounds_are_refused_and_the_connection_goes_on(client, offset, length):
    client.go()
    assert client.read(offset, length)[0] == errno.EINVAL
    assert client.read(0, 4) == (0, DATA[:4])


@pytest.mark.parametrize(("command", "payload"), [(1, b"x" * 512), (4, b""), (6, b""), (77, b"")])
def test_writing_is_refused_and_the_connection_goes_on(client, command, payload):
    client.go()
    client.request(command, 0, 512, payload)
    assert client.answer()[0] == errno.EPERM
    assert client.read(0, 4) == (0, DATA[:4])


def test_a_flush_has_nothing_to_do(client):
    client.go()
    client.request(3)
    assert client.answer() == (0, b"")


def test_disconnecting_ends_the_connection_for_all_of_its_threads(server, client):
    client.go()
    client.request(2)
    assert client.gone()


@pytest.mark.parametrize(
    ("raised", "kept"), [(SourceUnavailable("busy"), SourceUnavailable), (ValueError("defect"), InternalError)]
)
def test_the_cause_of_a_failed_read_is_kept_and_the_client_gets_an_error(raised, kept):
    with nbd.NbdServer(Memory(raised)) as server, server.attach() as sock:
        client = Client(sock)
        client.go()
        assert client.read(0, 4)[0] == errno.EIO
        assert type(server.cause) is kept


def test_several_connections(server):
    with server.attach() as one, server.attach() as two:
        first, second = Client(one), Client(two)
        first.go()
        second.go()
        assert first.read(1, 3) == second.read(1, 3) == (0, DATA[1:4])


def test_views_are_released_after_each_answer(memory, client):
    client.go()
    client.read(0, 5)
    before = memory.released
    client.read(0, 5)
    client.read(0, 5)
    assert memory.released > before


def test_closing_hangs_up(server, client):
    client.go()
    server.close()
    assert client.gone()
    with pytest.raises(InternalError):
        server.attach()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_no_bytes_from_a_client_keep_the_server_from_closing(pieces, negotiated):
    with nbd.NbdServer(Memory()) as server, server.attach() as sock:
        client = Client(sock)
        if negotiated:
            client.go()
        try:
            for piece in pieces:
                sock.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
