"""Aggregated API ``upload.cdi.kubevirt.io``: creating an UploadTokenRequest returns an upload token.

Nothing is stored. The API server forwards requests to this service (registered as an APIService) after it has
authenticated and authorized them. Both checks are repeated here, because other clients can reach this port as well.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from aiohttp import web

from cdi.api.errors import CdiError, ClusterUnavailable, InvalidManifest
from cdi.api.json_document import parse_json
from cdi.api.model import unknown_fields
from cdi.api.rules.problems import Problem, truncate
from cdi.api.timestamps import timestamp
from cdi.api.upload import UploadTokenRequest
from cdi.api.validation import examine
from cdi.kube.client import Client
from cdi.kube.jwt import SigningKey, TokenClaims, ensure_signing_key
from cdi.logs import fields
from cdi.reconcile.datavolume.upload import is_upload_target
from cdi.server import tokens
from cdi.server.admission import Cluster
from cdi.server.uploadtoken_api import discovery as documents
from cdi.server.uploadtoken_api.authentication import FrontProxy, User, front_proxy, may, user_of_token
from cdi.server.uploadtoken_api.discovery import GROUP_PATH, KIND

LOG = logging.getLogger(__name__)
MAX_REQUEST = 64 << 10
"""Largest accepted request body in bytes; a request contains little more than the name of a PVC."""
RESPONSE_TIMEOUT = 10.0
"""Seconds within which the request body has to arrive."""
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Characters of generated names, as in the API server: no vowels, so that no words appear."""
_REASONS = {
    HTTPStatus.BAD_REQUEST: "BadRequest",
    HTTPStatus.UNAUTHORIZED: "Unauthorized",
    HTTPStatus.FORBIDDEN: "Forbidden",
    HTTPStatus.NOT_FOUND: "NotFound",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowed",
    HTTPStatus.REQUEST_TIMEOUT: "Timeout",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RequestEntityTooLarge",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "UnsupportedMediaType",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Invalid",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailable",
}


class _Refusal(Exception):
    """An error response with a ``Status`` body."""

    def __init__(
        self, status: HTTPStatus, message: str, *, name: str = "", kind: str = "", problems: Sequence[Problem] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": _REASONS[status],
            "details": {"name": name, "group": "" if kind else KIND.group, "kind": kind or KIND.plural},
            "code": int(status),
        }
        if problems:
            self.body["details"]["causes"] = [
                {"reason": str(one.cause), "message": one.message, "field": one.field} for one in problems
            ]


