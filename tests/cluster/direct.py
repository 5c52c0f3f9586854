"""API requests with a kubeconfig's credentials: what kubectl does, without a process for each.

Starting kubectl takes a tenth of a second of CPU time, and tests make several requests a second. The project's own
client (`cdi.kube`) cannot be used because it is itself under test.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import urllib3
from kubernetes.client import ApiClient
from kubernetes.config import new_client_from_config, new_client_from_config_dict

Document = dict[str, Any]
_DISCOVERY: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
_MERGE: Final = "application/merge-patch+json"
_APPLY: Final = "application/apply-patch+yaml"
_SILENCE = 30.0
"""Seconds without data after which a watch is restarted."""
_RETRIES = urllib3.Retry(
    total=10, connect=0, read=0, redirect=False, other=0, allowed_methods=None, raise_on_status=False
)
"""A response with Retry-After is retried, as kubectl does."""


class RequestError(OSError):
    """The API server is unreachable or returned an error; the text is what kubectl would print."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A resource as discovery describes it."""

    base: str
    """``/api/v1`` or ``/apis/GROUP/VERSION``."""
    group: str
    kind: str
    plural: str
    singular: str
    short: tuple[str, ...]
    namespaced: bool

    def names(self) -> set[str]:
        """Return all lower-case names that select the resource."""
        alone = {self.plural, self.singular or self.kind.lower(), self.kind.lower(), *self.short}
        return alone | {f"{name}.{self.group}" for name in (self.plural, self.kind.lower())}

    def path(self, namespace: str, name: str = "") -> str:
        space = f"/namespaces/{quote(namespace)}" if self.namespaced else ""
        return f"{self.base}{space}/{self.plural}{f'/{quote(name)}' if name else ''}"


