"""Upload client: resumable if the server supports tus 1.0.0, otherwise in one request.

It works with any server that supports KubeVirt's upload API. After a broken connection, a server restart or an expired
token, it asks for the offset and resumes there, with growing delays, until nothing has arrived for `RetryPolicy.most`.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol, Self
from urllib.parse import urljoin, urlsplit

from cdi.api.errors import (
    AlreadyUploaded,
    CdiError,
    Retry,
    SourceTlsUntrusted,
    TokenInvalid,
    UploadMalformed,
    UploadNotReady,
    UploadOffsetConflict,
    UploadUnderWay,
    UploadUnknown,
    UsageError,
    by_code,
)
from cdi.api.json_document import parse_json
from cdi.api.upload_protocol import TUS_CONTENT, TUS_VERSION, tus_path

_BUFFER = 1 << 20
_CONNECTING = 10.0
_MAX_ANSWER = 64 << 10
_RESUMED = (404, 405, 501)
"""Status codes of servers without tus when an upload is created."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Timeouts and delays in seconds."""

    first: float = 0.5
    longest: float = 30.0
    most: float = 600.0
    """The longest time without progress."""
    stall: float = 60.0
    """The longest time without the server reading a byte."""
    answer: float = 3600.0
    """The timeout for the response, which is sent once the image has been checked and written."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """The address of an upload proxy."""

    url: str
    """The URL ``https://host[:port]``; anything after it is ignored."""
    context: ssl.SSLContext | None = None
    """The TLS context for https; None trusts the system's authorities."""


