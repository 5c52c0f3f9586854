from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import (
    AdmissionDenied,
    AlreadyExists,
    ClusterForbidden,
    ClusterProtocolError,
    ClusterRefused,
    ClusterUnauthorized,
    ClusterUnavailable,
    Conflict,
    HistoryExpired,
    InvalidManifest,
    NotFound,
    QuotaExceeded,
)
from cdi.kube import responses
from cdi.kube.responses import lines
from tests.unit.kube.server import status_of

QUOTA = 'pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1'
RBAC = 'pods is forbidden: User "exceeded quota: " cannot create resource "pods" in API group "" in the namespace "a"'
POLICY = "pods \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"
WEBHOOK = 'admission webhook "require-owner.example.org" denied the request: no'
OWN_WEBHOOK = 'admission webhook "datavolume-validate.cdi.kubevirt.io" denied the request: spec.pvc: no'


@pytest.mark.parametrize(
    ("status", "reason", "message", "error"),
    [
        (400, "BadRequest", "x", InvalidManifest),
        (401, "Unauthorized", "x", ClusterUnauthorized),
        (403, "Forbidden", RBAC, ClusterForbidden),
        (403, "Forbidden", QUOTA, QuotaExceeded),
        (403, "Forbidden", 'pods "x" is forbidden: failed quota: q: must specify limits.cpu', QuotaExceeded),
        (403, "", "", ClusterForbidden),
        (404, "NotFound", "x", NotFound),
        (405, "MethodNotAllowed", "x", ClusterRefused),
        (409, "Conflict", "x", Conflict),
        (409, "AlreadyExists", "x", AlreadyExists),
        (410, "Expired", "x", HistoryExpired),
        (413, "RequestEntityTooLarge", "x", InvalidManifest),
        (415, "UnsupportedMediaType", "x", ClusterRefused),
        (422, "Invalid", "x", InvalidManifest),
        (422, "Invalid", POLICY, AdmissionDenied),
        (401, "Unauthorized", POLICY, AdmissionDenied),
        (403, "Forbidden", POLICY, ClusterForbidden),
        (400, "", WEBHOOK, AdmissionDenied),
        (404, "NotFound", WEBHOOK, AdmissionDenied),
        (409, "Conflict", WEBHOOK, AdmissionDenied),
        (422, "Invalid", OWN_WEBHOOK, InvalidManifest),
        (422, "Invalid", 'Pod "x" is invalid: admission webhook "x" denied the request', InvalidManifest),
        (429, "TooManyRequests", "x", ClusterUnavailable),
        (500, "InternalError", "x", ClusterUnavailable),
        (503, "ServiceUnavailable", "x", ClusterUnavailable),
        (599, "", "", ClusterUnavailable),
    ],
)
def test_every_refusal_has_its_error(status, reason, message, error):
    assert type(responses.error_from_status(status, status_of(status, reason, message), {}, "GET /x")) is error


@pytest.mark.parametrize("body", [None, [], "text", {}, {"kind": "Status", "details": 5}, {"kind": "Status", "details": {"causes": [1]}}])  # fmt: skip
@pytest.mark.parametrize("status", [401, 403, 404, 409, 410, 422, 429, 500, 418])
def test_an_answer_without_a_status_is_borne(status, body):
    assert str(status) in responses.error_from_status(status, body, {}, "GET /x").what or status == 404


def test_the_server_s_message_and_fields_are_kept():
    causes = [{"reason": "FieldValueInvalid", "field": "spec.a"}, {"field": "spec.b"}, {"field": "spec.a"}]
    error = responses.error_from_status(422, status_of(422, "Invalid", "no\n good.", causes=causes), {}, "POST /x")
    assert (error.what, error.where) == ("no good", "spec.a, spec.b")


def test_a_namespace_that_is_being_deleted_is_named():
    body = status_of(403, "Forbidden", "x", causes=[{"reason": "NamespaceTerminating"}])
    assert "deleted" in responses.error_from_status(403, body, {}, "POST /x").remedy


@pytest.mark.parametrize(
    ("headers", "details", "seconds"),
    [
        ({"Retry-After": "3"}, {"retryAfterSeconds": 9}, 3),
        ({}, {"retryAfterSeconds": 9}, 9),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {}, None),
        ({"Retry-After": "-1"}, {}, None),
        ({"Retry-After": "nan"}, {}, None),
        ({"Retry-After": "1e9"}, {}, responses.MAX_PAUSE),
    ],
)
def test_the_pause_that_a_server_asks_for(headers, details, seconds):
    assert responses.error_from_status(503, status_of(503, **details), headers, "GET /x").retry_after == seconds


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.lists(st.dictionaries(st.text(), JSON, max_size=3)),
    st.dictionaries(st.text(), JSON, max_size=3),
    st.sampled_from([None, 1]),
    st.booleans(),
)
async def test_a_list_that_is_read_item_by_item_is_the_list(items, metadata, indent, items_first):
    body = {"kind": "List", "x": {"items": [1]}, "metadata": metadata, "items": items}
    if items_first:
        body = dict(reversed(body.items()))
    data = json.dumps(body, indent=indent).encode()
    assert await responses.decode_list(data, "GET /x", lambda item: item) == (items, metadata)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"items"', '{"items": [', '{"items": [{}', '{"items": [{} {}]}', '{"items": [{}],', "{5: 1}", '{"a" 1}',
     '{"items": [{"a": "\xe4'.encode("latin-1"), '{"items": ' + "[" * 100_000,
     '{"items": [{"a": ' + "[" * 500 + "]" * 500 + "}]}"],
)  # fmt: skip
async def test_a_list_that_is_none_is_refused(text):
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ClusterProtocolError):
        await responses.decode_list(data, "GET /x", lambda item: item)


async def test_others_get_their_turn_while_a_long_list_is_read():
    import asyncio

    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    data = json.dumps({"items": [{"x": "y" * 100_000}] * 40}).encode()
    await responses.decode_list(data, "GET /x", lambda item: item)
    task.cancel()
    assert turns >= 10


@given(st.binary(max_size=200).map(lambda data: data.replace(b"\r", b"\n")), st.lists(st.integers(0, 200)))
async def test_any_cutting_gives_the_same_lines(data, cuts):
    async def pieces():
        edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        for begin, end in zip(edges, edges[1:], strict=False):
            yield data[begin:end]

    assert [line async for line in lines(pieces(), 1000, "x")] == [
        line for line in data.split(b"\n")[:-1] if line.strip()
    ]


@pytest.mark.parametrize("cut", [1, 5, 9, 12])
async def test_a_line_s_limit_holds_however_it_is_cut(cut):
    async def pieces():
        for at in range(0, 12, cut):
            yield b"0123456789\n\n"[at : at + cut]

    assert [line async for line in lines(pieces(), 10, "x")] == [b"0123456789"]
    with pytest.raises(ClusterProtocolError):
        assert [line async for line in lines(pieces(), 9, "x")]
