"""An in-memory API server, with what the controller uses of a real one.

It stores immutable bodies: each write stores a new one. The bytes of a version are made once, for all who read it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cdi.api.kinds import (
    CLAIMS,
    EVENTS,
    NAMESPACES,
    PODS,
    RESOURCES,
    STORAGE_CLASSES,
    SUBJECT_ACCESS_REVIEWS,
    VOLUMES,
    Object,
    Resource,
)

PROTECTION = {CLAIMS: "kubernetes.io/pvc-protection", VOLUMES: "kubernetes.io/pv-protection"}
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_BY_PLURAL = {(resource.group, resource.plural): resource for resource in RESOURCES}
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"
_PAGE = "@"
"""Separates the parts of a continue token."""
Key = tuple[Resource, str, str]


class Refusal(Exception):
    """An error response."""

    def __init__(self, code: int, reason: str, message: str, *, cause: str = "", retry_after: int = 0) -> None:
        super().__init__(message)
        self.code = code
        details: Object = {"causes": [{"field": cause}]} if cause else {}
        if retry_after:
            details["retryAfterSeconds"] = retry_after
        self.body = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": code, "reason": reason, "message": message, "details": details,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that changes or reads objects."""

    client: str
    """Name of the client: a controller, or one of the world's actors."""
    verb: str
    """get, list, create, update, patch or delete."""
    resource: Resource
    namespace: str
    name: str
    subresource: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    content_type: str = ""
    metadata_only: bool = False

    @property
    def writes(self) -> bool:
        return self.verb not in ("get", "list") and self.resource != SUBJECT_ACCESS_REVIEWS

    def __str__(self) -> str:
        place = f"{self.namespace}/{self.name}".strip("/")
        return f"{self.client} {self.verb} {self.resource.plural} {place}{'/' + self.subresource if self.subresource else ''}"


