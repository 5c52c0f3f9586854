"""Execution of plans on a real API server: preconditions, rejections, and conflicting changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from cdi.api.errors import Conflict
from cdi.api.kinds import CLAIMS, CONFIG_MAPS, DATA_VOLUMES, EVENTS, PODS, SECRETS, VOLUMES
from cdi.controller.applier import PlanApplier
from cdi.controller.certificates import CertificateManager
from cdi.controller.informers import InformerSet
from cdi.controller.request import Scope
from cdi.kube.certificates import Lifetimes
from cdi.kube.client import Client, connect
from cdi.reconcile.actions import (
    CreateObject,
    DeleteObject,
    Event,
    MirrorObject,
    ObjectRef,
    PatchObject,
    Plan,
    RebindVolume,
    RequireVersion,
    StartWorker,
    StopWorker,
)
from tests.cluster.cdi import definitions

NOW = 1_800_000_000.0
NOBODY = "00000000-0000-0000-0000-000000000000"


class Bench:
    def __init__(self, client: Client, watches: InformerSet, watching: asyncio.Task[None], namespace: str) -> None:
        self.client, self.watches, self.namespace = client, watches, namespace
        self._watching = watching
        self.applier = PlanApplier(client, watches, CertificateManager(client, namespace, Lifetimes))

    async def stop_watching(self):
        """Stop the watches, so that the cache is outdated from the next change on."""
        self._watching.cancel()
        await asyncio.wait([self._watching])

    async def act(self, *actions, about=None, **plan):
        return await self.applier.apply(Plan(actions=actions, **plan), about or {}, NOW)

    async def make(self, resource, name, **more):
        metadata = {"name": name, "namespace": self.namespace, **more.pop("metadata", {})}
        return await self.client.create(
            resource, {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **more}
        )

    async def claim(self, name, **more):
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Mi"}}}
        return await self.make(CLAIMS, name, spec={**spec, **more})

    async def get(self, resource, name):
        return await self.client.get(resource, self.namespace if resource.namespaced else None, name)

    async def until(self, resource, name, ready):
        """Return the object as soon as `ready` is true for it."""
        version = (await self.client.list(resource, self.namespace, fields=f"metadata.name={name}")).version
        if ready(found := await self.get(resource, name)):
            return found
        events = self.client.watch(resource, self.namespace, version=version, fields=f"metadata.name={name}")
        async with contextlib.aclosing(events):
            async for event in events:
                if event["type"] != "BOOKMARK" and ready(event["object"]):
                    return event["object"]
        raise AssertionError(f"{resource} {name} did not become so")


@pytest.fixture()
async def bench(cluster, namespace) -> AsyncIterator[Bench]:
    definitions(cluster)
    async with connect(str(cluster.kubectl.kubeconfig)) as client:
        scope = Scope(namespaces=(namespace.namespace,))
        watches = InformerSet(client, scope, on_change=lambda *_: None)
        task = asyncio.create_task(watches.run())
        await watches.wait_for_cache_sync()
        yield Bench(client, watches, task, namespace.namespace)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def config_map(bench, name, **data):
    return CreateObject(
        body={
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": bench.namespace},
            "data": data,
        }
    )


def patched(bench, body, **what):
    return PatchObject(
        plural="persistentvolumeclaims",
        namespace=bench.namespace,
        name=body["metadata"]["name"],
        uid=what.pop("uid", body["metadata"]["uid"]),
        **what,
    )


async def test_an_object_is_made_once_and_one_that_is_there_is_left_alone(bench) -> None:
    assert await bench.act(config_map(bench, "c", a="1")) is None
    assert await bench.act(config_map(bench, "c", a="2")) is None
    assert (await bench.get(CONFIG_MAPS, "c"))["data"] == {"a": "1"}


async def test_what_was_written_is_known_before_the_watch_tells(bench) -> None:
    claim = await bench.claim("c")
    bench.watches.record_write(CLAIMS, claim)
    await bench.act(patched(bench, claim, annotations={"a": "1"}, labels={"l": "2"}))
    known = bench.watches.get(CLAIMS, bench.namespace, "c")
    assert known["metadata"]["annotations"]["a"] == "1"
    assert known["metadata"]["labels"] == {"l": "2"}


async def test_a_patch_removes_what_is_none_and_leaves_the_rest(bench) -> None:
    claim = await bench.make(
        CLAIMS, "c", metadata={"annotations": {"a": "1", "b": "2"}},
        spec={"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Mi"}}},
    )  # fmt: skip
    await bench.act(patched(bench, claim, annotations={"a": None, "c": "3"}))
    found = (await bench.get(CLAIMS, "c"))["metadata"]["annotations"]
    assert "a" not in found
    assert (found["b"], found["c"]) == ("2", "3")


async def test_another_object_of_the_same_name_is_not_touched_and_the_rest_is_void(bench) -> None:
    claim = await bench.claim("c")
    later = config_map(bench, "later")
    for first in (
        patched(bench, claim, uid=NOBODY, annotations={"a": "1"}),
        patched(bench, {"metadata": {"name": "nothing", "uid": NOBODY}}, annotations={"a": "1"}),
    ):
        with pytest.raises(Conflict):
            await bench.act(first, later)
    assert "a" not in ((await bench.get(CLAIMS, "c"))["metadata"].get("annotations") or {})
    assert [
        each["metadata"]["name"]
        for each in (await bench.client.list(CONFIG_MAPS, bench.namespace)).items
        if each["metadata"]["name"] == "later"
    ] == []


async def test_an_owner_is_added_only_where_nobody_else_controls(bench) -> None:
    claim = await bench.claim("c", storageClassName="none")
    boss, rival = [await bench.make(CONFIG_MAPS, name) for name in ("boss", "rival")]

    def owner(body):
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": body["metadata"]["name"],
            "uid": body["metadata"]["uid"],
            "controller": True,
        }

    for one in (boss, boss, rival):
        await bench.act(patched(bench, claim, owner=owner(one), annotations={"n": one["metadata"]["name"]}))
    found = (await bench.get(CLAIMS, "c"))["metadata"]
    assert [each["name"] for each in found["ownerReferences"]] == ["boss"]
    assert found["annotations"]["n"] == "rival"


async def test_only_the_very_object_is_deleted(bench) -> None:
    made = await bench.make(CONFIG_MAPS, "c")

    def gone(uid):
        return DeleteObject(plural="configmaps", namespace=bench.namespace, name="c", uid=uid)

    assert await bench.act(gone(NOBODY)) is None
    assert (await bench.get(CONFIG_MAPS, "c"))["metadata"]["uid"] == made["metadata"]["uid"]
    assert await bench.act(gone(made["metadata"]["uid"])) is None
    assert await bench.act(gone(made["metadata"]["uid"])) is None


async def test_a_refusal_is_given_back_and_what_follows_is_not_done(bench) -> None:
    await bench.make(resource("resourcequotas"), "none", spec={"hard": {"persistentvolumeclaims": "0"}})
    await bench.until(resource("resourcequotas"), "none", lambda it: "hard" in it.get("status", {}))
    body = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": bench.namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Mi"}}},
    }  # fmt: skip
    action = CreateObject(body=body)
    refusal = await bench.act(action, config_map(bench, "later"))
    assert refusal is not None
    assert refusal.action == action
    assert refusal.failure.code == "QuotaExceeded"
    assert "none" in refusal.failure.message
    body["spec"]["accessModes"] = ["Nonsense"]
    refusal = await bench.act(CreateObject(body=body))
    assert refusal is not None
    assert refusal.failure.code in ("InvalidManifest", "QuotaExceeded")


def resource(plural):
    from cdi.api.kinds import resource_named

    return resource_named(plural)


# --- Status and Events ------------------------------------------------------------------------------------------


async def data_volume(bench):
    return await bench.make(
        DATA_VOLUMES, "d",
        spec={"source": {"blank": {}}, "pvc": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Mi"}}}},
    )  # fmt: skip


async def test_a_status_is_written_whole_after_a_patch_of_the_same_plan(bench) -> None:
    about = await data_volume(bench)
    label = PatchObject(
        plural="datavolumes", namespace=bench.namespace, name="d", uid=about["metadata"]["uid"], labels={"l": "1"}
    )
    await bench.act(label, about=about, status={"phase": "Pending", "claimName": "d", "progress": "N/A"})
    found = await bench.get(DATA_VOLUMES, "d")
    assert found["status"] == {"phase": "Pending", "claimName": "d", "progress": "N/A"}
    assert found["metadata"]["labels"] == {"l": "1"}
    await bench.act(about=found, status={"phase": "Failed", "progress": "N/A"})
    assert (await bench.get(DATA_VOLUMES, "d"))["status"] == {"phase": "Failed", "progress": "N/A"}


async def test_a_status_of_before_is_not_written_over_a_newer_one(bench) -> None:
    about = await data_volume(bench)
    await bench.act(about=about, status={"phase": "Pending"})
    with pytest.raises(Conflict):
        await bench.act(about=about, status={"phase": "Failed"})
    assert (await bench.get(DATA_VOLUMES, "d"))["status"]["phase"] == "Pending"


async def test_an_object_whose_status_finds_it_deleted_is_not_cached_any_more(bench) -> None:
    about = await data_volume(bench)
    bench.watches.record_write(DATA_VOLUMES, await bench.get(DATA_VOLUMES, "d"))
    await bench.stop_watching()
    await bench.client.delete(DATA_VOLUMES, bench.namespace, "d")
    await bench.act(about=about, status={"phase": "Pending"})
    assert bench.watches.get(DATA_VOLUMES, bench.namespace, "d") is None


async def test_the_same_event_counts_up(bench) -> None:
    about = await data_volume(bench)
    fact = Event(type="Warning", reason="ImportFailed", message="x" * 3000)
    for _ in range(3):
        await bench.act(about=about, events=(fact,))
    (found,) = (await bench.client.list(EVENTS, bench.namespace, fields="reason=ImportFailed")).items
    assert found["count"] == 3
    assert found["involvedObject"]["uid"] == about["metadata"]["uid"]
    assert found["type"] == "Warning"
    assert found["source"] == {"component": "cdi-controller"}


# --- Workers ----------------------------------------------------------------------------------------------------


def start(bench, claim):
    metadata = claim["metadata"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "importer-c",
            "namespace": bench.namespace,
            "labels": {"app": "containerized-data-importer"},
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": {"nodeName": "nowhere", "containers": [{"name": "importer", "image": "images.cdi.test/pause:1"}]},
    }
    return StartWorker(claim=metadata["uid"], namespace=bench.namespace, attempt=1, work=None, pod=pod)  # type: ignore[arg-type]


def unchanged(bench, claim):
    metadata = claim["metadata"]
    return RequireVersion(
        plural=CLAIMS.plural, namespace=bench.namespace, name=metadata["name"], uid=metadata["uid"],
        version=metadata["resourceVersion"],
    )  # fmt: skip


async def test_a_worker_is_not_started_on_what_a_claim_was_before(bench) -> None:
    claim = await bench.claim("c", storageClassName="none")
    bench.watches.record_write(CLAIMS, claim)
    await bench.stop_watching()
    await bench.client.patch(CLAIMS, bench.namespace, "c", {"metadata": {"annotations": {"ledger": "done"}}})
    with pytest.raises(Conflict):
        await bench.act(unchanged(bench, claim))
    # The conflict means that the cache is current now, so the next decision is based on it.
    assert bench.watches.get(CLAIMS, bench.namespace, "c")["metadata"]["annotations"] == {"ledger": "done"}
    await bench.act(unchanged(bench, bench.watches.get(CLAIMS, bench.namespace, "c")))
    await bench.act(start(bench, claim))
    pod = await bench.get(PODS, "importer-c")
    await bench.act(start(bench, claim))
    assert (await bench.get(PODS, "importer-c"))["metadata"]["uid"] == pod["metadata"]["uid"]


async def test_a_claim_that_exists_without_having_been_observed_is_a_conflict(bench) -> None:
    absent = RequireVersion.of_absent_claim(bench.namespace, "c")
    await bench.act(absent)
    await bench.stop_watching()
    claim = await bench.claim("c", storageClassName="none")
    with pytest.raises(Conflict):
        await bench.act(absent)
    assert bench.watches.get(CLAIMS, bench.namespace, "c")["metadata"]["uid"] == claim["metadata"]["uid"]


async def test_only_the_attempt_that_was_meant_is_stopped(bench) -> None:
    claim = await bench.claim("c", storageClassName="none")
    bench.watches.record_write(CLAIMS, claim)
    await bench.act(start(bench, claim))
    pod = await bench.get(PODS, "importer-c")

    def stop(uid):
        return StopWorker(claim="", namespace=bench.namespace, pod="importer-c", pod_uid=uid)

    await bench.act(stop(NOBODY))
    assert "deletionTimestamp" not in (await bench.get(PODS, "importer-c"))["metadata"]
    await bench.act(stop(pod["metadata"]["uid"]))
    left = bench.watches.get(PODS, bench.namespace, "importer-c")
    assert left is None or "deletionTimestamp" in left["metadata"]


# --- Volumes and clones -----------------------------------------------------------------------------------------


async def test_a_volume_goes_from_the_prime_claim_to_its_target_and_only_from_there(bench) -> None:
    ref = {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeImportSource", "name": "there-is-none"}
    target = await bench.claim("target", storageClassName="csi", dataSourceRef=ref)
    prime = await bench.claim("prime", storageClassName="csi")
    prime = await bench.until(CLAIMS, "prime", lambda it: it["status"].get("phase") == "Bound")
    volume = await bench.get(VOLUMES, prime["spec"]["volumeName"])

    def rebind(**changes):
        facts = {
            "volume": volume["metadata"]["name"], "volume_uid": volume["metadata"]["uid"],
            "namespace": bench.namespace, "prime": "prime", "prime_uid": prime["metadata"]["uid"],
            "target": "target", "target_uid": target["metadata"]["uid"],
        }  # fmt: skip
        return RebindVolume(**(facts | changes))

    for wrong in ({"prime_uid": NOBODY}, {"target_uid": NOBODY}, {"volume_uid": NOBODY}):
        with pytest.raises(Conflict):
            await bench.act(rebind(**wrong), config_map(bench, "later"))
        assert (await bench.get(VOLUMES, volume["metadata"]["name"]))["spec"]["claimRef"]["name"] == "prime"
    for _ in range(2):
        assert await bench.act(rebind()) is None
    target = await bench.until(CLAIMS, "target", lambda it: it["status"].get("phase") == "Bound")
    assert target["spec"]["volumeName"] == volume["metadata"]["name"]
    await bench.until(CLAIMS, "prime", lambda it: it["status"].get("phase") == "Lost")


async def test_a_copy_follows_its_source_and_a_users_own_is_not_written_over(bench) -> None:
    await bench.make(CONFIG_MAPS, "ca", data={"ca.pem": "1"})
    claim = await bench.claim("c", storageClassName="none")
    owner = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "c", "uid": claim["metadata"]["uid"]}

    def copy(name):
        source = ObjectRef(kind="ConfigMap", namespace=bench.namespace, name="ca")
        return MirrorObject(
            source=source, copy=ObjectRef(kind="ConfigMap", namespace=bench.namespace, name=name), owner=owner
        )

    await bench.act(copy("copy"))
    await bench.client.patch(CONFIG_MAPS, bench.namespace, "ca", {"data": {"ca.pem": None, "other.pem": "2"}})
    await bench.act(copy("copy"))
    found = await bench.get(CONFIG_MAPS, "copy")
    assert found["data"] == {"other.pem": "2"}
    assert found["metadata"]["ownerReferences"][0]["uid"] == claim["metadata"]["uid"]
    await bench.make(CONFIG_MAPS, "mine", data={"mine": "1"})
    refusal = await bench.act(copy("mine"))
    assert refusal is not None
    assert refusal.failure.code == "AlreadyExists"
    assert (await bench.get(CONFIG_MAPS, "mine"))["data"] == {"mine": "1"}
    missing = MirrorObject(
        source=ObjectRef(kind="Secret", namespace=bench.namespace, name="none"),
        copy=ObjectRef(kind="Secret", namespace=bench.namespace, name="copy"), owner=owner,
    )  # fmt: skip
    with pytest.raises(Conflict):
        await bench.act(missing)
    assert not (await bench.client.list(SECRETS, bench.namespace)).items
