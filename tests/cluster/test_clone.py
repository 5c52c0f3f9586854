"""Clones by every strategy, compared with the content of their source.

A cell is a clone. All clones are created together, awaited together, and read by one pod.
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, field

import pytest

from cdi.controller.clone_lister import claims_of
from cdi.kube.jwt import SigningKey
from cdi.reconcile.clone.strategy import FALLBACK_SENTENCES
from cdi.reconcile.clone.types import CloneAuthorization
from tests.cluster.cdi import controller
from tests.cluster.event_log import following
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import claim as claim_of
from tests.cluster.objects import is_phase, snapshot
from tests.cluster.reader import digests, disk_of, pod_of_many, told
from tests.cluster.servers import serving
from tests.cluster.test_apiserver import until
from tests.cluster.volumes import IMMEDIATE, MIB, conditions, data_volume, disk, sha256, wait_phase
from tests.cluster.worker_pods import looker

SIZE = 8 * MIB
DISK = disk(SIZE)
FILES, BLOCK = "Filesystem", "Block"
TIMEOUT = 300.0  # seconds, for what takes one minute on an idle machine
CLONE_TYPE = "cdi.kubevirt.io/cloneType"
LABEL = "instancetype.kubevirt.io/default-instancetype"
TIGHT, CLONING, UNABLE = "clone-tight", "clone-cloning", "clone-unable"


def storage_class(name: str, provisioner: str, strategy: str, *, grows: bool = True) -> dict:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "annotations": {"cdi.kubevirt.io/clone-strategy": strategy}},
        "provisioner": provisioner,
        "allowVolumeExpansion": grows,
    }


def wait_deleted(place: Kubectl, kind: str, label: str) -> None:
    """Wait until all objects with this label are deleted."""
    options = (f"--selector={label}", f"--timeout={TIMEOUT:.0f}s")
    place.run("wait", "--for=delete", kind, *options, patience=TIMEOUT + 60)


DIRECT = ("local", "local-wait", UNABLE)
CLASSES = (
    storage_class(TIGHT, "csi.cdi.test", "snapshot", grows=False),
    storage_class(CLONING, "csi.cdi.test", "csi-clone"),
    storage_class(UNABLE, "local.cdi.test", "snapshot"),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One clone of a golden image of volume mode `mode`."""

    name: str
    mode: str = FILES
    storage_class: str = "csi"
    target: str = ""
    size: str | None = "24Mi"
    form: str = "pvc"
    strategy: str = "snapshot"
    reason: str = ""
    source: str = "pvc"
    annotations: dict = field(default_factory=dict)


CELLS = (
    Cell(name="snapshot-files"),
    Cell(name="snapshot-block", mode=BLOCK),
    Cell(name="csi-files", storage_class=CLONING, strategy="csi-clone"),
    Cell(name="csi-block", mode=BLOCK, storage_class=CLONING, strategy="csi-clone"),
    Cell(name="wait-files", storage_class="csi-wait"),
    Cell(name="wait-at-once", mode=BLOCK, storage_class="csi-wait", annotations={IMMEDIATE: ""}),
    Cell(name="grown-files", size="64Mi"),
    Cell(name="grown-block", mode=BLOCK, size="64Mi"),
    Cell(name="grown-csi", size="64Mi", storage_class=CLONING, strategy="csi-clone"),
    Cell(name="sized-by-source", size=None, form="storage"),
    Cell(name="from-snapshot", source="snapshot"),
    Cell(name="from-reference", mode=BLOCK, source="sourceRef"),
    Cell(name="files-to-block", target=BLOCK, size="32Mi", strategy="copy", reason="IncompatibleVolumeModes"),
    Cell(name="block-to-files", mode=BLOCK, target=FILES, size="32Mi", strategy="copy", reason="IncompatibleVolumeModes"),
    Cell(name="tight", storage_class=TIGHT, size="64Mi", strategy="copy", reason="NoVolumeExpansion"),
    Cell(name="local-files", storage_class="local", strategy="copy"),
    Cell(name="local-block", mode=BLOCK, storage_class="local-wait", strategy="copy", annotations={IMMEDIATE: ""}),
    Cell(name="unable", storage_class=UNABLE, strategy="copy", reason="NoPopulator"),
    Cell(name="asked-csi", strategy="csi-clone", annotations={CLONE_TYPE: "csi-clone"}),
    Cell(name="asked-copy", storage_class=CLONING, strategy="copy", annotations={CLONE_TYPE: "copy"}),
    Cell(
        name="asked-in-vain", storage_class=TIGHT, size="64Mi", strategy="copy", reason="NoVolumeExpansion",
        annotations={CLONE_TYPE: "csi-clone"},
    ),
    Cell(name="permitted", mode=BLOCK, size="16Mi", annotations={"cdi.kubevirt.io/permissiveClone": "true"}),
)  # fmt: skip


