"""HTTP endpoints ``/healthz`` and ``/readyz``, and ``/metrics`` unless it is served to authenticated clients only.

Plain HTTP: the kubelet probes without credentials, and none of the content is secret.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cdi.http.sockets import listen_as_asked


@contextlib.asynccontextmanager
async def serve_health(
    port: int, *, ready: Callable[[], str], alive: Callable[[], str], registry: CollectorRegistry | None
) -> AsyncIterator[int]:
    """Serve while the context is open, and yield the port number.

    Args:
        port: The port to listen on; 0 for any free one.
        ready: Called by ``/readyz``; returns what is wrong, which gives status 503, or the empty string.
        alive: The same for ``/healthz``.
        registry: The metrics to serve; None to serve none.

    Raises:
        UsageError: The port is in use.

    """

    async def healthz(_: web.Request) -> web.Response:
        return _answer(alive())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(ready())

    app = web.Application(client_max_size=1024)
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    if registry is not None:
        app.add_routes([web.get("/metrics", functools.partial(_metrics, registry))])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        listener = listen_as_asked(port)
        await web.SockSite(runner, listener).start()
        yield int(listener.getsockname()[1])
    finally:
        await runner.cleanup()


async def _metrics(registry: CollectorRegistry, _: web.Request) -> web.Response:
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(unready_reason: str) -> web.Response:
    return web.Response(text=f"{unready_reason}\n", status=503) if unready_reason else web.Response(text="ok\n")
