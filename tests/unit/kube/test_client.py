from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest

from cdi.api.errors import (
    AlreadyExists,
    ClusterProtocolError,
    ClusterUnauthorized,
    ClusterUnavailable,
    ClusterUnreachable,
    HistoryExpired,
    InvalidManifest,
    NotFound,
)
from cdi.api.kinds import CONFIG_MAPS, NODES, PODS, RESOURCES, SERVICES, resource_named, resource_of
from cdi.kube import transport
from cdi.kube.credentials import Endpoint, FixedCredentials
from tests.unit.kube.server import advance_clock, cut, event, listing, silent, status_of, thing, watched

MAPS = "/api/v1/namespaces/n/configmaps"


async def events(client, **wishes):
    return [each async for each in client.watch(CONFIG_MAPS, "n", version="1", **wishes)]


# --- paths --------------------------------------------------------------------------------------------------------


def test_every_resource_is_found_by_its_manifest_and_by_its_plural():
    for each in RESOURCES:
        assert resource_of(each.api_version, each.kind) is each
        assert resource_named(each.plural) is each


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_cannot_leave_its_place_in_a_path(name):
    with pytest.raises(InvalidManifest):
        PODS.path("n", name)
    with pytest.raises(InvalidManifest):
        PODS.path(name, "p")
    assert PODS.path("n/../m", "a/b?c") == "/api/v1/namespaces/n%2F..%2Fm/pods/a%2Fb%3Fc"


def test_what_belongs_to_no_namespace_has_none_in_its_path():
    assert NODES.path("ignored", "x") == "/api/v1/nodes/x"
    assert SERVICES.path(None) == "/api/v1/services"
    with pytest.raises(InvalidManifest):
        SERVICES.path(None, "x")


async def test_a_name_arrives_as_it_was_escaped(server):
    server.answer((200, thing()))
    async with server.client() as client:
        await client.get(CONFIG_MAPS, "n", "a/b")
    assert server.requests[0][1] == f"{MAPS}/a/b"  # aiohttp's server shows it decoded; one segment more would be 404


# --- waiting and retrying -----------------------------------------------------------------------------------------


async def test_a_server_that_asks_to_wait_is_given_the_time_it_asks_for(server):
    server.answer((429, status_of(429), {"Retry-After": "7"}), (200, thing()))
    async with server.client() as client:
        assert (await client.create(CONFIG_MAPS, thing()))["metadata"]["name"] == "a"
    assert [int(each) for each in server.slept] == [7]


async def test_patience_has_an_end(server):
    server.answer(*[503] * 20)
    async with server.client(patience=30) as client:
        with pytest.raises(ClusterUnavailable):
            await client.get(CONFIG_MAPS, "n", "a")
    assert sum(server.slept) <= 30
    assert len(server.slept) > 4
    assert server.slept[-1] > server.slept[0]


async def test_a_wait_that_is_longer_than_our_patience_is_not_begun(server):
    server.answer((503, status_of(503), {"Retry-After": "100"}))
    async with server.client(patience=30) as client:
        with pytest.raises(ClusterUnavailable) as caught:
            await client.get(CONFIG_MAPS, "n", "a")
    assert caught.value.retry_after == 100
    assert server.slept == []


async def test_a_refused_connection_is_waited_out_also_by_what_changes_something(server):
    with socket.socket() as taken:  # a port without listener
        taken.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
        credentials = FixedCredentials(Endpoint(server=gone))

        async def comes_back(seconds):
            credentials._access = Endpoint(server=server.url)

        server.answer((201, thing()))
        client = server.client(credentials)
        client._transport.timing = transport.Timeouts(sleep=comes_back)
        async with client:
            await client.create(CONFIG_MAPS, {"metadata": {"generateName": "a-", "namespace": "n"}})
    assert len(server.requests) == 1


async def test_a_server_that_stays_away_is_told_as_unreachable(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        credentials = FixedCredentials(Endpoint(server=f"http://127.0.0.1:{taken.getsockname()[1]}"))
        async with server.client(credentials, patience=3) as client:
            with pytest.raises(ClusterUnreachable, match="cannot connect"):
                await client.get(CONFIG_MAPS, "n", "a")
    assert 0 < sum(server.slept) <= 3


@pytest.mark.parametrize("fault", [cut, 503, 500, 504])
async def test_what_may_have_been_carried_out_is_not_sent_again_where_that_would_make_two(server, fault):
    server.answer(fault)
    async with server.client() as client:
        with pytest.raises((ClusterUnreachable, ClusterUnavailable)):
            await client.create(CONFIG_MAPS, {"metadata": {"generateName": "a-", "namespace": "n"}})
        server.answer(fault)
        with pytest.raises((ClusterUnreachable, ClusterUnavailable)):
            await client.patch(CONFIG_MAPS, "n", "a", [{"op": "add", "path": "/x/-", "value": 1}], kind="json")
        server.answer(fault)
        with pytest.raises((ClusterUnreachable, ClusterUnavailable)):
            await client.delete(CONFIG_MAPS, "n", "a")  # it may be another object of that name by now
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [cut, 503])
async def test_what_is_the_same_twice_is_sent_again(server, fault):
    async with server.client() as client:
        server.answer(fault, (200, thing()))
        await client.update(CONFIG_MAPS, thing())
        server.answer(fault, (200, thing()))
        await client.patch(CONFIG_MAPS, "n", "a", {"data": {}})
        server.answer(fault, (200, thing()))
        await client.patch(CONFIG_MAPS, "n", "a", {"data": {}}, kind="apply")
        server.answer(fault, (409, status_of(409, "AlreadyExists", "it is there")))
        with pytest.raises(AlreadyExists):
            await client.create(CONFIG_MAPS, thing())
    assert len(server.requests) == 8


