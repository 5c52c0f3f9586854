"""Benchmark of clones in a cluster: scripts/bench --cluster --case clone.

Clones by the storage are compared with the same clone made by hand: a claim with a `dataSource`, and a snapshot where
one is needed. Host-assisted clones are compared with a bare pod plus ``cp --sparse=always`` between two such volumes.
Many clones of one golden image are compared with one.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdi.api.kinds import CLAIMS, DATA_VOLUMES, PODS, VOLUME_SNAPSHOTS, Resource
from tests.cluster import images
from tests.cluster.bench import CLASS, REQUESTS, TIMEOUT, Bench, Document
from tests.cluster.cluster import Cluster
from tests.cluster.objects import claim, pod, snapshot
from tests.cluster.volumes import MIB, data_volume

CLONING, COPYING = "bench-cloning", "bench-copying"
SMALL, LARGE = "256Mi", "3Gi"
CP_IMAGE = "images.cdi.test/cp:1"


def clones(bench: Bench, image: Path, many: int) -> None:
    """Measure clones and add the rows to the benchmark.

    Args:
        bench: The benchmark to extend.
        image: The image to clone.
        many: How many clones of one golden image run at once.
    """
    classes = [_class(CLONING, "csi-clone"), _class(COPYING, "copy")]
    bench.kubectl.create(*classes)
    try:
        _small_image(bench.images / "small.qcow2")
        _golden(bench, "small", SMALL)
        _by_storage(bench, "small", SMALL)
        _many(bench, many)
        (bench.images / "large-golden.qcow2").symlink_to(image)
        _golden(bench, "large-golden", LARGE)
        _by_storage(bench, "large-golden", LARGE)
        _by_copy(bench)
    finally:
        bench.clean()
        bench.kubectl.delete("storageclass", CLONING, COPYING)


# --- Cases --------------------------------------------------------------------------------------------------------


def _by_storage(bench: Bench, source: str, size: str) -> None:
    for strategy, storage_class in (("csi-clone", CLONING), ("snapshot", CLASS)):
        _ours(bench, ["warm-up"], source, size, storage_class)
        by_hand, ours = bench.turns(
            lambda run, how=strategy: _by_hand(bench, f"by-hand-{run}", how, source, size),  # type: ignore[misc]
            lambda run, kind=storage_class: _ours(bench, [f"ours-{run}"], source, size, kind),  # type: ignore[misc]
        )
        bench.add(
            f"{strategy} of a volume of {size}", "≤ 1.5 x the same by hand", f"{ours:.2f} s",
            f"{by_hand:.2f} s ({ours / by_hand:.2f} x)", share=ours / (1.5 * by_hand),
        )  # fmt: skip


def _many(bench: Bench, many: int) -> None:
    one = statistics.median(_ours(bench, [f"one-{run}"], "small", SMALL, CLASS) for run in range(bench.runs))
    with _seen(bench, VOLUME_SNAPSHOTS) as snapshots:
        took = _ours(bench, [f"many-{number}" for number in range(many)], "small", SMALL, CLASS)
    hand = _many_by_hand(bench, many)
    case = f"{many} clones of one golden image at once"
    bench.add(
        case, "≤ 3 x one clone", f"{took:.2f} s",
        f"{one:.2f} s ({took / one:.2f} x); by hand, of a snapshot that is there, {hand:.2f} s", share=took / (3 * one),
    )  # fmt: skip
    bench.add(case, "one snapshot", str(len(snapshots)), "", share=len(snapshots) or math.inf)


def _by_copy(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as directory:
        _provide_cp(bench.cluster, Path(directory))
    bare, cp, ours = bench.turns(
        lambda run: _bare(bench, f"bare-{run}"),
        lambda run: _cp(bench, f"cp-{run}"),
        lambda run: _ours(bench, [f"copy-{run}"], "large-golden", LARGE, COPYING),
    )
    goal = 3 * bare + cp
    bench.add(
        "copy of a 2 GiB disk with 1.2 GB of data, from pod to pod", "≤ 3 x bare pod + cp --sparse=always",
        f"{ours:.2f} s", f"3 x {bare:.2f} s + {cp:.2f} s = {goal:.2f} s", share=ours / goal,
    )  # fmt: skip


# --- Measurements -------------------------------------------------------------------------------------------------


def _ours(bench: Bench, names: list[str], source: str, size: str, storage_class: str) -> float:
    """Return the seconds from applying cloning DataVolumes until all are Succeeded."""
    origin = {"pvc": {"namespace": bench.kubectl.namespace, "name": source}}
    documents = [data_volume(name, origin, storage_class, size=size) for name in names]
    took = bench.until(DATA_VOLUMES, set(names), "Succeeded", lambda: bench.kubectl.apply(*documents))
    _gone(bench, *names)
    return took


def _by_hand(bench: Bench, name: str, strategy: str, source: str, size: str) -> float:
    """Return the seconds until a claim with a dataSource is Bound, including the snapshot for it if needed."""
    wanted = claim(name, CLONING if strategy == "csi-clone" else CLASS, size=size)
    wanted["spec"]["dataSource"] = {"kind": "PersistentVolumeClaim", "name": source}
    documents = [wanted]
    if strategy == "snapshot":
        wanted["spec"]["dataSource"] = {
            "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name,
        }  # fmt: skip
        documents.insert(0, snapshot(name, source))
    took = bench.until(CLAIMS, {name}, "Bound", lambda: bench.kubectl.apply(*documents))
    bench.kubectl.delete("volumesnapshot", name)
    _gone(bench, name)
    return took


def _many_by_hand(bench: Bench, many: int) -> float:
    """Return the seconds until claims restored from one existing snapshot are Bound.

    This is the share of Kubernetes and the storage.
    """
    names = [f"hand-{number}" for number in range(many)]
    bench.kubectl.apply(snapshot("hand", "small"))
    bench.kubectl.wait("volumesnapshot", "hand", "ready", lambda one: one.get("status", {}).get("readyToUse"), TIMEOUT)
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "hand"}
    documents = [claim(name, CLASS, size=SMALL, source=source) for name in names]
    took = bench.until(CLAIMS, set(names), "Bound", lambda: bench.kubectl.apply(*documents))
    bench.kubectl.delete("volumesnapshot", "hand")
    _gone(bench, *names)
    return took


def _bare(bench: Bench, name: str) -> float:
    """Return the seconds that a pod needs to mount a new volume and exit."""
    one = pod(name, bench.cluster.image, "true", claims={name: "Filesystem"})
    one["spec"]["containers"][0]["resources"] = REQUESTS

    documents = claim(name, CLASS, size=LARGE), one
    took = bench.until(PODS, {name}, "Succeeded", lambda: bench.kubectl.apply(*documents))
    _gone(bench, name)
    return took


def _cp(bench: Bench, name: str) -> float:
    """Return the seconds that `cp` and `sync` take, by the clock of their pod."""
    source, target = "/volume/disk.img", f"/volume-{name}/disk.img"
    now = "cut -d' ' -f1 /proc/uptime"
    script = f"{now}; /bin/cp --sparse=always {source} {target}; /bin/sync {target}; {now}"
    volumes = {"large-golden": "Filesystem", name: "Filesystem"}
    one = pod(name, CP_IMAGE, script, claims=volumes)

    documents = claim(name, CLASS, size=LARGE), one
    bench.until(PODS, {name}, "Succeeded", lambda: bench.kubectl.apply(*documents))
    began, ended = map(float, bench.kubectl.logs(name).split())
    _gone(bench, name)
    return ended - began


# --- Fixtures -----------------------------------------------------------------------------------------------------


def _class(name: str, strategy: str) -> Document:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "annotations": {"cdi.kubevirt.io/clone-strategy": strategy}},
        "provisioner": "csi.cdi.test",
        "allowVolumeExpansion": True,
    }


def _golden(bench: Bench, name: str, size: str) -> None:
    document = data_volume(name, {"http": {"url": f"{bench.url}/{name}.qcow2"}}, CLASS, size=size)
    bench.until(DATA_VOLUMES, {name}, "Succeeded", lambda: bench.kubectl.apply(document))


def _small_image(path: Path) -> None:
    """Write a qcow2 image of which a fifth is data."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(os.urandom(40 * MIB))
    os.truncate(raw, 200 * MIB)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)


