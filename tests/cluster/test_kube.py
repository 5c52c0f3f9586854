"""Client, watch caches and leader election against a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from cdi.api.errors import (
    AlreadyExists,
    ClusterForbidden,
    ClusterUnauthorized,
    Conflict,
    HistoryExpired,
    InvalidManifest,
    KindNotServed,
    NotFound,
    QuotaExceeded,
)
from cdi.api.kinds import CONFIG_MAPS, LEASES, PODS, QUOTAS, SECRETS, SERVICE_ACCOUNTS, Resource
from cdi.kube.client import Client, connect
from cdi.kube.credentials import Endpoint, FixedCredentials, find
from cdi.kube.lease import LeaderElector
from cdi.kube.reflector import Reflector


@pytest.fixture()
async def client(cluster):
    async with connect(str(cluster.kubectl.kubeconfig)) as made:
        yield made


@pytest.fixture()
def space(namespace) -> str:
    return namespace.namespace


def config_map(space, name="a", **more):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": space}, **more}


@contextlib.asynccontextmanager
async def running(work):
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Told:
    def __init__(self) -> None:
        self.queue = asyncio.Queue()

    def listen(self, change) -> None:
        self.queue.put_nowait((change.type, change.object["metadata"]["name"]))

    async def until(self, *wanted) -> None:
        """Wait for these changes in this order, ignoring others between them."""
        for each in wanted:
            while await self.queue.get() != each:
                pass

    async def until_all(self, *wanted) -> None:
        """Wait for these changes in any order, because one list reports everything that happened before it."""
        left = set(wanted)
        while left:
            left.discard(await self.queue.get())


async def test_an_object_s_life(client, space):
    made = await client.create(CONFIG_MAPS, config_map(space, data={"x": "1"}))
    with pytest.raises(AlreadyExists):
        await client.create(CONFIG_MAPS, config_map(space))
    changed = await client.patch(CONFIG_MAPS, space, "a", {"data": {"y": "2"}})
    assert changed["data"] == {"x": "1", "y": "2"}
    with pytest.raises(Conflict):
        await client.update(CONFIG_MAPS, made)
    await client.update(CONFIG_MAPS, changed | {"data": {}})
    await client.patch(CONFIG_MAPS, space, "a", [{"op": "add", "path": "/data", "value": {"z": "3"}}], kind="json")
    assert (await client.get(CONFIG_MAPS, space, "a"))["data"] == {"z": "3"}
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAPS, space, "a", uid="another")
    assert await client.delete(CONFIG_MAPS, space, "a", uid=made["metadata"]["uid"]) is None
    with pytest.raises(NotFound):
        await client.get(CONFIG_MAPS, space, "a")


async def test_applying_creates_changes_and_takes_back(client, space):
    await client.patch(CONFIG_MAPS, space, "a", {"data": {"x": "1", "y": "2"}}, kind="apply", manager="one")
    with pytest.raises(Conflict):
        await client.patch(CONFIG_MAPS, space, "a", {"data": {"x": "5"}}, kind="apply", manager="two", force=False)
    await client.patch(CONFIG_MAPS, space, "a", {"data": {"x": "5"}}, kind="apply", manager="two")
    assert (await client.patch(CONFIG_MAPS, space, "a", {}, kind="apply", manager="one"))["data"] == {"x": "5"}


async def test_refusals_are_told_apart(client, space):
    with pytest.raises(InvalidManifest) as caught:
        await client.create(CONFIG_MAPS, config_map(space, "Not_a_name"))
    assert caught.value.where == "metadata.name"
    with pytest.raises(KindNotServed):
        await client.list(Resource(group="nobody.test", version="v1", plural="things", kind="Thing"), space)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": space}}
    await client.create(QUOTAS, quota | {"spec": {"hard": {"secrets": "0"}}})
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"generateName": "s-", "namespace": space}}
    with pytest.raises(QuotaExceeded):
        while True:  # until the quota is in force
            await client.create(SECRETS, secret)


async def test_who_may_not_and_who_is_nobody(client, cluster, space):
    await client.create(
        SERVICE_ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s", "namespace": space}}
    )
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    issued = await client.request("POST", SERVICE_ACCOUNTS.path(space, "s", "token"), body=request)
    access = await find(str(cluster.kubectl.kubeconfig), None).access()
    anchor = await client.get(CONFIG_MAPS, space, "kube-root-ca.crt")
    from cdi.kube.credentials import tls

    context = tls(cafile=None)
    context.load_verify_locations(cadata=anchor["data"]["ca.crt"])
    for token, error in ((issued["status"]["token"], ClusterForbidden), ("nonsense", ClusterUnauthorized)):
        other = FixedCredentials(Endpoint(server=access.server, context=context, authorization=f"Bearer {token}"))
        async with Client(other) as client_of_other:
            with pytest.raises(error):
                await client_of_other.list(SECRETS, space)


async def test_a_list_in_pages_is_all_of_it(client, space):
    for name in "abcde":
        await client.create(CONFIG_MAPS, config_map(space, name))
    listing = await client.list(CONFIG_MAPS, space, fields="metadata.name!=kube-root-ca.crt", page=2)
    assert [each["metadata"]["name"] for each in listing.items] == list("abcde")
    assert {each["kind"] for each in listing.items} == {"ConfigMap"}


async def test_the_largest_objects_come_through_a_watch(client, space):
    told = Told()
    reflector = Reflector(client, CONFIG_MAPS, namespace=space, on_change=told.listen)
    async with running(reflector.run()):
        await reflector.cache.synced.wait()
        data = {"x": "y" * (1000 * 1024)}
        await client.create(CONFIG_MAPS, config_map(space, "large", data=data))
        await told.until(("ADDED", "large"))
        assert reflector.cache.get(space, "large")["data"] == data


async def test_a_version_of_long_ago_is_forgotten(client, space):
    with pytest.raises(HistoryExpired):
        async for event in client.watch(CONFIG_MAPS, space, version="1"):
            if event["type"] == "ERROR" and event["object"]["code"] == 410:
                raise HistoryExpired("as an event")


async def test_metadata_is_all_that_comes_where_it_is_all_that_is_wanted(client, space):
    await client.create(CONFIG_MAPS, config_map(space, data={"x": "1"}))
    told = Told()
    reflector = Reflector(client, CONFIG_MAPS, namespace=space, on_change=told.listen, metadata_only=True)
    async with running(reflector.run()):
        await told.until(("ADDED", "a"))
        await client.patch(CONFIG_MAPS, space, "a", {"data": {"y": "1"}})
        await told.until(("MODIFIED", "a"))
        assert "data" not in reflector.cache.get(space, "a")


@pytest.mark.alone
@pytest.mark.skipif("CDI_TEST_KUBECONFIG" in os.environ, reason="restarts the API server")
async def test_the_api_server_restarts_under_calls_and_watches(client, cluster, space):
    told = Told()
    reflector = Reflector(client, CONFIG_MAPS, namespace=space, on_change=told.listen)
    async with running(reflector.run()):
        await reflector.cache.synced.wait()
        await client.create(CONFIG_MAPS, config_map(space, "before"))
        await told.until(("ADDED", "before"))
        await asyncio.to_thread(cluster.restart, "kube-apiserver")
        await client.create(CONFIG_MAPS, config_map(space, "during"))
        await client.delete(CONFIG_MAPS, space, "before")
        await told.until_all(("ADDED", "during"), ("DELETED", "before"))
        await asyncio.to_thread(cluster.wait_ready)
        await client.create(CONFIG_MAPS, config_map(space, "after"))
        await told.until(("ADDED", "after"))


async def test_a_lease_goes_from_one_candidate_to_the_next(client, space):
    story = []
    ended = asyncio.Event()

    def work(who, begun, end):
        async def run() -> None:
            story.append(f"{who} begins")
            begun.set()
            try:
                await end.wait()
            finally:
                story.append(f"{who} ends")
                if who == "two":
                    ended.set()

        return run

    def candidate(who, begun, end):
        leadership = LeaderElector(client, space, "leader", identity=who, duration=10, deadline=9, retry=0.2)
        return leadership.run(work(who, begun, end))

    begun = {who: asyncio.Event() for who in ("one", "two", "three")}
    ends = {who: asyncio.Event() for who in begun}
    async with running(candidate("one", begun["one"], ends["one"])):
        await begun["one"].wait()
        async with running(candidate("two", begun["two"], ends["two"])) as second:
            ends["one"].set()
            await begun["two"].wait()
            lease = await client.get(LEASES, space, "leader")
            assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("two", 1)
            # The leader dies: another identity holds the Lease and never renews it.
            stolen = lease["spec"] | {"holderIdentity": "dead"}
            await client.patch(LEASES, space, "leader", {"spec": stolen})
            await ended.wait()
            begun["two"].clear()
            await begun["two"].wait()
            async with running(candidate("three", begun["three"], ends["three"])):
                second.cancel()
                await begun["three"].wait()
                ends["three"].set()
    assert story[:3] == ["one begins", "one ends", "two begins"]
    assert story[3:6] == ["two ends", "two begins", "two ends"]
    assert story[6] == "three begins"


async def test_logs_of_what_is_not_there(client, space):
    with pytest.raises(NotFound):
        async for _ in client.logs(space, "none", "none"):
            pass
    assert (await client.list(PODS, space)).items == []
