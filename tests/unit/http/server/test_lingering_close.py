import selectors
import socket

import pytest

from cdi.http.server.lingering_close import LingeringCloser


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def leave(clock):
    """Yield a function that returns a client's end of a half-closed connection; `.hear()` reads what has arrived."""
    with selectors.DefaultSelector() as selector:
        farewells = LingeringCloser(selector, longest=60.0, quiet=5.0, most=3, clock=clock)
        held = []

        def make():
            ours, theirs = socket.socketpair()
            held.append(theirs)
            theirs.setblocking(False)
            farewells.take(ours)
            return theirs

        def hear():
            while found := selector.select(0):
                for key, _ in found:
                    farewells.on_readable(key.data)

        make.farewells, make.hear = farewells, hear
        yield make
        farewells.end()
        assert not selector.get_map()
        for sock in held:
            sock.close()


def fill(client):
    count = 0
    try:
        while True:
            count += client.send(b"x" * 65536)
    except BlockingIOError:
        return count


def is_open(client):
    """Return whether the other end is still open."""
    try:
        client.send(b"x")
    except BlockingIOError:
        pass
    except BrokenPipeError:
        return False
    return True


def test_what_comes_is_taken_in_until_the_client_hangs_up(leave):
    client = leave()
    for _ in range(20):
        assert fill(client)
        leave.hear()
    assert leave.farewells.count == 1
    client.shutdown(socket.SHUT_WR)
    leave.hear()
    assert leave.farewells.count == 0
    assert not is_open(client)


def test_who_says_nothing_for_a_while_counts_as_gone(leave, clock):
    quiet, busy = leave(), leave()
    clock.now += 4
    busy.send(b"x")
    leave.hear()
    clock.now += 2
    leave.farewells.expire()
    assert (is_open(quiet), is_open(busy)) == (False, True)


def test_who_drips_is_cut_off_in_the_end(leave, clock):
    client = leave()
    for _ in range(60):
        clock.now += 1
        client.send(b"x")
        leave.hear()
        leave.farewells.expire()
    assert is_open(client)
    leave.hear()
    clock.now += 1
    leave.farewells.expire()
    assert not is_open(client)


def test_where_there_are_too_many_the_first_one_goes(leave):
    clients = [leave() for _ in range(5)]
    assert [is_open(client) for client in clients] == [False, False, True, True, True]
    assert leave.farewells.count == 3


def test_a_connection_that_is_gone_already(leave):
    ours, theirs = socket.socketpair()
    ours.close()
    theirs.close()
    leave.farewells.take(ours)
    assert leave.farewells.count == 0
    client = leave()
    client.close()
    leave.hear()
    assert leave.farewells.count == 0
