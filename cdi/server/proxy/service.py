"""What the upload proxy answers."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

from cdi.api.errors import CdiError, InternalError, TokenInvalid, UploadMalformed, UploadUnderWay
from cdi.api.upload_protocol import (
    TUS_ALGORITHMS,
    TUS_EXTENSIONS,
    TUS_VERSION,
    PlainUpload,
    TusUpload,
    route,
    status_of,
)
from cdi.controller.logs import fields
from cdi.server.proxy.metrics import Metrics
from cdi.server.proxy.relay import relay
from cdi.server.proxy.volumes import PATIENCE, Volumes, await_ready
from cdi.source.connection import ConnectionLost
from cdi.source.inbound.visit import Visit

LOG = logging.getLogger(__name__)
MOST_OF_A_VOLUME = 16
"""Requests for one volume at a time: whoever has one token is not to have all the turns that there are."""
ALWAYS = ("/healthz",)
"""Answered even where there is no turn: a proxy that has much to do is no sick one."""
_EXPOSED = (
    "Location, Upload-Offset, Upload-Length, Upload-Expires, Tus-Resumable, Tus-Version, Tus-Extension, "
    "Tus-Checksum-Algorithm, Retry-After"
)
_CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED}
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Content-Digest, Repr-Digest, Digest, Content-MD5, Tus-Resumable, Upload-Length, "
        "Upload-Offset, Upload-Metadata, Upload-Checksum, X-HTTP-Method-Override, X-Requested-With, Accept"
    ),
    "Access-Control-Max-Age": "86400",
}
_TUS_SERVER = {
    "Tus-Resumable": TUS_VERSION,
    "Tus-Version": TUS_VERSION,
    "Tus-Extension": TUS_EXTENSIONS,
    "Tus-Checksum-Algorithm": ",".join(TUS_ALGORITHMS),
}


class Right(Protocol):
    """What a token allows: an upload into one claim."""

    @property
    def namespace(self) -> str: ...

    @property
    def name(self) -> str: ...


class Proxy:
    """Serves requests, each in a thread of its own."""

    def __init__(
        self,
        volumes: Volumes,
        verify: Callable[[str], Right],
        context: Callable[[], ssl.SSLContext],
        *,
        pages: Callable[[Visit], bool | None] = lambda _: None,
        patience: float = PATIENCE,
        metrics: Metrics | None = None,
    ) -> None:
        """`verify` raises `TokenInvalid`; `context` is the one by which upload servers are spoken to.

        `pages` answers other paths: whether the connection may carry another request, None for one that it does not
        know.  `patience`: seconds that a request waits for its volume.
        """
        self._volumes = volumes
        self._verify = verify
        self._context = context
        self._pages = pages
        self._patience = patience
        self._metrics = metrics or Metrics()
        self._turns = Turns(MOST_OF_A_VOLUME)

    def serve(self, visit: Visit) -> bool:
        """Answer; whether the connection may carry another request."""
        head = visit.head
        if head.path == "/healthz" and head.method in {"GET", "HEAD"}:
            return visit.answer(200, b"OK")
        found = route(head.path)
        tus = isinstance(found, TusUpload)
        if head.method == "OPTIONS":
            extra = _TUS_SERVER if tus else {}
            return visit.answer(204 if tus else 200, headers={**_CORS, **_PREFLIGHT, **extra})
        try:
            if found is not None:
                return self._upload(visit, found)
            paged = self._pages(visit)
            return paged if paged is not None else self._refuse(visit, _nothing(), tus=False)
        except ConnectionLost:
            return False
        except CdiError as error:
            return self._refuse(visit, error, tus=tus)
        except Exception as error:
            LOG.exception("a defect", extra=fields(path=head.path))
            return self._refuse(visit, InternalError(f"{type(error).__name__}: {error}"), tus=tus)

    def _refuse(self, visit: Visit, error: CdiError, *, tus: bool) -> bool:
        status = status_of(error)
        LOG.info("refused", extra=fields(path=visit.head.path, status=status, code=error.code, reason=error.what))
        if visit.answered:
            return False
        headers = {**_CORS, **({"Tus-Resumable": TUS_VERSION} if tus else {})}
        if status == 503:
            headers["Retry-After"] = "5"
        elif status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return visit.refuse(error, status, headers=headers)

    def _upload(self, visit: Visit, found: PlainUpload | TusUpload) -> bool:
        began = time.monotonic()
        head = visit.head
        right = self._verify(_token(head.headers.get("authorization")))
        if isinstance(found, TusUpload) and (found.namespace, found.claim) != (right.namespace, right.name):
            raise TokenInvalid("the token is for another volume")
        if isinstance(found, PlainUpload) and head.method not in _methods(found):
            raise UploadMalformed("an image is sent with POST", status=405)
        with self._turns.take((right.namespace, right.name)):
            destination = await_ready(self._volumes, right.namespace, right.name, seconds=self._patience)
            if head.method == "HEAD" and isinstance(found, PlainUpload):
                # A program asks whether this path is known here.
                return visit.answer(200, headers=_CORS)
            with self._metrics.uploading() if head.length != 0 else contextlib.nullcontext():
                relayed = relay(visit, destination, self._context(), self._metrics.received)
        LOG.info(
            "passed on",
            extra=fields(
                claim=f"{right.namespace}/{right.name}",
                method=head.method,
                path=head.path,
                status=relayed.status,
                seconds=round(time.monotonic() - began, 3),
            ),
        )
        return visit.answer(relayed.status, relayed.body, headers={**_CORS, **relayed.headers})


class Turns:
    """So many at a time for each; any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._taken: Counter[Hashable] = Counter()

    @contextlib.contextmanager
    def take(self, whose: Hashable) -> Iterator[None]:
        """Raises `UploadUnderWay`."""
        with self._lock:
            if self._taken[whose] >= self._most:
                raise UploadUnderWay("there are too many requests for this volume")
            self._taken[whose] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[whose] -= 1
                if not self._taken[whose]:
                    del self._taken[whose]


def _nothing() -> CdiError:
    return UploadMalformed("there is nothing here", status=404)


def _methods(plain: PlainUpload) -> tuple[str, ...]:
    return ("POST", "PUT", "HEAD") if plain.asynchronous else ("POST", "PUT")


def _token(field: str | None) -> str:
    """Raises `UploadMalformed`."""
    if field is None:
        raise UploadMalformed("the Authorization header is missing", remedy='send "Authorization: Bearer TOKEN"')
    scheme, _, token = field.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UploadMalformed("the Authorization header is malformed", remedy='send "Authorization: Bearer TOKEN"')
    return token.strip()
