"""Request handlers of the upload proxy."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from typing import Protocol, TypeVar, assert_never

from cdi.api.errors import (
    AlreadyUploaded,
    CdiError,
    InternalError,
    TokenInvalid,
    UploadMalformed,
    UploadUnderWay,
)
from cdi.api.upload_protocol import (
    TUS_ALGORITHMS,
    TUS_EXTENSIONS,
    TUS_VERSION,
    PlainUpload,
    TusUpload,
    UploadId,
    route,
    status_of,
)
from cdi.http.connection import RemoteDisconnected
from cdi.http.server.request import ServerRequest
from cdi.http.server.turn import Turn
from cdi.logs import fields
from cdi.server.proxy.concurrency import ConcurrencyLimiter
from cdi.server.proxy.forward import Forwarder, WaitLimits
from cdi.server.proxy.metrics import Metrics
from cdi.server.proxy.relay import Relayed
from cdi.server.proxy.volumes import Filled, Volumes

T = TypeVar("T")
LOG = logging.getLogger(__name__)
MAX_PER_VOLUME = 16
"""Largest number of concurrent requests for one volume, so that one token cannot occupy every thread."""
MAX_WAITING = 100
"""Largest number of requests that wait for upload servers: half of all, so that running uploads find a thread."""
_RETRY_AFTER = "5"
"""Seconds."""
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


class UploadClaim(Protocol):
    """The permission that a token grants: to upload into one PVC."""

    @property
    def namespace(self) -> str: ...

    @property
    def name(self) -> str: ...


class Proxy:
    """Request handlers: what needs no waiting is answered at once, uploads run in threads of their own."""

    def __init__(
        self,
        volumes: Volumes,
        verify: Callable[[str], UploadClaim],
        context: Callable[[], ssl.SSLContext],
        *,
        pages: Callable[[ServerRequest], Turn | bool | None] = lambda _: None,
        patience: WaitLimits | None = None,
        max_waiting: int = MAX_WAITING,
        metrics: Metrics | None = None,
    ) -> None:
        """Create the handlers.

        Args:
            volumes: The state of the volumes.
            verify: Returns the permission of a token; raises `TokenInvalid`.
            context: Returns the TLS context for upload servers.
            pages: Handles requests for other paths as `begin` does; returns None for an unknown path.
            patience: How long requests wait for their upload servers.
            max_waiting: How many requests wait for their upload servers at a time.
            metrics: What counts the requests.
        """
        self._volumes = volumes
        self._verify = verify
        self._pages = pages
        self._turns = ConcurrencyLimiter(MAX_PER_VOLUME, "too many requests for this volume")
        self._forwarder = Forwarder(
            volumes, context, metrics or Metrics(), patience=patience or WaitLimits(), max_waiting=max_waiting
        )

    def begin(self, request: ServerRequest) -> Turn | bool:
        """Answer requests that need no token, reject those without a valid one, and return a turn for the others.

        Health checks are answered here even under full load, since a busy proxy is not an unhealthy one.
        """
        head = request.head
        if head.path == "/healthz" and head.method in {"GET", "HEAD"}:
            return request.respond(200, b"OK")
        found = route(head.path)
        if found is None:
            return self._guard(request, found, lambda: self._page(request))
        if head.method == "OPTIONS":
            tus = isinstance(found, TusUpload)
            return request.respond(204 if tus else 200, headers={**_CORS, **_PREFLIGHT, **(_TUS_SERVER if tus else {})})
        return self._guard(request, found, lambda: self._admit(request, found))

    def _page(self, request: ServerRequest) -> Turn | bool:
        begun = self._pages(request)
        if begun is None:
            raise UploadMalformed("no such path", status=404)
        return begun

    def _admit(self, request: ServerRequest, found: PlainUpload | TusUpload) -> Turn:
        head = request.head
        right = self._verify(_token(head.headers.get("authorization")))
        if isinstance(found, TusUpload) and (found.namespace, found.claim) != (right.namespace, right.name):
            raise TokenInvalid("the token is for another volume")
        if isinstance(found, PlainUpload) and head.method not in _methods(found):
            raise UploadMalformed("use POST to upload an image", status=405)
        return Turn(
            run=lambda request: self._guard(request, found, lambda: self._upload(request, found, right)), verified=True
        )

    def _guard(self, request: ServerRequest, found: PlainUpload | TusUpload | None, step: Callable[[], T]) -> T | bool:
        """Run a step and answer the error that it raises."""
        try:
            return step()
        except RemoteDisconnected:
            return False
        except CdiError as error:
            return self._refuse(request, error, found)
        except Exception as error:
            LOG.exception("unexpected error", extra=fields(path=request.head.path))
            return self._refuse(request, InternalError(f"{type(error).__name__}: {error}"), found)

    def _refuse(self, request: ServerRequest, error: CdiError, found: PlainUpload | TusUpload | None) -> bool:
        # KubeVirt's proxy answers 503 to an upload in one request if the volume is complete. Tus clients repeat
        # requests that are answered with 503, so theirs stay 409.
        complete = isinstance(found, PlainUpload) and isinstance(error, AlreadyUploaded)
        status = 503 if complete else status_of(error)
        LOG.info("refused", extra=fields(path=request.head.path, status=status, code=error.code, reason=error.what))
        if request.responded:
            return False
        # Cross-origin pages may read why an upload was rejected, and nothing else.
        headers = {} if found is None else dict(_CORS)
        if isinstance(found, TusUpload):
            headers["Tus-Resumable"] = TUS_VERSION
        if status == 503 and not complete:
            headers["Retry-After"] = _RETRY_AFTER
        elif status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return request.respond_error(error, status, headers=headers)

    def _upload(self, request: ServerRequest, found: PlainUpload | TusUpload, right: UploadClaim) -> bool:
        began = time.monotonic()
        head = request.head
        with self._turns.take((right.namespace, right.name)):
            if head.method == "HEAD" and isinstance(found, PlainUpload):
                return self._probe(request, right)
            answer = self._forwarder.forward(request, right.namespace, right.name)
        match answer:
            case Filled():
                return _answer_filled(request, found, answer, right)
            case Relayed():
                pass
            case _:
                assert_never(answer)
        LOG.info(
            "forwarded",
            extra=fields(
                claim=f"{right.namespace}/{right.name}",
                method=head.method,
                path=head.path,
                status=answer.status,
                seconds=round(time.monotonic() - began, 3),
            ),
        )
        headers = {**_CORS, **({"Retry-After": _RETRY_AFTER} if answer.status == 503 else {}), **answer.headers}
        if answer.failure is not None:
            return request.respond_error(answer.failure, answer.status, headers=headers)
        return request.respond(answer.status, answer.body, headers=headers)

    def _probe(self, request: ServerRequest, right: UploadClaim) -> bool:
        """Answer a client that probes whether the path exists; the upload itself waits for its server."""
        try:
            state = self._volumes.look(right.namespace, right.name)
        except UploadUnderWay:
            state = None
        if isinstance(state, Filled):
            raise _already_uploaded(right.namespace, right.name)
        return request.respond(200, headers=_CORS)


def _answer_filled(request: ServerRequest, found: PlainUpload | TusUpload, volume: Filled, right: UploadClaim) -> bool:
    """Report the final offset to the resumable upload that filled the volume; its client may have lost the response."""
    head = request.head
    method = head.headers.get("x-http-method-override", head.method)
    mine = isinstance(found, TusUpload) and found.id is not None and found.id == volume.upload
    if not mine or method != "HEAD" or head.headers.get("tus-resumable") != TUS_VERSION:
        raise _already_uploaded(right.namespace, right.name)
    length = str(UploadId.parse(volume.upload or "").length)
    offsets = {"Upload-Offset": length, "Upload-Length": length}
    return request.respond(200, headers={**_CORS, "Tus-Resumable": TUS_VERSION, "Cache-Control": "no-store", **offsets})


def _already_uploaded(namespace: str, name: str) -> AlreadyUploaded:
    said = f"rejecting Upload Request for PVC {name} that already finished uploading"
    return AlreadyUploaded(f"{said}: the volume is already populated", where=f"{namespace}/{name}")


def _methods(plain: PlainUpload) -> tuple[str, ...]:
    return ("POST", "PUT", "HEAD") if plain.asynchronous else ("POST", "PUT")


def _token(field: str | None) -> str:
    """Return the bearer token; raise `UploadMalformed` if there is none."""
    if field is None:
        raise UploadMalformed("the Authorization header is missing", remedy='send "Authorization: Bearer TOKEN"')
    scheme, _, token = field.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UploadMalformed("the Authorization header is malformed", remedy='send "Authorization: Bearer TOKEN"')
    return token.strip()
