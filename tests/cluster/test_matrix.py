"""Every source into every kind of volume at once: all pairs of source, volume mode and way of filling occur.

A cell is a DataVolume. All are created together, awaited together, and read by one pod for each class.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import pytest

from tests.cluster.cdi import controller
from tests.cluster.event_log import Chronicle, following
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import is_phase
from tests.cluster.reader import digests, disk_of, place_of, pod_of_many, told
from tests.cluster.servers import serving
from tests.cluster.volumes import data_volume, sha256
from tests.cluster.worker_pods import RESTRICTED
from tests.integration.fixtures_images import SIZE
from tests.integration.fixtures_registry import tar_of

WAYS = {
    "csi": "populator, at once",
    "csi-wait": "populator, for the first consumer",
    "local": "direct, at once",
    "local-wait": "direct, for the first consumer",
}
"""Description of each storage class."""
SOURCES = ("raw", "qcow2", "vmdk", "large-grains-once", "raw.gz", "archive", "s3", "gcs", "registry", "blank")
MODES = ("Filesystem", "Block")
CAPACITY = "24Mi"
WAITS = {"csi-wait": "PendingPopulation", "local-wait": "WaitForFirstConsumer"}
TIMEOUT = 300.0  # seconds, for what takes one minute on an idle machine
FILES = {"etc/motd": b"welcome\n", "disks/": b"", "disks/small": bytes(range(256)) * 40}
DISK_IS_RIGHT = f"{SIZE} bytes of the image, then zeros"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    source: str
    mode: str
    storage_class: str

    @property
    def name(self) -> str:
        return f"{self.source.replace('.', '-')}-{self.storage_class}-{self.mode.lower()}"


CELLS = [
    Cell(source=source, mode="Filesystem" if source == "archive" else MODES[(row + column) % 2], storage_class=way)
    for row, source in enumerate(SOURCES)
    for column, way in enumerate(WAYS)
]


def test_the_cells_cover_every_pair() -> None:
    assert {(cell.source, cell.storage_class) for cell in CELLS} == {(a, b) for a in SOURCES for b in WAYS}
    assert {(cell.mode, cell.storage_class) for cell in CELLS} == {(a, b) for a in MODES for b in WAYS}
    possible = {(a, b) for a in SOURCES for b in MODES} - {("archive", "Block")}  # an archive needs a file system
    assert {(cell.source, cell.mode) for cell in CELLS} == possible


@pytest.fixture(scope="module")
def sources(cluster, images, tmp_path_factory):
    """Serve the images and yield the DataVolume sources by name."""
    with serving(tmp_path_factory.mktemp("servers"), cluster.host_address) as servers:

        def http(name: str, content: bytes, way: str = "", *, checksum: bool = True) -> dict:
            servers.nginx.put(name, content)
            more = {"checksum": f"sha256:{sha256(content)}"} if checksum else {}
            return {"http": {"url": servers.nginx.url(name, way), **more}}

        disk = images.get("raw").content
        qcow2, vmdk = images.get("qcow2-zlib").content, images.get("vmdk-stream").content
        found = {
            "raw": http("disk.raw", disk),
            "qcow2": http("disk.qcow2", qcow2),
            "vmdk": http("disk.vmdk", vmdk),
            "large-grains-once": http("once.vmdk", images.get("vmdk-2M").content, "plain"),
            "raw.gz": http("disk.raw.gz", images.get("raw", "gz").content),
            "archive": http("files.tar.gz", gzip.compress(tar_of(FILES)), checksum=False),
            "s3": servers.put_s3("images/disk.qcow2", qcow2),
            "gcs": servers.put_gcs("disk.qcow2", qcow2),
            "registry": servers.push_disk(
                "golden", qcow2, env=["INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.small"]
            ),
            "blank": {"blank": {}},
        }
        assert tuple(found) == SOURCES
        yield found, servers.inputs()


def modes(cells: list[Cell]) -> dict[str, str]:
    return {cell.name: cell.mode for cell in cells}


def reading(cells: list[Cell]) -> str:
    """Return a script that prints a digest of every volume, and what else it contains."""
    lines = [digests(modes([cell for cell in cells if cell.source != "archive"]), SIZE)]
    for place in (place_of(cell.name) for cell in cells if cell.source == "archive"):
        digest = f"cat {place}/etc/motd {place}/disks/small | sha256sum | cut -c1-64"
        lines.append(f'echo {place.rpartition("/")[2]} "$({digest})" "$(ls -A {place} | grep -cv lost+found)"')
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """The result of the imports."""

    place: Kubectl
    chronicle: Chronicle
    found: dict[str, tuple[str, ...]]
    """What pods read, by the cell's name."""


