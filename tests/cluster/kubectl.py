"""kubectl, for tests: documents in, documents out, and waiting by watching.

What tests ask often goes to the API server without a process (`tests.cluster.direct`); `run` is kubectl itself.
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

_REQUEST_PATIENCE = 180.0  # seconds, for what takes one, or a pod's grace period, where nothing else runs
_PATIENCE = 240.0  # seconds, for what is waited for


class KubectlError(Exception):
    """kubectl said no; the text is what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """The cluster's objects, in `namespace` where a call does not name one."""

    program: str
    kubeconfig: Path
    environment: Mapping[str, str]
    namespace: str = "default"

    def within(self, namespace: str) -> Kubectl:
        """The same for another namespace."""
        return Kubectl(
            program=self.program, kubeconfig=self.kubeconfig, environment=self.environment, namespace=namespace
        )

    def command(self, *arguments: str) -> list[str]:
        """The command line, for what is not covered here (`port-forward`, `exec -i` …)."""
        return [self.program, f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]

    def run(self, *arguments: str, given: str = "", patience: float = _REQUEST_PATIENCE) -> str:
        """What kubectl prints.  Raises KubectlError where it fails, or takes longer than `patience` seconds."""
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
        """Make these objects so, by server-side apply."""
        with self._direct() as server:
            for document in documents:
                server.apply(document, self.namespace)

    def create(self, *documents: Document) -> list[Document]:
        """Make new objects, which may have a `generateName`; gives them as the server has them."""
        with self._direct() as server:
            return [server.create(document, self.namespace) for document in documents]

    def get(self, kind: str, name: str) -> Document:
        """One object.  Raises KubectlError where there is none."""
        with self._direct() as server:
            return server.get(kind, self.namespace, name)

    def get_all(self, kind: str, selector: str = "") -> list[Document]:
        """All of a kind in the namespace."""
        chosen = {"labelSelector": selector} if selector else {}
        with self._direct() as server:
            return server.list(kind, self.namespace, **chosen)

    def delete(self, kind: str, *names: str, wait: bool = True) -> None:
        """Delete objects; ones that are not there are no error."""
        with self._direct() as server:
            going = {name: server.delete(kind, self.namespace, name) for name in names}
            for name, uid in going.items():
                if wait and uid and not server.wait_gone(kind, self.namespace, name, _REQUEST_PATIENCE, uid):
                    raise KubectlError(f"{kind}/{name} is being deleted still after {_REQUEST_PATIENCE:.0f} s")

    def merge(self, kind: str, name: str, patch: Document) -> None:
        """Change an object by a JSON merge patch."""
        with self._direct() as server:
            server.merge(kind, self.namespace, name, patch)

    def logs(self, pod: str, *arguments: str) -> str:
        """What a pod wrote, or ``KIND/NAME`` whose pod it is."""
        if arguments or "/" in pod:
            return self.run("logs", pod, *arguments)
        with self._direct() as server:
            return server.logs(self.namespace, pod)

    def events(self, kind: str, name: str) -> list[Document]:
        """Events about an object."""
        chosen = f"involvedObject.kind={kind},involvedObject.name={name}"
        with self._direct() as server:
            return server.list("events", self.namespace, fieldSelector=chosen)

    def wait(
        self, kind: str, name: str, what: str, ready: Callable[[Document], bool], patience: float = _PATIENCE
    ) -> Document:
        """The object as soon as `ready` says yes to it, whether or not it is there yet.

        `what` names that state for the AssertionError that is raised after `patience` seconds, with the object's status.
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

    def wait_gone(self, kind: str, name: str, patience: float = _PATIENCE) -> None:
        """Until there is no such object.  Raises AssertionError after `patience` seconds."""
        with self._direct() as server:
            gone = server.wait_gone(kind, self.namespace, name, patience)
        if not gone:
            raise AssertionError(f"{kind}/{name} is there still after {patience:.0f} s")

    def watch(self, kind: str, name: str, patience: float) -> Iterator[tuple[str, Document]]:
        """Each state of an object for `patience` seconds, with ADDED, MODIFIED or DELETED.

        A watch that the server ends is begun anew, and begins with the state that is then.
        """
        until = time.monotonic() + patience
        while time.monotonic() < until:
            # Where the server is away, it comes back.
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
