"""The transport of the real client, with an `ApiServer` in place of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from cdi.api.errors import ClusterUnavailable, ClusterUnreachable
from cdi.kube import responses
from cdi.kube.client import Client
from cdi.kube.credentials import Endpoint, FixedCredentials
from cdi.kube.transport import Timeouts, Transport, _PassingError
from tests.simulation.api_server import ApiServer, Refusal, Request, encode, parse_path

if TYPE_CHECKING:
    from cdi.api.kinds import Resource

BOOKMARKS = 90.0
"""Seconds without a change after which a watch gets a bookmark."""
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class LostError(Exception):
    """The connection broke; the request was possibly carried out."""


class Network(Protocol):
    """Delays and faults between a controller and its API server."""

    async def before(self, request: Request) -> None:
        """Delay a request; raise `Refusal` or `LostError`."""

    async def after(self, request: Request) -> None:
        """Delay the response to a request that was carried out; raise `LostError`."""

    async def delivery(self, request: Request) -> int:
        """Delay an event of a watch, and return how often it is delivered; raise `LostError` if the watch breaks."""


class SimulatedTransport(Transport):
    """Transport of one controller process."""

    def __init__(self, server: ApiServer, name: str, network: Network) -> None:
        super().__init__(FixedCredentials(Endpoint(server="http://simulated")), Timeouts(), "simulation")
        self._server = server
        self._name = name
        self._network = network
        self.dead = False
        """Whether the process was killed: nothing that it still does has an effect."""

    async def open(self) -> None:
        """Do nothing: there are no connections."""

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    async def _once(
        self,
        method: str,
        path: str,
        *,
        body: Any,
        query: Mapping[str, str] | None,
        content_type: str | None,
        accept: str | None,
    ) -> bytes:
        request = self._request(method, path, query, body, content_type, accept)
        where = f"{method} {path}"
        try:
            await self._alive()
            self._server.sent(request)
            await self._network.before(request)
            await self._alive()
            if request.verb == "list":
                return self._server.list(request)
            stored = self._server.handle(request)
            await self._network.after(request)
            await self._alive()
        except Refusal as refusal:
            error = responses.error_from_status(refusal.code, refusal.body, {}, where)
            if isinstance(error, ClusterUnavailable):
                raise _PassingError(error, not_sent=refusal.code == 429) from None
            raise error from None
        except LostError:
            error = ClusterUnreachable("lost the connection to the API server", where=where)
            raise _PassingError(error, not_sent=False) from None
        self._server.answered(request, stored)
        return stored.bytes

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str], read_timeout: float | None, accept: str | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        request = self._request("GET", path, query, None, None, accept)
        try:
            await self._alive()
            await self._network.before(request)
        except Refusal as refusal:
            raise responses.error_from_status(refusal.code, refusal.body, {}, f"GET {path}") from None
        except LostError:
            raise ClusterUnreachable("lost the connection to the API server", where=f"GET {path}") from None
        yield self._events(request)

    async def _events(self, request: Request) -> AsyncIterator[bytes]:
        watch = self._server.watch(request)
        try:
            while True:
                await self._alive()
                try:
                    async with asyncio.timeout(BOOKMARKS):
                        await watch.news.wait()
                except TimeoutError:
                    yield watch.bookmark() + b"\n"
                    continue
                watch.news.clear()
                while True:
                    if watch.expired:
                        yield (
                            encode({"type": "ERROR", "object": Refusal(410, "Expired", "too old version").body}) + b"\n"
                        )
                        return
                    event = watch.next()
                    if event is None:
                        break
                    try:
                        for _ in range(await self._network.delivery(request)):
                            yield event + b"\n"
                    except LostError:
                        return
                    await self._alive()
        finally:
            watch.close()

    async def _alive(self) -> None:
        if self.dead:
            await asyncio.get_running_loop().create_future()

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str | None,
        accept: str | None,
    ) -> Request:
        resource: Resource
        resource, namespace, name, subresource = parse_path(path)
        verb = _VERBS.get(method) or ("get" if name else "list")
        if verb == "create":
            name = (body.get("metadata") or {}).get("name", "")
        return Request(
            client=self._name, verb=verb, resource=resource, namespace=namespace, name=name, subresource=subresource,
            query=query or {}, body=body, content_type=content_type or "",
            metadata_only="PartialObjectMetadata" in (accept or ""),
        )  # fmt: skip


def simulated_client(server: ApiServer, name: str, network: Network) -> tuple[Client, SimulatedTransport]:
    """Return a real client over a `SimulatedTransport`."""
    client = Client(FixedCredentials(Endpoint(server="http://simulated")))
    transport = SimulatedTransport(server, name, network)
    client._transport = transport
    return client, transport
