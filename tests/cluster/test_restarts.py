"""Kills and deletions at any time: imports end with the right bytes, once, and without leftovers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster import cdi_image
from tests.cluster.cdi import Meddled, controller, definitions
from tests.cluster.event_log import Chronicle, following
from tests.cluster.fault_injection import kill_inside, striking
from tests.cluster.kubectl import Kubectl, KubectlError
from tests.cluster.reader import digests, pod_of_many, told
from tests.cluster.volumes import MIB, data_volume, disk, qcow2, sha256
from tests.faults.server import Fault, FaultServer
from tests.vmdk_writer import needs_qemu

Document = dict[str, Any]
TIMEOUT = 300.0
SLOWLY = Fault(drip=(1 << 16, 0.06))
"""Transfer rate of about 1 MiB/s for each connection."""
CLASSES = ("csi", "local")
MODES = ("Filesystem", "Block")


@pytest.fixture(scope="module")
def server(cluster):
    with FaultServer(host=cluster.host_address) as server:
        yield server


@pytest.fixture(scope="module")
def content():
    return disk()


@pytest.fixture(scope="module")
def image(content, tmp_path_factory):
    return qcow2(content, tmp_path_factory.mktemp("images"))


@pytest.fixture()
def place(cluster) -> Iterator[tuple[Kubectl, Chronicle]]:
    """Yield a namespace and its event log, without a controller."""
    definitions(cluster)
    with cluster.namespace("restarts") as kubectl, following(kubectl) as chronicle:
        yield kubectl, chronicle


def read(cluster, kubectl: Kubectl, chronicle: Chronicle, claims: dict[str, str], content: bytes) -> None:
    """Assert that every volume holds the content followed by zeros."""
    kubectl.create(pod_of_many("reader", cluster.image, digests(claims, len(content)), claims))
    found = told(kubectl, chronicle, "reader", TIMEOUT)
    assert found == dict.fromkeys(claims, (sha256(content), "0"))


def all_succeed(chronicle: Chronicle, names, patience: float = TIMEOUT) -> None:
    for name in names:
        chronicle.wait_phase(name, "Succeeded", patience=patience)
    chronicle.wait_clean(TIMEOUT)


def workers(chronicle: Chronicle) -> dict[str, set[str]]:
    """Return the uids of all recorded worker pods by name."""
    found: dict[str, set[str]] = {}
    for pod in chronicle.states("pods"):
        if pod["metadata"]["name"].startswith("importer-"):
            found.setdefault(pod["metadata"]["name"], set()).add(pod["metadata"]["uid"])
    return found


def mixed(names: list[str], url: Callable[[str], str], image: bytes) -> tuple[list[Document], dict[str, str]]:
    """Build DataVolumes of both classes and both volume modes; return them and the modes by name."""
    documents, modes = [], {}
    for number, name in enumerate(names):
        source = {"http": {"url": url(name), "checksum": f"sha256:{sha256(image)}"}}
        modes[name] = MODES[number // 2 % 2]
        documents.append(data_volume(name, source, CLASSES[number % 2], mode=modes[name], size="32Mi"))
    return documents, modes


# --- The controller -----------------------------------------------------------------------------------------------


def test_a_controller_that_dies_at_every_step_comes_to_the_same_end(
    cluster, place, server, content, tmp_path
) -> None:  # fmt: skip
    kubectl, chronicle = place
    source = {"http": {"url": server.put("/dying.vmdk", needs_qemu(content), ranges=False)}}
    modes = {"populated": "Filesystem", "direct": "Block"}
    dying = Meddled(cluster, kubectl.namespace, cdi_image.provide(cluster), ["kill_points", str(tmp_path)])
    kubectl.create(data_volume("populated", source, "csi"), data_volume("direct", source, "local", mode="Block"))
    try:
        dying.begin()
        all_succeed(chronicle, modes, patience=2 * TIMEOUT)  # a controller starts for each of some twenty writes
        deaths = [line for line in dying.lines() if line["message"] == "died"]
    finally:
        dying.close()
    assert len(deaths) > 15, "so many steps there are at the least"
    # The first pod asked for scratch space, and the second one had it.
    assert {name: len(uids) for name, uids in workers(chronicle).items()} == dict.fromkeys(workers(chronicle), 2)
    for name in modes:
        assert chronicle.states("datavolumes", name)[-1]["status"]["restartCount"] == 1
    # A healthy controller finds nothing to do.
    with controller(cluster, kubectl, "--no-leader-election") as healthy:
        kubectl.create(data_volume("last", {"blank": {}}, "local"))
        all_succeed(chronicle, ["last"])
        assert {line["key"] for line in healthy.lines() if line["message"] == "attempt started"} == {
            f"volume {kubectl.namespace}/last"
        }
    read(cluster, kubectl, chronicle, modes, content)


def test_two_that_both_believe_they_lead_do_no_harm(cluster, place, server, image, content) -> None:
    kubectl, chronicle = place
    names = [f"d{number}" for number in range(8)]
    documents, modes = mixed(names, lambda name: server.put(f"/two-{name}.qcow2", image), image)
    with (
        controller(cluster, kubectl, "--no-leader-election"),
        controller(cluster, kubectl, "--no-leader-election"),
    ):
        kubectl.create(*documents)
        all_succeed(chronicle, names)
    assert {len(uids) for uids in workers(chronicle).values()} == {1}
    assert len(workers(chronicle)) == len(names)
    read(cluster, kubectl, chronicle, modes, content)


# --- The cluster's own components ---------------------------------------------------------------------------------


def progress(document: Document) -> float:
    text = document.get("status", {}).get("progress", "N/A")
    return 0.0 if text == "N/A" else float(text.removesuffix("%"))


def until_under_way(chronicle: Chronicle, name: str) -> None:
    chronicle.wait("datavolumes", name, "under way", lambda it: progress(it) >= 5, TIMEOUT)


@pytest.mark.alone
def test_an_import_does_not_restart_when_the_api_server_does(cluster, place, server, content) -> None:
    if cluster.layout is None:
        pytest.skip("only our own cluster's API server is killed")
    kubectl, chronicle = place
    large = content * 3
    url = server.put("/api.raw", large, always=SLOWLY)
    with controller(cluster, kubectl):
        for storage_class in CLASSES:
            source = {"http": {"url": url, "checksum": f"sha256:{sha256(large)}"}}
            kubectl.create(data_volume(storage_class, source, storage_class, size="40Mi"))
        for storage_class in CLASSES:
            until_under_way(chronicle, storage_class)
        before = workers(chronicle)
        cluster.kill("kube-apiserver")
        cluster.wait_ready()
        all_succeed(chronicle, CLASSES)
    assert workers(chronicle) == before, "the same pods"
    for storage_class in CLASSES:
        assert chronicle.states("datavolumes", storage_class)[-1]["status"]["restartCount"] == 0
    read(cluster, kubectl, chronicle, dict.fromkeys(CLASSES, "Filesystem"), large)


COMPONENTS = (
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "containerd", "csi-driver",
    "csi-provisioner", "local-provisioner", "etcd", "kube-proxy",
)  # fmt: skip


@pytest.mark.alone
def test_imports_come_to_their_end_whatever_is_restarted_meanwhile(cluster, place, server, content) -> None:
    if cluster.layout is None:
        pytest.skip("only our own cluster's programs are killed")
    kubectl, chronicle = place
    large = content * 2
    names = [f"d{number}" for number in range(len(COMPONENTS))]
    documents, modes = mixed(names, lambda name: server.put(f"/all-{name}.raw", large, always=SLOWLY), large)
    with controller(cluster, kubectl):
        # An import starts just before each kill, so the kills meet many different steps.
        for component, document in zip(COMPONENTS, documents, strict=True):
            apply_when_possible(kubectl, document)
            cluster.kill(component)
            time.sleep(1)
        cluster.wait_ready()
        all_succeed(chronicle, names)
    read(cluster, kubectl, chronicle, modes, large)


def apply_when_possible(kubectl: Kubectl, document: Document) -> None:
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            return kubectl.apply(document)
        except KubectlError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


# --- Workers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_that_is_killed_is_gone_on_with(cluster, place, server, content, mode) -> None:
    if cluster.layout is None:
        pytest.skip("only on our own cluster's node")
    kubectl, chronicle = place
    large = content * 3
    path = f"/killed-{mode}.raw"
    url = server.put(path, large, always=Fault(drip=(1 << 15, 0.06)))
    name, pod = "killed", "importer-killed"
    with controller(cluster, kubectl):
        source = {"http": {"url": url, "checksum": f"sha256:{sha256(large)}"}}
        kubectl.create(data_volume(name, source, "local", mode=mode, size="40Mi"))
        until_under_way(chronicle, name)
        if mode == "Block":  # the controller stores the journal of a block volume every ten seconds
            chronicle.wait(
                "persistentvolumeclaims", name, "has a journal",
                lambda it: "cdi.kubevirt.io/storage.journal" in it["metadata"].get("annotations", {}), TIMEOUT,
            )  # fmt: skip
        asked = len(server.asked(path))
        server.file(path).always = None  # requests from now on are fast
        kill_inside(cluster, kubectl.get("pod", pod))
        all_succeed(chronicle, [name])
    last = chronicle.states("datavolumes", name)[-1]["status"]
    assert last["restartCount"] == 1
    # Each attempt has its event. The condition shows it only while the next attempt has not got further.
    assert any(
        "[WorkerLost] " in event["message"] and "killed (signal 9)" in event["message"]
        for event in chronicle.events(name) if event["reason"] == "Error"
    )  # fmt: skip
    later = [
        request.range[0]
        for request in server.asked(path)[asked:]
        if request.range is not None and request.range[1] != 0
    ]
    assert later and min(start for start in later if start) >= MIB, "it did not begin from the first byte"
    # The kubelet has restarted the container in the same pod.
    assert len(workers(chronicle)[pod]) == 1
    read(cluster, kubectl, chronicle, {name: mode}, large)


# --- Deleted DataVolumes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A step of an import at which its DataVolume is deleted."""

    name: str
    there: Callable[[Chronicle, str, str], Any]
    """Condition on the event log, the DataVolume's name and its claim's uid, "none" if there is no claim yet."""
    source: str = "slow"
    storage_class: str = ""
    """Storage class; both if empty."""