def golden(mode: str) -> str:
    return f"golden-{mode.lower()}"


def source_of(cell: Cell, namespace: str) -> dict:
    name = {"namespace": namespace, "name": golden(cell.mode)}
    if cell.source == "snapshot":
        return {"source": {"snapshot": {"namespace": namespace, "name": "kept"}}}
    if cell.source == "sourceRef":
        return {"sourceRef": {"kind": "DataSource", "name": "golden"}}
    return {"source": {"pvc": name}}


def document_of(cell: Cell, namespace: str) -> dict:
    made = data_volume(
        cell.name, {}, cell.storage_class, mode=cell.target or cell.mode, size=cell.size or "1Mi", form=cell.form,
        annotations=cell.annotations,
    )  # fmt: skip
    del made["spec"]["source"]
    if cell.size is None:
        del made["spec"][cell.form]["resources"]
    made["spec"] |= source_of(cell, namespace)
    return made


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):
    """Run a controller in a namespace with golden images of class csi."""
    directory = tmp_path_factory.mktemp("servers")
    with (
        cluster.namespace("clone") as kubectl,
        controller(cluster, kubectl),
        serving(directory, cluster.host_address) as servers,
    ):
        try:
            kubectl.create(*CLASSES)
            servers.nginx.put("disk.raw", DISK)
            source = {"http": {"url": servers.nginx.url("disk.raw"), "checksum": f"sha256:{sha256(DISK)}"}}
            for mode in (FILES, BLOCK):
                made = data_volume(golden(mode), source, "csi", mode=mode, labels={LABEL: "u1.small"})
                kubectl.create(made)
            for mode in (FILES, BLOCK):
                wait_phase(kubectl, golden(mode), "Succeeded")
            yield kubectl
        finally:
            kubectl.run("delete", "storageclass", "--ignore-not-found", TIGHT, CLONING, UNABLE)


@pytest.fixture(scope="module")
def cloned(cluster, place):
    """Create all clones, wait for their end, and yield the event log and what pods read in them."""
    place.create(
        snapshot("kept", golden(FILES)),
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "DataSource",
            "metadata": {"name": "golden"},
            "spec": {"source": {"pvc": {"namespace": place.namespace, "name": golden(BLOCK)}}},
        },
    )
    modes = {cell.name: cell.target or cell.mode for cell in CELLS if cell.storage_class not in DIRECT}
    script = (
        digests(modes, SIZE) + "\necho grown-size $(df -k /volumes/grown-files | tail -1 | tr -s ' ' | cut -d' ' -f2)"
    )
    with following(place) as chronicle:
        place.create(*(document_of(cell, place.namespace) for cell in CELLS))
        chronicle.until("it waits", lambda: "PendingPopulation" in chronicle.phases("wait-files"), TIMEOUT)
        place.create(pod_of_many("reader", cluster.image, script, modes))
        for cell in CELLS:
            chronicle.wait_phase(cell.name, "Succeeded", "Failed", patience=TIMEOUT)
        found = told(place, chronicle, "reader", TIMEOUT)
        # A pod may start with a volume that is filled in place before it is complete, so these are read later.
        others = {cell.name: cell.target or cell.mode for cell in CELLS if cell.storage_class in DIRECT}
        place.create(pod_of_many("reader-of-others", cluster.image, digests(others, SIZE), others))
        found |= told(place, chronicle, "reader-of-others", TIMEOUT)
        yield chronicle, found


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_clone_holds_what_its_source_holds(cloned, cell):
    chronicle, found = cloned
    target = chronicle.present("persistentvolumeclaims")[cell.name]
    notes = {name.removeprefix("cdi.kubevirt.io/"): text for name, text in target["metadata"]["annotations"].items()}
    assert found[cell.name] == (sha256(DISK), "0")
    assert notes["cloneType"] == cell.strategy
    assert notes["clonePhase"] == "Succeeded"
    assert notes["k8s.io/CloneOf"] == "true"
    assert not cell.reason or notes["cloneFallbackReason"] == FALLBACK_SENTENCES[cell.reason]
    own = chronicle.present("datavolumes")[cell.name]["metadata"]["annotations"]
    assert own["cdi.kubevirt.io/cloneType"] == cell.strategy
    assert not cell.reason or cell.reason in chronicle.event_reasons(cell.name)
    assert cell.reason or cell.strategy == "copy" or "cloneFallbackReason" not in notes
    assert "CloneSucceeded" in chronicle.event_reasons(cell.name)
    assert cell.source == "snapshot" or target["metadata"]["labels"][LABEL] == "u1.small"