@dataclass(slots=True)
class Stored:
    """One version of an object."""

    body: Object
    _bytes: bytes | None = None

    @property
    def bytes(self) -> bytes:
        if self._bytes is None:
            self._bytes = encode(self.body)
        return self._bytes

    @property
    def version(self) -> int:
        return int(self.body["metadata"]["resourceVersion"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An entry of a resource's log."""

    version: int
    old: Stored | None
    new: Stored | None
    last: Stored
    """What a watch delivers: the new object, or the deleted one with the version of its deletion."""


Listener = Callable[[Request, Resource, Object | None, Object | None], None]


class ApiServer:
    """All objects, and a log of their changes."""

    def __init__(self, now: Callable[[], str]) -> None:
        """Start empty; `now` returns the current timestamp."""
        self._now = now
        self._objects: dict[Resource, dict[tuple[str, str], Stored]] = {}
        self.logs: dict[Resource, list[Change]] = {}
        self._compacted: dict[Resource, int] = {}
        self.version = 100
        self._serial = 0
        self.uids: set[str] = set()
        """UIDs of all objects."""
        self.owned: dict[str, tuple[Resource, Object]] = {}
        """Objects with owners, by UID."""
        self._names = 0
        self.writes: Counter[str] = Counter()
        """Number of write requests, by client."""
        self.listeners: list[Listener] = []
        """Called after each change with the request, and the old and the new object."""
        self.changed = asyncio.Event()
        """Set by each change."""
        self._waiting: dict[Resource, dict[asyncio.Event, None]] = {}
        """Events of the open watches, in the order in which they were opened: that of a set would vary."""
        self.refuse: Callable[[Request], Refusal | None] = lambda _: None
        """Admission: returns an error for a request that is to be denied."""
        self.sent: Callable[[Request], None] = lambda _: None
        """Called when a controller sends a request."""
        self.answered: Callable[[Request, Stored], None] = lambda *_: None
        """Called when a controller receives the answer to a request for one object."""
        self.allowed: Callable[[Object], bool] = lambda _: True
        """Answer to a SubjectAccessReview's spec."""

    # --- for the world --------------------------------------------------------------------------------------------

    def all(self, resource: Resource) -> list[Object]:
        return [one.body for one in self._objects.get(resource, {}).values()]

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        stored = self._objects.get(resource, {}).get((namespace if resource.namespaced else "", name))
        return stored.body if stored is not None else None

    def everything(self) -> Iterator[tuple[Resource, Object]]:
        for resource, objects in self._objects.items():
            for stored in objects.values():
                yield resource, stored.body

    def perform(self, verb: str, resource: Resource, body: Object, *, client: str, subresource: str = "") -> Object:
        """Create or update an object, or merge a patch into it, as another client; raise `Refusal`."""
        metadata = body["metadata"]
        request = Request(
            client=client, verb=verb, resource=resource, namespace=metadata.get("namespace") or "",
            name=metadata.get("name") or "", subresource=subresource, body=body, content_type=_MERGE,
        )  # fmt: skip
        return self.handle(request).body

    def remove(
        self, resource: Resource, namespace: str, name: str, *, client: str, options: Object | None = None
    ) -> None:
        """Delete an object as another client; nothing happens if it does not exist."""
        if self.find(resource, namespace, name) is not None:
            self.handle(
                Request(
                    client=client, verb="delete", resource=resource, namespace=namespace, name=name, body=options or {}
                )
            )

    def compact(self, resource: Resource) -> None:
        """Forget the history of a resource: older versions cannot be watched any more."""
        self._compacted[resource] = self.version

    # --- requests -------------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Stored:
        """Answer a request for one object; raise `Refusal`."""
        if request.writes:
            self.writes[request.client] += 1
        refusal = self.refuse(request)
        if refusal is not None:
            raise refusal
        if request.resource == SUBJECT_ACCESS_REVIEWS:
            return Stored({**request.body, "status": {"allowed": self.allowed(request.body["spec"])}})
        match request.verb:
            case "get":
                return self._existing(request)
            case "create":
                return self._create(request)
            case "update":
                return self._update(request)
            case "patch":
                return self._patch(request)
            case "delete":
                return self._delete(request)
        raise AssertionError(request.verb)

    def list(self, request: Request) -> bytes:
        """Answer a list, in pages; raise `Refusal`."""
        refusal = self.refuse(request)
        if refusal is not None:
            raise refusal
        matches = selector(request.query)
        version, after = self.version, ""
        token = request.query.get("continue", "")
        if token:
            stated, _, after = token.partition(_PAGE)
            version = int(stated)
            if version < self._compacted.get(request.resource, 0):
                raise Refusal(410, "Expired", "the provided continue parameter is too old")
        found = sorted(
            (f"{place[0]}/{place[1]}", stored)
            for place, stored in self._objects.get(request.resource, {}).items()
            if request.namespace in ("", place[0]) and matches(stored.body)
        )
        limit = int(request.query.get("limit") or 500)
        page = [one for one in found if one[0] > after]
        metadata: Object = {"resourceVersion": str(version)}
        if len(page) > limit:
            metadata["continue"] = f"{version}{_PAGE}{page[limit - 1][0]}"
        items = [
            encode(_metadata_only(stored.body)) if request.metadata_only else stored.bytes for _, stored in page[:limit]
        ]
        kind = f"{request.resource.kind}List".encode()
        head = b'{"kind":"' + kind + b'","metadata":' + encode(metadata)
        return head + b',"items":[' + b",".join(items) + b"]}"

    def _existing(self, request: Request) -> Stored:
        objects = self._objects.get(request.resource, {})
        stored = objects.get((request.namespace, request.name))
        if stored is None:
            raise Refusal(404, "NotFound", f'{request.resource} "{request.name}" not found')
        return stored

    def _create(self, request: Request) -> Stored:
        resource = request.resource
        body = json.loads(encode(request.body))
        metadata = body.setdefault("metadata", {})
        if resource.namespaced and self.find(NAMESPACES, "", request.namespace) is None:
            raise Refusal(404, "NotFound", f'namespaces "{request.namespace}" not found')
        if "name" not in metadata:
            self._names += 1
            metadata["name"] = f"{metadata['generateName']}{self._names:05d}"
        if self.find(resource, request.namespace, metadata["name"]) is not None:
            raise Refusal(409, "AlreadyExists", f'{resource} "{metadata["name"]}" already exists')
        self._serial += 1
        metadata["uid"] = f"00000000-0000-4000-8000-{self._serial:012d}"
        metadata["creationTimestamp"] = self._now()
        metadata["generation"] = 1
        for name in ("resourceVersion", "deletionTimestamp"):
            metadata.pop(name, None)
        body.setdefault("apiVersion", resource.api_version)
        body.setdefault("kind", resource.kind)
        if resource.status_subresource:
            body.pop("status", None)
        if resource in PROTECTION:
            metadata["finalizers"] = [*metadata.get("finalizers", ()), PROTECTION[resource]]
        if resource == CLAIMS:
            self._default_claim(body)
        if resource == PODS:
            body["status"] = {"phase": "Pending"}
        if request.query.get("dryRun"):
            metadata["resourceVersion"] = str(self.version)
            return Stored(body)
        return self._store(request, None, body)

    def _default_claim(self, body: Object) -> None:
        body["status"] = {"phase": "Pending"}
        spec = body["spec"]
        spec.setdefault("volumeMode", "Filesystem")
        if spec.get("dataSource") and not spec.get("dataSourceRef"):
            spec["dataSourceRef"] = dict(spec["dataSource"])
        if spec.get("storageClassName") is None:
            for one in self.all(STORAGE_CLASSES):
                if (one["metadata"].get("annotations") or {}).get(DEFAULT_CLASS) == "true":
                    spec["storageClassName"] = one["metadata"]["name"]

    def _update(self, request: Request) -> Stored:
        stored = self._existing(request)
        self._check_preconditions(request, stored, request.body["metadata"])
        before = stored.body
        after = json.loads(encode(request.body))
        for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp", "resourceVersion"):
            if name in before["metadata"]:
                after["metadata"][name] = before["metadata"][name]
        after.setdefault("apiVersion", before["apiVersion"])
        after.setdefault("kind", before["kind"])
        return self._replace(request, stored, after)

    def _patch(self, request: Request) -> Stored:
        stored = self._existing(request)
        if request.content_type == _MERGE:
            patch = json.loads(encode(request.body))
            stated = patch.get("metadata") or {}
            self._check_preconditions(request, stored, stated)
            for name in ("uid", "resourceVersion"):
                stated.pop(name, None)
            after = merged(stored.body, patch)
        elif request.content_type == _JSON_PATCH:
            after = json_patched(stored.body, request.body)
        else:
            raise Refusal(415, "UnsupportedMediaType", f"no patches of type {request.content_type}")
        return self._replace(request, stored, after)

    def _check_preconditions(self, request: Request, stored: Stored, stated: Object) -> None:
        known = stored.body["metadata"]
        if stated.get("uid", known["uid"]) != known["uid"]:
            message = f"Precondition failed: UID in precondition: {stated['uid']}, UID in object meta: {known['uid']}"
            if request.verb == "patch":
                raise Refusal(422, "Invalid", message, cause="metadata.uid")
            raise Refusal(409, "Conflict", message)
        if stated.get("resourceVersion", known["resourceVersion"]) != known["resourceVersion"]:
            raise Refusal(
                409, "Conflict", "the object has been modified; please apply your changes to the latest version"
            )

    def _replace(self, request: Request, stored: Stored, after: Object) -> Stored:
        before = stored.body
        if request.resource.status_subresource:
            if request.subresource == "status":
                after = {**before, "status": after.get("status")}
                if after["status"] is None:
                    del after["status"]
            else:
                after = {name: value for name, value in after.items() if name != "status"}
                if "status" in before:
                    after["status"] = before["status"]
        known = before["metadata"]
        added = set(after["metadata"].get("finalizers") or ()) - set(known.get("finalizers") or ())
        if added and "deletionTimestamp" in known:
            raise Refusal(
                422, "Invalid", "no new finalizers can be added if the object is being deleted",
                cause="metadata.finalizers",
            )  # fmt: skip
        if request.resource == CLAIMS:
            _check_claim(before, after)
        if after == before or request.query.get("dryRun"):
            return stored if after == before else Stored(after)
        if after.get("spec") != before.get("spec"):
            generation = known.get("generation", 1) + 1
            after = {**after, "metadata": {**after["metadata"], "generation": generation}}
        return self._store(request, stored, after)

    def _delete(self, request: Request) -> Stored:
        stored = self._existing(request)
        options = request.body or {}
        preconditions = options.get("preconditions") or {}
        metadata = stored.body["metadata"]
        for name in ("uid", "resourceVersion"):
            if preconditions.get(name, metadata[name]) != metadata[name]:
                raise Refusal(409, "Conflict", f"Precondition failed: {name}")
        grace = options.get("gracePeriodSeconds")
        waits = request.resource == PODS and grace != 0 and bool(stored.body["spec"].get("nodeName"))
        if not metadata.get("finalizers") and not waits:
            return self._gone(request, stored)
        if "deletionTimestamp" in metadata:
            return stored
        more: Object = {"deletionTimestamp": self._now()}
        if waits:
            more["deletionGracePeriodSeconds"] = 30
        return self._store(request, stored, {**stored.body, "metadata": {**metadata, **more}})

    # --- storage --------------------------------------------------------------------------------------------------

    def _store(self, request: Request, old: Stored | None, body: Object) -> Stored:
        metadata = body["metadata"]
        if "deletionTimestamp" in metadata and not metadata.get("finalizers") and request.resource != PODS:
            return self._gone(request, old, body)
        self.version += 1
        new = Stored({**body, "metadata": {**metadata, "resourceVersion": str(self.version)}})
        self._objects.setdefault(request.resource, {})[metadata.get("namespace") or "", metadata["name"]] = new
        self.uids.add(metadata["uid"])
        if metadata.get("ownerReferences"):
            self.owned[metadata["uid"]] = request.resource, new.body
        else:
            self.owned.pop(metadata["uid"], None)
        self._log(request, Change(version=self.version, old=old, new=new, last=new))
        return new

    def _gone(self, request: Request, old: Stored | None, body: Object | None = None) -> Stored:
        assert old is not None
        metadata = old.body["metadata"]
        self.version += 1
        last = body or old.body
        gone = Stored({**last, "metadata": {**last["metadata"], "resourceVersion": str(self.version)}})
        del self._objects[request.resource][metadata.get("namespace") or "", metadata["name"]]
        self.uids.discard(metadata["uid"])
        self.owned.pop(metadata["uid"], None)
        self._log(request, Change(version=self.version, old=old, new=None, last=gone))
        return gone

    def _log(self, request: Request, change: Change) -> None:
        if request.resource != EVENTS or change.new is not None:
            self.logs.setdefault(request.resource, []).append(change)
        self.changed.set()
        for event in self._waiting.get(request.resource, ()):
            event.set()
        old = change.old.body if change.old is not None else None
        new = change.new.body if change.new is not None else None
        for listener in self.listeners:
            listener(request, request.resource, old, new)

    # --- watches --------------------------------------------------------------------------------------------------

    def watch(self, request: Request) -> Watch:
        version = int(request.query.get("resourceVersion") or 0)
        return Watch(self, request, version, self._waiting.setdefault(request.resource, {}))

    def is_expired(self, resource: Resource, version: int) -> bool:
        return version < self._compacted.get(resource, 0)


class Watch:
    """One open watch."""

    def __init__(self, server: ApiServer, request: Request, version: int, waiting: dict[asyncio.Event, None]) -> None:
        self._server = server
        self._request = request
        self._matches = selector(request.query)
        self._waiting = waiting
        log = server.logs.setdefault(request.resource, [])
        self._log = log
        position = len(log)
        while position and log[position - 1].version > version:
            position -= 1
        self._position = position
        self.version = version
        """Version up to which changes were delivered."""
        self.news = asyncio.Event()
        """Set when there may be a change to deliver."""
        waiting[self.news] = None
        if position < len(log):
            self.news.set()

    def close(self) -> None:
        self._waiting.pop(self.news, None)

    @property
    def expired(self) -> bool:
        """Whether the history after this watch's version is gone."""
        return self._position < len(self._log) and self._server.is_expired(self._request.resource, self.version + 1)

    def next(self) -> bytes | None:
        """Return the next event to deliver; None if there is none yet."""
        while self._position < len(self._log):
            change = self._log[self._position]
            self._position += 1
            self.version = change.version
            before = change.old is not None and self._selects(change.old.body)
            after = change.new is not None and self._selects(change.new.body)
            if before or after:
                what = "ADDED" if not before else "MODIFIED" if after else "DELETED"
                return self._event(what, change.last)
        return None

    def bookmark(self) -> bytes:
        resource = self._request.resource
        self.version = max(self.version, self._log[-1].version if self._log else 0)
        return encode(
            {
                "type": "BOOKMARK",
                "object": {
                    "apiVersion": resource.api_version,
                    "kind": resource.kind,
                    "metadata": {"resourceVersion": str(self.version)},
                },
            }
        )

    def _selects(self, body: Object) -> bool:
        namespace = self._request.namespace
        return namespace in ("", body["metadata"].get("namespace") or "") and self._matches(body)

    def _event(self, what: str, stored: Stored) -> bytes:
        data = encode(_metadata_only(stored.body)) if self._request.metadata_only else stored.bytes
        return b'{"type":"' + what.encode() + b'","object":' + data + b"}"


def encode(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def parse_path(path: str) -> tuple[Resource, str, str, str]:
    """Return resource, namespace, name and subresource of a path."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    resource = _BY_PLURAL[group, rest[0]]
    return resource, namespace, rest[1] if len(rest) > 1 else "", rest[2] if len(rest) > 2 else ""


def selector(query: Mapping[str, str]) -> Callable[[Object], bool]:
    """Return the predicate of label and field selectors."""
    labels = [part for part in query.get("labelSelector", "").split(",") if part]
    fields = [part for part in query.get("fieldSelector", "").split(",") if part]
    if not labels and not fields:
        return lambda _: True

    def matches(body: Object) -> bool:
        stated = body["metadata"].get("labels") or {}
        return all(_selects(part, stated.get) for part in labels) and all(
            _selects(part, lambda path: _field(body, path)) for part in fields
        )

    return matches


def _selects(part: str, value: Callable[[str], Any]) -> bool:
    if "!=" in part:
        name, _, text = part.partition("!=")
        return value(name) != text
    name, equal, text = part.partition("=")
    return value(name) == text if equal else value(name) is not None


def _field(body: Any, path: str) -> Any:
    for part in path.split("."):
        body = (body or {}).get(part)
    return body


def _metadata_only(body: Object) -> Object:
    return {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": body["metadata"]}


def _check_claim(before: Object, after: Object) -> None:
    """Raise `Refusal` for changes of a PVC's spec that no API server accepts."""
    old, new = before["spec"], after["spec"]
    changed = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    allowed = {"volumeName"} if not old.get("volumeName") else set()
    if (before.get("status") or {}).get("phase") == "Bound":
        allowed.add("resources")
    if changed - allowed:
        raise Refusal(422, "Invalid", f"spec is immutable after creation: {sorted(changed)}", cause="spec")


def merged(before: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7396) without changing `before`."""
    if not isinstance(patch, dict):
        return patch
    after = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        else:
            after[name] = merged(after.get(name), value)
    return after


def json_patched(before: Object, operations: Iterable[Mapping[str, Any]]) -> Object:
    """Apply a JSON patch (RFC 6902): test, add, replace and remove; raise `Refusal`."""
    document: Any = json.loads(encode(before))
    for operation in operations:
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].removeprefix("/").split("/")
        ]
        holder: Any = document
        try:
            for part in parents:
                holder = holder[int(part)] if isinstance(holder, list) else holder[part]
            index: Any = int(last) if isinstance(holder, list) and last != "-" else last
            match operation["op"]:
                case "test":
                    if holder[index] != operation["value"]:
                        raise Refusal(409, "Conflict", f"the test of {operation['path']} failed")
                case "add" if isinstance(holder, list):
                    holder.insert(len(holder) if last == "-" else index, operation["value"])
                case "add" | "replace":
                    holder[index] = operation["value"]
                case "remove":
                    del holder[index]
        except (KeyError, IndexError, TypeError) as error:
            raise Refusal(422, "Invalid", f"the path {operation['path']} does not exist") from error
    assert isinstance(document, dict)
    return document