def claim_of(chronicle: Chronicle, name: str) -> Document:
    return (chronicle.states("persistentvolumeclaims", name) or [{}])[-1]


def filled(chronicle: Chronicle, name: str, uid: str) -> Document:
    states = chronicle.states("persistentvolumeclaims", f"prime-{uid}") or chronicle.states(
        "persistentvolumeclaims", name
    )
    return (states or [{}])[-1]


def pod_of(chronicle: Chronicle, name: str, uid: str) -> Document:
    states = chronicle.states("pods", f"importer-prime-{uid}") or chronicle.states("pods", f"importer-{name}")
    return (states or [{}])[-1]


def phase(document: Document) -> str:
    found: str = document.get("status", {}).get("phase", "")
    return found


MOMENTS = (
    Moment(name="new", there=lambda c, n, u: c.states("datavolumes", n)),
    Moment(name="pending", there=lambda c, n, u: "Pending" in c.phases(n)),
    Moment(name="claim", there=lambda c, n, u: claim_of(c, n)),
    Moment(name="prime", there=lambda c, n, u: c.states("persistentvolumeclaims", f"prime-{u}"), storage_class="csi"),
    Moment(name="volume", there=lambda c, n, u: phase(filled(c, n, u)) == "Bound"),
    Moment(name="scheduled", there=lambda c, n, u: pod_of(c, n, u)),
    Moment(name="running", there=lambda c, n, u: phase(pod_of(c, n, u)) == "Running"),
    Moment(name="progress", there=lambda c, n, u: any(progress(one) > 0 for one in c.states("datavolumes", n))),
    Moment(name="ended", there=lambda c, n, u: phase(pod_of(c, n, u)) == "Succeeded", source="quick"),
    Moment(name="bound", there=lambda c, n, u: phase(claim_of(c, n)) == "Bound", source="quick", storage_class="csi"),
    Moment(name="succeeded", there=lambda c, n, u: "Succeeded" in c.phases(n), source="quick"),
    Moment(name="failed", there=lambda c, n, u: "Failed" in c.phases(n), source="damaged"),
    Moment(name="scratch", there=lambda c, n, u: "CreatingScratchSpace" in c.reasons(n, "Bound"), source="once"),
    Moment(name="secret", there=lambda c, n, u: "NotFound" in c.reasons(n, "Detail"), source="secret"),
    Moment(name="again", there=lambda c, n, u: "SourceUnauthorized" in c.reasons(n, "Detail"), source="private"),
    Moment(name="populate", there=lambda c, n, u: "PendingPopulation" in c.phases(n), storage_class="csi-wait"),
    Moment(name="consumer", there=lambda c, n, u: "WaitForFirstConsumer" in c.phases(n), storage_class="local-wait"),
)


