"""kubectl, for tests: documents in, documents out, and waiting by watching."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Document = dict[str, Any]
_DECODER = json.JSONDecoder()
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
        self.run("apply", "--server-side", "--force-conflicts", "--filename=-", given=_listed(documents))

    def create(self, *documents: Document) -> list[Document]:
        """Make new objects, which may have a `generateName`; gives them as the server has them."""
        text = self.run("create", "--filename=-", "--output=json", given=_listed(documents))
        made = []
        while text := text.lstrip():  # one document after the other
            document, end = _DECODER.raw_decode(text)
            made.append(document)
            text = text[end:]
        return made

    def get(self, kind: str, name: str) -> Document:
        """One object.  Raises KubectlError where there is none."""
        document: Document = json.loads(self.run("get", kind, name, "--output=json"))
        return document

    def get_all(self, kind: str, selector: str = "") -> list[Document]:
        """All of a kind in the namespace."""
        chosen = [f"--selector={selector}"] if selector else []
        items: list[Document] = json.loads(self.run("get", kind, "--output=json", *chosen))["items"]
        return items

    def delete(self, kind: str, *names: str, wait: bool = True) -> None:
        """Delete objects; ones that are not there are no error."""
        self.run("delete", kind, *names, "--ignore-not-found", f"--wait={str(wait).lower()}")

    def merge(self, kind: str, name: str, patch: Document) -> None:
        """Change an object by a JSON merge patch."""
        self.run("patch", kind, name, "--type=merge", f"--patch={json.dumps(patch)}")

    def logs(self, pod: str, *arguments: str) -> str:
        """What a pod wrote."""
        return self.run("logs", pod, *arguments)

    def events(self, kind: str, name: str) -> list[Document]:
        """Events about an object."""
        chosen = f"involvedObject.kind={kind},involvedObject.name={name}"
        items: list[Document] = json.loads(self.run("get", "events", f"--field-selector={chosen}", "--output=json"))[
            "items"
        ]
        return items

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
        try:
            self.run("wait", "--for=delete", f"{kind}/{name}", f"--timeout={patience:.0f}s", patience=patience + 10)
        except KubectlError as error:
            raise AssertionError(f"{kind}/{name} is there still after {patience:.0f} s: {error}") from error

    def watch(self, kind: str, name: str, patience: float) -> Iterator[tuple[str, Document]]:
        """Each state of an object for `patience` seconds, with ADDED, MODIFIED or DELETED.

        A watch that the server ends is begun anew, and begins with the state that is then.
        """
        until = time.monotonic() + patience
        command = self.command(
            "get", kind, f"--field-selector=metadata.name={name}", "--watch", "--output-watch-events", "--output=json"
        )
        while time.monotonic() < until:
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=dict(self.environment),
            ) as process:  # fmt: skip
                try:
                    assert process.stdout is not None
                    for event in _documents(process.stdout.fileno(), until):
                        yield event["type"], event["object"]
                finally:
                    process.kill()
            time.sleep(min(0.5, max(0.0, until - time.monotonic())))


def _listed(documents: Iterable[Document]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})


def _documents(stream: int, until: float) -> Iterator[Document]:
    """JSON documents from a pipe, as they come, until it ends or the time is up."""
    text, pending = "", b""
    with selectors.DefaultSelector() as ready:
        ready.register(stream, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0 and ready.select(left):
            chunk = os.read(stream, 1 << 16)
            if not chunk:
                return
            pending += chunk
            complete, newline, pending = pending.rpartition(b"\n")  # a document ends with its line
            text += (complete + newline).decode()
            while text := text.lstrip():
                try:
                    document, end = _DECODER.raw_decode(text)
                except ValueError:
                    break
                text = text[end:]
                yield document
