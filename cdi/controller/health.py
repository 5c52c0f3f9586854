"""HTTP endpoints ``/healthz``, ``/readyz`` and ``/metrics``; plain HTTP, as none of their content is secret."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cdi.api.errors import UsageError


@contextlib.asynccontextmanager
async def serve_health(
    port: int, *, ready: Callable[[], str], alive: Callable[[], str], registry: CollectorRegistry
) -> AsyncIterator[int]:
    """Serve while the context is open, and yield the port number.

    Args:
        port: The port to listen on; 0 for any free one.
        ready: Called by ``/readyz``; returns what is wrong, which gives status 503, or the empty string.
        alive: The same for ``/healthz``.
        registry: The metrics to serve.

    Raises:
        UsageError: The port is in use.

    """

    async def healthz(_: web.Request) -> web.Response:
        return _answer(alive())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(ready())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application(client_max_size=1024)
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        listener = _listen(port)
        await web.SockSite(runner, listener).start()
        yield int(listener.getsockname()[1])
    finally:
        await runner.cleanup()


def _listen(port: int) -> socket.socket:
    """Listen on all IPv4 and IPv6 addresses of the machine."""
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, reuse_port=False
        )
    except OSError as error:
        raise UsageError(
            f"cannot listen on port {port}: {error.strerror}", remedy="choose another one with --port"
        ) from error


def _answer(unready_reason: str) -> web.Response:
    return web.Response(text=f"{unready_reason}\n", status=503) if unready_reason else web.Response(text="ok\n")
