"""Fault injection at chosen moments, and checks that nothing is left over."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl

Document = dict[str, Any]
KINDS = "pods,secrets,services,configmaps,persistentvolumeclaims,volumesnapshots,volumeclonesources,volumeimportsources"
"""Namespaced kinds that a volume of ours consists of or is made with."""
_HOLDERS = {"persistentvolumes": "claimRef", "volumesnapshotcontents": "volumeSnapshotRef"}
"""Cluster-scoped kinds, and the field of their spec that refers to a namespace."""


@contextlib.contextmanager
def striking(moments: Mapping[str, Callable[[], Any]], strike: Callable[[list[str]], object]) -> Iterator[set[str]]:
    """Call `strike` from a thread, once with the name of each moment that has come.

    If `strike` returns a list, it was too late for the names that are not in it, and those are tried again. An
    exception in the thread is raised when the context ends.

    Yields:
        The names that `strike` has been called with.
    """
    met: set[str] = set()
    ended = threading.Event()
    trouble: list[BaseException] = []

    def look() -> None:
        try:
            while not ended.is_set():
                ready = [name for name, there in moments.items() if name not in met and there()]
                if ready:
                    struck = strike(ready)
                    met.update(struck if isinstance(struck, list) else ready)
                ended.wait(0.05)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            trouble.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield met
    finally:
        ended.set()
        thread.join()
        if trouble:
            raise trouble[0]


def take_away(kubectl: Kubectl, pod: str) -> None:
    """Delete the pod from the API at once, without waiting for its processes."""
    kubectl.run("delete", "pod", pod, "--ignore-not-found", "--grace-period=0", "--force", "--wait=false")


def kill_inside(cluster: Cluster, pod: Document) -> None:
    """Send SIGKILL to the only container of a pod, which needs a cluster of our own.

    Raises:
        CalledProcessError: The container has already ended.
    """
    container = pod["status"]["containerStatuses"][0]["containerID"].partition("//")[2]
    cluster.run("ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", container)


def belongings(*places: Kubectl) -> set[str]:
    """Return all objects in these namespaces, and the cluster-scoped ones that belong to them.

    DataVolumes, and what every namespace has, are excluded.
    """
    namespaces = {place.namespace for place in places}
    found = {
        f"{each['kind']} {each['metadata']['namespace']}/{each['metadata']['name']}"
        for place in places for each in place.get_all(KINDS)
        if each["metadata"]["name"] != "kube-root-ca.crt"
    }  # fmt: skip
    for kind, reference in _HOLDERS.items():
        for each in places[0].get_all(kind):
            if each["spec"].get(reference, {}).get("namespace") in namespaces:
                found.add(f"{each['kind']} {each['metadata']['name']}")
    return found


def wait_belongings(expected: Callable[[], set[str]], patience: float, *places: Kubectl) -> None:
    """Wait until exactly the expected objects exist; `expected` is evaluated on each try."""
    until = time.monotonic() + patience
    while (found := belongings(*places)) != (wanted := expected()):
        assert time.monotonic() < until, {"left": sorted(found - wanted), "missing": sorted(wanted - found)}
        time.sleep(0.5)
