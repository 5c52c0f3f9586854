"""Targets of a source, as a kubelet mounts them."""

import os

import pytest

from cdi.api.copy import TARGETS_MOST, TICKET_PREFIX, Ticket
from cdi.transfer.copy.roster import Roster, line_of

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
    roster = Roster(str(file), warnings.append)
    assert roster.look() == {}
    put(file, line_of(ONE))
    assert roster.look() == {"one": ONE}
    put(file, line_of(TWO), line_of(ONE))
    assert roster.look() == {"one": ONE, "two": TWO}
    file.unlink()
    assert roster.look() == {}
    put(file, line_of(TWO))
    assert roster.look() == {"two": TWO}
    assert not warnings


def test_a_kubelets_own_words_are_understood(file):
    put(
        file,
        'cdi.kubevirt.io/clone.target.u-1="{\\"id\\":\\"one\\",\\"address\\":\\"10.0.0.1:8444\\"}"\n'
        'kubernetes.io/config.seen="2026-01-01T00:00:00Z"\n',
    )
    assert list(Roster(str(file), print).look()) == ["one"]


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
    assert Roster(str(file), warnings.append).look() == {"one": ONE}
    assert len(warnings) == 1


def test_who_has_a_place_and_no_address_is_not_called_yet(file):
    put(file, line_of(Ticket(id="one", address="")), line_of(TWO))
    assert Roster(str(file), pytest.fail).look() == {"two": TWO}


def test_there_is_an_end(file):
    warnings = []
    put(file, *[line_of(Ticket(id=f"t{number}", address="a:1")) for number in range(TARGETS_MOST + 5)])
    assert len(Roster(str(file), warnings.append).look()) == TARGETS_MOST
    assert warnings