class Direct:
    """A thread-safe client with one user of one API server."""

    def __init__(self, kubeconfig: Path) -> None:
        if ":" in str(kubeconfig):  # the client library would read two files
            self._client: ApiClient = new_client_from_config_dict(
                json.loads(kubeconfig.read_text()), persist_config=False
            )
        else:
            self._client = new_client_from_config(config_file=str(kubeconfig), persist_config=False)
        self._kinds: dict[str, Kind] = {}
        """Resources by each of their names, and by path and kind; the first in the server's order owns a name."""
        self._lock = threading.Lock()

    # --- Objects ------------------------------------------------------------------------------------------------

    def read(self, path: str) -> Any:
        """Return what is at a path: a document, or text."""
        text = bytes(self._request("GET", path, {}, None, "").data).decode()
        return json.loads(text) if text.startswith("{") else text

    def get(self, kind: str, namespace: str, name: str) -> Document:
        return self._ask("GET", self._named(kind).path(namespace, name))

    def list(self, kinds: str, namespace: str, **selectors: str) -> list[Document]:
        """Return the objects of one or several comma-separated kinds."""
        return [one for kind in kinds.split(",") for one in self._list(self._named(kind), namespace, selectors)]

    def _list(self, kind: Kind, namespace: str, selectors: Mapping[str, str]) -> Iterator[Document]:
        answer = self._ask("GET", kind.path(namespace), selectors)
        for item in answer["items"]:
            # The items of a list have no apiVersion and kind.
            yield {"apiVersion": answer["apiVersion"], "kind": kind.kind, **item}

    def create(self, document: Document, namespace: str) -> Document:
        path = self._place(document, namespace)
        options = {"fieldManager": "kubectl-create", "fieldValidation": "Strict"}
        return self._ask("POST", path, options, document, "application/json", doing='error when creating "STDIN": ')

    def apply(self, document: Document, namespace: str) -> None:
        path = self._place(document, namespace, document["metadata"]["name"])
        options = {"fieldManager": "kubectl", "force": "true", "fieldValidation": "Strict"}
        self._ask("PATCH", path, options, document, _APPLY)

    def merge(self, kind: str, namespace: str, name: str, patch: Document) -> None:
        options = {"fieldManager": "kubectl-patch", "fieldValidation": "Strict"}
        self._ask("PATCH", self._named(kind).path(namespace, name), options, patch, _MERGE)

    def delete(self, kind: str, namespace: str, name: str) -> str:
        """Delete an object and return its uid, or "" if it does not exist."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        path = self._named(kind).path(namespace, name)
        try:
            answer = self._ask("DELETE", path, {}, body, "application/json")
        except RequestError as error:
            if error.status == 404:
                return ""
            raise
        details = answer.get("details") or {} if answer.get("kind") == "Status" else answer["metadata"]
        return str(details.get("uid") or "")

    def wait_gone(self, kind: str, namespace: str, name: str, patience: float, uid: str = "") -> bool:
        """Return whether the object with this uid, or the current one, is deleted within `patience` seconds."""
        until, pause = time.monotonic() + patience, 0.02
        while True:
            try:
                there = self.get(kind, namespace, name)["metadata"]["uid"]
            except RequestError as error:
                if error.status == 404:
                    return True
                raise
            uid = uid or there
            if there != uid:
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(pause)
            pause = min(0.5, pause * 1.5)

    def logs(self, namespace: str, pod: str) -> str:
        answer = self._request("GET", f"{self._named('pods').path(namespace, pod)}/log", {}, None, "")
        return bytes(answer.data).decode(errors="replace")

    def watch(self, kind: str, namespace: str, name: str, until: float) -> Iterator[Document]:
        """Yield the events of one object from its current state on, until the server or the deadline ends the watch."""
        left = until - time.monotonic()
        options = {
            "watch": "true", "fieldSelector": f"metadata.name={name}", "timeoutSeconds": str(max(1, int(left) + 1)),
        }  # fmt: skip
        with self._request("GET", self._named(kind).path(namespace), options, None, "", streamed=left) as answer:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                yield from events(answer.stream(1 << 16))

    # --- Requests -----------------------------------------------------------------------------------------------

    def _ask(
        self, method: str, path: str, options: Mapping[str, str] | None = None, body: Document | None = None,
        content: str = "", doing: str = "",
    ) -> Document:  # fmt: skip
        document: Document = json.loads(self._request(method, path, options or {}, body, content, doing=doing).data)
        return document

    def _request(
        self, method: str, path: str, options: Mapping[str, str], body: Document | None, content: str, *,
        doing: str = "", streamed: float | None = None,
    ) -> urllib3.BaseHTTPResponse:  # fmt: skip
        configuration = self._client.configuration
        headers = {"Accept": "application/json"}
        token = configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            headers["authorization"] = token
        if content:
            headers["Content-Type"] = content
        url = f"{configuration.host.rstrip('/')}{path}{'?' if options else ''}{urlencode(options)}"
        read_timeout = 60.0 if streamed is None else max(1.0, min(streamed, _SILENCE))
        try:
            answer = self._client.rest_client.pool_manager.request(
                method,
                url,
                headers=headers if path not in ("/api", "/apis") else {**headers, "Accept": _DISCOVERY},
                body=None if body is None else json.dumps(body).encode(),
                preload_content=streamed is None,
                retries=_RETRIES,
                timeout=urllib3.Timeout(connect=10.0, read=read_timeout),
            )
        except urllib3.exceptions.HTTPError as error:
            raise RequestError(f"The connection to the server {configuration.host} was refused: {error}") from error
        if answer.status >= 400:
            raise _refusal(answer, doing)
        return answer

    # --- Discovery ----------------------------------------------------------------------------------------------

    def _place(self, document: Document, namespace: str, name: str = "") -> str:
        version, kind = document["apiVersion"], document["kind"]
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        found = self._known(f"{base}/{kind}")
        if found is None:
            raise RequestError(f'no matches for kind "{kind}" in version "{version}"')
        return found.path(document["metadata"].get("namespace") or namespace, name)

    def _named(self, name: str) -> Kind:
        found = self._known(name.lower())
        if found is None:
            raise RequestError(f'the server doesn\'t have a resource type "{name}"')
        return found

    def _known(self, name: str) -> Kind | None:
        """Return the resource, repeating discovery for an unknown name because it may have been added since."""
        if name not in self._kinds:
            with self._lock:
                kinds: dict[str, Kind] = {}
                for path in ("/api", "/apis"):
                    for kind in _discovered(self._ask("GET", path)):
                        for each in (*kind.names(), f"{kind.base}/{kind.kind}"):
                            kinds.setdefault(each, kind)
                self._kinds = kinds
        return self._kinds.get(name)


def events(chunks: Iterable[bytes]) -> Iterator[Document]:
    """Yield the events of a watch, one JSON document a line in chunks of any size, until an ERROR event."""
    pending = b""
    for chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            event: Document = json.loads(line)
            if event["type"] == "ERROR":
                return
            yield event


@functools.lru_cache(maxsize=64)
def _direct(kubeconfig: Path, written: int) -> Direct:  # noqa: ARG001  another file is another user
    return Direct(kubeconfig)


def direct(kubeconfig: Path) -> Direct:
    """Return the client of a kubeconfig, which is shared until the file changes."""
    return _direct(kubeconfig, kubeconfig.stat().st_mtime_ns)


def _discovered(listed: Document) -> Iterator[Kind]:
    for group in listed["items"]:
        name = group["metadata"].get("name") or ""
        for version in group["versions"]:
            base = f"/apis/{name}/{version['version']}" if name else f"/api/{version['version']}"
            for one in version.get("resources") or ():
                yield Kind(
                    base=base,
                    group=name,
                    kind=(one.get("responseKind") or {}).get("kind") or "",
                    plural=one["resource"],
                    singular=one.get("singularResource") or "",
                    short=tuple(one.get("shortNames") or ()),
                    namespaced=one["scope"] == "Namespaced",
                )


def _refusal(answer: urllib3.BaseHTTPResponse, doing: str) -> RequestError:
    text = bytes(answer.data or answer.read() or b"").decode(errors="replace")
    try:
        status = json.loads(text)
        reason, message = status.get("reason") or "", status.get("message") or text
    except (ValueError, AttributeError):
        reason, message = "", text.strip() or f"status {answer.status}"
    return RequestError(f"Error from server{f' ({reason})' if reason else ''}: {doing}{message}", answer.status)
