"""Leader election in virtual time: the loop's clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import selectors

import pytest

from cdi.api.errors import AlreadyExists, ClusterUnreachable, Conflict, NotFound
from cdi.kube.lease import LeaderElector


class Jumping(selectors.SelectSelector):
    """Selector that waits for timers only, and takes no time for that."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing will ever happen"
            self.now += timeout
        return ready


def virtually(story):
    """Run a coroutine function in virtual time."""
    selector = Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now
    try:
        loop.run_until_complete(asyncio.wait_for(story(), 10_000))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


class Server:
    """Lease under the API server's rules; the server can be unavailable or hang."""

    def __init__(self) -> None:
        self.lease = None
        self.version = 0
        self.away: set[object] = set()
        self.hanging: set[object] = set()

    def _reach(self, who) -> None:
        if who in self.away:
            raise ClusterUnreachable("away")

    def put(self, body):
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"] |= {"resourceVersion": str(self.version), "uid": "u"}
        return copy.deepcopy(self.lease)

    @property
    def spec(self):
        return self.lease["spec"]


class Client:
    def __init__(self, server: Server, who: str) -> None:
        self.server = server
        self.who = who

    async def _arrive(self) -> None:
        if self.who in self.server.hanging:
            await asyncio.sleep(3600)
        await asyncio.sleep(0.01)
        if self.who in self.server.away:
            raise ClusterUnreachable("away")

    async def get(self, resource, namespace, name):
        await self._arrive()
        if self.server.lease is None:
            raise NotFound("none")
        return copy.deepcopy(self.server.lease)

    async def create(self, resource, body):
        await self._arrive()
        if self.server.lease is not None:
            raise AlreadyExists("there")
        return self.server.put(body)

    async def update(self, resource, body):
        await self._arrive()
        if self.server.lease is None:
            raise NotFound("none")
        if body["metadata"]["resourceVersion"] != self.server.lease["metadata"]["resourceVersion"]:
            raise Conflict("changed")
        return self.server.put(body)


class World:
    def __init__(self) -> None:
        self.server = Server()
        self.at_work: list[str] = []
        self.story: list[str] = []

    def candidate(self, who: str, **wishes) -> LeaderElector:
        return LeaderElector(Client(self.server, who), "n", "lease", identity=who, **wishes)

    def work(self, who: str, lasting: float = 1e6, winding_down: float = 0.0):
        async def work() -> None:
            assert self.at_work == [], f"{who} and {self.at_work} lead at once"
            self.at_work.append(who)
            self.story.append(f"{who} begins")
            try:
                await asyncio.sleep(lasting)
            finally:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(winding_down)
                self.at_work.remove(who)
                self.story.append(f"{who} ends")

        return work

    def start(self, who: str, **wishes) -> asyncio.Task:
        return asyncio.create_task(self.candidate(who).run(self.work(who, **wishes)))


async def stopped(task) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture()
def context():
    return World()


def test_one_leads_and_the_other_follows_when_it_ends(context):
    async def story():
        one = context.start("one", lasting=100)
        await asyncio.sleep(1)
        two = context.start("two")
        await one
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(3)
        assert context.at_work == ["two"]
        assert context.server.spec["leaseTransitions"] == 1
        await stopped(two)
        assert asyncio.get_running_loop().time() - began < 10  # earlier than the Lease's duration: it was released

    virtually(story)
    assert context.story == ["one begins", "one ends", "two begins", "two ends"]


def test_a_lease_is_kept_for_as_long_as_it_is_renewed(context):
    async def story():
        one, two = context.start("one"), None
        await asyncio.sleep(1)
        two = context.start("two")
        await asyncio.sleep(1000)
        assert context.at_work == ["one"]
        await stopped(two)
        await stopped(one)

    virtually(story)
    assert context.story == ["one begins", "one ends"]


