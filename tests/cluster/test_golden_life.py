"""The life of golden images in a cluster, by the commands of users: offers, channels, retention, deprecation, architectures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import pytest

from cdi.api.annotations import DESIRED_DIGEST, GOLDEN_DEPRECATED, GOLDEN_LAST_CLONED, GOLDEN_ORIGIN
from cdi.api.golden import ARCHITECTURES, CHANNELS, PIN, REVOKE, ROLLBACK
from cdi.api.names import cron_import
from tests.cluster.cdi import Controller, controller
from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import is_phase
from tests.cluster.reader import digests, pod_of_many
from tests.cluster.servers import Servers, serving
from tests.cluster.test_apiserver import Server, free_port, trusted, until, webhooks
from tests.cluster.test_cli import Cdi
from tests.cluster.volumes import MIB, SLOW, conditions, data_volume, disk, sha256, wait_phase
from tests.cluster.worker_pods import looker
from tests.faults.server import FaultServer
from tests.integration.fixtures_registry import OciLayout

Document = dict[str, Any]
SIZE = 2 * MIB
NEVER = "0 0 1 1 *"
CRON_LABEL = "cdi.kubevirt.io/dataImportCron"


def cron(
    name: str, source: Document, *, schedule: str = NEVER, keep: int | None = None, **annotations: str
) -> Document:
    storage = {
        "storageClassName": "csi",
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": "24Mi"}},
    }
    spec: Document = {
        "schedule": schedule,
        "managedDataSource": name,
        "template": {"spec": {"source": source, "storage": storage}},
    }
    if keep is not None:
        spec["importsToKeep"] = keep
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataImportCron",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    }


def annotations_of(document: Document) -> dict[str, str]:
    return document["metadata"].get("annotations") or {}


def offered_by(document: Document) -> str:
    """Return the name of the volume that a DataSource names; empty if it names none."""
    name: str = ((document["spec"].get("source") or {}).get("pvc") or {}).get("name", "")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A namespace with a controller, servers, and the commands."""

    cluster: Cluster
    kubectl: Kubectl
    images: FaultServer
    servers: Servers
    controller: Controller
    cdi: Cdi

    def golden(self, *words: str) -> str:
        """Run a ``cdi golden`` command and return its output."""
        return str(self.cdi("golden", *words).stdout)

    def wait_offer(self, data_source: str, version: str) -> None:
        self.kubectl.wait(
            "datasource", data_source, f"offers {version}", lambda found: offered_by(found) == version, SLOW
        )

    def offers(self, *data_sources: str) -> dict[str, str]:
        return {name: offered_by(self.kubectl.get("datasource", name)) for name in data_sources}

    def wait_available(self, name: str, version: str) -> None:
        def available(document: Document) -> bool:
            newest = document["status"]["versions"][0]
            return (newest["name"], newest["state"]) == (version, "Available")

        self.kubectl.wait("dataimportcron", name, f"imported {version}", available, SLOW)

    def version(self, name: str, version: str) -> Document:
        """Return the record of a version."""
        found: list[Document] = self.kubectl.get("dataimportcron", name)["status"]["versions"]
        return next(one for one in found if one["name"] == version)

    def volumes(self, name: str) -> dict[str, str]:
        """Return the uids of the volumes of a DataImportCron by name."""
        claims = self.kubectl.get_all("persistentvolumeclaims", f"{CRON_LABEL}={name}")
        return {one["metadata"]["name"]: one["metadata"]["uid"] for one in claims}

    def events(self, kind: str, name: str, reason: str) -> list[str]:
        return [one["message"] for one in self.kubectl.events(kind, name) if one["reason"] == reason]

    def clone(self, name: str, data_source: str, **labels: str) -> Document:
        """Build a machine's disk, cloned from a DataSource."""
        made = data_volume(name, {}, "csi", size="32Mi", labels=labels)
        del made["spec"]["source"]
        made["spec"]["sourceRef"] = {"kind": "DataSource", "name": data_source}
        return made

    def content(self, *claims: str) -> dict[str, str]:
        """Return the digests of the disks of claims."""
        name = f"read-{claims[0]}"
        modes = dict.fromkeys(claims, "Filesystem")
        self.kubectl.create(pod_of_many(name, self.cluster.image, digests(modes, SIZE), modes))
        ended = self.kubectl.wait("pod", name, "at its end", is_phase("Succeeded", "Failed"), SLOW)
        text = self.kubectl.logs(name)
        assert ended["status"]["phase"] == "Succeeded", text
        self.kubectl.delete("pod", name)
        return {words[0]: words[1] for line in text.splitlines() if (words := line.split())}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """A golden image at an HTTP server."""

    place: Place
    name: str

    @property
    def path(self) -> str:
        return f"/{self.name}.raw"

    @property
    def source(self) -> Document:
        return {"http": {"url": self.place.images.url(self.path)}}

    def put(self, seed: int) -> str:
        """Change the image at the server; return the digest of its content."""
        content = disk(SIZE, seed)
        self.place.images.put(self.path, content, etag=f'"{seed}"')
        return f"sha256:{sha256(content)}"

    def publish(self, seed: int) -> str:
        """Change the image, want it as a new version, as an external scheduler does, and return the version's name."""
        digest = self.put(seed)
        desired = {DESIRED_DIGEST.key: digest}
        self.place.kubectl.merge("dataimportcron", self.name, {"metadata": {"annotations": desired}})
        return cron_import(self.name, digest)

    def offer(self, seed: int) -> str:
        """Publish a version and wait until it is offered."""
        version = self.publish(seed)
        self.place.wait_offer(self.name, version)
        return version

    def poll(self) -> str:
        """Poll and return the name of the version that was found."""
        self.place.golden("poll", self.name)
        digest = annotations_of(self.place.kubectl.get("dataimportcron", self.name))[DESIRED_DIGEST.key]
        return cron_import(self.name, digest)

    def command(self, annotation: str, version: str, *words: str) -> str:
        """Run a command, wait until the DataSource offers a version, and print the seconds between the two.

        Nothing is asserted about the seconds, since they depend on the machine.
        """
        kubectl = self.place.kubectl

        def moment(kind: str, seen: Event, ready: Callable[[Document], bool]) -> float:
            def observed(document: Document) -> bool:
                seen.set()
                return ready(document)

            kubectl.wait(kind, self.name, f"{words[0]}: {version}", observed, SLOW)
            return monotonic()

        watching = Event(), Event()
        with ThreadPoolExecutor(2) as pool:
            written = pool.submit(moment, "dataimportcron", watching[0], lambda one: annotation in annotations_of(one))
            offered = pool.submit(moment, "datasource", watching[1], lambda one: offered_by(one) == version)
            assert all(event.wait(SLOW) for event in watching)
            output = self.place.golden(*words)
            print(f"{words[0]}: {offered.result() - written.result():.3f} s from the annotation to the DataSource")
        return output


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory) -> Iterator[Place]:
    with (
        cluster.namespace("life") as kubectl,
        FaultServer(host=cluster.host_address) as images,
        serving(tmp_path_factory.mktemp("servers"), cluster.host_address) as servers,
        controller(cluster, kubectl) as running,
    ):
        kubectl.create(*servers.inputs())
        kubectl.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "cdi-cronjob"}})
        yield Place(
            cluster=cluster,
            kubectl=kubectl,
            images=images,
            servers=servers,
            controller=running,
            cdi=Cdi(kubectl, tmp_path_factory.mktemp("cdi")),
        )