@pytest.fixture(scope="module")
def filled(cluster, sources):
    described, inputs = sources
    with cluster.namespace("matrix") as place, following(place) as chronicle, controller(cluster, place):
        place.run("label", "namespace", place.namespace, *(f"{name}={text}" for name, text in RESTRICTED.items()))
        place.create(*inputs)
        place.create(*(document_of(cell, described[cell.source]) for cell in CELLS))
        by_class = {name: [cell for cell in CELLS if cell.storage_class == name] for name in WAYS}
        for name, waits in WAITS.items():
            cells = by_class[name]
            chronicle.until(
                f"{name} waits",
                lambda cells=cells, waits=waits: all(waits in chronicle.phases(cell.name) for cell in cells),
                TIMEOUT,
            )
            # In practice, the first consumer is a virtual machine's launcher. The pod of the populated claims cannot
            # start before all its volumes are ready, so it reads them at once; the other pod starts immediately.
            script = reading(cells) if name == "csi-wait" else "true"
            place.create(pod_of_many(f"first-{name}", cluster.image, script, modes(cells)))
        try:
            chronicle.until("all have ended", lambda: all(end_of(chronicle, cell) for cell in CELLS), TIMEOUT)
        except AssertionError as error:
            print(error)  # the tests of the cells name those that failed
        found: dict[str, tuple[str, ...]] = {}
        for name, cells in by_class.items():
            good = [cell for cell in cells if end_of(chronicle, cell) == "Succeeded"]
            reader = f"first-{name}" if name == "csi-wait" and good == cells else f"read-{name}"
            if good:
                if reader.startswith("read"):
                    place.create(pod_of_many(reader, cluster.image, reading(good), modes(good)))
                found |= told(place, chronicle, reader, TIMEOUT)
        yield Filled(place=place, chronicle=chronicle, found=found)


def document_of(cell: Cell, source: dict) -> dict:
    document = data_volume(cell.name, source, cell.storage_class, mode=cell.mode, size=CAPACITY)
    if cell.source == "archive":
        document["spec"]["contentType"] = "archive"
    return document


def end_of(chronicle: Chronicle, cell: Cell) -> str:
    """Return the final phase, or "" if the import has not ended."""
    last = (chronicle.phases(cell.name) or [""])[-1]
    return last if last in ("Succeeded", "Failed") else ""


@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
def test_a_volume_is_filled(filled, images, cell: Cell) -> None:
    chronicle = filled.chronicle
    phases = chronicle.phases(cell.name)
    assert phases[-1] == "Succeeded", (phases, chronicle.states("datavolumes", cell.name)[-1].get("status"))
    waited = [phase for phase in phases if phase in WAITS.values()]
    assert waited == [WAITS[cell.storage_class]] if cell.storage_class in WAITS else not waited
    digest, rest = filled.found[cell.name]
    if cell.source == "archive":
        assert digest == sha256(FILES["etc/motd"] + FILES["disks/small"])
        assert rest == "2", "entries at the top"
    else:
        wanted = bytes(SIZE) if cell.source == "blank" else images.get("raw").content
        assert (digest, rest) == (sha256(wanted), "0"), DISK_IS_RIGHT
    claim = chronicle.states("persistentvolumeclaims", cell.name)[-1]
    populated = cell.storage_class.startswith("csi")
    assert claim["metadata"]["annotations"]["cdi.kubevirt.io/storage.usePopulator"] == str(populated).lower()
    prime = f"prime-{claim['metadata']['uid']}"
    pods = {name for name in chronicle.names("pods") if name.startswith("importer-")}
    assert (f"importer-{prime}" in pods, f"importer-{cell.name}" in pods) == (populated, not populated)


def test_nothing_else_is_left(filled) -> None:
    filled.chronicle.wait_clean(60)
    claims = {each["metadata"]["name"] for each in filled.place.get_all("persistentvolumeclaims")}
    assert claims == {cell.name for cell in CELLS}


def test_scratch_space_is_there_only_for_what_cannot_be_decoded_as_it_comes(filled) -> None:
    claims = filled.chronicle.states("persistentvolumeclaims")
    uids = {claim["metadata"]["name"]: claim["metadata"]["uid"] for claim in claims}
    wanted = {
        f"prime-{uids[cell.name]}-scratch" if cell.storage_class.startswith("csi") else f"{cell.name}-scratch"
        for cell in CELLS if cell.source == "large-grains-once"
    }  # fmt: skip
    assert {name for name in filled.chronicle.names("persistentvolumeclaims") if name.endswith("-scratch")} == wanted


