"""A relay of uploads as a process: ``python -m bench_lib.relay proxy|aiohttp DIRECTORY PORT``; it prints its own port.

``proxy`` is our upload proxy. ``aiohttp`` is the least that one on aiohttp would be: TLS on both sides and the body as
it arrives, without tokens, waiting, a kept start or early responses. Both send to the upload server at PORT, with the
certificates in DIRECTORY (`bench_lib.uploads`).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

_READ_SIZE = 1 << 20
"""Size of aiohttp's read buffers in bytes; with its default of 64 KiB it relays more slowly."""


def _proxy(directory: Path, port: int) -> None:
    from cdi.server.proxy.run import Options, serve
    from cdi.server.proxy.volumes import Destination

    class OneServer:
        def look(self, namespace: str, name: str) -> Destination:
            del namespace, name
            return Destination(host="localhost", port=port)

    serve(
        Options(
            tls=str(directory / "proxy"),
            client=str(directory / "client"),
            authorities=str(directory / "ca.crt"),
            token_key=str(directory / "id_rsa.pub"),
            port=0,
        ),
        OneServer(),
        listening=lambda found: print(found, flush=True),
    )


async def _aiohttp(directory: Path, port: int) -> None:
    import aiohttp
    from aiohttp import web

    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(directory / "proxy" / "tls.crt", directory / "proxy" / "tls.key")
    sending = ssl.create_default_context(cafile=directory / "ca.crt")
    sending.load_cert_chain(directory / "client" / "tls.crt", directory / "client" / "tls.key")

    async with aiohttp.ClientSession(read_bufsize=_READ_SIZE, timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def relay(request: web.BaseRequest) -> web.Response:
            async def body() -> AsyncIterator[bytes]:
                async for piece in request.content.iter_any():
                    yield piece

            headers = {"Content-Length": request.headers["Content-Length"]}
            url = f"https://localhost:{port}{request.path}"
            async with session.request(request.method, url, data=body(), headers=headers, ssl=sending) as response:
                return web.Response(status=response.status, body=await response.read())

        runner = web.ServerRunner(web.Server(relay, read_bufsize=_READ_SIZE, access_log=None))
        await runner.setup()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            await web.SockSite(runner, listener, ssl_context=serving).start()
            print(listener.getsockname()[1], flush=True)
            await asyncio.Event().wait()


def main(kind: str, directory: str, port: str) -> None:
    """Relay until the process is killed."""
    if kind == "proxy":
        _proxy(Path(directory), int(port))
    else:
        asyncio.run(_aiohttp(Path(directory), int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
