"""Tests of hostile manifests: each is parsed or raises InvalidManifest, in bounded time with a bounded message."""

import copy
import datetime as dt
import json
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdi.api import json_document
from cdi.api.errors import InvalidManifest
from cdi.api.json_document import MAX_DEPTH, MAX_NESTING, NestingCheck, parse_json, plain
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


# --- JSON -----------------------------------------------------------------------------------------------------------


def brackets(levels):
    return '{"a":[' * (levels // 2) + "]}" * (levels // 2)


def test_json_is_parsed_up_to_its_bound():
    assert parse_json(brackets(MAX_NESTING)) == json.loads(brackets(MAX_NESTING))
    with pytest.raises(ValueError, match=f"nested more than {MAX_NESTING} levels"):
        parse_json(brackets(MAX_NESTING + 2))


@pytest.mark.parametrize("text", ["[" * 60_000, brackets(500), '{"a":' * 60_000, " [\n" * 60_000, '["\\"",' * 60_000])
def test_the_parser_never_sees_what_is_nested_deeper(text, monkeypatch):
    monkeypatch.setattr(json_document, "_DECODER", None)
    for sent in (text, text.encode(), bytearray(text.encode("utf-16"))):
        with pytest.raises(ValueError, match="nested more than"):
            parse_json(sent)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(["[" * 1000, '"[{' * 1000, "\\" * 1001 + "[" * 1000]),
        json.dumps({'"' + "[" * 1000: "\\" * 8}),
        json.dumps([[]] * 100_000),
        json.dumps("\\" * (1 << 18) + '"' + "[" * 1000),
    ],
)
def test_brackets_in_strings_and_beside_each_other_do_not_count(text):
    for space in ("", " "):
        assert parse_json(space + text) == json.loads(text)


@given(st.text('[]{}"\\a,:1 ', max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_depth_is_that_of_the_parser_whatever_the_pieces(text, cuts):
    """Every document that the parser accepts is rejected if and only if it is nested deeper than the bound."""
    try:
        depth = levels(json.loads(text))
    except ValueError:
        return
    with mock.patch.object(json_document, "MAX_NESTING", 2):
        check = NestingCheck()
        places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        try:
            for start, end in zip(places, places[1:], strict=False):
                check.feed(text[start:end])
        except ValueError:
            assert depth > 2
        else:
            assert depth <= 2


def levels(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, (dict, list)) + max(map(levels, inner), default=0)


@given(st.recursive(st.none() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=20))
def test_what_is_written_is_parsed(value):
    text = json.dumps(value)
    with mock.patch.object(json_document, "MAX_NESTING", 3):
        if levels(value) > 3:
            with pytest.raises(ValueError, match="nested"):
                parse_json(text)
        else:
            assert parse_json(text) == value


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", '{"a": -Infinity}', "", "{", b"\xff", b"\xff\xfe\x00", "9" * 10_000]
)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_a_field_that_is_there_twice():
    text = '{"a": {"b": 1, "b": 2}}'
    assert parse_json(text) == {"a": {"b": 2}}
    with pytest.raises(ValueError, match="duplicate field 'b'"):
        parse_json(text, unique_fields=True)