async def test_a_deletion_whose_answer_got_lost_has_succeeded_when_there_is_nothing_left(server):
    server.answer(cut, 404)
    async with server.client() as client:
        assert await client.delete(CONFIG_MAPS, "n", "a", uid="u") is None
        server.answer(404)
        with pytest.raises(NotFound):
            await client.delete(CONFIG_MAPS, "n", "a", uid="u")


async def test_a_deletion_says_what_it_must_find(server):
    server.answer((200, {"kind": "Status", "status": "Success"}))
    async with server.client() as client:
        await client.delete(CONFIG_MAPS, "n", "a", uid="u", version="5", grace=0, propagation="Background")
    assert json.loads(server.requests[0][3]) == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": "u", "resourceVersion": "5"},
        "gracePeriodSeconds": 0,
        "propagationPolicy": "Background",
    }


async def test_an_object_that_waits_for_its_end_is_given_and_one_that_is_gone_is_not(server):
    body = thing()
    body["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0}
    held = {**body, "metadata": {**body["metadata"], "finalizers": ["x/y"]}}
    graced = {**body, "metadata": {**body["metadata"], "deletionGracePeriodSeconds": 30}}
    server.answer((200, held), (200, graced), (200, body))
    async with server.client() as client:
        assert await client.delete(CONFIG_MAPS, "n", "a") == held
        assert await client.delete(CONFIG_MAPS, "n", "a") == graced
        assert await client.delete(CONFIG_MAPS, "n", "a") is None


async def test_credentials_that_are_refused_are_renewed_once(server):
    class Renewing(FixedCredentials):
        renewed = 0

        async def invalidate(self):
            self.renewed += 1
            self._access = Endpoint(server=server.url, authorization=f"Bearer {self.renewed}")
            return True

    credentials = Renewing(Endpoint(server=server.url, authorization="Bearer 0"))
    server.answer(401, (200, thing()), 401, 401)
    async with server.client(credentials) as client:
        await client.get(CONFIG_MAPS, "n", "a")
        with pytest.raises(ClusterUnauthorized):
            await client.get(CONFIG_MAPS, "n", "a")
    assert [headers["Authorization"] for *_, headers in server.requests] == [f"Bearer {n}" for n in (0, 1, 1, 2)]


# --- responses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['{"kind": "Config', "<html>log in</html>", '{"a": ' * 100_000, ""])
async def test_what_is_no_json_is_told_as_such(server, text):
    server.answer((200, text), (200, text))
    async with server.client() as client:
        with pytest.raises(ClusterProtocolError):
            await client.get(CONFIG_MAPS, "n", "a")
        with pytest.raises(ClusterProtocolError):
            await client.list(CONFIG_MAPS, "n")


async def test_a_redirect_is_not_followed(server):
    server.answer((302, "", {"Location": "http://elsewhere.test/"}))
    async with server.client() as client:
        with pytest.raises(ClusterProtocolError):
            await client.get(CONFIG_MAPS, "n", "a")
    assert len(server.requests) == 1


async def test_plain_text_is_given_as_text(server):
    server.answer((200, "ok"))
    async with server.client() as client:
        assert await client.request("GET", "/healthz") == "ok"


# --- lists --------------------------------------------------------------------------------------------------------


async def test_a_list_comes_in_pages_and_its_items_say_what_they_are(server):
    server.answer(listing(thing("a"), version=9, following="more"), listing(thing("b"), version=9))
    async with server.client() as client:
        found = await client.list(CONFIG_MAPS, "n", labels="x=y", page=1)
    assert [each["metadata"]["name"] for each in found.items] == ["a", "b"]
    assert {(each["kind"], each["apiVersion"]) for each in found.items} == {("ConfigMap", "v1")}
    assert found.version == "9"
    queries = [query for _, _, query, *_ in server.requests]
    assert queries == [
        {"labelSelector": "x=y", "limit": "1"},
        {"labelSelector": "x=y", "limit": "1", "continue": "more"},
    ]


async def test_a_list_whose_beginning_was_forgotten_is_begun_anew(server):
    server.answer(listing(thing("old"), following="more"), 410, listing(thing("a")))
    async with server.client() as client:
        assert [each["metadata"]["name"] for each in (await client.list(CONFIG_MAPS)).items] == ["a"]
    assert "continue" not in server.requests[-1][2]


async def test_a_list_that_is_forgotten_again_and_again_ends(server):
    server.answer(*[410] * 4)
    async with server.client() as client:
        with pytest.raises(ClusterUnavailable):
            await client.list(CONFIG_MAPS)


async def test_pages_that_are_too_large_are_asked_for_in_smaller_ones(server, monkeypatch):
    monkeypatch.setattr(transport, "MAX_ANSWER", 5000)
    big = thing("big", data={"x": "y" * 6000})
    server.answer(listing(big, big), listing(thing("a"), following="more"), listing(big), listing(big))
    async with server.client() as client:
        with pytest.raises(ClusterProtocolError, match="an object"):
            await client.list(CONFIG_MAPS, page=64)
    assert [query["limit"] for _, _, query, *_ in server.requests] == ["64", "8", "8", "1"]


# --- watches ------------------------------------------------------------------------------------------------------


async def test_an_object_of_any_size_fits_on_a_line_of_a_watch(server):
    large = thing(data={"x": "ä" * (3 << 20)})
    line = event("ADDED", large).encode()
    server.answer(watched(line[:1000], line[1000 : 2 << 20], line[2 << 20 :] + event("MODIFIED", thing()).encode()))
    async with server.client() as client:
        first, second = await events(client)
    assert first == {"type": "ADDED", "object": large}
    assert second["type"] == "MODIFIED"


async def test_a_line_has_a_limit(server, monkeypatch):
    from cdi.kube import client as module

    monkeypatch.setattr(module, "MAX_ANSWER", 1000)
    server.answer(watched("x" * 600, "x" * 600))
    async with server.client() as client:
        with pytest.raises(ClusterProtocolError, match="1000"):
            await events(client)


async def test_what_was_told_before_a_watch_broke_is_kept(server):
    line = event("ADDED", thing())
    server.answer(watched(line, line[:20], then=cut))
    async with server.client() as client:
        seen = []
        with pytest.raises(ClusterUnreachable):
            async for each in client.watch(CONFIG_MAPS, "n", version="1"):
                seen.append(each["type"])
    assert seen == ["ADDED"]


async def test_half_a_line_at_the_end_of_a_watch_is_no_event(server):
    server.answer(watched(event("ADDED", thing()), '{"type": "ADD'))
    async with server.client() as client:
        assert len(await events(client)) == 1


@pytest.mark.parametrize("line", ["{nonsense}", "[]", '{"type": "ADDED"}', '{"type": "ADDED", "object": 5}', "\xff"])
async def test_a_line_that_is_no_event_ends_the_watch(server, line):
    server.answer(watched(line.encode("latin-1") + b"\n"))
    async with server.client() as client:
        with pytest.raises(ClusterProtocolError):
            await events(client)


async def test_a_watch_that_fell_silent_is_given_up(server):
    server.answer(watched(event("ADDED", thing()), then=silent))
    async with server.client() as client:
        seen = []
        with pytest.raises(ClusterUnreachable, match="timed out"):
            async for each in client.watch(CONFIG_MAPS, "n", version="1"):
                seen.append(each["type"])
                advance_clock(1000)
    assert seen == ["ADDED"]


async def test_a_watch_asks_for_bookmarks_and_for_an_end(server):
    server.answer(watched(), watched(), 410)
    async with server.client() as client:
        assert await events(client, timeout_seconds=7) == []
        assert await events(client, labels="a=b") == []
        with pytest.raises(HistoryExpired):
            await events(client)
    first, second, _ = (query for _, _, query, *_ in server.requests)
    assert first == {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": "1", "timeoutSeconds": "7"}
    assert int(second["timeoutSeconds"]) < 100, "before 120 seconds of silence count as a lost connection"
    assert second["labelSelector"] == "a=b"


async def test_logs_come_in_pieces_as_they_are_written(server):
    more = asyncio.Event()

    async def wait(request):
        await more.wait()

    server.answer(watched(b"one\n", then=wait))
    async with server.client() as client:
        seen = b""
        async with contextlib.aclosing(client.logs("n", "p", "c", follow=True, tail=5)) as pieces:
            async for piece in pieces:
                seen += piece
                more.set()
    assert seen == b"one\n"
    assert server.requests[0][2] == {"container": "c", "follow": "true", "tailLines": "5"}