# --- what is offered --------------------------------------------------------------------------------------------------


def polled(place: Place, name: str, seed: int, **annotations: str) -> Golden:
    """Create a golden image that is polled."""
    golden = Golden(place=place, name=name)
    golden.put(seed)
    place.kubectl.create(cron(name, golden.source, **annotations))
    return golden


def test_commands_move_the_data_source_and_outlast_polls_and_a_restart(place) -> None:
    rolled = polled(place, "rolled", 10, **{CHANNELS: '{"rolled-stable": {"manual": true}}'})
    pinned = polled(place, "pinned", 20)
    held = polled(place, "held", 30)
    revoked = polled(place, "revoked", 40, **{CHANNELS: '{"revoked-stable": {"manual": true}}'})
    updated = (rolled, pinned, revoked)
    everything = (*updated, held)
    with ThreadPoolExecutor(len(everything)) as pool:
        list(pool.map(lambda one: place.golden("wait", one.name), everything))
        first = {one: place.offers(one.name)[one.name] for one in everything}
        for number, one in enumerate(updated):
            one.put(11 + 10 * number)
        second = dict(zip(updated, pool.map(Golden.poll, updated), strict=True))
        for one in updated:
            place.wait_offer(one.name, second[one])
        place.kubectl.create(place.clone("descendant", "revoked"))
        wait_phase(place.kubectl, "descendant", "Succeeded")
        for one in (rolled, revoked):
            place.golden("promote", one.name, f"{one.name}-stable", second[one])
            place.wait_offer(f"{one.name}-stable", second[one])

        requests, volumes = len(place.images.asked(rolled.path)), place.volumes("rolled")
        output = rolled.command(ROLLBACK, first[rolled], "rollback", "rolled")
        assert f"rolled back to {first[rolled]}; withheld: {second[rolled]}" in output
        assert len(place.images.asked(rolled.path)) == requests
        pinned.command(PIN, first[pinned], "pin", "pinned", first[pinned])
        place.golden("hold", "held")
        output = revoked.command(REVOKE, first[revoked], "revoke", "revoked", second[revoked], "--reason", "CVE-2026-1")
        descendant = f"{place.kubectl.namespace}/descendant"
        assert f"volume {descendant} descends from it" in output
        (named,) = place.events("DataImportCron", "revoked", "DescendsFromRevokedVersion")
        assert descendant in named
        place.wait_offer("revoked-stable", first[revoked])
        described = place.golden("describe", "revoked")
        assert "descendant" in described
        assert "CVE-2026-1" in described

        # What the sources offer from now on: a newer image where it must not be offered, and the same elsewhere.
        pinned.put(22)
        held.put(31)
        wanted = {
            "rolled": first[rolled],
            "rolled-stable": second[rolled],
            "pinned": first[pinned],
            "held": first[held],
            "revoked": first[revoked],
            "revoked-stable": first[revoked],
        }
        found = dict(zip(everything, pool.map(Golden.poll, everything), strict=True))
        assert found[rolled] == second[rolled]
        assert found[revoked] == second[revoked]
        assert place.offers(*wanted) == wanted
        place.controller.kill()
        place.controller.start()
        for _ in range(2):
            assert dict(zip(everything, pool.map(Golden.poll, everything), strict=True)) == found
            assert place.offers(*wanted) == wanted
    assert place.volumes("rolled") == volumes
    assert found[held] not in place.volumes("held")
    assert place.version("revoked", second[revoked])["state"] == "Revoked"
    place.wait_available("pinned", found[pinned])
    assert place.offers("pinned") == {"pinned": first[pinned]}
    place.golden("release", "rolled")
    place.golden("unpin", "pinned")
    place.golden("unhold", "held")
    place.wait_offer("rolled", second[rolled])
    place.wait_offer("pinned", found[pinned])
    place.wait_offer("held", found[held])


