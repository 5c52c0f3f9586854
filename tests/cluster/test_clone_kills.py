"""Kills and deletions at every step of a clone: it completes or is removed completely, and the source is unchanged.

The controller has a namespace of its own, the source is in a second one, and half of the targets are in a third, so
everything found in the last two was created for clones.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from cdi.kube.jwt import SigningKey
from tests.cluster import cdi_image
from tests.cluster.cancellation import ANNOTATION as DELETED_AFTER
from tests.cluster.cdi import Meddled, controller
from tests.cluster.event_log import Chronicle, following
from tests.cluster.fault_injection import belongings, kill_inside, striking, take_away, wait_belongings
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import phase, snapshot
from tests.cluster.reader import digests, pod_of_many, told
from tests.cluster.servers import serving
from tests.cluster.test_clone import leave, signing_key, storage_class
from tests.cluster.volumes import IMMEDIATE, MIB, data_volume, disk, sha256, wait_phase

Document = dict[str, Any]
SIZE = 16 * MIB
DISK = disk(SIZE)
FILES, BLOCK = "Filesystem", "Block"
HERE, ELSEWHERE = "here", "elsewhere"
CLONING, COPYING = "clone-kills-cloning", "clone-kills-copying"
CLASSES = (
    storage_class(CLONING, "csi.cdi.test", "csi-clone"),
    storage_class(COPYING, "csi.cdi.test", "copy"),
)
KEPT = "kept"
"""A snapshot of the filesystem source."""
STORAGES_OWN = {
    "provisioner.storage.kubernetes.io/cloning-protection",
    "snapshot.storage.kubernetes.io/pvc-as-source-protection",
}
"""Finalizers by which the storage protects a claim during a clone or snapshot; it removes them eventually."""
TIMEOUT = 300.0
SLOWLY = {"cdi.kubevirt.io/policy.bandwidth": "256Ki"}
"""Bandwidth in bytes per second: copying the data of `DISK` takes half a minute."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One strategy and target of a clone."""

    name: str
    place: str
    mode: str
    storage_class: str
    of_snapshot: bool = False
    """Clone a snapshot that a user keeps of the source, instead of the source itself."""
    target: str = ""
    size: str = "32Mi"
    steps: int = 0
    """Approximate number of different writes for such a clone."""
    first: int = 1
    every: int = 1
    """Steps to test: from `first` on, one in `every`."""

    @property
    def target_mode(self) -> str:
        return self.target or self.mode


@dataclass(frozen=True, kw_only=True)
class World:
    """Three namespaces, and the event logs of the two with volumes."""

    home: Kubectl
    places: dict[str, Kubectl]
    chronicles: dict[str, Chronicle]
    key: SigningKey
    before: set[str]

    def document(self, way: Way, name: str, annotations: dict[str, str]) -> Document:
        """Build a DataVolume, with a clone token if it needs one."""
        target, source = self.places[way.place], (self.places[HERE].namespace, golden(way.mode))
        granted = leave(self.key, source, target.namespace, name) if way.place != HERE else {}
        kind, place = "pvc", {"namespace": source[0], "name": source[1]}
        if way.of_snapshot:
            kind, place = "snapshot", {**place, "name": KEPT}
        return data_volume(
            name, {kind: place}, way.storage_class, mode=way.target_mode, size=way.size,
            annotations={IMMEDIATE: "", **annotations, **granted},
        )  # fmt: skip

    def create(self, ways: dict[str, Way], annotations: dict[str, str]) -> None:
        for place, kubectl in self.places.items():
            chosen = {name: way for name, way in ways.items() if way.place == place}
            kubectl.create(*(self.document(way, name, annotations) for name, way in chosen.items()))

    def succeed(self, ways: dict[str, Way]) -> None:
        for name, way in ways.items():
            self.chronicles[way.place].wait_phase(name, "Succeeded", patience=TIMEOUT)

    def cleared(self, ways: dict[str, Way]) -> None:
        """Wait until only the initial objects exist, and those of the DataVolumes that still exist."""
        wait_belongings(lambda: self.before | self._theirs(self.present(ways)), TIMEOUT, *self.places.values())

    def present(self, ways: dict[str, Way]) -> dict[str, Way]:
        """Return the DataVolumes of `ways` that exist."""
        there = {place: chronicle.present("datavolumes") for place, chronicle in self.chronicles.items()}
        return {name: way for name, way in ways.items() if name in there[way.place]}

    def _theirs(self, ways: dict[str, Way]) -> set[str]:
        theirs = set()
        for name, way in ways.items():
            namespace, chronicle = self.places[way.place].namespace, self.chronicles[way.place]
            volume, claim = (
                chronicle.present("datavolumes").get(name),
                chronicle.present("persistentvolumeclaims").get(name),
            )
            if volume is None or claim is None:
                continue  # it is being deleted
            spec = claim["spec"]
            theirs |= {f"PersistentVolumeClaim {namespace}/{name}", f"PersistentVolume {spec['volumeName']}"}
            if "dataSourceRef" in spec and way.place == HERE:
                theirs.add(f"VolumeCloneSource {namespace}/volume-clone-source-{volume['metadata']['uid']}")
        return theirs

    def read(self, cluster, ways: dict[str, Way]) -> None:
        """Assert that all clones hold the source's content, read by one pod for each namespace."""
        for place, kubectl in self.places.items():
            claims = {name: way.target_mode for name, way in ways.items() if way.place == place}
            if claims:
                reader = f"reader-{secrets.token_hex(3)}"
                kubectl.create(pod_of_many(reader, cluster.image, digests(claims, SIZE), claims))
                found = told(kubectl, self.chronicles[place], reader, TIMEOUT)
                assert found == dict.fromkeys(claims, (sha256(DISK), "0"))
                take_away(kubectl, reader)

    def drop(self, ways: dict[str, Way]) -> None:
        """Delete the DataVolumes and wait until everything of theirs is deleted."""
        for place, kubectl in self.places.items():
            names = [name for name, way in ways.items() if way.place == place]
            if names:
                kubectl.delete("datavolume", *names, wait=False)
        wait_belongings(lambda: self.before, TIMEOUT, *self.places.values())