class Aggregated:
    """Request handlers of the aggregated API."""

    def __init__(
        self,
        client: Client,
        cluster: Cluster,
        *,
        namespace: str,
        signing_key: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Create the handlers; `refresh` has to run before tokens can be issued.

        Args:
            client: The API server.
            cluster: Cached PVCs.
            namespace: The namespace of the signing key.
            signing_key: The name of the Secret that holds the signing key.
            now: The clock, in seconds since the epoch.
        """
        self._client, self._cluster, self._now = client, cluster, now
        self._namespace, self._secret = namespace, signing_key
        self._key: SigningKey | None = None
        self.front_proxy = FrontProxy()

    async def refresh(self) -> None:
        """Read the front proxy's configuration and read or create the signing key; raise the API server's errors."""
        self.front_proxy = await front_proxy(self._client)
        self._key = await ensure_signing_key(self._client, self._namespace, self._secret)

    def sign(self, claims: TokenClaims) -> str:
        """Return a signed token; raise `ClusterUnavailable` while no key has been read."""
        if self._key is None:
            raise ClusterUnavailable("the token signing key is not available yet", remedy="try again")
        return self._key.sign(claims, self._now())

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/apis", _discovery),
            web.get(GROUP_PATH, _document(documents.group)),
            web.get(documents.VERSION_PATH, _document(documents.resource_list)),
            web.get("/openapi/v2", _document(documents.openapi_v2)),
            web.get("/openapi/v3", _document(documents.openapi_v3_index)),
            web.get(f"/openapi/v3{documents.VERSION_PATH}", _document(documents.openapi_v3)),
            web.post(documents.COLLECTION, self._create),
            web.route("*", f"{documents.COLLECTION}/{{name}}", _not_found),
            web.route("*", f"{GROUP_PATH}/{{rest:.*}}", _nothing_else),
        ]

    # --- creation -----------------------------------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.Response:
        try:
            return await self._answer(request)
        except _Refusal as refusal:
            LOG.info("no token", extra=fields(status=int(refusal.status), reason=str(refusal)))
            answer = _json(refusal.body, refusal.status)
            if refusal.status is HTTPStatus.UNAUTHORIZED:
                # The next connection may be asked for a client certificate that this one was not asked for.
                answer.force_close()
            return answer
        except InvalidManifest as error:  # an invalid name
            return _json(_Refusal(HTTPStatus.BAD_REQUEST, error.what).body, HTTPStatus.BAD_REQUEST)
        except CdiError as error:
            LOG.warning("cannot create a token", exc_info=error)
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return _json(_Refusal(status, f"authorization failed: {error.what}").body, status)

    async def _answer(self, request: web.Request) -> web.Response:
        namespace = request.match_info["namespace"]
        user = await self._authorised(request, namespace)
        body = await _body(request)
        made, warnings = _read(body, namespace, request.query.get("fieldValidation") or "Warn")
        claim = made["spec"]["pvcName"]
        found = await self._cluster.claim(namespace, claim)
        if found is None:
            raise _Refusal(
                HTTPStatus.NOT_FOUND,
                f'persistentvolumeclaims "{claim}" not found',
                name=claim,
                kind="persistentvolumeclaims",
            )
        if not is_upload_target(found):
            _invalid(made, [Problem(field="spec.pvcName", message=f"PVC {namespace}/{claim} is not an upload target")])
        if request.query.get("dryRun") != "All":
            if self._key is None:
                raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the token signing key is not available yet; try again")
            made["status"] = {"token": tokens.sign(self._key, namespace, claim, now=self._now)}
            LOG.info("token", extra=fields(key=f"{namespace}/{claim}", user=user.name))
        made["metadata"]["creationTimestamp"] = timestamp(datetime.fromtimestamp(self._now(), UTC))
        answer = _json(_as_wanted(made, request.headers.get("Accept", "")), HTTPStatus.CREATED)
        for text in warnings:
            answer.headers.add("Warning", f'299 - "{text}"')
        return answer

    async def _authorised(self, request: web.Request, namespace: str) -> User:
        user = self.front_proxy.user_of(_certificate(request), request.headers)
        if user is None:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                user = await user_of_token(self._client, token.strip())
        if user is None:
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "Unauthorized")
        attributes = {
            "verb": "create",
            "group": KIND.group,
            "version": KIND.version,
            "resource": KIND.plural,
            "namespace": namespace,
        }
        allowed, reason = await may(self._client, user, attributes)
        if not allowed:
            message = (
                f'{KIND.plural}.{KIND.group} is forbidden: User "{user.name}" cannot create resource "{KIND.plural}" '
                f'in API group "{KIND.group}" in the namespace "{namespace}"'
            )
            raise _Refusal(HTTPStatus.FORBIDDEN, f"{message}: {reason}" if reason else message)
        return user


def _certificate(request: web.Request) -> bytes | None:
    """Return the client's certificate (DER), which the TLS handshake has verified."""
    connection = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    return connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLObject) else None


