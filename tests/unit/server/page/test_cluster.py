"""Tests of the tokens that are recognised because of the API server's answers."""

import asyncio

import pytest
from aiohttp import web

from cdi.api.errors import ClusterUnauthorized
from cdi.kube.credentials import Endpoint, FixedCredentials
from cdi.kube.sync import SyncClient
from cdi.server.page import cluster
from cdi.server.page.cluster import ClusterBackendProvider


@pytest.fixture
async def asked():
    """An API server that knows the token ``good``, and the requests that it received."""
    made = []

    async def handle(request):
        made.append(f"{request.method} {request.path}")
        if request.headers.get("Authorization") not in {"Bearer good", "Bearer better"}:
            return web.json_response({"kind": "Status", "code": 401, "message": "Unauthorized"}, status=401)
        if request.method == "POST":
            return web.json_response({"status": {"allowed": False}}, status=201)
        return web.json_response({"kind": "DataVolumeList", "metadata": {}, "items": []})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
    yield made
    await runner.cleanup()


@pytest.fixture
async def desks(asked):
    from cdi.kube.client import Client

    credentials = FixedCredentials(Endpoint(server=asked.pop()))
    own = await asyncio.to_thread(SyncClient, Client(credentials))
    made = ClusterBackendProvider(own, credentials)
    yield made
    await asyncio.to_thread(made.close)
    await asyncio.to_thread(own.close)


async def test_a_token_is_known_when_the_api_server_has_accepted_it(desks, asked, monkeypatch):
    assert not desks.recognises("good")
    backend = await asyncio.to_thread(desks.of, "good")
    assert not desks.recognises("good")
    assert await asyncio.to_thread(backend.volumes, "team") == []
    assert desks.recognises("good")
    # It is recognised for a limited time only.
    monkeypatch.setattr(cluster, "_SESSION_TTL", 0.0)
    assert not desks.recognises("good")


async def test_whether_it_is_good_is_asked_without_anything_else(desks, asked):
    """Authentication does not check the user's permissions."""
    backend = await asyncio.to_thread(desks.of, "good")
    await asyncio.to_thread(backend.authenticate)
    assert asked == ["POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"]
    assert desks.recognises("good")
    bad = await asyncio.to_thread(desks.of, "bad")
    with pytest.raises(ClusterUnauthorized):
        await asyncio.to_thread(bad.authenticate)
    assert not desks.recognises("bad")


async def test_tokens_that_nobody_has_do_not_drive_out_the_connections_of_users(desks):
    backend = await asyncio.to_thread(desks.of, "good")
    await asyncio.to_thread(backend.authenticate)
    for number in range(3 * cluster._MAX_SESSIONS):
        await asyncio.to_thread(desks.of, f"bad-{number}")
    assert len(desks._clients) == cluster._MAX_SESSIONS + 1
    assert (await asyncio.to_thread(desks.of, "good"))._client is backend._client