def golden(mode: str) -> str:
    return f"golden-{mode.lower()}"


def face(kubectl: Kubectl, name: str) -> dict[str, Any]:
    """Return the fields of a source that no clone may change: claim and volume without versions, by path."""
    claim = kubectl.get("persistentvolumeclaim", name)
    volume = kubectl.get("persistentvolume", claim["spec"]["volumeName"])
    for document in (claim, volume):
        for field in ("resourceVersion", "managedFields"):
            document["metadata"].pop(field, None)
    return dict(leaves("", {"claim": claim, "volume": volume}))


def leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from leaves(f"{place}/{name}", each)
    else:
        yield place, sorted({*value} - STORAGES_OWN) if place.endswith("/finalizers") else value


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        place: (before.get(place), after.get(place)) for place in {**before, **after}
        if before.get(place) != after.get(place)
    }  # fmt: skip


@pytest.fixture(scope="module")
def context(cluster, tmp_path_factory) -> Iterator[World]:
    """Create two golden images, and compare their content and metadata at the end."""
    directory = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        home, here, elsewhere = (
            stack.enter_context(cluster.namespace(f"kills-{name}")) for name in ("home", HERE, ELSEWHERE)
        )
        servers = stack.enter_context(serving(directory, cluster.host_address))
        places = {HERE: here, ELSEWHERE: elsewhere}
        chronicles = {name: stack.enter_context(following(kubectl)) for name, kubectl in places.items()}
        try:
            home.create(*CLASSES)
            servers.nginx.put("disk.raw", DISK)
            source = {"http": {"url": servers.nginx.url("disk.raw"), "checksum": f"sha256:{sha256(DISK)}"}}
            sources = {golden(mode): mode for mode in (FILES, BLOCK)}
            kept = snapshot(KEPT, golden(FILES))
            with controller(cluster, home, watching(places), "--no-leader-election"):
                here.create(*(data_volume(name, source, "csi", mode=mode) for name, mode in sources.items()))
                for name in sources:
                    wait_phase(here, name, "Succeeded")
                chronicles[HERE].wait_clean(TIMEOUT)
                here.create(kept)
                here.wait("volumesnapshot", KEPT, "ready", lambda it: it.get("status", {}).get("readyToUse"), TIMEOUT)
            faces = {name: face(here, name) for name in sources}
            yield World(
                home=home, places=places, chronicles=chronicles, key=signing_key(home),
                before=belongings(here, elsewhere),
            )  # fmt: skip
            assert {name: changed(faces[name], face(here, name)) for name in sources} == dict.fromkeys(sources, {})
            here.create(pod_of_many("last", cluster.image, digests(sources, SIZE), sources))
            assert told(here, chronicles[HERE], "last", TIMEOUT) == dict.fromkeys(sources, (sha256(DISK), "0"))
        finally:
            home.run("delete", "storageclass", "--ignore-not-found", CLONING, COPYING)


