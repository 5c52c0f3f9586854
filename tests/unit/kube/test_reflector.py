from __future__ import annotations

import asyncio
import contextlib

from cdi.api.errors import ClusterForbidden
from cdi.api.kinds import CONFIG_MAPS
from cdi.kube.reflector import Reflector
from tests.unit.kube.server import advance_clock, cut, event, listing, silent, status_of, thing, watched


class Told:
    """Events of a reflector, with the state of its cache at each."""

    def __init__(self) -> None:
        self.changes = []
        self.changed = asyncio.Condition()
        self.tasks = set()

    def listen(self, change) -> None:
        self.changes.append(change)
        self.tasks.add(asyncio.ensure_future(self.wake()))

    async def wake(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, count: int):
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.changes) >= count)
        return self.words()

    def words(self):
        return [(each.type, each.object["metadata"]["name"], each.object["metadata"]["resourceVersion"])
                for each in self.changes]  # fmt: skip


@contextlib.asynccontextmanager
async def following(server, told=None, **wishes):
    """Yield a running reflector and its events; it runs until the server's script is exhausted."""
    told = told or Told()
    async with server.client() as client:
        reflector = Reflector(
            client, CONFIG_MAPS, namespace="n", on_change=told.listen, **({"sleep": server.sleep} | wishes)
        )
        task = asyncio.create_task(reflector.run())
        try:
            yield reflector, told
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def versions(server):
    return [query.get("resourceVersion") for _, _, query, *_ in server.requests]


async def test_what_there_is_then_what_changes(server):
    server.answer(
        listing(thing("a"), version=5),
        watched(
            event("MODIFIED", thing("a", 6)),
            event("ADDED", thing("b", 7)),
            event("DELETED", thing("a", 8)),
            then=silent,
        ),
    )
    async with following(server) as (reflector, told):
        words = await told.until(4)
        assert words == [("ADDED", "a", "1"), ("MODIFIED", "a", "6"), ("ADDED", "b", "7"), ("DELETED", "a", "6")]
        assert reflector.cache.synced.is_set()
        assert reflector.cache.get("n", "a") is None
        assert [each["metadata"]["name"] for each in reflector.cache] == ["b"]
        modified = told.changes[1]
        assert (modified.old["metadata"]["resourceVersion"], modified.new["metadata"]["resourceVersion"]) == ("1", "6")


async def test_a_watch_that_ends_goes_on_from_the_last_bookmark_without_a_list(server):
    bookmark = {"kind": "ConfigMap", "metadata": {"resourceVersion": "50"}}
    server.answer(
        listing(thing("a"), version=5),
        watched(event("BOOKMARK", bookmark)),
        watched(event("ADDED", thing("b", 51)), then=silent),
    )
    async with following(server) as (_, told):
        await told.until(2)
    assert versions(server) == [None, "5", "50"]


async def test_a_broken_watch_goes_on_from_what_was_told(server):
    server.answer(
        listing(version=5),
        watched(event("ADDED", thing("a", 6)), '{"type": "ADDED", "obj', then=cut),
        watched(event("ADDED", thing("b", 7)), then=silent),
    )
    async with following(server) as (reflector, told):
        assert await told.until(2) == [("ADDED", "a", "6"), ("ADDED", "b", "7")]
        assert reflector.failure is None
    assert versions(server) == [None, "5", "6"]
    assert len(server.slept) == 1


async def test_a_silent_watch_is_begun_anew_from_where_it_was(server):
    server.answer(
        listing(version=5),
        watched(event("ADDED", thing("a", 6)), then=silent),
        watched(event("ADDED", thing("b", 7)), then=silent),
    )
    async with following(server) as (_, told):
        await told.until(1)
        advance_clock(1000)
        await told.until(2)
    assert versions(server)[:3] == [None, "5", "6"]


async def test_what_vanished_while_nobody_watched_is_told_as_deleted(server):
    server.answer(
        listing(thing("a"), thing("b"), version=5),
        watched(event("ERROR", status_of(410, "Expired"))),
        listing(thing("b", 9), thing("c", 8), version=10),
        watched(then=silent),
    )
    async with following(server) as (reflector, told):
        words = await told.until(5)
        assert words[2:] == [("DELETED", "a", "1"), ("MODIFIED", "b", "9"), ("ADDED", "c", "8")]
        assert len(reflector.cache) == 2
    assert "continue" not in server.requests[2][2]


async def test_a_server_that_forgot_the_version_is_listed_again(server):
    server.answer(listing(version=5), 410, listing(thing("a"), version=10), watched(then=silent))
    async with following(server) as (_, told):
        await told.until(1)


async def test_a_name_that_was_given_anew_is_told_as_another_object(server):
    server.answer(
        listing(thing("a", 1, "one"), version=5),
        watched(event("ERROR", status_of(410))),
        listing(thing("a", 9, "two"), version=10),
        watched(then=silent),
    )
    async with following(server) as (_, told):
        assert await told.until(3) == [("ADDED", "a", "1"), ("DELETED", "a", "1"), ("ADDED", "a", "9")]


