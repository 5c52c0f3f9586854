"""Tests of objects stored before the current rules: each is reported, and no reconcile of another object fails."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from prometheus_client import generate_latest

from cdi.api.errors import AlreadyExists, InvalidManifest
from cdi.api.kinds import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    OBJECT_TRANSFERS,
    STORAGE_PROFILES,
    Object,
    Resource,
)
from cdi.controller.informers import InformerSet, require_valid
from cdi.controller.manager import Manager
from cdi.controller.metrics import Metrics
from cdi.controller.reconcilers.event_handlers import unfinished_volumes
from cdi.controller.reconcilers.registry import initial_requests, requests_for
from cdi.controller.request import Request, Scope, datavolume
from cdi.reconcile.settings import WorkerPodConfig
from tests.unit.controller.objects import added, body, deleted, modified

PVC = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
GOOD = {"source": {"blank": {}}, "pvc": PVC}
OURS = [DATA_VOLUMES, DATA_SOURCES, DATA_IMPORT_CRONS, OBJECT_TRANSFERS, STORAGE_PROFILES, CDI_CONFIGS, CDIS]
SHAPES = ["x", 1, ["x"], [{}], {"source": "x"}, {"source": ["x"]}, {"source": {"pvc": "x", "http": 1}}, {"pvc": [1]},
          {"sourceRef": "x"}, {"contentType": []}, {"storage": {"storageClassName": {}}}, {"target": 1}]  # fmt: skip
STATES = ["x", 1, ["x"], {"phase": []}, {"phase": {}}, {"conditions": "x"}, {"conditions": ["x", 1]},
          {"conditions": [{"type": []}]}, {"restartCount": "x"}, {"currentImports": ["x"]}, {"data": 1}]  # fmt: skip


class Server:
    """A fake server that records writes, by kind and name."""

    def __init__(self) -> None:
        self.statuses: list[tuple[str, Any]] = []
        self.events: dict[str, Object] = {}
        self.refuses: Exception | None = None

    async def create(self, resource: Resource, given: Object) -> Object:
        if given["metadata"]["name"] in self.events:
            raise AlreadyExists("it is there")
        self.events[given["metadata"]["name"]] = given
        return given

    async def get(self, _resource: Resource, _namespace: str, name: str) -> Object:
        return self.events[name]

    async def patch(self, resource: Resource, _namespace: Any, name: str, given: Object, **_: Any) -> Object:
        if resource.kind != "Event" and self.refuses is not None:
            raise self.refuses
        if resource.kind != "Event":
            self.statuses.append((f"{resource.kind} {name}", given.get("status")))
        return {"metadata": {"name": name, "resourceVersion": "99"}}


def life(server: Server | None = None, **options: Any) -> Manager:
    metrics = Metrics(lambda _: (), version="1", waiting=lambda: 0, in_work=lambda: 0)
    return Manager(
        server or Server(),  # type: ignore[arg-type]
        scope=Scope(**options), pods=WorkerPodConfig(), install_namespace="cdi", version="1", workers=1, metrics=metrics,
        stop=asyncio.Event(),
    )  # fmt: skip


def told(server: Server) -> list[tuple[str, str]]:
    return [(one["involvedObject"]["name"], one["reason"]) for one in server.events.values()]


def conditions(status: Any) -> dict[str, tuple[str, str, str]]:
    return {one["type"]: (one["status"], one["reason"], one["message"]) for one in status["conditions"]}


# --- scans of all objects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", OURS, ids=str)
@pytest.mark.parametrize("part", ["spec", "status"])
def test_whoever_looks_through_all_objects_sees_the_others(resource: Resource, part: str) -> None:
    watches = InformerSet(None, Scope(), on_change=lambda *_: None)  # type: ignore[arg-type]
    for number, shape in enumerate(SHAPES if part == "spec" else STATES):
        watches.record_write(resource, body(resource, f"bad-{number}", **{"spec": {}, part: copy.deepcopy(shape)}))
    watches.record_write(DATA_VOLUMES, body(DATA_VOLUMES, "good", spec=GOOD, status={"phase": "Pending"}))
    watches.record_write(CLAIMS, body(CLAIMS, "good", spec=PVC))
    for each in list(watches.values(resource)):
        for change in (added(each), modified(each, each), deleted(each)):
            requests_for(resource, change, watches)
    claim = next(iter(watches.values(CLAIMS)))
    for change in (added(claim), deleted(claim)):
        requests_for(CLAIMS, change, watches)
    assert datavolume("ns", "good") in initial_requests(watches)
    assert datavolume("ns", "good") in set(unfinished_volumes(watches))
    told_of = Metrics(watches.values, version="1", waiting=lambda: 0, in_work=lambda: 0)
    assert b'cdi_datavolumes{phase="Pending"}' in generate_latest(told_of.registry)


def test_a_status_that_cannot_be_read_is_none_and_the_object_is_served() -> None:
    watches = InformerSet(None, Scope(), on_change=lambda *_: None)  # type: ignore[arg-type]
    for number, state in enumerate(STATES[:-2]):
        watches.record_write(DATA_VOLUMES, body(DATA_VOLUMES, f"d-{number}", spec=GOOD, status=copy.deepcopy(state)))
        found = require_valid(watches.get(DATA_VOLUMES, "ns", f"d-{number}") or {})
        assert found["spec"] == GOOD and "status" not in found


def test_what_is_wrong_is_said_of_the_object_as_it_was_written() -> None:
    watches = InformerSet(None, Scope(), on_change=lambda *_: None)  # type: ignore[arg-type]
    watches.record_write(DATA_VOLUMES, body(DATA_VOLUMES, "d", spec={"source": {"http": {"url": 7}}}))
    with pytest.raises(InvalidManifest, match=r"spec.source.http.url: .*string.*\(DataVolume d\)"):
        require_valid(watches.get(DATA_VOLUMES, "ns", "d") or {})


# --- status and Events -----------------------------------------------------------------------------------------------


async def test_a_datavolume_says_what_is_wrong_and_is_not_tried_again() -> None:
    server = Server()
    made = life(server)
    made.watches.record_write(DATA_VOLUMES, body(DATA_VOLUMES, "d", spec={"source": "x"}))
    await made._process_next(datavolume("ns", "d"))
    ((name, status),) = server.statuses
    assert (name, status["phase"]) == ("DataVolume d", "Pending")
    said = conditions(status)
    assert {kind: each[:2] for kind, each in said.items()} == {
        "Ready": ("False", ""), "Running": ("False", "Error"),
    }  # fmt: skip
    for message in (said["Running"][2], status["detail"]["message"]):
        assert "spec.source" in message and "Try: " in message
    assert told(server) == [("d", "InvalidManifest")]
    assert len(made.queue) == 0
    # It is reported once only.
    found = made.watches.get(DATA_VOLUMES, "ns", "d") or {}
    again = {**found, "spec": {"source": "x"}, "status": status}
    again["metadata"] = {**found["metadata"], "resourceVersion": "1000000"}
    del again["unreadable"]
    made.watches.record_write(DATA_VOLUMES, again)
    await made._process_next(datavolume("ns", "d"))
    assert len(server.statuses) == 1


async def test_one_that_has_ended_keeps_its_status() -> None:
    server = Server()
    made = life(server)
    made.watches.record_write(DATA_VOLUMES, body(DATA_VOLUMES, "d", spec={"source": 1}, status={"phase": "Succeeded"}))
    await made._process_next(datavolume("ns", "d"))
    assert (server.statuses, told(server)) == ([], [("d", "InvalidManifest")])


async def test_one_that_is_deleted_goes() -> None:
    server = Server()
    made = life(server)
    made.watches.record_write(
        DATA_VOLUMES, body(DATA_VOLUMES, "d", spec={"source": 1}, deletionTimestamp="2026-01-01T00:00:00Z")
    )
    await made._process_next(datavolume("ns", "d"))
    assert (server.statuses, told(server)) == ([], [])


async def test_a_datavolume_is_told_of_a_datasource_that_cannot_be_read() -> None:
    server = Server()
    made = life(server)
    spec = {"sourceRef": {"kind": "DataSource", "name": "s"}, "pvc": PVC}
    made.watches.record_write(DATA_VOLUMES, body(DATA_VOLUMES, "d", spec=spec))
    made.watches.record_write(DATA_SOURCES, body(DATA_SOURCES, "s", spec={"source": {"pvc": 1}}))
    await made._process_next(datavolume("ns", "d"))
    await made._process_next(Request(kind="source", namespace="ns", name="s"))
    assert [name for name, _ in server.statuses] == ["DataVolume d", "DataSource s"]
    (_, of_volume), (_, of_source) = server.statuses
    assert "DataSource s" in of_volume["detail"]["message"]
    assert "DataSource s" in conditions(of_source)["Ready"][2]
    assert told(server) == [("d", "InvalidManifest"), ("s", "InvalidManifest")]


@pytest.mark.parametrize("resource", [CDIS, CDI_CONFIGS, STORAGE_PROFILES], ids=str)
async def test_what_has_no_conditions_of_its_own_has_an_event(resource: Resource) -> None:
    server = Server()
    made = life(server)
    name = "config"
    made.watches.record_write(resource, body(resource, name, spec="x"))
    kind: Any = {CDIS: "installation", CDI_CONFIGS: "config", STORAGE_PROFILES: "profile"}[resource]
    await made._process_next(Request(kind=kind, name=name))
    assert (server.statuses, told(server)) == ([], [(name, "InvalidManifest")])
    assert len(made.queue) == 0


async def test_a_server_that_takes_no_write_of_it_gets_no_further_ones() -> None:
    """Such a server validates the whole object against rules that it breaks, whichever part is written."""
    server = Server()
    server.refuses = InvalidManifest("spec.source: must be an object")
    made = life(server)
    made.watches.record_write(DATA_VOLUMES, body(DATA_VOLUMES, "d", spec={"source": "x"}))
    await made._process_next(datavolume("ns", "d"))
    assert told(server) == [("d", "InvalidManifest")]
    assert len(made.queue) == 0


async def test_somebody_else_s_is_left_to_them() -> None:
    server = Server()
    made = life(server, selector={"team": "ours"})
    made.watches.record_write(DATA_VOLUMES, body(DATA_VOLUMES, "d", spec={"source": "x"}))
    made.watches.record_write(DATA_SOURCES, body(DATA_SOURCES, "s", spec="x"))
    for key in (datavolume("ns", "d"), Request(kind="source", namespace="ns", name="s")):
        await made._process_next(key)
    assert (server.statuses, told(server)) == ([], [])
