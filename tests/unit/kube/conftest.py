from __future__ import annotations

import pytest
from aiohttp import web

from tests.unit.kube.server import Server


@pytest.fixture()
async def server():
    """Start a `Server` on its own port."""
    made = Server()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()
