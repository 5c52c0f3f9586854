"""Tests of WWW-Authenticate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.http.challenge import parse_challenges


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ('Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"', [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"})]),
        ('bearer Realm = "https://a/t" , service=s', [("bearer", {"realm": "https://a/t", "service": "s"})]),
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        ("Basic", [("basic", {})]),
        ('Negotiate, Basic realm="x"', [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('Negotiate abc==, Bearer realm="r"', [("negotiate", {}), ("bearer", {"realm": "r"})]),
        ('Basic realm="a, Bearer b=c", Bearer realm="d"', [("basic", {"realm": "a, Bearer b=c"}), ("bearer", {"realm": "d"})]),
        (r'Basic realm="say \"hi\" \\"', [("basic", {"realm": 'say "hi" \\'})]),
        ("Bearer realm=https://a/t?x=y,service=s", [("bearer", {"realm": "https://a/t?x=y", "service": "s"})]),
        ('Bearer realm="first",realm="second"', [("bearer", {"realm": "first"})]),
        ('realm="without a scheme"', []),
        ('Bearer realm="unended', [("bearer", {"realm": ""})]),
        ("", []),
        (",,, ,", []),
    ],
)  # fmt: skip
def test_challenges_are_understood(value, found):
    assert [(challenge.scheme, challenge.parameters) for challenge in parse_challenges([value])] == found


def test_several_headers_are_one_list():
    assert [c.scheme for c in parse_challenges(["Basic", 'Bearer realm="r"'])] == ["basic", "bearer"]


def test_a_flood_is_cut_off():
    assert len(parse_challenges(["a, " * 10_000] * 10)) == 16


@given(st.lists(st.text('Ba ",=\\x\t;', max_size=200), max_size=3))
def test_any_text_ends(values):
    assert len(parse_challenges(values)) <= 16