def test_a_datavolume_that_is_deleted_at_any_step_takes_everything_with_it(
    cluster, place, server, image, content, tmp_path
) -> None:
    kubectl, chronicle = place
    urls = {
        "slow": server.put("/deleted.raw", content * 2, always=SLOWLY),
        "quick": server.put("/quick.qcow2", image),
        "damaged": server.put("/damaged.qcow2", image[:4096]),
        "once": server.put("/once.vmdk", needs_qemu(content), ranges=False),
        "secret": server.url("/quick.qcow2"),
        "private": server.put("/private.qcow2", image, authorization="Basic none"),
    }
    waited = {}
    documents = []
    for moment in MOMENTS:
        for storage_class in (moment.storage_class,) if moment.storage_class else CLASSES:
            name = f"{moment.name}-{storage_class}"
            more = {"secretRef": "none-such"} if moment.source == "secret" else {}
            documents.append(
                data_volume(name, {"http": {"url": urls[moment.source], **more}}, storage_class, size="32Mi")
            )
            waited[name] = moment
    with controller(cluster, kubectl):
        moments = {name: met_at(chronicle, name, moment) for name, moment in waited.items()}
        with striking(moments, lambda names: kubectl.delete("datavolume", *names, wait=False)) as met:
            kubectl.create(*documents)
            chronicle.until("each is met", lambda: len(met) == len(waited) or (), TIMEOUT)
        chronicle.until(
            "all are gone",
            lambda: not any(chronicle.present(kind) for kind in ("datavolumes", "persistentvolumeclaims", "pods")),
            TIMEOUT,
        )
        assert not kubectl.get_all("volumeimportsources")
        until = time.monotonic() + TIMEOUT
        while left := volumes_of(kubectl):
            assert time.monotonic() < until, left
            time.sleep(0.5)


def met_at(chronicle: Chronicle, name: str, moment: Moment) -> Callable[[], Any]:
    def there() -> Any:
        return moment.there(chronicle, name, claim_of(chronicle, name).get("metadata", {}).get("uid", "none"))

    return there


def volumes_of(kubectl: Kubectl) -> list[str]:
    """Return the PersistentVolumes whose claimRef is in the namespace, whether or not the claim exists."""
    return [
        each["metadata"]["name"] for each in kubectl.get_all("persistentvolumes")
        if each["spec"].get("claimRef", {}).get("namespace") == kubectl.namespace
    ]  # fmt: skip
