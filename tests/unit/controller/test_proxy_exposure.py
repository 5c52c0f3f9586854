"""Tests that the upload proxy's host is taken from Ingresses and Routes, and followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Self

import pytest

from cdi.api.errors import ClusterForbidden, NotFound
from cdi.api.kinds import INGRESSES, ROUTES
from cdi.controller.proxy_exposure import ProxyExposure, ingress_host, route_host
from cdi.kube.client import Listing

PROXY = "cdi-uploadproxy"
HOST = "uploads.example.com"


def backend(service: str) -> dict[str, Any]:
    return {"service": {"name": service, "port": {"number": 443}}}


def rule(service: str | None, host: str | None = HOST) -> dict[str, Any]:
    made: dict[str, Any] = {} if host is None else {"host": host}
    return made if service is None else made | {"http": {"paths": [{"path": "/", "backend": backend(service)}]}}


def ingress(name: str = "a", version: str = "1", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "cdi", "uid": name, "resourceVersion": version}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec}


def route(service: str = PROXY, *hosts: str) -> dict[str, Any]:
    metadata = {"name": "r", "namespace": "cdi", "uid": "r", "resourceVersion": "1"}
    status = {"ingress": [{"host": host} for host in hosts]}
    return {
        "apiVersion": "route.openshift.io/v1", "kind": "Route", "metadata": metadata,
        "spec": {"to": {"kind": "Service", "name": service}}, "status": status,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "host"),
    [
        ({"rules": [rule(PROXY)]}, HOST),
        ({"rules": [rule("other", "x.example.com"), rule(PROXY)]}, HOST),
        ({"defaultBackend": backend(PROXY), "rules": [rule(None)]}, HOST),
        ({"defaultBackend": backend(PROXY), "rules": [rule(None, None), rule(None)]}, HOST),
        ({"defaultBackend": backend(PROXY)}, ""),
        ({"defaultBackend": backend("other"), "rules": [rule(None)]}, ""),
        ({"defaultBackend": {"resource": {"kind": "Bucket", "name": PROXY}}, "rules": [rule(None)]}, ""),
        ({"rules": [rule("other")]}, ""),
        ({"rules": [rule(PROXY, None)]}, ""),
        ({"rules": [{"host": HOST, "http": None}]}, ""),
        ({}, ""),
    ],
)
def test_the_host_of_an_ingress(spec: dict[str, Any], host: str) -> None:
    assert ingress_host(ingress(**spec), PROXY) == host


def test_the_host_of_a_route() -> None:
    assert route_host(route(PROXY, HOST, "second.example.com"), PROXY) == HOST
    assert route_host(route("other", HOST), PROXY) == ""
    assert route_host(route(PROXY), PROXY) == ""


class Api:
    """An API server with one list and one watch for each resource; Routes exist only if a test says so."""

    def __init__(self, ingresses: list[dict[str, Any]], routes: list[dict[str, Any]] | Exception | None = None) -> None:
        self.lists: dict[Any, Any] = {
            INGRESSES: ingresses,
            ROUTES: NotFound("the server could not find the requested resource") if routes is None else routes,
        }
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def list(self, resource: Any, namespace: str, **_: Any) -> Listing:
        assert namespace == "cdi"
        found = self.lists[resource]
        if isinstance(found, Exception):
            raise found
        return Listing(items=found, version="1")

    async def watch(self, resource: Any, namespace: str, **_: Any) -> AsyncGenerator[dict[str, Any], None]:
        if resource != INGRESSES:
            await asyncio.Future()
        while True:
            yield await self.events.get()


class Run:
    """A running watch, and the hosts that it announced."""

    def __init__(self, api: Api) -> None:
        self.hosts: asyncio.Queue[str | None] = asyncio.Queue()
        self.exposure = ProxyExposure(api, "cdi", PROXY, changed=self._changed)  # type: ignore[arg-type]

    def _changed(self) -> None:
        self.hosts.put_nowait(self.exposure.host())

    async def __aenter__(self) -> Self:
        assert self.exposure.host() is None
        self._task = asyncio.ensure_future(self.exposure.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def until(self, host: str) -> None:
        async with asyncio.timeout(60):
            while await self.hosts.get() != host:
                pass


async def test_changes_of_ingresses_are_followed() -> None:
    api = Api([])
    async with Run(api) as run:
        await run.until("")
        exposed = ingress(version="2", defaultBackend=backend(PROXY), rules=[rule(None)])
        api.events.put_nowait({"type": "ADDED", "object": exposed})
        await run.until(HOST)
        api.events.put_nowait(
            {"type": "DELETED", "object": {**exposed, "metadata": {**exposed["metadata"], "resourceVersion": "3"}}}
        )
        await run.until("")


async def test_an_ingress_precedes_a_route() -> None:
    async with Run(Api([], [route(PROXY, "route.example.com")])) as run:
        await run.until("route.example.com")
    async with Run(Api([ingress(rules=[rule(PROXY)])], [route(PROXY, "route.example.com")])) as run:
        await run.until(HOST)


async def test_what_may_not_be_read_counts_as_absent() -> None:
    async with Run(Api([ingress(rules=[rule(PROXY)])], ClusterForbidden("no"))) as run:
        await run.until(HOST)