def test_a_leader_that_is_gone_is_followed_after_the_lease_s_duration(context):
    async def story():
        context.server.put({"metadata": {"name": "lease"}, "spec": {
            "holderIdentity": "dead", "leaseDurationSeconds": 60, "renewTime": "2999-01-01T00:00:00.000000Z"}})  # fmt: skip
        two = context.start("two")
        await asyncio.sleep(59)
        assert context.at_work == []
        await asyncio.sleep(5)
        assert context.at_work == ["two"]  # regardless of its clock
        await stopped(two)

    virtually(story)


def test_a_leader_that_cannot_renew_ends_before_another_begins(context):
    async def story():
        one = context.start("one")
        await asyncio.sleep(5)
        two = context.start("two")
        await asyncio.sleep(5)
        context.server.away.add("one")
        await asyncio.sleep(11)
        assert context.at_work == []
        await asyncio.sleep(10)
        assert context.at_work == ["two"]
        context.server.away.clear()
        await stopped(two)
        await asyncio.sleep(5)
        assert context.at_work == ["one"]  # restarted
        await stopped(one)

    virtually(story)
    assert context.story == ["one begins", "one ends", "two begins", "two ends", "one begins", "one ends"]


def test_a_renewal_that_hangs_is_no_renewal(context):
    async def story():
        one = context.start("one")
        await asyncio.sleep(5)
        context.server.hanging.add("one")
        await asyncio.sleep(12)
        assert context.at_work == []
        await stopped(one)

    virtually(story)


def test_a_short_outage_is_survived(context):
    async def story():
        one = context.start("one")
        two = None
        await asyncio.sleep(5)
        two = context.start("two")
        for _ in range(5):
            context.server.away.add("one")
            await asyncio.sleep(6)
            context.server.away.clear()
            await asyncio.sleep(4)
        await stopped(two)
        await stopped(one)

    virtually(story)
    assert context.story == ["one begins", "one ends"]


def test_a_lease_that_somebody_else_touched_is_kept_and_one_that_was_taken_is_not(context):
    async def story():
        one = context.start("one")
        await asyncio.sleep(5)
        context.server.put(context.server.lease)  # for example a label
        await asyncio.sleep(20)
        assert context.at_work == ["one"]
        context.server.put({**context.server.lease, "spec": {**context.server.spec, "holderIdentity": "thief"}})
        await asyncio.sleep(3)
        assert context.at_work == []
        await stopped(one)

    virtually(story)


def test_a_lease_that_was_deleted_is_lost(context):
    async def story():
        one = context.start("one")
        await asyncio.sleep(5)
        context.server.lease = None
        await asyncio.sleep(10)
        assert context.story[:2] == ["one begins", "one ends"]
        assert context.at_work == ["one"]
        await stopped(one)

    virtually(story)


def test_the_lease_is_renewed_until_work_has_wound_down(context):
    async def story():
        one = context.start("one", winding_down=100)
        await asyncio.sleep(5)
        two = context.start("two")
        await stopped(one)
        assert context.server.spec["holderIdentity"] == ""
        await asyncio.sleep(5)
        assert context.at_work == ["two"]
        await stopped(two)

    virtually(story)
    assert context.story == ["one begins", "one ends", "two begins", "two ends"]


def test_what_work_raises_is_raised_and_the_lease_let_go(context):
    async def story():
        async def failing() -> None:
            await asyncio.sleep(3)
            raise ValueError("defect")

        with pytest.raises(ValueError, match="defect"):
            await context.candidate("one").run(failing)
        assert context.server.spec["holderIdentity"] == ""

    virtually(story)


def test_of_many_candidates_one_leads(context):
    async def story():
        tasks = [context.start(f"c{n}") for n in range(8)]
        await asyncio.sleep(30)
        assert len(context.at_work) == 1
        for task in tasks:
            await stopped(task)

    virtually(story)


@pytest.mark.parametrize("wishes", [{"deadline": 15}, {"retry": 10}, {"retry": 0}, {"duration": 5}])
def test_times_that_would_let_two_lead_are_refused(context, wishes):
    with pytest.raises(ValueError, match="requires retry"):
        context.candidate("one", **wishes)
