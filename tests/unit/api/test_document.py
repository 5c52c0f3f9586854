"""Hostile manifests: each is read or refused as an InvalidManifest, in bounded time and with a bounded message."""

import copy
import datetime as dt

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdi.api.document import MAX_DEPTH, plain
from cdi.api.errors import InvalidManifest
from cdi.api.validation import parse_manifest
from tests.unit.api.manifests import SOUND, dv, sound


def nested(depth):
    value = 0
    for _ in range(depth):
        value = {"a": value}
    return value


def endless():
    value = {}
    value["a"] = value
    return value


HOSTILE = [
    ("not a mapping", ["kind"], "a manifest must be of type object, not array"),
    ("nothing", None, "not null"),
    ("too deep", nested(MAX_DEPTH + 1), "levels deep"),
    ("very deep", nested(100_000), "levels deep"),
    ("endless", endless(), "levels deep"),
    ("not a number", {"a": [float("nan")]}, "nan is not a number of JSON"),
    ("infinite", {"a": float("-inf")}, "-inf is not a number of JSON"),
    ("huge number", {"a": 1 << 63}, "64 bits"),
    ("number too long to print", {"a": 10**6000}, "64 bits"),
    ("number for a key", {"a": {1: 2}}, "field's name must be of type string, not integer"),
    ("flag for a key", {True: 2}, "field's name must be of type string, not boolean"),
    ("null for a key", {None: 2}, "field's name must be of type string, not null"),
    ("long number for a key", {10**6000: 2}, "field's name must be of type string, not integer"),
    ("bytes", {"a": b"x"}, "a manifest cannot hold a value of type bytes"),
    ("set", {"a": {"x"}}, "a manifest cannot hold a value of type set"),
    ("half a character", {"a": "\ud800"}, "not valid Unicode"),
    ("half a character in a key", {"\ud800": {"b": b""}}, "not valid Unicode"),
    ("long text", {"a": "x" * (4 << 20)}, "characters"),
    ("much", {"a": [0] * 200_000}, "more than 100000 values"),
    ("first year", {"a": dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14)))}, "out of range"),
]


@pytest.mark.parametrize(("document", "words"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_hostile_document_is_refused(document, words):
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(document)
    assert words in caught.value.what
    assert len(str(caught.value)) < 2000


def test_yaml_that_unfolds_is_refused_while_it_is_small():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    with pytest.raises(InvalidManifest, match="more than 100000 values"):
        plain(yaml.safe_load("\n".join(lines)))


def test_a_time_is_a_string_as_in_kubernetes():
    document = yaml.safe_load("{a: 2024-01-02T03:04:05Z, b: 2024-01-02, c: 2024-01-02 03:04:05+02:00}")
    assert plain(document) == {"a": "2024-01-02T03:04:05Z", "b": "2024-01-02", "c": "2024-01-02T01:04:05Z"}


def test_the_copy_shares_nothing_with_the_document():
    document = {"a": {"b": [{}]}}
    copied = plain(document)
    copied["a"]["b"][0]["c"] = 1
    assert document == {"a": {"b": [{}]}}


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*path, index))


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(sorted(SOUND)), st.data(), junk)
def test_anything_anywhere_is_read_or_refused(which, data, value):
    document = sound(which)
    path = data.draw(st.sampled_from([place for place in places(document) if place]))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    before = copy.deepcopy(document)
    try:
        parse_manifest(document)
    except InvalidManifest as error:
        assert len(str(error)) < 10_000
    assert repr(document) == repr(before)


@settings(max_examples=100, deadline=None)
@given(junk)
def test_any_document_is_read_or_refused(value):
    with pytest.raises(InvalidManifest):
        parse_manifest(value)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_url_is_read_or_refused(url):
    for source in ("http", "s3", "gcs", "registry"):
        try:
            parse_manifest(dv({source: {"url": url}}))
        except InvalidManifest as error:
            assert error.code == "InvalidManifest"