def test_each_phase_is_shown(cloned):
    chronicle, _ = cloned
    phases = {phase for cell in CELLS for phase in chronicle.phases(cell.name)}
    assert phases >= {
        "CloneScheduled", "SnapshotForSmartCloneInProgress", "CloneFromSnapshotSourceInProgress",
        "CloneFromSnapshotSourceInProgress", "CSICloneInProgress", "ExpansionInProgress", "PrepClaimInProgress",
        "RebindInProgress", "CloneInProgress", "PendingPopulation", "Succeeded",
    }  # fmt: skip


def test_a_file_system_grows_with_its_volume(cloned):
    _, found = cloned
    assert int(found["grown-size"][0]) > 48 * 1024


def test_nothing_of_a_clone_is_left_behind_and_the_sources_are_as_they_were(place, cloned):
    chronicle, _ = cloned
    chronicle.wait_clean(TIMEOUT)
    wait_deleted(place, "pods", "cdi.kubevirt.io=cdi-clone-source")
    chronicle.until(
        "no snapshot but the user's own",
        lambda: [one["metadata"]["name"] for one in place.get_all("volumesnapshots")] == ["kept"],
        TIMEOUT,
    )
    for mode in (FILES, BLOCK):
        volumes = {
            state["spec"].get("volumeName") for state in chronicle.states("persistentvolumeclaims", golden(mode))
        }
        assert len(volumes - {None}) == 1
        assert place.get("persistentvolumeclaim", golden(mode))["status"]["phase"] == "Bound"


def test_clones_at_once_share_one_snapshot(place, cloned):
    """The dataSource of each claim names the snapshot."""
    chronicle, _ = cloned
    snapshots = {
        (state["spec"].get("dataSource") or {}).get("name", "")
        for name in chronicle.names("persistentvolumeclaims")
        if name.startswith("prime-")
        for state in chronicle.states("persistentvolumeclaims", name)
    }
    temporary = {name for name in snapshots if name.startswith("tmp-snapshot-")}
    sources = {place.get("persistentvolumeclaim", golden(mode))["metadata"]["uid"] for mode in (FILES, BLOCK)}
    assert {f"tmp-snapshot-{uid}" for uid in sources} <= temporary
    assert len(temporary) <= 4


def test_what_is_in_use_and_what_is_missing_is_waited_for(cluster, place):
    place.create(looker("holder", cluster.image, "sleep 300", golden(FILES), FILES))
    place.wait("pod", "holder", "running", lambda pod: pod["status"].get("phase") == "Running", TIMEOUT)
    missing = data_volume("orphan", {"pvc": {"namespace": place.namespace, "name": "nowhere"}}, "csi")
    used = data_volume("patient", {"pvc": {"namespace": place.namespace, "name": golden(FILES)}}, "csi")
    place.create(missing, used)

    def says(reason):
        return lambda document: conditions(document).get("Detail", {}).get("reason") == reason

    found = place.wait("datavolume", "patient", "waits", says("CloneSourceInUse"), TIMEOUT)
    assert "holder" in conditions(found)["Detail"]["message"]
    place.wait("datavolume", "orphan", "waits", says("CloneWithoutSource"), TIMEOUT)
    assert {"CloneSourceInUse"} <= {one["reason"] for one in place.events("DataVolume", "patient")}
    assert {"CloneWithoutSource"} <= {one["reason"] for one in place.events("DataVolume", "orphan")}
    place.delete("pod", "holder")
    wait_phase(place, "patient", "Succeeded")
    place.create(data_volume("nowhere", {"blank": {}}, "csi"))
    wait_phase(place, "orphan", "Succeeded")


SMALLER = "target resources requests storage size is smaller than the source"


