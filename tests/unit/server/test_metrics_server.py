"""Tests of the metrics server over real TLS: authentication, authorization, bounds and the TLS profile."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl

import pytest
from aiohttp import ClientConnectionError, ClientSession, TCPConnector
from prometheus_client import CollectorRegistry, Gauge

from cdi.api.errors import ClusterUnavailable, NotFound, UsageError
from cdi.api.kinds import CDI_CONFIGS, CDIS
from cdi.server import metrics_server
from cdi.server.metrics_server import (
    ALLOWED_TTL,
    DENIED_TTL,
    MAX_DECISIONS,
    MAX_PENDING,
    MAX_TOKEN,
    MetricsAuthorizer,
    serve_metrics,
)

ALLOWED = {"Authorization": "Bearer scraper"}


class Listing:
    def __init__(self, items):
        self.items = items


class Kubernetes:
    """A fake API server with users, permissions and a CDI object, that records reviews."""

    def __init__(self):
        self.tokens = {"scraper": "system:serviceaccount:cdi:cdi-metrics-reader", "other": "jane"}
        self.readers = {"system:serviceaccount:cdi:cdi-metrics-reader"}
        self.reviews = []
        self.failure = None
        self.gate = None
        self.profile = None

    async def request(self, method, path, *, body, idempotent):
        self.reviews.append(body)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if body["kind"] == "TokenReview":
            name = self.tokens.get(body["spec"]["token"])
            return {"status": {"authenticated": name is not None, "user": {"username": name} if name else {}}}
        assert body["spec"]["nonResourceAttributes"] == {"path": "/metrics", "verb": "get"}
        return {"status": {"allowed": body["spec"]["user"] in self.readers}}

    async def list(self, resource):
        assert resource == CDIS
        if self.failure is not None:
            raise self.failure
        spec = {"config": {"tlsSecurityProfile": self.profile}} if self.profile else {}
        body = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDI", "metadata": {"name": "cdi"}, "spec": spec}
        return Listing([body])

    async def get(self, resource, namespace, name):
        assert resource == CDI_CONFIGS
        raise NotFound(name)


@pytest.fixture
def kubernetes():
    return Kubernetes()


@pytest.fixture
def registry():
    made = CollectorRegistry()
    Gauge("cdi_test", "A test.", registry=made).set(3)
    return made


@pytest.fixture
async def ask(kubernetes, registry):
    """Yield a function that requests a path over TLS and returns status and text."""
    async with serve_metrics(kubernetes, 0, registry) as port:

        async def asked(headers=ALLOWED, path="/metrics", context=None):
            context = context or ssl._create_unverified_context()
            async with (
                ClientSession(connector=TCPConnector(ssl=context)) as session,
                session.get(f"https://localhost:{port}{path}", headers=headers) as answer,
            ):
                return answer.status, await answer.text()

        asked.port = port
        yield asked


async def test_a_permitted_client_reads_the_metrics(ask):
    status, text = await ask()
    assert status == 200
    assert "cdi_test 3.0" in text
    assert (await ask(path="/healthz"))[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic scraper"},
        {"Authorization": "Bearer " + "x" * 7000},
    ],
)
async def test_a_client_without_a_valid_token_is_rejected(ask, headers):
    assert await ask(headers) == (401, "Unauthorized\n")


async def test_a_client_without_the_permission_is_rejected_by_name(ask):
    assert await ask({"Authorization": "Bearer other"}) == (403, "Authorization denied for user jane\n")


async def test_plain_http_is_not_answered(ask):
    async with ClientSession() as session:
        with pytest.raises(ClientConnectionError):
            await session.get(f"http://localhost:{ask.port}/metrics", headers=ALLOWED)


async def test_without_the_api_server_nobody_reads_the_metrics(ask, kubernetes):
    kubernetes.failure = ClusterUnavailable("the API server does not answer")
    status, text = await ask()
    assert status == 503
    assert "the API server does not answer" in text
    kubernetes.failure = None
    assert (await ask())[0] == 200


async def test_a_port_that_is_taken_is_a_usage_error(ask, kubernetes, registry):
    with pytest.raises(UsageError, match=str(ask.port)):
        async with serve_metrics(kubernetes, ask.port, registry):
            pass


async def test_it_starts_without_the_api_server(kubernetes, registry):
    kubernetes.failure = ClusterUnavailable("the API server does not answer")
    async with serve_metrics(kubernetes, 0, registry) as port:
        assert port


# --- decisions that are remembered -------------------------------------------------------------------------------


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def authorizer(kubernetes, now):
    return MetricsAuthorizer(kubernetes, clock=lambda: now[0])


async def test_a_decision_is_remembered_for_a_while(authorizer, kubernetes, now):
    assert (await authorizer.authorize("Bearer scraper")).is_allowed
    kubernetes.readers.clear()
    now[0] = ALLOWED_TTL - 0.1
    assert (await authorizer.authorize("Bearer scraper")).is_allowed
    assert len(kubernetes.reviews) == 2
    now[0] = ALLOWED_TTL
    assert (await authorizer.authorize("bearer scraper")).status == 403
    kubernetes.readers.add("system:serviceaccount:cdi:cdi-metrics-reader")
    now[0] += DENIED_TTL
    assert (await authorizer.authorize("Bearer scraper")).is_allowed


async def test_a_token_that_is_too_long_is_not_sent_to_the_api_server(authorizer, kubernetes):
    assert (await authorizer.authorize("Bearer " + "x" * (MAX_TOKEN + 1))).status == 401
    assert kubernetes.reviews == []


async def test_many_tokens_do_not_fill_the_memory(authorizer):
    for number in range(2 * MAX_DECISIONS):
        await authorizer.authorize(f"Bearer {number}")
    assert len(authorizer._decisions) == MAX_DECISIONS


async def test_many_clients_do_not_flood_the_api_server(authorizer, kubernetes):
    kubernetes.gate = asyncio.Event()
    waiting = [asyncio.ensure_future(authorizer.authorize(f"Bearer {number}")) for number in range(MAX_PENDING)]
    for _ in waiting:  # each task runs until it waits for the API server
        await asyncio.sleep(0)
    assert len(kubernetes.reviews) == MAX_PENDING
    assert (await authorizer.authorize("Bearer scraper")).status == 503
    kubernetes.gate.set()
    assert {one.status for one in await asyncio.gather(*waiting)} == {401}
    assert (await authorizer.authorize("Bearer scraper")).is_allowed


async def test_an_api_server_that_does_not_answer_is_not_waited_for(authorizer, kubernetes, monkeypatch):
    monkeypatch.setattr(metrics_server, "REVIEW_TIMEOUT", 0.01)
    kubernetes.gate = asyncio.Event()
    assert (await authorizer.authorize("Bearer scraper")).status == 503


# --- TLS ----------------------------------------------------------------------------------------------------------


def limited(newest):
    context = ssl._create_unverified_context()
    context.maximum_version = newest
    return context


async def test_tls_follows_the_profile_of_the_cdi_object(kubernetes, registry, monkeypatch):
    def handshake(port, newest):
        with (
            socket.create_connection(("localhost", port), timeout=60) as raw,
            limited(newest).wrap_socket(raw) as connection,
        ):
            return connection.version()

    kubernetes.profile = {"type": "Modern", "modern": {}}
    monkeypatch.setattr(metrics_server, "POLL_INTERVAL", 0.01)
    async with serve_metrics(kubernetes, 0, registry) as port:
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(handshake, port, ssl.TLSVersion.TLSv1_2)
        assert await asyncio.to_thread(handshake, port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        kubernetes.profile = {"type": "Intermediate", "intermediate": {}}
        while True:
            try:
                assert await asyncio.to_thread(handshake, port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
                break
            except ssl.SSLError:
                await asyncio.sleep(0.01)


async def test_the_certificate_is_renewed_before_it_ends(kubernetes, registry, monkeypatch):
    monkeypatch.setattr(metrics_server, "POLL_INTERVAL", 0.01)
    now = [dt.datetime.now(dt.UTC)]

    def certificate(port):
        return ssl.get_server_certificate(("localhost", port), timeout=60)

    async with serve_metrics(kubernetes, 0, registry, clock=lambda: now[0]) as port:
        first = await asyncio.to_thread(certificate, port)
        assert await asyncio.to_thread(certificate, port) == first
        now[0] += dt.timedelta(days=335)
        while True:
            if await asyncio.to_thread(certificate, port) != first:
                break
            await asyncio.sleep(0.01)
