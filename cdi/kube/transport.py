"""HTTP requests to one API server, with safe retries and mapped errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from cdi.api.errors import (
    CdiError,
    ClusterProtocolError,
    ClusterTlsUntrusted,
    ClusterUnauthorized,
    ClusterUnavailable,
    ClusterUnreachable,
    NotFound,
)
from cdi.api.json_document import parse_json
from cdi.kube import responses
from cdi.kube.credentials import Credentials

MAX_ANSWER = 64 << 20
"""Maximum size of a response, and of a line of a watch, in bytes."""
_MAX_REFUSAL = 1 << 20
_CONNECTIONS = 64
_READ_BUFFER = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Timeouts and delays, in seconds."""

    connect: float = 10.0
    answer: float = 60.0
    """Maximum time without a byte of the response."""
    patience: float = 30.0
    """Total delay that one call spends waiting for an unavailable server."""
    first_pause: float = 0.25
    longest_pause: float = 5.0
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)


class TooLargeError(Exception):
    """The response exceeds `MAX_ANSWER` bytes."""


class _ConnectionLostError(Exception):
    """Loss of a connection, as an exception that aiohttp does not know."""


async def _without_retry(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from repeating a request whose connection was lost.

    It would repeat a DELETE and report the second one's "not found", a case that `Transport.request` handles.
    """
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # aiohttp does not repeat these
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _ConnectionLostError(_said(error)) from error


class _PassingError(Exception):
    """Failure that a retry may resolve."""

    def __init__(self, error: ClusterUnreachable | ClusterUnavailable, *, not_sent: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.not_sent = not_sent
        """Whether the server certainly did not process the request."""


class Transport:
    """Connection pool with credentials and retries."""

    def __init__(self, credentials: Credentials, timing: Timeouts, agent: str) -> None:
        self.credentials = credentials
        self.timing = timing
        self._agent = agent
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Open the session; raise what reading the credentials raises."""
        await self.credentials.access()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BUFFER,
            headers={"User-Agent": self._agent, "Accept": "application/json"},
            middlewares=[_without_retry],
        )

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            await asyncio.sleep(0)  # transports close in the next loop iteration

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        accept: str | None = None,
        idempotent: bool = False,
    ) -> bytes:
        """Return the body of the response.

        `idempotent` says that the request is idempotent and may be repeated. A DELETE that finds nothing, after an
        earlier attempt may have succeeded, counts as successful: the result is an empty object.
        """
        left, pause = self.timing.patience, self.timing.first_pause
        uncertain = False
        while True:
            try:
                return await self._once(method, path, body=body, query=query, content_type=content_type, accept=accept)
            except NotFound:
                if uncertain and method == "DELETE":
                    return b"{}"
                raise
            except _PassingError as passing:
                error = passing.error
                wait = pause * random.uniform(0.75, 1.25)  # noqa: S311  spreads load
                if isinstance(error, ClusterUnavailable) and error.retry_after is not None:
                    wait = max(wait, error.retry_after)
                if wait > left or not (idempotent or passing.not_sent):
                    raise error from passing.__cause__
                uncertain = uncertain or not passing.not_sent
            left -= wait
            pause = min(pause * 2, self.timing.longest_pause)
            await self.timing.sleep(wait)

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str], read_timeout: float | None, accept: str | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield the chunks of one response as they arrive, without retries; `silence` seconds without data end it."""
        where = f"GET {path}"
        try:
            with _mapped(where):
                async with self._sent("GET", path, query=query, read_timeout=read_timeout, accept=accept) as response:
                    try:
                        yield response.content.iter_any()
                    finally:
                        # Otherwise unfinished TLS waits for the server's close_notify, beyond the end of the session.
                        if response.connection is not None and response.connection.transport is not None:
                            response.connection.transport.abort()
        except _PassingError as passing:
            raise passing.error from passing.__cause__

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
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode("utf-8", "surrogatepass")
        pieces: list[bytes] = []
        size = 0
        with _mapped(f"{method} {path}"):
            async with self._sent(
                method,
                path,
                query=query,
                data=data,
                content_type=content_type,
                accept=accept,
                read_timeout=self.timing.answer,
            ) as response:
                async for piece in response.content.iter_any():
                    pieces.append(piece)
                    size += len(piece)
                    if size > MAX_ANSWER:
                        raise TooLargeError
        return b"".join(pieces)

    @contextlib.asynccontextmanager
    async def _sent(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        read_timeout: float | None,
        data: bytes | None = None,
        content_type: str | None = None,
        accept: str | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield a response with a status below 300, its body unread.

        After a 401 the request is repeated once if credentials can be renewed: the server did not process it.
        """
        assert self._session is not None, "the client is used outside its context"
        headers = {"Content-Type": content_type or "application/json"} if data is not None else {}
        if accept is not None:
            headers["Accept"] = accept
        for last in (False, True):
            access = await self.credentials.access()
            if access.authorization is not None:
                headers["Authorization"] = access.authorization
            async with self._session.request(
                method,
                URL(f"{access.server}{path}{'?' + urlencode(query) if query else ''}", encoded=True),
                data=data,
                headers=headers,
                ssl=access.context if access.context is not None else True,
                server_hostname=access.server_name,
                proxy=access.proxy,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timing.connect, sock_read=read_timeout),
            ) as response:
                if response.status < 300:
                    yield response
                    return
                error = await _refusal(response, f"{method} {path}")
            if last or not isinstance(error, ClusterUnauthorized) or not await self.credentials.invalidate():
                if isinstance(error, ClusterUnavailable):
                    raise _PassingError(error, not_sent=response.status == 429)
                raise error


async def _refusal(response: aiohttp.ClientResponse, where: str) -> CdiError:
    """Return the error of a failed response; if its body is unreadable, the status alone decides."""
    text = b""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        while len(text) < _MAX_REFUSAL and (piece := await response.content.readany()):
            text += piece
    try:
        body = parse_json(text)
    except ValueError:
        # Not a Status: a proxy's page, or the plain text of the server's outermost handlers.
        plain = " ".join(text[:300].decode("utf-8", "replace").split())
        body = {"kind": "Status", "message": f"HTTP status {response.status}: {plain}" if plain else ""}
    return responses.error_from_status(response.status, body, response.headers, where)


@contextlib.contextmanager
def _mapped(where: str) -> Iterator[None]:
    """Map exceptions of aiohttp to this project's errors, transient ones to `_PassingError`."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise ClusterTlsUntrusted(
            f"the API server's certificate is not trusted: {error.certificate_error}", where=where
        ) from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
        raise _PassingError(
            ClusterUnreachable(f"cannot connect to the API server: {_said(error)}", where=where), not_sent=True
        ) from error
    except TimeoutError as error:
        raise _PassingError(
            ClusterUnreachable("timed out waiting for data from the API server", where=where), not_sent=False
        ) from error
    except (_ConnectionLostError, aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, OSError) as error:
        raise _PassingError(
            ClusterUnreachable(f"lost the connection to the API server: {_said(error)}", where=where), not_sent=False
        ) from error
    except (aiohttp.ClientError, ValueError) as error:
        raise ClusterProtocolError(f"invalid HTTP response: {_said(error)}", where=where) from error


def _said(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port}: {error.os_error.strerror or error.os_error}"[:300].rstrip(".")
    return str(error)[:300].rstrip(".") or type(error).__name__
