"""Concurrent host-assisted clones of one golden image, which share one source pod."""

from __future__ import annotations

import pytest

from cdi.api.copy import TICKET_PREFIX
from cdi.api.policy import BANDWIDTH
from tests.cluster.cdi import controller
from tests.cluster.event_log import Chronicle, following
from tests.cluster.reader import digests, pod_of_many, told
from tests.cluster.servers import serving
from tests.cluster.volumes import MIB, data_volume, disk, sha256, wait_phase

SIZE = 24 * MIB
DISK = disk(SIZE)
GOLDEN = "golden"
TIMEOUT = 300.0  # seconds, for what takes one minute on an idle machine
COPY = "clone-many"
READER = "cdi-clone-source"
SLOWLY = {BANDWIDTH: "2Mi"}
"""Bandwidth limit that keeps the first clone running until the last one has started."""


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):
    """Run a controller in a namespace with a golden image."""
    with (
        cluster.namespace("clone-many") as kubectl,
        controller(cluster, kubectl),
        serving(tmp_path_factory.mktemp("servers"), cluster.host_address) as servers,
    ):
        try:
            kubectl.create(
                {
                    "apiVersion": "storage.k8s.io/v1",
                    "kind": "StorageClass",
                    "metadata": {"name": COPY, "annotations": {"cdi.kubevirt.io/clone-strategy": "copy"}},
                    "provisioner": "csi.cdi.test",
                }
            )
            servers.nginx.put("disk.raw", DISK)
            source = {"http": {"url": servers.nginx.url("disk.raw"), "checksum": f"sha256:{sha256(DISK)}"}}
            kubectl.create(data_volume(GOLDEN, source, "csi", size="48Mi"))
            wait_phase(kubectl, GOLDEN, "Succeeded")
            yield kubectl
        finally:
            kubectl.run("delete", "storageclass", "--ignore-not-found", COPY)


def readers(chronicle: Chronicle) -> list[dict]:
    """Return all states of source pods."""
    return [
        pod for pod in chronicle.states("pods") if pod["metadata"].get("labels", {}).get("cdi.kubevirt.io") == READER
    ]


def tickets(pod: dict) -> set[str]:
    return {name for name in pod["metadata"]["annotations"] if name.startswith(TICKET_PREFIX)}


def applied(place, names: dict[str, str]) -> None:
    """Create clones by name, each in its class."""
    source = {"pvc": {"namespace": place.namespace, "name": GOLDEN}}
    place.create(*(data_volume(name, source, kind, size="48Mi", annotations=SLOWLY) for name, kind in names.items()))


def check(cluster, place, chronicle: Chronicle, names: dict[str, str]) -> None:
    """Assert that all clones hold the source's content and that nothing else is left."""
    for name in names:
        chronicle.wait_phase(name, "Succeeded", patience=TIMEOUT)
    modes = dict.fromkeys([*names, GOLDEN], "Filesystem")
    pod = f"reader-of-{next(iter(names))}"
    place.create(pod_of_many(pod, cluster.image, digests(modes, SIZE), modes))
    found = told(place, chronicle, pod, TIMEOUT)
    assert found == dict.fromkeys(modes, (sha256(DISK), "0"))
    place.delete("pod", pod)
    chronicle.wait_clean(TIMEOUT)


def test_one_pod_reads_for_all(cluster, place):
    names = {f"many-{number}": ("local", COPY)[number % 2] for number in range(6)}
    with following(place) as chronicle:
        applied(place, names)
        check(cluster, place, chronicle, names)
        seen = readers(chronicle)
        assert len({pod["metadata"]["uid"] for pod in seen}) == 1
        assert max(len(tickets(pod)) for pod in seen) == len(names)
        # Each claim names the source pod.
        notes = "cdi.kubevirt.io/storage.sourceClonePodName"
        claims = [chronicle.present("persistentvolumeclaims")[name]["metadata"]["annotations"] for name in names]
        assert {claim[notes] for claim in claims} == {seen[0]["metadata"]["name"]}
        assert {claim["cdi.kubevirt.io/cloneType"] for claim in claims} == {"copy"}
        # No copy was restarted.
        assert {
            state["status"].get("restartCount", 0) for name in names for state in chronicle.states("datavolumes", name)
            if "status" in state
        } == {0}  # fmt: skip


def test_when_the_reader_is_lost_another_goes_on_for_all(cluster, place):
    names = {f"lost-{number}": ("local", COPY)[number % 2] for number in range(4)}
    with following(place) as chronicle:
        applied(place, names)

        def at_work():
            there = [pod for pod in chronicle.present("pods").values() if tickets(pod)]
            return next((pod for pod in there if len(tickets(pod)) == len(names)), None)

        first = chronicle.until("one reader for all", at_work, TIMEOUT)
        place.run("delete", "pod", first["metadata"]["name"], "--grace-period=0", "--force")
        check(cluster, place, chronicle, names)
        assert len({pod["metadata"]["uid"] for pod in readers(chronicle)}) > 1
