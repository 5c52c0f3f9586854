"""Tests of the in-memory API server: it behaves as a real one where the controller depends on it."""

from __future__ import annotations

import asyncio

import pytest

from cdi.api.errors import AlreadyExists, Conflict, InvalidManifest, NotFound
from cdi.api.kinds import CLAIMS, CONFIG_MAPS, DATA_VOLUMES, NAMESPACES, PODS, Object
from cdi.kube.client import Client
from tests.simulation.api_server import ApiServer
from tests.simulation.process import Quiet
from tests.simulation.transport import simulated_client


@pytest.fixture()
def server() -> ApiServer:
    made = ApiServer(lambda: "2026-01-01T00:00:00Z")
    made.perform("create", NAMESPACES, {"metadata": {"name": "n"}}, client="setup")
    return made


@pytest.fixture()
def client(server) -> Client:
    return simulated_client(server, "test", Quiet())[0]


def thing(name: str = "a", **metadata) -> Object:
    return {"metadata": {"namespace": "n", "name": name, **metadata}, "data": {"x": "1"}}


async def test_a_write_gets_a_new_version_and_one_without_a_change_does_not(client):
    made = await client.create(CONFIG_MAPS, thing())
    same = await client.patch(CONFIG_MAPS, "n", "a", {"data": {"x": "1"}})
    changed = await client.patch(CONFIG_MAPS, "n", "a", {"data": {"x": None, "y": "2"}})
    versions = [one["metadata"]["resourceVersion"] for one in (made, same, changed)]
    assert versions[0] == versions[1] != versions[2]
    assert changed["data"] == {"y": "2"}


async def test_preconditions_are_checked(client):
    made = await client.create(CONFIG_MAPS, thing())
    with pytest.raises(AlreadyExists):
        await client.create(CONFIG_MAPS, thing())
    with pytest.raises(InvalidManifest) as caught:
        await client.patch(CONFIG_MAPS, "n", "a", {"metadata": {"uid": "other"}})
    assert caught.value.where == "metadata.uid"
    with pytest.raises(Conflict):
        await client.patch(CONFIG_MAPS, "n", "a", {"metadata": {"resourceVersion": "1"}})
    with pytest.raises(Conflict):
        await client.update(CONFIG_MAPS, {**made, "metadata": {**made["metadata"], "resourceVersion": "1"}})
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAPS, "n", "a", uid="other")
    with pytest.raises(NotFound):
        await client.create(CONFIG_MAPS, {"metadata": {"namespace": "missing", "name": "a"}})


async def test_a_json_patch_tests_and_replaces(client):
    await client.create(CONFIG_MAPS, thing())
    changed = await client.patch(
        CONFIG_MAPS, "n", "a",
        [{"op": "test", "path": "/data/x", "value": "1"}, {"op": "replace", "path": "/data/x", "value": "2"}],
        kind="json",
    )  # fmt: skip
    assert changed["data"] == {"x": "2"}
    with pytest.raises(Conflict):
        await client.patch(CONFIG_MAPS, "n", "a", [{"op": "test", "path": "/data/x", "value": "1"}], kind="json")


async def test_an_object_with_a_finalizer_stays_until_that_is_removed(client, server):
    made = await client.create(CONFIG_MAPS, thing(finalizers=["f"]))
    left = await client.delete(CONFIG_MAPS, "n", "a", uid=made["metadata"]["uid"])
    assert left is not None
    assert "deletionTimestamp" in left["metadata"]
    with pytest.raises(InvalidManifest):
        await client.patch(CONFIG_MAPS, "n", "a", {"metadata": {"finalizers": ["f", "g"]}})
    await client.patch(CONFIG_MAPS, "n", "a", {"metadata": {"finalizers": None}})
    assert server.find(CONFIG_MAPS, "n", "a") is None


async def test_the_status_is_written_by_its_subresource_only(client):
    body = {"metadata": {"namespace": "n", "name": "a"}, "spec": {"source": {"blank": {}}}, "status": {"phase": "x"}}
    assert "status" not in await client.create(DATA_VOLUMES, body)
    both = {"spec": {"source": None}, "status": {"phase": "Pending"}}
    assert "status" not in await client.patch(DATA_VOLUMES, "n", "a", {"status": {"phase": "Pending"}})
    changed = await client.patch(DATA_VOLUMES, "n", "a", both, subresource="status")
    assert changed["status"] == {"phase": "Pending"}
    assert changed["spec"] == {"source": {"blank": {}}}


async def test_a_scheduled_pod_is_deleted_when_its_kubelet_removes_it(client, server):
    await client.create(PODS, {"metadata": {"namespace": "n", "name": "p"}, "spec": {"nodeName": "node-1"}})
    assert await client.delete(PODS, "n", "p") is not None
    server.remove(PODS, "n", "p", client="kubelet", options={"gracePeriodSeconds": 0})
    assert server.find(PODS, "n", "p") is None


async def test_the_spec_of_a_pvc_is_immutable(client):
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "a", "resources": {"requests": {"storage": "1Gi"}}}
    await client.create(CLAIMS, {"metadata": {"namespace": "n", "name": "c"}, "spec": spec})
    with pytest.raises(InvalidManifest):
        await client.patch(CLAIMS, "n", "c", {"spec": {"storageClassName": "b"}})
    await client.patch(CLAIMS, "n", "c", {"spec": {"volumeName": "pv"}})


async def test_a_list_comes_in_pages_and_selects(client):
    for number in range(5):
        await client.create(CONFIG_MAPS, thing(f"m{number}", labels={"odd": str(number % 2)}))
    listing = await client.list(CONFIG_MAPS, page=2)
    assert [one["metadata"]["name"] for one in listing.items] == ["m0", "m1", "m2", "m3", "m4"]
    odd = await client.list(CONFIG_MAPS, labels="odd=1")
    assert [one["metadata"]["name"] for one in odd.items] == ["m1", "m3"]
    assert [one["metadata"]["name"] for one in (await client.list(CONFIG_MAPS, fields="metadata.name=m4")).items] == [
        "m4"
    ]


async def test_a_watch_delivers_what_enters_and_leaves_its_selection(client):
    version = (await client.list(CONFIG_MAPS)).version
    await client.create(CONFIG_MAPS, thing(labels={"mine": "yes"}))
    await client.patch(CONFIG_MAPS, "n", "a", {"data": {"x": "2"}})
    await client.patch(CONFIG_MAPS, "n", "a", {"metadata": {"labels": {"mine": "no"}}})
    seen = await events(client, version, 3, labels="mine=yes")
    assert [one["type"] for one in seen] == ["ADDED", "MODIFIED", "DELETED"]


async def test_a_watch_of_a_version_that_is_forgotten_has_expired(client, server):
    version = (await client.list(CONFIG_MAPS)).version
    await client.create(CONFIG_MAPS, thing())
    await client.patch(CONFIG_MAPS, "n", "a", {"data": {"x": "2"}})
    server.compact(CONFIG_MAPS)
    (seen,) = await events(client, version, 1)
    assert (seen["type"], seen["object"]["code"]) == ("ERROR", 410)


async def events(client: Client, version: str, count: int, **selection) -> list[Object]:
    """Return the first events of a watch."""
    found: list[Object] = []
    async with asyncio.timeout(10):
        watch = client.watch(CONFIG_MAPS, version=version, **selection)
        async for event in watch:
            found.append(event)
            if len(found) == count:
                break
        await watch.aclose()
    return found
