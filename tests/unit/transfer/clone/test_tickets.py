"""Targets of a source, as a kubelet mounts them."""

import os

import pytest

from cdi.api.copy import MAX_TARGETS, TICKET_PREFIX, Ticket
from cdi.transfer.clone.tickets import TicketFile, line_of

ONE = Ticket(id="one", address="10.0.0.1:8444", server_name='a "name".svc', attempt="x", bandwidth=7, claim="ns/one")
TWO = Ticket(id="two", address="[fd00::1]:8444")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "targets"


def put(file, *lines):
    (file.parent / "new").write_text("".join(lines))
    os.replace(file.parent / "new", file)


def test_targets_come_and_go(file):
    warnings = []
    ticket_file = TicketFile(str(file), warnings.append)
    assert ticket_file.reload() == {}
    put(file, line_of(ONE))
    assert ticket_file.reload() == {"one": ONE}
    put(file, line_of(TWO), line_of(ONE))
    assert ticket_file.reload() == {"one": ONE, "two": TWO}
    file.unlink()
    assert ticket_file.reload() == {}
    put(file, line_of(TWO))
    assert ticket_file.reload() == {"two": TWO}
    assert not warnings


def test_a_kubelets_own_words_are_understood(file):
    put(
        file,
        'cdi.kubevirt.io/clone.target.u-1="{\\"id\\":\\"one\\",\\"address\\":\\"10.0.0.1:8444\\"}"\n'
        'kubernetes.io/config.seen="2026-01-01T00:00:00Z"\n',
    )
    assert list(TicketFile(str(file), print).reload()) == ["one"]


@pytest.mark.parametrize(
    "line",
    [
        f"{TICKET_PREFIX}x=no quotes\n",
        f'{TICKET_PREFIX}x="{{}}"\n',
        f"{TICKET_PREFIX}x=7\n",
        line_of(Ticket(id="../../etc/x", address="a:1")),
        line_of(Ticket(id="", address="a:1")),
    ],
)
def test_what_is_no_ticket_is_told_and_passed_over(file, line):
    warnings = []
    put(file, line, "something=else\n", "\n", line_of(ONE))
    assert TicketFile(str(file), warnings.append).reload() == {"one": ONE}
    assert len(warnings) == 1


def test_who_has_a_place_and_no_address_is_not_called_yet(file):
    put(file, line_of(Ticket(id="one", address="")), line_of(TWO))
    assert TicketFile(str(file), pytest.fail).reload() == {"two": TWO}


def test_there_is_an_end(file):
    warnings = []
    put(file, *[line_of(Ticket(id=f"t{number}", address="a:1")) for number in range(MAX_TARGETS + 5)])
    assert len(TicketFile(str(file), warnings.append).reload()) == MAX_TARGETS
    assert warnings