# --- channels ---------------------------------------------------------------------------------------------------------


def published(place: Place, name: str, **settings: Any) -> Golden:
    """Create a golden image whose versions are published by the test."""
    golden = Golden(place=place, name=name)
    place.kubectl.create(cron(name, golden.source, schedule="", **settings))
    return golden


def test_channels_offer_versions_of_one_history(place) -> None:
    rules = {"stable": {"manual": True}, "previous": {"behind": 1}}
    latest = published(place, "latest", **{CHANNELS: json.dumps(rules)})
    one = latest.offer(50)
    two = latest.offer(51)
    place.wait_offer("previous", one)
    place.golden("promote", "latest", "stable", one)
    place.wait_offer("stable", one)
    three = latest.offer(52)
    place.wait_offer("previous", two)
    assert place.offers("latest", "previous", "stable") == {"latest": three, "previous": two, "stable": one}
    place.golden("promote", "latest", "stable", two)
    place.wait_offer("stable", two)
    place.golden("rollback", "latest")
    place.wait_offer("latest", two)
    place.wait_offer("previous", one)
    assert place.offers("stable") == {"stable": two}
    refused = place.cdi("golden", "promote", "latest", "previous", two, status=2)
    assert "follows the newest version at a distance of 1" in refused.stderr


# --- clones and retention ---------------------------------------------------------------------------------------------


def test_a_clone_of_latest_keeps_its_version_until_it_is_done(place) -> None:
    kubectl = place.kubectl
    golden = published(place, "moving", keep=1)
    old = golden.offer(60)
    # A volume in use is not cloned, so the clone is in progress until the pod is gone.
    kubectl.create(looker("holder", place.cluster.image, "sleep 900", old, "Filesystem"))
    kubectl.wait("pod", "holder", "running", is_phase("Running"), SLOW)
    kubectl.create(place.clone("machine", "moving"))
    kubectl.wait(
        "datavolume", "machine", "waits", lambda one: conditions(one)["Detail"]["reason"] == "CloneSourceInUse", SLOW
    )
    middle = golden.offer(61)
    new = golden.offer(62)
    kubectl.wait_gone("persistentvolumeclaim", middle, SLOW)
    assert set(place.volumes("moving")) == {old, new}
    kubectl.delete("pod", "holder")
    wait_phase(kubectl, "machine", "Succeeded")
    origin = json.loads(annotations_of(kubectl.get("persistentvolumeclaim", "machine"))[GOLDEN_ORIGIN.key])
    assert origin["version"] == old
    assert place.content("machine") == {"machine": sha256(disk(SIZE, 60))}
    kubectl.wait_gone("persistentvolumeclaim", old, SLOW)
    assert set(place.volumes("moving")) == {new}
    removed = place.events("DataImportCron", "moving", "VersionRemoved")
    for version in (old, middle):
        (message,) = [text for text in removed if version in text]
        assert "importsToKeep is 1" in message
        assert place.version("moving", version)["state"] == "Removed"
    # The lineage outlives the version.
    assert "machine" in place.golden("describe", "moving")