def test_a_device_that_is_too_small_waits_without_a_claim(place):
    place.create(data_volume("small", {"pvc": {"namespace": place.namespace, "name": golden(BLOCK)}}, "csi",
                             mode=BLOCK, size="12Mi"))  # fmt: skip
    until("the event is there", lambda: any(
        one["reason"] == "CloneValidationFailed" and SMALLER in one["message"]
        for one in place.events("DataVolume", "small")
    ), TIMEOUT)  # fmt: skip
    assert place.get("datavolume", "small")["status"]["phase"] == "Pending"
    assert "small" not in {one["metadata"]["name"] for one in place.get_all("persistentvolumeclaims")}
    place.delete("datavolume", "small")


def test_a_file_system_that_is_too_small_is_a_claim_that_waits(place):
    source = {"pvc": {"namespace": place.namespace, "name": golden(FILES)}}
    place.create(data_volume("small-files", source, "csi", mode=FILES, size="12Mi", form="storage"))

    def failed(claim):
        return claim["metadata"]["annotations"].get("cdi.kubevirt.io/clonePhase") == "Error"

    found = place.wait("persistentvolumeclaim", "small-files", "waits", failed, TIMEOUT)
    assert found["metadata"]["annotations"]["cdi.kubevirt.io/cloneError"].startswith(SMALLER)
    until("the event is there", lambda: any(
        one["reason"] == "ErrIncompatiblePVC" and one["message"].startswith(SMALLER)
        for one in place.events("DataVolume", "small-files")
    ), TIMEOUT)  # fmt: skip
    place.wait("datavolume", "small-files", "scheduled", is_phase("CloneScheduled"), TIMEOUT)
    place.merge("persistentvolumeclaim", "small-files", {"metadata": {"annotations": {
        "cdi.kubevirt.io/permissiveClone": "true"}}})  # fmt: skip
    wait_phase(place, "small-files", "Succeeded")


@pytest.mark.parametrize("size", ["24Mi", "64Mi"])
def test_a_copied_file_is_the_same_to_the_byte(cluster, place, size):
    """The source's file has neither the size of its volume nor a whole number of sectors."""
    name = f"odd-{size.lower()}"
    if size == "24Mi":
        place.create(claim_of("odd", "csi", size="24Mi"))
        place.create(pod_of_many("odd-writer", cluster.image, f"head -c 61 /dev/urandom > {disk_of('odd', FILES)}",
                                 {"odd": FILES}))  # fmt: skip
        place.wait("pod", "odd-writer", "ended", lambda pod: pod["status"].get("phase") == "Succeeded", TIMEOUT)
        place.delete("pod", "odd-writer")
    source = {"pvc": {"namespace": place.namespace, "name": "odd"}}
    place.create(data_volume(name, source, "csi", size=size, annotations={CLONE_TYPE: "copy"}))
    wait_phase(place, name, "Succeeded")
    script = f"sha256sum < {disk_of('odd', FILES)}; sha256sum < {disk_of(name, FILES)}; wc -c < {disk_of(name, FILES)}"
    place.create(pod_of_many(f"{name}-reader", cluster.image, script, {"odd": FILES, name: FILES}))
    place.wait("pod", f"{name}-reader", "ended", lambda pod: pod["status"].get("phase") == "Succeeded", TIMEOUT)
    first, second, length = (line.split()[0] for line in place.logs(f"{name}-reader").splitlines())
    place.delete("pod", f"{name}-reader")
    assert (first, length) == (second, "61")


@pytest.mark.parametrize("requested", ["csi-clone", "copy"])
def test_a_claim_without_a_datavolume_is_cloned_as_it_requests(place, requested):
    place.create(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "VolumeCloneSource",
            "metadata": {"name": f"for-{requested}"},
            "spec": {"source": {"kind": "PersistentVolumeClaim", "name": golden(FILES)}},
        }
    )
    name = f"by-{requested}"
    claim = claim_of(
        name, "csi", size="24Mi",
        source={"apiGroup": "cdi.kubevirt.io", "kind": "VolumeCloneSource", "name": f"for-{requested}"},
    )  # fmt: skip
    claim["metadata"]["annotations"] = {**(claim["metadata"].get("annotations") or {}), CLONE_TYPE: requested}
    place.create(claim)
    found = place.wait(
        "persistentvolumeclaim", name, "cloned",
        lambda one: one["metadata"]["annotations"].get("cdi.kubevirt.io/clonePhase") == "Succeeded", TIMEOUT,
    )  # fmt: skip
    assert found["metadata"]["annotations"][CLONE_TYPE] == requested
    assert found["metadata"]["annotations"].get("cdi.kubevirt.io/cloneFallbackReason") is None