def watching(places: dict[str, Kubectl]) -> str:
    return f"--watch-namespaces={','.join(kubectl.namespace for kubectl in places.values())}"


# --- The controller -----------------------------------------------------------------------------------------------

WAYS = (
    Way(name="snapshot", place=HERE, mode=FILES, storage_class="csi", size="64Mi"),
    Way(name="cloned", place=ELSEWHERE, mode=BLOCK, storage_class=CLONING),
    Way(name="copied", place=HERE, mode=FILES, storage_class="csi", target=BLOCK),
    Way(name="direct", place=ELSEWHERE, mode=BLOCK, storage_class="local"),
    Way(name="restored", place=HERE, mode=FILES, storage_class=COPYING, of_snapshot=True),
)


@pytest.mark.timeout(2400)  # a controller is started for each of some sixty writes
def test_a_controller_that_dies_at_every_step_of_a_clone_comes_to_the_same_end(cluster, context, tmp_path) -> None:
    ways = {way.name: way for way in WAYS}
    image = cdi_image.provide(cluster)
    dying = Meddled(cluster, context.home.namespace, image, ["kill_points", str(tmp_path)], watching(context.places))
    context.create(ways, {})
    before = pods_by_name(context)
    try:
        dying.begin()
        context.succeed(ways)
        context.cleared(ways)
        deaths = [line["after"] for line in dying.lines() if line["message"] == "died"]
        context.read(cluster, ways)
        context.drop(ways)
    finally:
        dying.close()
    assert len(deaths) > 40, "so many steps there are at the least"
    made = {name: uids for name, uids in pods_by_name(context).items() if name not in before}
    assert {name: uids for name, uids in made.items() if len(uids) > 1} == {}, "no work was done twice"


def pods_by_name(context: World) -> dict[str, set[str]]:
    """Return the uids of all recorded pods by name."""
    found: dict[str, set[str]] = {}
    for chronicle in context.chronicles.values():
        for pod in chronicle.states("pods"):
            found.setdefault(pod["metadata"]["name"], set()).add(pod["metadata"]["uid"])
    return found


# --- Pods of a host-assisted clone --------------------------------------------------------------------------------

COPIES = (
    Way(name="files", place=HERE, mode=FILES, storage_class=COPYING),
    Way(name="device", place=HERE, mode=BLOCK, storage_class="local"),
    Way(name="files", place=ELSEWHERE, mode=FILES, storage_class="local"),
    Way(name="device", place=ELSEWHERE, mode=BLOCK, storage_class=COPYING),
)
READER, TARGET = "reader", "target"
TIMES = (0.0, 10.0, 20.0)
"""Progress in percent at which each blow happens; a pod that is deleted at 0 need not be running yet.

Less than a third of the block device is data, because it ends with zeros.
"""


def is_killed(way: Way, number: int) -> bool:
    """Return whether the n-th blow kills the process instead of deleting the pod.

    Each victim meets both at each time: one in each volume mode.
    """
    return (number + (way.mode == BLOCK)) % 2 == 1


def test_pods_of_a_copy_that_are_deleted_or_killed_are_gone_on_without(cluster, context) -> None:
    if cluster.layout is None:
        pytest.skip("only on our own cluster's node")
    ways = {f"{way.name}-{way.place}-{victim}": way for way in COPIES for victim in (READER, TARGET)}
    struck: dict[str, list[str]] = {name: [] for name in ways}
    """Uids of the struck pods, by clone."""

    def victim(name: str, number: int) -> Document | None:
        """Return the pod if the time for this blow has come."""
        way = ways[name]
        if len(struck[name]) != number or done(context.chronicles[way.place], name) < TIMES[number]:
            return None
        pod = pod_of(context, way, name, reader=name.endswith(READER))
        if pod is None or pod["metadata"]["uid"] in struck[name]:
            return None
        runs = any("running" in one["state"] for one in pod["status"].get("containerStatuses", ()))
        return pod if runs or not (number or is_killed(way, number)) else None

    def strike(name: str, number: int) -> bool:
        pod = victim(name, number)
        if pod is None:  # the source pod was just struck for another clone
            return False
        if is_killed(ways[name], number):
            try:
                kill_inside(cluster, pod)
            except subprocess.CalledProcessError:
                return False
        else:
            take_away(context.home.within(pod["metadata"]["namespace"]), pod["metadata"]["name"])
        struck[name].append(pod["metadata"]["uid"])
        return True

    blows = {f"{name} {number}": (name, number) for name in ways for number in range(len(TIMES))}
    moments = {blow: partial(victim, name, number) for blow, (name, number) in blows.items()}
    with controller(cluster, context.home, watching(context.places), "--no-leader-election"):
        with striking(moments, lambda ready: [blow for blow in ready if strike(*blows[blow])]) as met:
            context.create(ways, SLOWLY)
            context.succeed(ways)
        missed = {
            name: shown(context.chronicles[ways[name].place], name) for name, _ in map(blows.get, set(blows) - met)
        }
        assert missed == {}, "each was struck as often as it was to be"
        context.cleared(ways)
        context.read(cluster, ways)
        context.drop(ways)