def _provide_cp(cluster: Cluster, directory: Path) -> None:
    """Load an image with this machine's cp and sync: busybox has neither --sparse nor a sync of one file."""
    files = {"bin": images.File(), **{f"bin/{name}": images.File(link="busybox") for name in ("sh", "cut")}}
    for part in images.parts("busybox", "cp", "sync"):
        place = Path("bin", part.name) if part.name in ("busybox", "cp", "sync") else part.relative_to("/")
        files |= {str(parent): images.File() for parent in place.parents if parent != Path()}
        files[str(place)] = images.File(content=part.read_bytes())
    archive = directory / "cp.tar"
    images.write_archive(archive, CP_IMAGE, files, {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]})
    cluster.load_image(archive)


def _gone(bench: Bench, *names: str) -> None:
    """Delete these objects and wait until only the golden images' volumes exist.

    The next measurement then starts on an idle node.
    """
    for kind in ("datavolume", "pod", "persistentvolumeclaim"):
        bench.kubectl.run("delete", kind, *names, "--ignore-not-found", "--wait=true", patience=TIMEOUT)
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        claims = {
            one["spec"]["claimRef"]["name"]
            for one in bench.kubectl.get_all("persistentvolumes")
            if one["spec"]["claimRef"]["namespace"] == bench.kubectl.namespace
        }
        if claims <= {"small", "large-golden"} and not bench.kubectl.get_all("volumesnapshots"):
            return
        time.sleep(0.2)
    raise AssertionError(f"something of {', '.join(names)} stays")


@contextmanager
def _seen(bench: Bench, resource: Resource) -> Iterator[set[str]]:
    """Yield a set that collects the names of all objects of the resource that exist meanwhile."""
    names: set[str] = set()
    client, namespace = bench.calls.client, bench.kubectl.namespace
    version = bench.calls.run(client.list(resource, namespace)).version

    async def watch() -> None:
        nonlocal version
        while True:
            async for event in client.watch(resource, namespace, version=version):
                version = event["object"]["metadata"]["resourceVersion"]
                if re.fullmatch("ADDED|MODIFIED", event["type"]):
                    names.add(event["object"]["metadata"]["name"])

    future = bench.calls.start(watch())
    try:
        yield names
    finally:
        future.cancel()
