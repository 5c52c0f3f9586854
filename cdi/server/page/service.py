"""HTTP API of the page, served by the upload proxy.

    GET    /                                         the page; its files are below ``/page/``
    GET    /page/api/about                           how to sign in; the only request without a token
    GET    /page/api/session[?namespace=N]           `Session`
    GET    /page/api/volumes/N                       ``{"volumes": [row …]}``
    POST   /page/api/volumes/N                       ``{name, size, storageClass, accessMode}``: one to upload to
    DELETE /page/api/volumes/N/NAME?uid=U
    POST   /page/api/volumes/N/NAME/clone            ``{name}``
    POST   /page/api/volumes/N/NAME/token            ``{"token": …}``, for an upload

Clients send ``Authorization: Bearer``. There are no cookies, so other sites cannot forge requests, and no CORS headers
permit them any. Errors are ``{code, message}``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qsl, unquote

from cdi.api.errors import (
    AlreadyExists,
    CdiError,
    ClusterError,
    ClusterForbidden,
    ClusterUnauthorized,
    Conflict,
    InternalError,
    InvalidManifest,
    NotFound,
    SourceError,
    SourceStalled,
    TokenInvalid,
    UploadMalformed,
    UsageError,
)
from cdi.api.json_document import parse_json
from cdi.api.kinds import DATA_VOLUMES
from cdi.api.names import ANN_IMMEDIATE_BINDING
from cdi.api.quantity import Quantity
from cdi.http.connection import RemoteDisconnected
from cdi.http.server.request import ServerRequest
from cdi.http.server.turn import Turn
from cdi.server.page.assets import HEADERS, assets
from cdi.server.page.backend import BackendProvider, VolumeBackend
from cdi.store.base import Key, Object

LOG = logging.getLogger(__name__)
_API = "/page/api/"
_MAX_BODY = 64 << 10
_MAX_TOKEN = 16 << 10
_MAX_QUERY = 1000
_FRESH = {"Cache-Control": "no-store"}


class Page:
    """Request handlers of the page and its files."""

    def __init__(self, desks: BackendProvider) -> None:
        self._desks = desks

    def begin(self, request: ServerRequest) -> Turn | bool | None:
        """Answer requests that need no token, reject those without one, and return a turn for the others.

        Must not block. Returns None if the path is not the page's.
        """
        head = request.head
        if head.path.startswith(_API):
            return self._begin_api(request)
        asset = assets().get(head.path)
        if asset is None or head.method not in {"GET", "HEAD"}:
            return None
        headers = {**HEADERS, "ETag": asset.tag, "Cache-Control": "no-cache"}
        if head.headers.get("if-none-match") == asset.tag:
            return request.respond(304, headers=headers)
        return request.respond(200, asset.content, content_type=asset.content_type, headers=headers)

    def _begin_api(self, request: ServerRequest) -> Turn | bool:
        head = request.head
        parts = [unquote(part) for part in head.path.removeprefix(_API).split("/")]
        if (head.method, parts) == ("GET", ["about"]):
            return _answer(request, 200, {"hint": self._desks.hint})
        try:
            token = _token(head.headers.get("authorization"))
            known = self._desks.recognises(token)
        except CdiError as error:
            return _refuse(request, error)
        return Turn(run=lambda request: self._serve_api(request, token, parts), verified=known)

    def _serve_api(self, request: ServerRequest, token: str, parts: list[str]) -> bool:
        try:
            status, document = self._carry_out(request, token, parts)
        except RemoteDisconnected:
            return False
        except CdiError as error:
            return _refuse(request, error)
        except Exception as error:
            LOG.exception("unexpected error")
            return _refuse(request, InternalError(type(error).__name__))
        return _answer(request, status, document)

    def _carry_out(self, request: ServerRequest, token: str, parts: list[str]) -> tuple[int, Mapping[str, Any]]:
        backend = self._desks.of(token)
        query = dict(parse_qsl(request.head.query[:_MAX_QUERY]))
        method = request.head.method
        match method, parts:
            case "GET", ["session"]:
                session = asdict(backend.session(query.get("namespace") or None))
                session["storageClasses"] = session.pop("storage_classes")
                return 200, session
            case "GET", ["volumes", namespace]:
                return 200, {"volumes": backend.volumes(_namespace(namespace))}
            case "POST", ["volumes", namespace]:
                backend.create(_upload_volume(_namespace(namespace), _document(backend, request)))
                return 201, {}
            case _, ["volumes", namespace, name, *verb]:
                key = Key.of("dv", _namespace(namespace), name)
                return _on_volume(backend, key, method, verb, query, request)
            case _:
                raise _nothing()


def _answer(request: ServerRequest, status: int, document: Mapping[str, Any]) -> bool:
    body = json.dumps(document, separators=(",", ":")).encode()
    return request.respond(status, body, content_type="application/json", headers={**HEADERS, **_FRESH})


def _refuse(request: ServerRequest, error: CdiError) -> bool:
    return _answer(request, status_of(error), {"code": error.code, "message": error.message})


def _on_volume(
    backend: VolumeBackend, key: Key, method: str, verb: list[str], query: Mapping[str, str], request: ServerRequest
) -> tuple[int, Mapping[str, Any]]:
    match method, verb:
        case "DELETE", []:
            backend.delete(key.namespace, key.name, query.get("uid", ""))
            return 200, {}
        case "POST", ["clone"]:
            backend.create(_copy(key, _document(backend, request)))
            return 201, {}
        case "POST", ["token"]:
            return 200, {"token": backend.upload_token(key.namespace, key.name)}
        case _:
            raise _nothing()


def _nothing() -> CdiError:
    return UploadMalformed("the page does not exist", status=404, remedy="")


def status_of(error: CdiError) -> int:
    """Return the HTTP status for an error."""
    match error:
        case UploadMalformed():
            return error.status
        case SourceStalled():
            return 408
        case SourceError():  # reading the client's body failed
            return 400
        case ClusterUnauthorized() | TokenInvalid():
            return 401
        case ClusterForbidden():
            return 403
        case NotFound():
            return 404
        case AlreadyExists() | Conflict():
            return 409
        case UsageError():
            return 422
        case ClusterError():
            return 502
        case _:
            return 500


def _token(field: str | None) -> str:
    scheme, _, token = (field or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN or not token.isascii():
        raise TokenInvalid("the request has no token", remedy="sign in")
    return token


def _namespace(text: str) -> str:
    return Key.of("dv", text, "any").namespace


def _document(backend: VolumeBackend, request: ServerRequest) -> Mapping[str, Any]:
    """Parse the request's body if its sender has a valid token; raise `UploadMalformed` or `ClusterUnauthorized`."""
    # Browsers send any other type from a form of another site without a CORS preflight.
    if request.head.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UploadMalformed("the body must be application/json", status=415, remedy="")
    backend.authenticate()
    body = request.small_body(_MAX_BODY)
    try:
        found = parse_json(body)
    except ValueError as error:
        raise UploadMalformed(f"the body is not JSON: {error}"[:200], remedy="") from error
    if not isinstance(found, dict):
        raise UploadMalformed("the body is not a JSON object", remedy="")
    return found


