"""What happens in a namespace, followed from the outside while a test runs: every state of every object.

A list and then a watch from there, taken up again where it broke off, so that nothing is missed; and hundreds of objects
can be waited for at the price of a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cdi.api.errors import CdiError, HistoryExpired
from cdi.kube.blocking import Blocking
from cdi.kube.client import connect
from cdi.kube.resources import CLAIMS, DATA_VOLUMES, EVENTS, PODS, Resource
from tests.cluster.kubectl import Kubectl

Document = dict[str, Any]
FOLLOWED = (DATA_VOLUMES, CLAIMS, PODS, EVENTS)


class Chronicle:
    """Of the objects of some kinds, which are named by their plurals.  It may be read while it is being written."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._states: dict[tuple[str, str], list[Document]] = {}
        self._gone: dict[tuple[str, str], int] = {}

    async def _follow(self, blocking: Blocking, resource: Resource, namespace: str, version: str) -> None:
        while True:
            try:
                if not version:
                    version = await self._list(blocking, resource, namespace)
                watch = blocking.client.watch(resource, namespace, version=version)
                async with contextlib.aclosing(watch) as changes:
                    async for change in changes:
                        document = change["object"]
                        if change["type"] == "ERROR":  # a server that has just come up knows no history
                            raise HistoryExpired(str(document.get("message")))
                        version = document["metadata"]["resourceVersion"]
                        self._write_down(resource.plural, change["type"], document)
            except HistoryExpired:
                version = ""
            except CdiError:
                await asyncio.sleep(0.2)  # the server is away

    async def _list(self, blocking: Blocking, resource: Resource, namespace: str) -> str:
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
            # A watch that begins anew tells again what was known.
            if not states or states[-1]["metadata"]["resourceVersion"] != document["metadata"]["resourceVersion"]:
                states.append(document)
            if change == "DELETED":
                self._gone[key] = len(states)
            self._news.notify_all()

    # --- what is known ------------------------------------------------------------------------------------------

    def states(self, kind: str, name: str = "") -> list[Document]:
        """In their order; of all objects of the kind where none is named."""
        with self._news:
            return [
                state for key, states in self._states.items() if key[0] == kind and name in ("", key[1])
                for state in states
            ]  # fmt: skip

    def names(self, kind: str) -> set[str]:
        """Of all objects that there ever were."""
        with self._news:
            return {name for each, name in self._states if each == kind}

    def present(self, kind: str) -> dict[str, Document]:
        """The objects that are there, by name."""
        with self._news:
            return {
                key[1]: states[-1] for key, states in self._states.items()
                if key[0] == kind and self._gone.get(key) != len(states)
            }  # fmt: skip

    def phases(self, name: str) -> list[str]:
        """Of a DataVolume, one after the other."""
        found: list[str] = []
        for state in self.states("datavolumes", name):
            phase = state.get("status", {}).get("phase", "")
            if found[-1:] != [phase]:
                found.append(phase)
        return found

    def reasons(self, name: str, condition: str) -> list[str]:
        """All that a DataVolume's condition ever had, one after the other."""
        found: list[str] = []
        for state in self.states("datavolumes", name):
            for each in state.get("status", {}).get("conditions", []):
                if each["type"] == condition and each.get("reason") and found[-1:] != [each["reason"]]:
                    found.append(each["reason"])
        return found

    def events(self, name: str, kind: str = "DataVolume") -> list[Document]:
        """About an object, in the order in which they came, none twice."""
        found = {
            each["metadata"]["name"]: each
            for each in self.states("events")
            if (each["involvedObject"].get("kind"), each["involvedObject"].get("name")) == (kind, name)
        }
        return list(found.values())

    def event_reasons(self, name: str, kind: str = "DataVolume") -> list[str]:
        return [each["reason"] for each in self.events(name, kind)]

    def left_behind(self) -> list[str]:
        """What imports make for themselves and must take away again."""
        pods = [f"pod {name}" for name, pod in self.present("pods").items() if _is_worker(pod)]
        claims = self.present("persistentvolumeclaims")
        return pods + [f"claim {name}" for name in claims if name.startswith("prime-") or name.endswith("-scratch")]

    # --- waiting ------------------------------------------------------------------------------------------------

    def until(self, what: str, there: Callable[[], Any], patience: float) -> Any:
        """As soon as `there` gives something true, that.  `what` names it for the AssertionError after `patience`."""
        until = time.monotonic() + patience
        with self._news:
            while not (found := there()):
                left = until - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"not within {patience:.0f} s: {what}\n{self._summary()}")
                self._news.wait(min(left, 1.0))
        return found

    def wait(self, kind: str, name: str, what: str, ready: Callable[[Document], Any], patience: float) -> Document:
        """The first state of an object to which `ready` says yes, past ones included."""

        def there() -> Document | None:
            return next((state for state in self._states.get((kind, name), []) if ready(state)), None)

        found: Document = self.until(f"{kind}/{name} {what}", there, patience)
        return found

    def wait_phase(self, name: str, *phases: str, patience: float) -> Document:
        """The first state of a DataVolume in one of these; fails at once where it is to be Succeeded and fails."""

        def there(document: Document) -> bool:
            phase = document.get("status", {}).get("phase")
            assert phase != "Failed" or "Failed" in phases, document["status"]
            return phase in phases

        return self.wait("datavolumes", name, " or ".join(phases), there, patience)

    def wait_clean(self, patience: float) -> None:
        """Until nothing is there of what imports make for themselves."""
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
    """The namespace's chronicle, from before to after."""
    chronicle = Chronicle()
    with Blocking(connect(str(kubectl.kubeconfig))) as blocking:
        for resource in resources:
            version = blocking.run(chronicle._list(blocking, resource, kubectl.namespace))
            blocking.start(chronicle._follow(blocking, resource, kubectl.namespace, version))
        yield chronicle
