"""AdmissionReview v1: parsing of requests and building of responses."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from cdi.api.errors import InvalidManifest
from cdi.api.json_document import parse_json
from cdi.api.rules.problems import Problem, truncate
from cdi.server.hooks import Hook, Operation
from cdi.server.uploadtoken_api.authentication import User

API_VERSION = "admission.k8s.io/v1"
MAX_BODY = 8 << 20
"""Bytes. The API server accepts requests of 3 MiB, and sends the old object along with the new one."""
MAX_CAUSES = 50
MAX_WARNINGS = 10
_MAX_WARNING = 120
"""Characters; the API server truncates longer ones."""
_MAX_MESSAGE = 4000
_MAX_UID = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """An admission request."""

    uid: str
    operation: Operation
    plural: str
    kind: str
    group: str
    namespace: str
    name: str
    """Empty if the API server has yet to generate one."""
    object: dict[str, Any]
    """The new object; empty for a deletion."""
    old: dict[str, Any]
    """The old object; empty for a creation."""
    user: str = ""
    by: User = field(default_factory=lambda: User(name=""))
    """The user with groups and extra fields."""
    dry_run: bool = False
    """Whether nothing is stored; the response is shown to the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """A decision to admit the request."""

    patch: tuple[dict[str, Any], ...] = ()
    """A JSON patch (RFC 6902)."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A decision to deny the request."""

    problems: tuple[Problem, ...]
    status: int = 422
    reason: str = "Invalid"
    warnings: tuple[str, ...] = field(default=())


Verdict = Allowed | Refused


def read(body: bytes, hook: Hook) -> Review:
    """Parse a request's body; raise `InvalidManifest` if it is malformed or not for `hook`."""
    try:
        document = parse_json(body)
    except ValueError as error:
        raise InvalidManifest(f"the body is not JSON: {truncate(str(error), 200)}", remedy="") from None
    review = _mapping(document, "the body")
    if review.get("apiVersion") != API_VERSION or review.get("kind") != "AdmissionReview":
        raise InvalidManifest(f"the body is not an AdmissionReview of {API_VERSION}", remedy="")
    request = _mapping(review.get("request"), "request")
    resource = _mapping(request.get("resource"), "request.resource")
    kind = _mapping(request.get("kind"), "request.kind")
    uid = _text(request.get("uid"), "request.uid")
    if not 0 < len(uid) <= _MAX_UID:
        raise InvalidManifest("request.uid is empty or too long", remedy="")
    plural, group = _text(resource.get("resource"), "request.resource.resource"), _text(resource.get("group"), "group")
    if plural not in hook.plurals or group != hook.group:
        raise InvalidManifest(f"{hook.name} does not handle {truncate(plural)} of {truncate(group) or 'v1'}", remedy="")
    named = _text(request.get("operation"), "request.operation")
    if named not in hook.operations:
        raise InvalidManifest(f"{hook.name} does not handle the operation {truncate(named)!r}", remedy="")
    operation = Operation(named)
    user = request.get("userInfo")
    return Review(
        uid=uid,
        operation=operation,
        plural=plural,
        group=group,
        kind=_text(kind.get("kind"), "request.kind.kind"),
        namespace=_text(request.get("namespace"), "request.namespace"),
        name=_text(request.get("name"), "request.name"),
        object={} if operation is Operation.DELETE else _mapping(request.get("object"), "request.object"),
        old={} if operation is Operation.CREATE else _mapping(request.get("oldObject"), "request.oldObject"),
        user=_text(user.get("username"), "request.userInfo.username") if isinstance(user, dict) else "",
        by=_user(user if isinstance(user, dict) else {}),
        dry_run=request.get("dryRun") is True,
    )


def _user(info: dict[str, Any]) -> User:
    extra = info.get("extra")
    return User(
        name=_text(info.get("username"), "request.userInfo.username"),
        uid=_text(info.get("uid"), "request.userInfo.uid"),
        groups=_texts(info.get("groups"), "request.userInfo.groups"),
        extra={
            name: _texts(values, "request.userInfo.extra")
            for name, values in (extra if isinstance(extra, dict) else {}).items()
        },
    )


def answer(review: Review, verdict: Verdict) -> dict[str, Any]:
    """Return the AdmissionReview to send back."""
    response: dict[str, Any] = {"uid": review.uid, "allowed": isinstance(verdict, Allowed)}
    match verdict:
        case Allowed(patch=patch):
            if patch:
                response["patchType"] = "JSONPatch"
                response["patch"] = base64.b64encode(json.dumps(list(patch)).encode()).decode()
        case Refused():
            response["status"] = _status(review, verdict)
        case _:
            assert_never(verdict)
    if verdict.warnings:
        response["warnings"] = [truncate(text, _MAX_WARNING - 1) for text in _some(verdict.warnings, MAX_WARNINGS)]
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}


def _status(review: Review, verdict: Refused) -> dict[str, Any]:
    """Return a Status like the API server's own: each problem is a separate cause."""
    text = "; ".join(_some([str(problem) for problem in verdict.problems], MAX_CAUSES))
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "code": verdict.status,
        "reason": verdict.reason,
        "message": text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "…",
        "details": {
            "name": review.name,
            "group": review.group,
            "kind": review.plural,
            "causes": [
                {"reason": str(problem.cause), "message": problem.message, "field": problem.field}
                for problem in verdict.problems[:MAX_CAUSES]
            ],
        },
    }


def _some(texts: Sequence[str], limit: int) -> Iterable[str]:
    if len(texts) <= limit:
        return texts
    return [*texts[:limit], f"and {len(texts) - limit} more"]


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidManifest(f"{what} is not a JSON object", remedy="")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidManifest(f"{what} is not a list", remedy="")
    return tuple(_text(one, what) for one in value)


def _text(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidManifest(f"{what} is not a string", remedy="")
    return value