async def _body(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        raise _Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
    data = b""
    try:
        async with asyncio.timeout(RESPONSE_TIMEOUT):
            async for piece in request.content.iter_any():
                data += piece
                if len(data) > MAX_REQUEST:
                    raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is limited to {MAX_REQUEST} bytes")
    except TimeoutError:
        raise _Refusal(HTTPStatus.REQUEST_TIMEOUT, "timed out waiting for the body") from None
    return data


def _read(data: bytes, namespace: str, strictness: str) -> tuple[dict[str, Any], list[str]]:
    """Return the validated request as an object with a name, and the warnings to send."""
    try:
        document = parse_json(data)
    except ValueError as error:
        raise _Refusal(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {truncate(str(error))}") from None
    if not isinstance(document, dict) or not isinstance(document.get("metadata") or {}, dict):
        raise _Refusal(HTTPStatus.BAD_REQUEST, f"the body is not a {KIND.kind}")
    if (document.get("apiVersion"), document.get("kind")) != (KIND.api_version, KIND.kind):
        raise _Refusal(HTTPStatus.BAD_REQUEST, f"the body is not a {KIND.kind} of {KIND.api_version}")
    metadata = dict(document.get("metadata") or {})
    if metadata.get("namespace") not in (None, "", namespace):
        raise _Refusal(HTTPStatus.BAD_REQUEST, "the namespace of the object differs from that of the request")
    if not metadata.get("name"):
        # Requests are never stored, so a generated name cannot collide.
        metadata["name"] = str(metadata.get("generateName") or "token-") + _suffix()
    document = {**document, "metadata": {**metadata, "namespace": namespace}}
    document.pop("status", None)
    model, problems = examine(document)
    if problems or not isinstance(model, UploadTokenRequest):
        _invalid(document, problems)
    strange = [
        f'unknown field "{truncate(path)}"' for path in unknown_fields(model) if not path.startswith("metadata.")
    ]
    if strange and strictness == "Strict":
        raise _Refusal(HTTPStatus.BAD_REQUEST, f"strict decoding error: {', '.join(strange)}")
    assert model is not None
    return model.pruned().to_dict(), strange if strictness == "Warn" else []


def _invalid(document: dict[str, Any], problems: Sequence[Problem]) -> None:
    name = truncate(str(document["metadata"].get("name") or ""))
    text = "; ".join(str(one) for one in problems)
    message = f'{KIND.kind}.{KIND.group} "{name}" is invalid: {text}'
    raise _Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, message, name=name, problems=problems)


def _suffix() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(5))


def _as_wanted(made: dict[str, Any], accept: str) -> dict[str, Any]:
    """Return the object in the representation that `accept` asks for: as it is, or as a Table."""
    for part in accept.split(","):
        options = {item.strip() for item in part.split(";")}
        if "as=Table" in options and "g=meta.k8s.io" in options:
            return _table(made)
        if options & {"application/json", "application/*", "*/*"}:
            break
    return made


def _table(made: dict[str, Any]) -> dict[str, Any]:
    columns = (
        ("Name", "name", "Name of the request"),
        ("PVC", "", "PVC that the token authorizes to upload to"),
        ("Created At", "date", ""),
    )
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": [
            {"name": name, "type": "string", "format": form, "description": text, "priority": 0}
            for name, form, text in columns
        ],
        "rows": [
            {
                "cells": [made["metadata"]["name"], made["spec"]["pvcName"], made["metadata"]["creationTimestamp"]],
                "object": {
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": made["metadata"],
                },
            }
        ],
    }


# --- documents ----------------------------------------------------------------------------------------------------


async def _discovery(request: web.Request) -> web.Response:
    content_type, document = documents.discovery(request.headers.get("Accept", ""))
    return web.Response(body=json.dumps(document).encode(), headers={"Content-Type": content_type, "Vary": "Accept"})


def _document(make: Callable[[], dict[str, Any]]) -> Callable[[web.Request], Any]:
    body = json.dumps(make(), separators=(",", ":")).encode()

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    return handle


async def _not_found(request: web.Request) -> web.Response:
    """Answer 404 for any named request: none is ever stored, and clients send GET before they create one."""
    name = truncate(request.match_info["name"])
    refusal = _Refusal(HTTPStatus.NOT_FOUND, f'{KIND.plural}.{KIND.group} "{name}" not found', name=name)
    return _json(refusal.body, refusal.status)


async def _nothing_else(request: web.Request) -> web.Response:
    collection = request.match_info["rest"].split("/")
    known = collection[:1] == [KIND.version] and KIND.plural in collection
    status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
    message = f"{KIND.plural} can only be created" if known else "the server could not find the requested resource"
    answer = _json(_Refusal(status, message).body, status)
    if known:
        answer.headers["Allow"] = "POST"
    return answer


def _json(document: dict[str, Any], status: HTTPStatus) -> web.Response:
    body = json.dumps(document, separators=(",", ":")).encode()
    return web.Response(
        body=body, status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
    )
