import select
import selectors
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustme

from cdi.http.server.pending import Outgoing, PendingAnswers

KIB = 1 << 10
MIB = 1 << 20


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pend(clock):
    """Yield a function that returns the client's end of a pending response; `.go_on()` sends what fits."""
    with selectors.DefaultSelector() as selector:
        pending = PendingAnswers(
            selector, grace=8.0, slowest=16 * KIB, max_answers=3, max_bytes=4 * MIB, clock=clock
        )  # fmt: skip
        held, sent = [], []

        def make(data, *, verified=False):
            ours, theirs = socket.socketpair()
            held.append(theirs)
            pending.add(
                ours, Outgoing(ours, data), verified=verified, sent=lambda: (sent.append(theirs), ours.close())
            )  # fmt: skip
            return theirs

        def go_on():
            for key, _ in selector.select(0):
                pending.send(key.data)

        make.pending, make.go_on, make.sent = pending, go_on, sent
        yield make
        pending.end()
        assert not selector.get_map()
        for sock in held:
            sock.close()


def is_open(client):
    """Return whether the other end is still open."""
    try:
        client.send(b"x")
    except OSError:
        return False
    return True


def test_an_answer_is_sent_as_fast_as_its_client_takes_it(pend):
    data = bytes(range(256)) * (4 * KIB)
    client = pend(data)
    client.settimeout(60)
    got = b""
    while len(got) < len(data):
        pend.go_on()
        got += client.recv(64 * KIB)
    assert got == data
    assert pend.sent == [client]
    assert pend.pending.count == 0


def test_who_does_not_read_is_given_up_at_the_deadline_for_all_of_it(pend, clock):
    """Reading a little now and then does not extend the deadline."""
    client = pend(bytes(MIB))
    for _ in range(72):
        pend.go_on()
        client.recv(KIB)
        pend.pending.expire()
        assert is_open(client)
        clock.now += 1
    clock.now += 1
    pend.pending.expire()
    assert not is_open(client)
    assert pend.sent == []


def test_where_there_are_too_many_the_first_that_showed_nothing_goes(pend):
    clients = [pend(bytes(MIB), verified=verified) for verified in (True, False, False, True, True, True)]
    assert [is_open(client) for client in clients] == [False, False, False, True, True, True]


def test_all_of_them_together_are_bounded(pend):
    clients = [pend(bytes(size * MIB)) for size in (2, 1, 3)]
    assert [is_open(client) for client in clients] == [False, True, True]
    assert not is_open(pend(bytes(5 * MIB)))
    assert pend.pending.count == 0


def test_a_client_that_is_gone(pend):
    client = pend(bytes(MIB))
    client.close()
    pend.go_on()
    assert pend.pending.count == 0
    assert pend.sent == []


def test_one_is_given_up_to_make_room(pend):
    verified, other = pend(bytes(MIB), verified=True), pend(bytes(MIB))
    assert pend.pending.give_one_up()
    assert (is_open(verified), is_open(other)) == (True, False)
    assert pend.pending.give_one_up()
    assert not pend.pending.give_one_up()


@pytest.fixture(scope="module")
def tls():
    """Yield the two ends of a TLS connection, whose client reads on demand."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * KIB)
        plain = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    taken = []
    shaking = threading.Thread(target=lambda: taken.append(server.wrap_socket(accepted, server_side=True)))
    shaking.start()
    with client.wrap_socket(plain, server_hostname="localhost") as theirs:
        shaking.join()
        with taken[0] as ours:
            yield ours, theirs


def test_a_record_that_was_cut_off_by_a_full_socket_is_gone_on_with(tls):
    ours, theirs = tls
    data = bytes(range(251)) * (40 * KIB)
    outgoing = Outgoing(ours, data)
    assert not outgoing.send()
    assert 0 < outgoing.size < len(data)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, theirs, len(data))
        while not outgoing.send():
            select.select([], [ours], [], 60)
        assert reading.result() == data


def read(sock, size):
    got = bytearray()
    while len(got) < size and (piece := sock.recv(64 * KIB)):
        got += piece
    return got
