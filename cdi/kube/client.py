"""Kubernetes API client that works with plain dictionaries over one session.

Every failure is a `CdiError`. A call retries for a bounded time (`Timeouts.patience`) while the server is unreachable,
restarting or overloaded. A request that modifies state is retried only if the first attempt cannot have been processed
(connection refused, 429) or if it is idempotent.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from cdi.api.errors import ClusterProtocolError, ClusterUnavailable, HistoryExpired
from cdi.api.kinds import PODS, Object, Resource
from cdi.kube import responses
from cdi.kube.credentials import Credentials, find
from cdi.kube.responses import lines
from cdi.kube.transport import MAX_ANSWER, Timeouts, TooLargeError, Transport

_PATCHES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",  # JSON is YAML
}
_LIST_TRIES = 4
_METADATA_OF_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Objects of a resource, and the resource version to watch from."""

    items: list[Object]
    version: str


class Client:
    """Connection pool to one API server; an asynchronous context manager.

    Returned objects belong to the caller.
    """

    def __init__(self, credentials: Credentials, *, timing: Timeouts | None = None, agent: str = "cdi") -> None:
        self._transport = Transport(credentials, timing or Timeouts(), agent)

    @property
    def namespace(self) -> str:
        """Namespace of the kubeconfig's context or of the pod; known after entering."""
        return self._transport.credentials.namespace

    async def server(self) -> str:
        """Return the URL of the API server."""
        return (await self._transport.credentials.access()).server

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.close()

    # --- objects ------------------------------------------------------------------------------------------------

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """Return the object, or raise `NotFound`."""
        return await self._object("GET", resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        page: int = 500,
        strip: Callable[[Object], Object] | None = None,
        metadata_only: bool = False,
    ) -> Listing:
        """Return all objects, requested in pages of `page`; each passes through `strip` before the next is decoded.

        With `metadata_only` the server sends only the metadata of each.
        """
        for _ in range(_LIST_TRIES):
            with contextlib.suppress(HistoryExpired):  # the continue token expired before the last page
                return await self._list(resource, namespace, _selection(labels, fields), page, strip, metadata_only)
        raise ClusterUnavailable("the list changes faster than its pages can be fetched", where=str(resource))

    async def _list(
        self,
        resource: Resource,
        namespace: str | None,
        query: dict[str, str],
        page: int,
        strip: Callable[[Object], Object] | None,
        metadata_only: bool,
    ) -> Listing:
        def each(item: Object) -> Object:
            item.setdefault("apiVersion", resource.api_version)
            item.setdefault("kind", resource.kind)
            return strip(item) if strip is not None else item

        path = resource.path(namespace)
        items: list[Object] = []
        following = ""
        while True:
            query["limit"] = str(page)
            try:
                data = await self._transport.request(
                    "GET", path, query=query, accept=_METADATA_OF_LIST if metadata_only else None, idempotent=True
                )
            except TooLargeError as error:
                if page == 1:
                    raise ClusterProtocolError("an object exceeds the maximum size", where=f"GET {path}") from error
                page = max(1, page // 8)
                continue
            some, metadata = await responses.decode_list(data, f"GET {path}", each)
            items += some
            following = str(metadata.get("continue") or "")
            if not following:
                return Listing(items=items, version=str(metadata.get("resourceVersion") or ""))
            query["continue"] = following

    async def create(self, resource: Resource, body: Object) -> Object:
        """Create the object.

        A request for an object with a ``generateName`` is not repeated if that could create two.

        Raises:
            AlreadyExists: the name is taken, perhaps by an earlier attempt whose response was lost.
        """
        metadata = body.get("metadata") or {}
        path = resource.path(metadata.get("namespace"))
        return await self._object("POST", path, body=body, idempotent=bool(metadata.get("name")))

    async def update(self, resource: Resource, body: Object, *, subresource: str = "") -> Object:
        """Replace the object.

        Raises:
            NotFound: the object does not exist.
            Conflict: the resourceVersion or uid in `body` is not current.
        """
        metadata = body["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"], subresource)
        return await self._object("PUT", path, body=body, idempotent=True)

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Object | Sequence[Object],
        *,
        kind: Literal["merge", "json", "apply"] = "merge",
        subresource: str = "",
        force: bool = True,
        manager: str = "cdi",
    ) -> Object:
        """Patch the object; ``apply`` creates it if it does not exist.

        For ``apply``, `body` may omit the object's kind and name, and `force` takes over fields of other managers.

        Raises:
            NotFound: the object does not exist (never for ``apply``).
            Conflict: a precondition or a field manager conflicts.
        """
        query = {"fieldManager": manager}
        if kind == "apply":
            query["force"] = "true" if force else "false"
            assert isinstance(body, dict)
            named = {"name": name, **(body.get("metadata") or {})}
            body = {"apiVersion": resource.api_version, "kind": resource.kind, **body, "metadata": named}
        return await self._object(
            "PATCH",
            resource.path(namespace, name, subresource),
            body=body,
            query=query,
            content_type=_PATCHES[kind],
            idempotent=kind != "json",
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        version: str | None = None,
        grace: int | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] | None = None,
    ) -> Object | None:
        """Delete the object; return None if it no longer exists, else the object that is being deleted.

        `grace` is the grace period in seconds.

        Raises:
            NotFound: the object does not exist.
            Conflict: `uid` or `version` does not match.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        preconditions = {"uid": uid, "resourceVersion": version}
        if wanted := {name: value for name, value in preconditions.items() if value is not None}:
            options["preconditions"] = wanted
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if propagation is not None:
            options["propagationPolicy"] = propagation
        answer = await self.request("DELETE", resource.path(namespace, name), body=options, idempotent=uid is not None)
        metadata = (answer.get("metadata") or {}) if isinstance(answer, dict) else {}
        waits = metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds")
        return answer if "deletionTimestamp" in metadata and waits else None

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        version: str,
        labels: str = "",
        fields: str = "",
        timeout_seconds: float | None = None,
        read_timeout: float = 120.0,
        metadata_only: bool = False,
    ) -> AsyncGenerator[Object, None]:
        """Yield events (ADDED, MODIFIED, DELETED, BOOKMARK, ERROR) after `version` until the server ends the watch.

        The server is asked to end it after `timeout_seconds` seconds. The default is shorter than `silence`: an
        unmodified resource may get no bookmarks either, and must not be mistaken for an unresponsive server.

        Raises:
            HistoryExpired: the server no longer has that version.
            ClusterUnreachable: no data, bookmarks included, arrived for `silence` seconds, or the connection broke.
        """
        if timeout_seconds is None:
            timeout_seconds = read_timeout * random.uniform(0.6, 0.8)  # noqa: S311  spreads load
        query = _selection(labels, fields) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(timeout_seconds))),
        }
        path = resource.path(namespace)
        where = f"watch of {resource}"
        accept = _METADATA if metadata_only else None
        async with self._transport.stream(path, query=query, read_timeout=read_timeout, accept=accept) as pieces:
            async for line in lines(pieces, MAX_ANSWER, where):
                event = responses.decode(line, where)
                if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
                    raise ClusterProtocolError("malformed watch event", where=where)
                yield event

    async def logs(
        self, namespace: str, pod: str, container: str, *, follow: bool = False, tail: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a container's output in chunks as they arrive, with `follow` until it exits; may raise `NotFound`."""
        query = {"container": container}
        if follow:
            query["follow"] = "true"
        if tail is not None:
            query["tailLines"] = str(tail)
        path = PODS.path(namespace, pod, "log")
        read_timeout = None if follow else self._transport.timing.answer
        async with self._transport.stream(path, query=query, read_timeout=read_timeout) as pieces:
            async for piece in pieces:
                yield piece

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        idempotent: bool | None = None,
    ) -> Any:
        """Send one request and return the decoded JSON of the response, or its text.

        `idempotent` says whether the request may be repeated; None means that only a GET may.
        """
        where = f"{method} {path}"
        if idempotent is None:
            idempotent = method == "GET"
        try:
            data = await self._transport.request(
                method, path, body=body, query=query, content_type=content_type, idempotent=idempotent
            )
        except TooLargeError as error:
            raise ClusterProtocolError(f"the response exceeds {MAX_ANSWER} bytes", where=where) from error
        if data[:1] in (b"{", b"["):
            return responses.decode(data, where)
        return data.decode("utf-8", "replace")

    async def _object(self, method: str, path: str, **wishes: Any) -> Object:
        answer = await self.request(method, path, **wishes)
        if not isinstance(answer, dict):
            raise ClusterProtocolError("the response is not an object", where=f"{method} {path}")
        return answer


def connect(kubeconfig: str | Path | None = None, context: str | None = None) -> Client:
    """Return a client for the named file, else KUBECONFIG or ~/.kube/config, else the pod's service account.

    Raises:
        ClusterConfigInvalid: none of them exists; entering the client raises it for an invalid file.
    """
    return Client(find(kubeconfig, context))


def _selection(labels: str, fields: str) -> dict[str, str]:
    """Return selectors as query parameters."""
    return {name: text for name, text in (("labelSelector", labels), ("fieldSelector", fields)) if text}