class UploadObserver(Protocol):
    """Observer of an upload."""

    def sent(self, done: int, total: int) -> None: ...

    def waits(self, why: str, seconds: float) -> None:
        """Report a failure that is retried after so many seconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    namespace: str
    name: str


class _Lost(Exception):
    """Error of a broken connection; `error` has the cause."""

    def __init__(self, error: OSError | http.client.HTTPException) -> None:
        super().__init__(str(error) or type(error).__name__)


class UploadClient:
    """The upload of one file."""

    def __init__(
        self,
        proxy: Proxy,
        volume: Volume,
        file: BinaryIO,
        size: int,
        token: Callable[[], str],
        watcher: UploadObserver,
        *,
        patience: RetryPolicy | None = None,
    ) -> None:
        """Upload `size` bytes of a seekable `file`; `token` returns a valid token."""
        self._proxy = proxy
        self._volume = volume
        self._file = file
        self._size = size
        self._ask_token = token
        self._watcher = watcher
        self._patience = patience or RetryPolicy()
        self._token: str | None = None
        self._url: str | None = None
        self._moved = self._patience.clock()
        self._furthest = 0

    def send(self) -> None:
        """Upload the file; return when the server has accepted all of it.

        Raises:
            CdiError: The server's error.
            UsageError: The URL is invalid.
            SourceTlsUntrusted: The server's certificate is not trusted.
            UploadNotReady: There was no progress for too long.
        """
        try:
            self._persist(self._resumably)
        except _NotSpokenError:
            self._persist(self._plainly)

    def _persist(self, work: Callable[[], None]) -> None:
        failures, renewed = 0, False
        self._moved = self._patience.clock()
        while True:
            before = self._furthest
            try:
                work()
                return
            except _Lost as error:
                trouble: CdiError = UploadNotReady(f"the connection to the upload proxy failed: {error}")
            except TokenInvalid:
                moved = self._furthest > before
                if renewed and not moved:
                    raise
                self._token, renewed = None, True
                continue
            except UploadUnknown as error:
                if self._url is None:
                    raise
                self._url, self._furthest = None, 0
                trouble = error
            except CdiError as error:
                if error.retry is not Retry.BACKOFF:
                    raise
                trouble = error
            failures = 1 if self._furthest > before else failures + 1
            self._pause(failures, trouble)

    def _pause(self, failures: int, trouble: CdiError) -> None:
        patience = self._patience
        if patience.clock() - self._moved > patience.most:
            raise trouble
        pause = min(patience.longest, patience.first * 2 ** min(failures - 1, 10))
        pause *= random.uniform(0.75, 1.25)  # noqa: S311  spreads load
        self._watcher.waits(trouble.what, pause)
        patience.sleep(pause)

    # --- tus ----------------------------------------------------------------------------------------------------

    def _resumably(self) -> None:
        if self._url is None:
            self._url = self._begin()
            offset = 0
        else:
            with self._exchange("HEAD", self._url, {}) as answer:
                offset = _offset(answer.headers)
        if offset > self._size:
            raise UploadMalformed("the server has more bytes than the file")
        self._tell(offset)
        if offset == self._size:
            return
        headers = {"Upload-Offset": str(offset), "Content-Type": TUS_CONTENT}
        with self._exchange("PATCH", self._url, headers, offset) as answer:
            now = _offset(answer.headers)
        if now < self._size:
            raise UploadOffsetConflict(f"the server has {now} of {self._size} bytes")
        self._tell(now)

    def _begin(self) -> str:
        name = base64.b64encode(os.path.basename(str(getattr(self._file, "name", ""))).encode()[:200]).decode()
        headers = {"Upload-Length": str(self._size), **({"Upload-Metadata": f"filename {name}"} if name else {})}
        endpoint = urljoin(self._proxy.url, tus_path(self._volume.namespace, self._volume.name))
        with self._exchange("POST", endpoint, headers, allowed=_RESUMED) as answer:
            if answer.status != 201 or "location" not in answer.headers:
                raise _NotSpokenError
            url = urljoin(endpoint, answer.headers["location"])
        if urlsplit(url)[:2] != urlsplit(endpoint)[:2]:
            # Every request carries the token, which no other server may get.
            raise UploadMalformed("the server redirects uploads to another server", where=url)
        return url

    # --- plain --------------------------------------------------------------------------------------------------

    def _plainly(self) -> None:
        """Upload as virtctl does: through the asynchronous path if the server has it."""
        path = urljoin(self._proxy.url, "/v1beta1/upload-async")
        with self._exchange("HEAD", path, {}, allowed=(400, 404, 405, 501)) as answer:
            known = answer.status == 200
        if not known:
            path = urljoin(self._proxy.url, "/v1beta1/upload")
        self._tell(0)
        with self._exchange("POST", path, {"Content-Type": "application/octet-stream"}, 0):
            self._tell(self._size)

    # --- requests -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        offset: int | None = None,
        *,
        allowed: tuple[int, ...] = (),
    ) -> Iterator[_Answer]:
        """Send a request, with the file from `offset` on as its body, and yield the response.

        Raises `_Lost`, and the server's error unless its status is one of `allowed`.
        """
        if self._token is None:
            self._token = self._ask_token()
        connection = _connection(url, self._proxy.context)
        try:
            try:
                connection.connect()
                connection.sock.settimeout(self._patience.stall)
                _ask(connection, method, url, {**headers, "Authorization": f"Bearer {self._token}"}, self._left(offset))
                if offset is not None:
                    self._send_body(connection.sock, offset)
                connection.sock.settimeout(self._patience.answer if offset is not None else self._patience.stall)
                answer = _Answer.read(connection)
            except ssl.SSLCertVerificationError as error:
                raise SourceTlsUntrusted(
                    f"the upload proxy's certificate is not trusted: {error.verify_message}",
                    where=url,
                    remedy="give its CA with --ca, or skip the verification with --insecure",
                ) from error
            except (OSError, http.client.HTTPException) as error:
                raise _Lost(error) from error
            if not 200 <= answer.status < 300 and answer.status not in allowed:
                raise answer.refusal(url)
            yield answer
        finally:
            connection.close()

    def _left(self, offset: int | None) -> int:
        return 0 if offset is None else self._size - offset

    def _send_body(self, sock: socket.socket, offset: int) -> None:
        """Send the body; a server that stops reading has usually sent an error response."""
        self._file.seek(offset)
        buffer = memoryview(bytearray(_BUFFER))
        done = offset
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            while done < self._size:
                count = self._file.readinto(buffer[: self._size - done])  # type: ignore[attr-defined]  # real files have it
                if not count:
                    raise UsageError("the file was truncated while it was sent", where=str(self._file.name))
                sock.sendall(buffer[:count])
                done += count
                self._tell(done, arrived=False)

    def _tell(self, done: int, *, arrived: bool = True) -> None:
        if arrived and done > self._furthest:
            self._furthest, self._moved = done, self._patience.clock()
        self._watcher.sent(done, self._size)


class _NotSpokenError(Exception):
    """Error of a server without tus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def read(cls, connection: http.client.HTTPConnection) -> Self:
        response = connection.getresponse()
        body = response.read(_MAX_ANSWER)
        return cls(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=body,
        )

    def refusal(self, url: str) -> CdiError:
        text = self.body.decode("utf-8", "replace").strip()
        with contextlib.suppress(ValueError):
            document = parse_json(text)
            if isinstance(document, dict) and isinstance(document.get("message"), str):
                known = by_code(str(document.get("code")))
                kind = known if known.__name__ == document.get("code") else _kind(self.status)
                return kind(document["message"].rstrip("."), remedy="")
        said = (
            text.splitlines()[0][:500]
            if text and not text.startswith("<")
            else f"the server responded with status {self.status}"
        )
        return _kind(self.status)(said.rstrip("."), where=urlsplit(url).path, remedy="")


def _kind(status: int) -> type[CdiError]:
    match status:
        case 401:
            return TokenInvalid
        case 404 | 410:
            return UploadUnknown
        case 409:
            return AlreadyUploaded
        case 408 | 423 | 425 | 429 | 460:
            return UploadUnderWay
        case _:
            return UploadNotReady if status >= 500 else UploadMalformed


def _connection(url: str, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme not in {"http", "https"} or not host:
        raise UsageError("this is not the URL of an upload proxy", where=url, remedy="https://HOST[:PORT]")
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=_CONNECTING, context=context)
    return http.client.HTTPConnection(host, port, timeout=_CONNECTING)


def _ask(
    connection: http.client.HTTPConnection, method: str, url: str, headers: Mapping[str, str], length: int
) -> None:
    connection.putrequest(method, urlsplit(url).path, skip_accept_encoding=True)
    given = {"Tus-Resumable": TUS_VERSION, "Accept": "application/json", **headers}
    if length or method in {"POST", "PATCH"}:
        given["Content-Length"] = str(length)
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders()


def _offset(headers: Mapping[str, str]) -> int:
    text = headers.get("upload-offset", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise UploadMalformed("the server's response has no Upload-Offset")
    return int(text)