def shown(chronicle: Chronicle, name: str) -> list[str]:
    """Return every progress that a DataVolume reported."""
    return [state.get("status", {}).get("progress", "") for state in chronicle.states("datavolumes", name)]


def done(chronicle: Chronicle, name: str) -> float:
    """Return a DataVolume's progress in percent."""
    states = chronicle.states("datavolumes", name)
    text = states[-1].get("status", {}).get("progress", "N/A") if states else "N/A"
    return 0.0 if text == "N/A" else float(text.removesuffix("%"))


def pod_of(context: World, way: Way, name: str, *, reader: bool) -> Document | None:
    """Return the pod that fills a clone, or the one that reads its source for it."""
    claim = context.chronicles[way.place].present("persistentvolumeclaims").get(name)
    if claim is None:
        return None
    uid = claim["metadata"]["uid"]
    wanted = {golden(way.mode)} if reader else {name, f"prime-{uid}"}
    for pod in context.chronicles[HERE if reader else way.place].present("pods").values():
        mounted = {
            volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        }  # fmt: skip
        serves = not reader or uid in str(pod["metadata"])
        if mounted & wanted and serves and "deletionTimestamp" not in pod["metadata"] and phase(pod) != "Failed":
            return pod
    return None


# --- Deleted DataVolumes ------------------------------------------------------------------------------------------

WITHDRAWN = (
    Way(name="snapshot", place=HERE, mode=FILES, storage_class="csi-wait", size="64Mi", steps=23, every=2),
    Way(name="moved", place=ELSEWHERE, mode=BLOCK, storage_class="csi", size="64Mi", steps=18, first=2, every=2),
    Way(name="cloned", place=HERE, mode=BLOCK, storage_class=CLONING, steps=21, every=3),
    Way(name="copied", place=ELSEWHERE, mode=FILES, storage_class="csi", target=BLOCK, steps=42, first=2, every=4),
    Way(name="direct", place=HERE, mode=BLOCK, storage_class="local", steps=26, first=2, every=3),
    Way(name="restored", place=HERE, mode=FILES, storage_class=COPYING, of_snapshot=True, steps=42, first=4, every=4),
)
NEVER = 1000
"""More than the number of steps."""


def test_a_datavolume_that_is_deleted_at_any_step_of_a_clone_leaves_nothing(cluster, context) -> None:
    numbered = {
        f"{way.name}-{number}": (way, number)
        for way in WITHDRAWN for number in (*range(way.first, way.steps + 1, way.every), NEVER)
    }  # fmt: skip
    image = cdi_image.provide(cluster)
    withdrawing = Meddled(cluster, context.home.namespace, image, ["cancellation"], watching(context.places))
    try:
        withdrawing.start()
        for place, kubectl in context.places.items():
            chosen = {name: each for name, each in numbered.items() if each[0].place == place}
            kubectl.create(
                *(context.document(way, name, {DELETED_AFTER: str(last)}) for name, (way, last) in chosen.items())
            )
        for name, (way, _) in numbered.items():
            context.chronicles[way.place].until(
                f"{name} is done or gone", partial(is_over, context, way, name), TIMEOUT
            )
        ways = {name: way for name, (way, _) in numbered.items()}
        # A DataVolume deleted after its last write exists for a moment longer.
        context.cleared(ways)
        lived = context.present(ways)
        context.read(cluster, lived)
        context.drop(lived)
        lines = withdrawing.lines()
    finally:
        withdrawing.close()
    assert not [line for line in lines if line["message"].startswith("unexpected")]
    deleted = {line["name"] for line in lines if line["message"] == "deleted"}
    assert deleted | set(lived) == set(numbered)
    for way in WITHDRAWN:
        assert f"{way.name}-{NEVER}" in lived
        # A fast machine combines writes, but at least these steps are met.
        assert {f"{way.name}-{number}" for number in range(way.first, way.steps // 2, way.every)} <= deleted


def is_over(context: World, way: Way, name: str) -> bool:
    chronicle = context.chronicles[way.place]
    return "Succeeded" in chronicle.phases(name) or name not in chronicle.present("datavolumes")