def test_a_claim_without_a_datavolume_is_cloned_into(cluster, place):
    place.create(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "VolumeCloneSource",
            "metadata": {"name": "of-golden"},
            "spec": {"source": {"kind": "PersistentVolumeClaim", "name": golden(FILES)}},
        },
        claim_of(
            "by-hand", "csi", size="24Mi",
            source={"apiGroup": "cdi.kubevirt.io", "kind": "VolumeCloneSource", "name": "of-golden"},
        ),
    )  # fmt: skip
    place.wait("persistentvolumeclaim", "by-hand", "bound", lambda one: one["status"].get("phase") == "Bound", TIMEOUT)
    script = f"head -c {SIZE} {disk_of('by-hand', FILES)} | sha256sum"
    place.create(pod_of_many("by-hand-reader", cluster.image, script, {"by-hand": FILES}))
    place.wait("pod", "by-hand-reader", "ended", lambda pod: pod["status"].get("phase") == "Succeeded", TIMEOUT)
    assert place.logs("by-hand-reader").split()[0] == sha256(DISK)


def test_another_namespace_gives_nothing_without_leave(cluster, place):
    with (
        cluster.namespace("clone-thief") as thief,
        controller(cluster, thief, f"--watch-namespaces={thief.namespace},{place.namespace}"),
    ):
        thief.create(data_volume("stolen", {"pvc": {"namespace": place.namespace, "name": golden(FILES)}}, "csi"))
        found = wait_phase(thief, "stolen", "Failed")
        assert conditions(found)["Detail"]["reason"] == "CloneUnauthorised"
        assert not thief.get_all("persistentvolumeclaims")


def signing_key(kubectl) -> SigningKey:
    """Return the key that signs tokens, from the controller's namespace."""

    def is_there(document):
        return "id_rsa" in document.get("data", {})

    secret = kubectl.wait("secret", "cdi-api-signing-key", "made", is_there, TIMEOUT)
    key = SigningKey.load(base64.b64decode(secret["data"]["id_rsa"]))
    assert key is not None
    return key


def leave(key: SigningKey, source: tuple[str, str], namespace: str, name: str) -> dict[str, str]:
    """Return the annotation that the webhook gives a DataVolume whose user may clone `source`."""
    grant = CloneAuthorization(
        kind="PersistentVolumeClaim", namespace=source[0], name=source[1], target_namespace=namespace, target_name=name
    )
    return {"cdi.kubevirt.io/storage.clone.token": key.sign(claims_of(grant), time.time())}


def test_with_leave_a_volume_comes_from_another_namespace(cluster, place):
    ways = {"moved": ("csi", FILES), "cloned": (CLONING, BLOCK), "grown": ("csi", FILES), "copied": ("local", FILES)}
    with (
        cluster.namespace("clone-other") as other,
        controller(cluster, other, f"--watch-namespaces={other.namespace},{place.namespace}"),
    ):
        for name, (kind, mode) in ways.items():
            source = (place.namespace, golden(mode))
            other.create(
                data_volume(
                    name, {"pvc": {"namespace": source[0], "name": source[1]}}, kind, mode=mode,
                    size="48Mi" if name == "grown" else "24Mi",
                    annotations=leave(signing_key(other), source, other.namespace, name),
                )
            )  # fmt: skip
        strategies = {"moved": "snapshot", "cloned": "csi-clone", "grown": "snapshot", "copied": "copy"}
        for name in ways:
            own = wait_phase(other, name, "Succeeded")["metadata"]["annotations"]
            target = other.get("persistentvolumeclaim", name)["metadata"]["annotations"]
            assert own[CLONE_TYPE] == target[CLONE_TYPE] == strategies[name]
            lasting = "cdi.kubevirt.io/storage.extended.clone.token"
            assert own[lasting] == target[lasting] != own["cdi.kubevirt.io/storage.clone.token"]
            assert target["cdi.kubevirt.io/dataSourceNamespace"] == place.namespace
        modes = {name: mode for name, (_, mode) in ways.items()}
        other.create(pod_of_many("reader", cluster.image, digests(modes, SIZE), modes))
        other.wait("pod", "reader", "ended", lambda pod: pod["status"].get("phase") == "Succeeded", TIMEOUT)
        found = {words[0]: words[1] for line in other.logs("reader").splitlines() if (words := line.split())}
        assert found == dict.fromkeys(ways, sha256(DISK))
        for kind in ("pods", "persistentvolumeclaims", "volumesnapshots"):
            wait_deleted(place, kind, "cdi.kubevirt.io/storage.clone.temporary=true")
