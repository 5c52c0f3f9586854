"""Event log of a namespace: every state of every object, recorded from outside while a test runs.

Each kind is listed once and then watched from that version; a broken watch is resumed, so nothing is missed. Waiting
for hundreds of objects costs about as much as waiting for a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cdi.api.errors import CdiError, HistoryExpired
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, EVENTS, PODS, Resource
from cdi.kube.client import connect
from cdi.kube.sync import SyncClient
from tests.cluster.kubectl import Kubectl
from tests.cluster.volumes import conditions

Document = dict[str, Any]
FOLLOWED = (DATA_VOLUMES, CLAIMS, PODS, EVENTS)


class Chronicle:
    """Recorded states of objects by kind (plural name); reads are safe while it is being written."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._states: dict[tuple[str, str], list[Document]] = {}
        self._gone: dict[tuple[str, str], int] = {}

    async def _follow(self, blocking: SyncClient, resource: Resource, namespace: str, version: str) -> None:
        while True:
            try:
                if not version:
                    version = await self._list(blocking, resource, namespace)
                watch = blocking.client.watch(resource, namespace, version=version)
                async with contextlib.aclosing(watch) as changes:
                    async for change in changes:
                        document = change["object"]
                        if change["type"] == "ERROR":  # a restarted API server has no watch history
                            raise HistoryExpired(str(document.get("message")))
                        version = document["metadata"]["resourceVersion"]
                        self._write_down(resource.plural, change["type"], document)
            except HistoryExpired:
                version = ""
            except CdiError:
                await asyncio.sleep(0.2)  # the API server does not answer

    async def _list(self, blocking: SyncClient, resource: Resource, namespace: str) -> str:
        listing = await blocking.client.list(resource, namespace)
        for document in listing.items:
            self._write_down(resource.plural, "ADDED", document)
        there = {document["metadata"]["name"] for document in listing.items}
        for name, document in self.present(resource.plural).items():
            if name not in there:
                self._write_down(resource.plural, "DELETED", document)
        return listing.version

    def _write_down(self, kind: str, change: str, document: Document) -> None:
        if change == "BOOKMARK":
            return
        document["metadata"].pop("managedFields", None)
        key = kind, document["metadata"]["name"]
        with self._news:
            states = self._states.setdefault(key, [])
            # A restarted watch repeats known states.
            if not states or states[-1]["metadata"]["resourceVersion"] != document["metadata"]["resourceVersion"]:
                states.append(document)
            if change == "DELETED":
                self._gone[key] = len(states)
            self._news.notify_all()

    # --- Recorded states ----------------------------------------------------------------------------------------

    def states(self, kind: str, name: str = "") -> list[Document]:
        """Return the states in order, of all objects of the kind if no name is given."""
        with self._news:
            return [
                state for key, states in self._states.items() if key[0] == kind and name in ("", key[1])
                for state in states
            ]  # fmt: skip

    def names(self, kind: str) -> set[str]:
        """Return the names of all objects that have ever existed."""
        with self._news:
            return {name for each, name in self._states if each == kind}

    def present(self, kind: str) -> dict[str, Document]:
        """Return the objects that exist now, by name."""
        with self._news:
            return {
                key[1]: states[-1] for key, states in self._states.items()
                if key[0] == kind and self._gone.get(key) != len(states)
            }  # fmt: skip

    def phases(self, name: str) -> list[str]:
        """Return the successive phases of a DataVolume."""
        found: list[str] = []
        for state in self.states("datavolumes", name):
            phase = state.get("status", {}).get("phase", "")
            if found[-1:] != [phase]:
                found.append(phase)
        return found

    def reasons(self, name: str, condition: str) -> list[str]:
        """Return the successive reasons of a DataVolume's condition, or of its status beyond them (`Detail`)."""
        found: list[str] = []
        for state in self.states("datavolumes", name):
            reason = conditions(state).get(condition, {}).get("reason")
            if reason and found[-1:] != [reason]:
                found.append(reason)
        return found

    def events(self, name: str, kind: str = "DataVolume") -> list[Document]:
        """Return the Events about an object in order of arrival, the last state of each."""
        found = {
            each["metadata"]["name"]: each
            for each in self.states("events")
            if (each["involvedObject"].get("kind"), each["involvedObject"].get("name")) == (kind, name)
        }
        return list(found.values())

    def event_reasons(self, name: str, kind: str = "DataVolume") -> list[str]:
        return [each["reason"] for each in self.events(name, kind)]

    def left_behind(self) -> list[str]:
        """Return the temporary objects of imports that still exist."""
        pods = [f"pod {name}" for name, pod in self.present("pods").items() if _is_worker(pod)]
        claims = self.present("persistentvolumeclaims")
        return pods + [f"claim {name}" for name in claims if name.startswith("prime-") or name.endswith("-scratch")]

    # --- Waiting ------------------------------------------------------------------------------------------------

    def until(self, what: str, there: Callable[[], Any], patience: float) -> Any:
        """Wait until `there` returns a true value, and return it.

        Args:
            what: Describes the awaited state in the error.
            there: Evaluated after each recorded change.
            patience: Timeout in seconds.

        Raises:
            AssertionError: The timeout has expired.
        """
        until = time.monotonic() + patience
        with self._news:
            while not (found := there()):
                left = until - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"not within {patience:.0f} s: {what}\n{self._summary()}")
                self._news.wait(min(left, 1.0))
        return found

    def wait(self, kind: str, name: str, what: str, ready: Callable[[Document], Any], patience: float) -> Document:
        """Return the first state of an object, past or future, for which `ready` is true."""

        def there() -> Document | None:
            return next((state for state in self._states.get((kind, name), []) if ready(state)), None)

        found: Document = self.until(f"{kind}/{name} {what}", there, patience)
        return found

    def wait_phase(self, name: str, *phases: str, patience: float) -> Document:
        """Return the first state of a DataVolume in one of these phases, failing early if it becomes Failed."""

        def there(document: Document) -> bool:
            phase = document.get("status", {}).get("phase")
            assert phase != "Failed" or "Failed" in phases, document["status"]
            return phase in phases

        return self.wait("datavolumes", name, " or ".join(phases), there, patience)

    def wait_clean(self, patience: float) -> None:
        """Wait until the temporary objects of imports are deleted."""
        self.until("everything is cleared away", lambda: not self.left_behind(), patience)

    def _summary(self) -> str:
        lines = []
        for (kind, name), states in self._states.items():
            if kind != "events" and self._gone.get((kind, name)) != len(states):
                status = states[-1].get("status", {})
                said = [
                    f"{each['type']}={each['status']} {each.get('reason', '')} {each.get('message', '')}"
                    for each in status.get("conditions", []) if each.get("message")
                ]  # fmt: skip
                lines.append(f"{kind}/{name} {status.get('phase', '')} {'; '.join(said)}"[:600])
        return "\n".join(lines)


def _is_worker(pod: Document) -> bool:
    labels: dict[str, str] = pod["metadata"].get("labels") or {}
    return labels.get("app") == "containerized-data-importer"


@contextlib.contextmanager
def following(kubectl: Kubectl, resources: tuple[Resource, ...] = FOLLOWED) -> Iterator[Chronicle]:
    """Record the objects of a namespace while the context lasts."""
    chronicle = Chronicle()
    with SyncClient(connect(str(kubectl.kubeconfig))) as blocking:
        for resource in resources:
            version = blocking.run(chronicle._list(blocking, resource, kubectl.namespace))
            blocking.start(chronicle._follow(blocking, resource, kubectl.namespace, version))
        yield chronicle
