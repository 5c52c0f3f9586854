"""What tests do to what runs, at the moment they wait for, and how they see that nothing is left of it."""

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
"""What volumes of ours are made of or with, in a namespace."""
_HOLDERS = {"persistentvolumes": "claimRef", "volumesnapshotcontents": "volumeSnapshotRef"}
"""Of the cluster, and what in their spec leads to a namespace."""


@contextlib.contextmanager
def striking(moments: Mapping[str, Callable[[], Any]], strike: Callable[[list[str]], object]) -> Iterator[set[str]]:
    """Call `strike` with the names of the moments that are there, each once; gives the names that it was called with.

    Where it gives a list, it was too late for those that are not in it, which are tried again.  It happens in a thread, beside what is done meanwhile; what goes wrong in it is raised at the end.
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
        except BaseException as error:  # noqa: BLE001 - it is told where somebody hears it
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
    """The API forgets the pod at once, whatever its processes do."""
    kubectl.run("delete", "pod", pod, "--ignore-not-found", "--grace-period=0", "--force", "--wait=false")


def kill_inside(cluster: Cluster, pod: Document) -> None:
    """SIGKILL for a pod's only container, as the kernel would; only on a cluster of our own.

    Raises CalledProcessError where it has ended already.
    """
    container = pod["status"]["containerStatuses"][0]["containerID"].partition("//")[2]
    cluster.run("ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", container)


def belongings(*places: Kubectl) -> set[str]:
    """All that there is in some namespaces, or because of them in the cluster, but DataVolumes and what is of everybody."""
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
    """Until there is exactly this, which may itself become another."""
    until = time.monotonic() + patience
    while (found := belongings(*places)) != (wanted := expected()):
        assert time.monotonic() < until, {"left": sorted(found - wanted), "missing": sorted(wanted - found)}
        time.sleep(0.5)
