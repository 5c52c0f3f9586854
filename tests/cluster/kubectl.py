"""Client of the tests: reads and writes documents and waits by watching.

Frequent requests go to the API server without a process (`tests.cluster.direct`); `run` runs kubectl itself.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.direct import Direct, Document, RequestError, direct

_REQUEST_TIMEOUT = 180.0  # seconds for one request, or a pod's grace period, on an idle machine
_TIMEOUT = 240.0  # seconds for an awaited state


class KubectlError(Exception):
    """The request was rejected or failed; the text is kubectl's message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """The cluster's objects, in `namespace` unless a call names another."""

    program: str
    kubeconfig: Path
    environment: Mapping[str, str]
    namespace: str = "default"

    def within(self, namespace: str) -> Kubectl:
        """Return the same client for another namespace."""
        return Kubectl(
            program=self.program, kubeconfig=self.kubeconfig, environment=self.environment, namespace=namespace
        )

    def command(self, *arguments: str) -> list[str]:
        """Return the command line for uses not covered here (`port-forward`, `exec -i` …)."""
        return [self.program, f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]

    def run(self, *arguments: str, given: str = "", patience: float = _REQUEST_TIMEOUT) -> str:
        """Return what kubectl prints.

        Raises:
            KubectlError: It failed, or took longer than `patience` seconds.
        """
        try:
            done = subprocess.run(
                self.command(*arguments),
                input=given,
                capture_output=True,
                text=True,
                check=False,
                timeout=patience,
                env=dict(self.environment),
            )
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {arguments[0]} did not end within {patience:.0f} s") from error
        if done.returncode:
            raise KubectlError(done.stderr.strip() or f"kubectl {arguments[0]} ended with {done.returncode}")
        return done.stdout

    def apply(self, *documents: Document) -> None:
        """Create or update these objects by server-side apply."""
        with self._direct() as server:
            for document in documents:
                server.apply(document, self.namespace)

    def create(self, *documents: Document) -> list[Document]:
        """Create objects, which may have a `generateName`, and return them as stored."""
        with self._direct() as server:
            return [server.create(document, self.namespace) for document in documents]

    def get(self, kind: str, name: str) -> Document:
        """Return one object.

        Raises:
            KubectlError: There is no such object.
        """
        with self._direct() as server:
            return server.get(kind, self.namespace, name)

    def get_all(self, kind: str, selector: str = "") -> list[Document]:
        """Return all objects of a kind in the namespace."""
        chosen = {"labelSelector": selector} if selector else {}
        with self._direct() as server:
            return server.list(kind, self.namespace, **chosen)

    def delete(self, kind: str, *names: str, wait: bool = True) -> None:
        """Delete objects, ignoring missing ones."""
        with self._direct() as server:
            going = {name: server.delete(kind, self.namespace, name) for name in names}
            for name, uid in going.items():
                if wait and uid and not server.wait_gone(kind, self.namespace, name, _REQUEST_TIMEOUT, uid):
                    raise KubectlError(f"{kind}/{name} is being deleted still after {_REQUEST_TIMEOUT:.0f} s")

    def merge(self, kind: str, name: str, patch: Document) -> None:
        """Change an object by a JSON merge patch."""
        with self._direct() as server:
            server.merge(kind, self.namespace, name, patch)

    def logs(self, pod: str, *arguments: str) -> str:
        """Return the log of a pod, or of the pod of ``KIND/NAME``."""
        if arguments or "/" in pod:
            return self.run("logs", pod, *arguments)
        with self._direct() as server:
            return server.logs(self.namespace, pod)

    def events(self, kind: str, name: str) -> list[Document]:
        """Return the Events about an object."""
        chosen = f"involvedObject.kind={kind},involvedObject.name={name}"
        with self._direct() as server:
            return server.list("events", self.namespace, fieldSelector=chosen)

    def wait(
        self, kind: str, name: str, what: str, ready: Callable[[Document], bool], patience: float = _TIMEOUT
    ) -> Document:
        """Return the object as soon as `ready` is true for it; it need not exist yet.

        Args:
            kind: Its kind.
            name: Its name.
            what: Describes the awaited state in the error.
            ready: The condition.
            patience: Timeout in seconds.

        Raises:
            AssertionError: The timeout has expired; the message has the object's status and Events.
        """
        seen: Document = {}
        for event, document in self.watch(kind, name, patience):
            seen = document
            if event != "DELETED" and ready(document):
                return document
        status = json.dumps(seen.get("status", "there is none"), indent=1)
        events = "".join(
            f"\n{each.get('reason')}: {each.get('message')}"
            for each in (self.events(seen["kind"], name) if seen else [])
        )
        raise AssertionError(f"{kind}/{name} was not {what} after {patience:.0f} s: {status}{events}")

    def wait_gone(self, kind: str, name: str, patience: float = _TIMEOUT) -> None:
        """Wait until the object is deleted.

        Raises:
            AssertionError: It still exists after `patience` seconds.
        """
        with self._direct() as server:
            gone = server.wait_gone(kind, self.namespace, name, patience)
        if not gone:
            raise AssertionError(f"{kind}/{name} is there still after {patience:.0f} s")

    def watch(self, kind: str, name: str, patience: float) -> Iterator[tuple[str, Document]]:
        """Yield each state of an object for `patience` seconds, with ADDED, MODIFIED or DELETED.

        A watch that the server ends is restarted, and begins with the current state.
        """
        until = time.monotonic() + patience
        while time.monotonic() < until:
            # The API server may be unavailable for a while.
            with contextlib.suppress(RequestError):
                for event in direct(self.kubeconfig).watch(kind, self.namespace, name, until):
                    yield event["type"], event["object"]
            time.sleep(min(0.1, max(0.0, until - time.monotonic())))

    @contextlib.contextmanager
    def _direct(self) -> Iterator[Direct]:
        try:
            yield direct(self.kubeconfig)
        except RequestError as error:
            raise KubectlError(str(error)) from error