def test_one_pod_is_enough_for_an_import(filled) -> None:
    """Two pods are needed only with scratch space."""
    states = [state for state in filled.chronicle.states("pods") if state["metadata"]["name"].startswith("importer-")]
    made: dict[str, set[str]] = {}
    for state in states:
        made.setdefault(state["metadata"]["name"], set()).add(state["metadata"]["uid"])
    twice = {name: len(uids) for name, uids in made.items() if len(uids) > 1}
    assert len(made) == len(CELLS)
    assert len(twice) == len(WAYS), twice  # large-grains-once needs scratch space
    assert set(twice.values()) == {2}


def test_a_container_disk_says_which_machine_suits_it(filled) -> None:
    label = "instancetype.kubevirt.io/default-instancetype"
    for kind in ("persistentvolumeclaims", "datavolumes"):
        found = {
            name: each["metadata"].get("labels", {}).get(label) for name, each in filled.chronicle.present(kind).items()
        }
        assert found == {cell.name: "u1.small" if cell.source == "registry" else None for cell in CELLS}


def test_a_golden_image_is_used(cluster, filled) -> None:
    """Volumes are readable and writable by user 107, as the process of a virtual machine is, in both modes."""
    cells = [cell for cell in CELLS if cell.source == "qcow2"]
    lines = []
    for cell in cells:
        disk = disk_of(cell.name, cell.mode)
        lines.append(f"printf booted | dd of={disk} bs=1 seek=1048576 conv=notrunc 2>/dev/null")
        lines.append(f"dd if={disk} bs=1 skip=1048576 count=6 2>/dev/null; echo")
        lines.append(f"stat -c %a:%u:%g {disk}" if cell.mode == "Filesystem" else "echo 660:107:107")
    filled.place.create(pod_of_many("machine", cluster.image, "\n".join(lines), modes(cells)))
    done = filled.chronicle.wait("pods", "machine", "ended", is_phase("Succeeded", "Failed"), TIMEOUT)
    text = filled.place.logs("machine")
    assert done["status"]["phase"] == "Succeeded", text
    assert text.split() == ["booted", "660:107:107"] * len(cells)


# --- Without a DataVolume -----------------------------------------------------------------------------------------


def a_claim(name: str, storage_class: str, mode: str, **more) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "annotations": more.pop("annotations", {})},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": mode,
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": CAPACITY}},
            **more,
        },
    }


def test_claims_without_a_datavolume_are_filled(cluster, filled, sources, images) -> None:
    described, place, chronicle = sources[0], filled.place, filled.chronicle
    prefix = "cdi.kubevirt.io/storage.import."
    by_hand = {
        "http": {"source": "http", "endpoint": described["qcow2"]["http"]["url"]},
        "s3": {"source": "s3", "endpoint": described["s3"]["s3"]["url"], "secretName": "s3"},
        "none": {"source": "none"},
        "registry": {
            "source": "registry",
            "endpoint": described["registry"]["registry"]["url"],
            "secretName": "registry",
            "certConfigMap": "authority",
        },
    }
    cells, documents = [], []
    for index, (kind, said) in enumerate(by_hand.items()):
        cell = Cell(source="blank" if kind == "none" else kind, mode=MODES[index % 2], storage_class="local")
        cells.append(cell)
        annotations = {f"{prefix}{name}": text for name, text in said.items()}
        documents.append(a_claim(cell.name, "local", cell.mode, annotations=annotations))
    for index, storage_class in enumerate(("csi", "csi-wait")):
        name = f"fedora-{storage_class}"
        source = {"source": described["qcow2"], "contentType": "kubevirt"}
        documents.append(
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "VolumeImportSource",
                "metadata": {"name": name},
                "spec": source,
            }
        )
        ref = {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeImportSource", "name": name}
        cell = Cell(source="named", mode=MODES[1 - index], storage_class=storage_class)
        cells.append(cell)
        documents.append(a_claim(cell.name, storage_class, cell.mode, dataSourceRef=ref))
    place.create(*documents)
    # The pod is the first consumer of one of the claims, and starts once that has its content.
    populated = [cell for cell in cells if cell.source == "named"]
    direct = [cell for cell in cells if cell.source != "named"]
    place.create(pod_of_many("populated", cluster.image, reading(populated), modes(populated)))
    for cell in direct:
        chronicle.wait(
            "persistentvolumeclaims", cell.name, "filled",
            lambda it: it["metadata"]["annotations"].get("cdi.kubevirt.io/storage.pod.phase") == "Succeeded", TIMEOUT,
        )  # fmt: skip
    place.create(pod_of_many("direct", cluster.image, reading(direct), modes(direct)))
    found = told(place, chronicle, "populated", TIMEOUT) | told(place, chronicle, "direct", TIMEOUT)
    disk, empty = sha256(images.get("raw").content), sha256(bytes(SIZE))
    assert found == {cell.name: (empty if cell.source == "blank" else disk, "0") for cell in cells}
    chronicle.wait_clean(60)
    assert not chronicle.names("datavolumes") & set(found)