# --- deprecation ------------------------------------------------------------------------------------------------------


def test_a_clone_of_a_deprecated_version_is_warned_of(place, tmp_path: Path) -> None:
    kubectl, port = place.kubectl, free_port()
    golden = published(place, "aged")
    version = golden.offer(70)
    place.golden("deprecate", "aged", version, "--from", "2026-01-01", "--end-of-life", "2126-01-01")
    kubectl.wait("persistentvolumeclaim", version, "deprecated", lambda one: GOLDEN_DEPRECATED.key in annotations_of(one), SLOW)
    notice = "is deprecated since 2026-01-01T00:00:00Z; its end of life is 2126-01-01T00:00:00Z"
    labels = {"cdi-test": kubectl.namespace}

    def create(name: str, *options: str) -> str:
        done = subprocess.run(
            kubectl.command("create", "--filename=-", *options),
            input=json.dumps(place.clone(name, "aged", **labels)),
            env=dict(kubectl.environment), capture_output=True, text=True, check=False, timeout=SLOW,
        )  # fmt: skip
        return done.stderr

    with webhooks(kubectl, place.cluster.host_address, port) as documents:
        server = Server(place.cluster, kubectl, port, tmp_path / "log")
        try:
            until("it is ready", server.ready)
            until("it is trusted", lambda: trusted(kubectl, documents, server.bundle))
            until("it is asked", lambda: notice in create("asked", "--dry-run=server"))
            warning = create("warned")
        finally:
            server.process.kill()
            server.process.wait()
    assert f'Warning: "{version}" {notice}' in warning
    wait_phase(kubectl, "warned", "Succeeded")
    events = [
        text
        for kind in ("DataVolume", "PersistentVolumeClaim")
        for text in place.events(kind, "warned", "DeprecatedSource")
    ]
    assert any(notice in text for text in events)
    assert GOLDEN_LAST_CLONED.key in annotations_of(kubectl.get("persistentvolumeclaim", version))
    assert version in place.golden("describe", "aged")


# --- architectures ----------------------------------------------------------------------------------------------------


def test_each_architecture_of_an_index_has_a_data_source(place, tmp_path: Path) -> None:
    kubectl, servers = place.kubectl, place.servers
    layout = OciLayout(servers.directory / "layout-platforms")
    contents = {"amd64": disk(SIZE, 80), "arm64": disk(SIZE, 81)}
    entries = [
        layout.image([layout.layer({"disk/": b"", "disk/disk.img": content})], architecture=one)
        for one, content in contents.items()
    ]
    layout.index(entries, tag="latest")
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false"]
    subprocess.run(
        [*command, f"oci:{layout.path}:latest", f"docker://{servers.push_to}/platforms:latest"], check=True, timeout=60
    )
    url = servers.registry.url("platforms:latest")
    source = {"registry": {"url": url, "secretRef": "registry", "certConfigMap": "authority"}}
    kubectl.create(cron("platforms", source, **{ARCHITECTURES: "amd64,arm64"}))
    names = {one: f"platforms-{one}" for one in contents}
    found = {
        one: offered_by(kubectl.wait("datasource", name, "offers a volume", lambda it: bool(offered_by(it)), SLOW))
        for one, name in names.items()
    }
    pointer = {"dataSource": {"namespace": kubectl.namespace, "name": names["amd64"]}}
    kubectl.wait("datasource", "platforms", "points", lambda one: one["spec"]["source"] == pointer, SLOW)
    kubectl.wait(
        "datasource", "platforms", "ready", lambda one: conditions(one).get("Ready", {}).get("status") == "True", SLOW
    )
    assert place.content(*found.values()) == {found[one]: sha256(content) for one, content in contents.items()}
    for one, name in names.items():
        assert kubectl.get("datasource", name)["metadata"]["labels"]["template.kubevirt.io/architecture"] == one
    kubectl.create(place.clone("amd64-machine", "platforms"))
    wait_phase(kubectl, "amd64-machine", "Succeeded")
    origin = json.loads(annotations_of(kubectl.get("persistentvolumeclaim", "amd64-machine"))[GOLDEN_ORIGIN.key])
    assert origin["version"] == found["amd64"]
    # What the DataSource offers is bundled from the registry, as the cluster's Secret and certificates allow.
    bundle = tmp_path / "platforms.tar"
    place.cdi("bundle", "create", "-o", bundle, "platforms")
    (listed,) = json.loads(place.cdi("bundle", "list", bundle, "-o", "json").stdout)
    assert (listed["name"], listed["original"]) == ("platforms", True)
    assert listed["version"]["name"] == found["amd64"]