def _upload_volume(namespace: str, wish: Mapping[str, Any]) -> Object:
    """Return a DataVolume to upload into; raise `InvalidManifest`."""
    size, wanted = wish.get("size"), wish.get("storageClass") or None
    if not isinstance(size, str) or len(size) > 40 or Quantity.parse(size).bytes <= 0:
        raise InvalidManifest("the size is not a valid quantity", where="size", remedy="use a size such as 10Gi")
    storage: Object = {"resources": {"requests": {"storage": size}}}
    if wanted is not None:
        storage["storageClassName"] = str(wanted)[:253]
    if wish.get("accessMode"):
        storage["accessModes"] = [str(wish["accessMode"])[:40]]
    return _data_volume(namespace, wish.get("name"), {"source": {"upload": {}}, "storage": storage}, bound=True)


def _copy(source: Key, wish: Mapping[str, Any]) -> Object:
    origin = {"pvc": {"namespace": source.namespace, "name": source.name}}
    return _data_volume(source.namespace, wish.get("name"), {"source": origin, "storage": {}})


def _data_volume(namespace: str, name: object, spec: Object, *, bound: bool = False) -> Object:
    key = Key.of("dv", namespace, name if isinstance(name, str) else "")
    metadata: Object = {"namespace": key.namespace, "name": key.name}
    if bound:
        # No pod consumes the volume yet, so it would never bind with WaitForFirstConsumer.
        metadata["annotations"] = {ANN_IMMEDIATE_BINDING: ""}
    return {"apiVersion": DATA_VOLUMES.api_version, "kind": "DataVolume", "metadata": metadata, "spec": spec}