async def test_what_did_not_change_is_not_told_again(server):
    server.answer(
        listing(thing("a"), version=5),
        watched(event("ERROR", status_of(410))),
        listing(thing("a"), version=10),
        watched(event("ADDED", thing("a")), event("ADDED", thing("b", 11)), then=silent),
    )
    async with following(server) as (_, told):
        assert [name for _, name, _ in await told.until(2)] == ["a", "b"]


async def test_what_goes_wrong_is_waited_out_for_ever_and_can_be_seen(server):
    reached = asyncio.Event()

    async def sleep(seconds):
        server.slept.append(seconds)
        if len(server.slept) == 8:
            reached.set()
            await asyncio.Event().wait()

    server.answer(*[403] * 8)
    async with following(server, sleep=sleep) as (reflector, _):
        await reached.wait()
        assert isinstance(reflector.failure, ClusterForbidden)
        assert not reflector.cache.synced.is_set()
    assert server.slept[0] < 1
    assert server.slept[-1] > 10


async def test_what_went_wrong_is_over_when_it_goes_well(server):
    server.answer(403, listing(thing("a")), watched(then=silent))
    async with following(server) as (reflector, told):
        await told.until(1)
        await reflector.cache.synced.wait()
        assert reflector.failure is None
    assert len(server.slept) == 1


async def test_a_kind_that_the_server_does_not_know_may_be_one_without_objects(server):
    slept = asyncio.Event()

    async def sleep(seconds):
        slept.set()
        await asyncio.Event().wait()

    server.answer(404)
    async with following(server, optional=True, sleep=sleep) as (reflector, told):
        await slept.wait()
        assert reflector.cache.synced.is_set()
        assert reflector.failure is None
        assert told.changes == []


async def test_a_server_that_ends_every_watch_at_once_is_not_asked_without_pause(server):
    server.answer(listing(version=5), watched(), watched(), watched(event("ADDED", thing("a", 6)), then=silent))
    async with following(server) as (_, told):
        await told.until(1)
    assert len(server.slept) == 2


async def test_a_watch_in_which_nothing_happened_is_followed_by_another_without_pause(server, monkeypatch):
    monkeypatch.setattr("cdi.kube.reflector._LASTED", 0.0)
    server.answer(listing(version=5), watched(), watched(), watched(event("ADDED", thing("a", 6)), then=silent))
    async with following(server) as (reflector, told):
        await told.until(1)
        assert reflector.failure is None
    assert server.slept == []


async def test_only_what_is_wanted_is_kept(server):
    fat = thing("a", data={"x": "y"})
    fat["metadata"]["managedFields"] = [{"manager": "x"}]
    server.answer(listing(fat), watched(event("MODIFIED", {**fat, "metadata": fat["metadata"] | {"resourceVersion": "2"}}), then=silent))  # fmt: skip

    def strip(body):
        assert "managedFields" not in body["metadata"]
        return {name: value for name, value in body.items() if name != "data"}

    async with following(server, strip=strip) as (reflector, told):
        await told.until(2)
        assert reflector.cache.get("n", "a") == thing("a", 2)


async def test_one_object_that_a_listener_cannot_bear_does_not_blind_it(server, caplog):
    server.answer(listing(thing("bad"), thing("good")), watched(then=silent))

    class Sensitive(Told):
        def listen(self, change) -> None:
            if change.object["metadata"]["name"] == "bad":
                raise ValueError("bad")
            super().listen(change)

    async with following(server, Sensitive()) as (reflector, told):
        assert await told.until(1) == [("ADDED", "good", "1")]
        assert len(reflector.cache) == 2
    assert "ValueError" in caplog.text


async def test_a_write_of_one_s_own_is_known_before_the_watch_tells_it(server):
    more = asyncio.Event()

    async def wait(request):
        await more.wait()

    server.answer(listing(thing("a"), version=5), watched(event("BOOKMARK", thing("", 5)), then=wait), watched(event("MODIFIED", thing("a", 6)), event("MODIFIED", thing("a", 8)), event("MODIFIED", thing("a", 9)), then=silent))  # fmt: skip
    async with following(server) as (reflector, told):
        await told.until(1)
        reflector.record_write(thing("a", 8))
        assert reflector.cache.get("n", "a")["metadata"]["resourceVersion"] == "8"
        more.set()
        assert [version for *_, version in await told.until(3)] == ["1", "8", "9"]


async def test_an_answer_that_comes_after_the_object_s_end_does_not_bring_it_back(server):
    server.answer(
        listing(thing("a"), version=5),
        watched(event("MODIFIED", thing("a", 6)), event("DELETED", thing("a", 7)), then=silent),
    )
    async with following(server) as (reflector, told):
        await told.until(3)
        reflector.record_write(thing("a", 6))  # the result of our patch of its finalizers
        assert len(reflector.cache) == 0
