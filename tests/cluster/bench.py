"""Benchmark of imports in a cluster against a bare pod: scripts/bench --cluster.

A bare pod mounts a new volume of the same class and exits, which is what the cluster needs for any pod with a new
volume. Contenders alternate and medians are compared. The controller is a process on this machine, as in the tests;
workers are pods.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import http.server
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cdi.api.job import FileTargetSpec, HttpSourceSpec, Job
from cdi.api.kinds import DATA_VOLUMES, PODS, Resource
from cdi.kube.client import Client, connect
from cdi.kube.sync import SyncClient
from tests.cluster import lifecycle
from tests.cluster.cdi import Controller, controller, definitions
from tests.cluster.cluster import Cluster, own
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import HOST_ADDRESS, Layout
from tests.cluster.objects import claim, pod
from tests.cluster.settings import kept_config

ROOT = Path(__file__).parents[2]
CLASS = "csi"
CASES = ("tiny", "large", "upload", "clone", "blanks", "idle")
TIMEOUT = 900.0
IDLE = "bench.cdi.test/idle"
"""Label of the volumes that hold no data."""
Document = dict[str, Any]
# The controller requests the same for a worker, so the scheduler puts equally many of either on the node.
REQUESTS = {"requests": {"cpu": "100m", "memory": "60M"}, "limits": {"cpu": "750m", "memory": "600M"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured goal."""

    case: str
    goal: str
    ours: str
    other: str
    share: float
    """Used part of the goal's limit; 1.0 is the limit itself."""

    @property
    def reached(self) -> bool:
        return self.share <= 1


@dataclass(slots=True, kw_only=True)
class Bench:
    """A namespace with a controller and an image server."""

    cluster: Cluster
    kubectl: Kubectl
    calls: SyncClient
    running: Controller
    images: Path
    url: str
    runs: int
    many: int
    rows: list[Row] = field(default_factory=list)

    # --- Measurements ---------------------------------------------------------------------------------------------

    def until(self, resource: Resource, names: set[str], phase: str, begin: Callable[[], None]) -> float:
        """Return the seconds from `begin` until all of `names` are in `phase`."""
        return self.calls.run(self._until(self.calls.client, resource, names, phase, begin))

    async def _until(
        self, client: Client, resource: Resource, names: set[str], phase: str, begin: Callable[[], None]
    ) -> float:
        version = (await client.list(resource, self.kubectl.namespace)).version
        began = time.monotonic()
        started = asyncio.ensure_future(asyncio.to_thread(begin))
        left = set(names)
        async with asyncio.timeout(TIMEOUT):
            while left:
                async for event in client.watch(resource, self.kubectl.namespace, version=version):
                    body = event["object"]
                    version = body["metadata"]["resourceVersion"]
                    if body.get("status", {}).get("phase") == "Failed":
                        raise AssertionError(json.dumps(body["status"]))
                    if body.get("status", {}).get("phase") == phase:
                        left.discard(body["metadata"]["name"])
                    if not left:
                        break
        took = time.monotonic() - began
        await started
        return took

    def bare(self, names: list[str], size: str) -> float:
        """Return the seconds that pods need which each mount a new volume and exit."""
        documents: list[Document] = []
        for name in names:
            one = pod(name, self.cluster.image, "true", claims={name: "Filesystem"})
            one["spec"]["containers"][0]["resources"] = REQUESTS
            documents += [claim(name, CLASS, size=size), one]
        took = self.until(PODS, set(names), "Succeeded", lambda: self.kubectl.apply(*documents))
        self.clean()
        return took

    def ours(self, names: list[str], size: str, source: Document) -> float:
        """Return the seconds from applying DataVolumes until all are Succeeded."""
        documents = [data_volume(name, size, source) for name in names]
        took = self.until(DATA_VOLUMES, set(names), "Succeeded", lambda: self.kubectl.apply(*documents))
        self.clean()
        return took

    def clean(self) -> None:
        """Delete everything in the namespace and wait until its volumes are deleted.

        The next measurement then starts with an empty namespace and an idle node.
        """
        for kind in ("datavolumes", "pods", "persistentvolumeclaims"):
            self.kubectl.run("delete", kind, "--all", "--wait=true", patience=TIMEOUT)
        until = time.monotonic() + TIMEOUT
        while time.monotonic() < until:
            volumes = self.kubectl.get_all("persistentvolumes")
            if not any(each["spec"]["claimRef"]["namespace"] == self.kubectl.namespace for each in volumes):
                return
            time.sleep(0.2)

    def turns(self, *ways: Callable[[int], float]) -> list[float]:
        """Return the median of each contender; they alternate, so other load on the machine affects all alike."""
        took = [[way(run) for way in ways] for run in range(self.runs)]
        return [statistics.median(each) for each in zip(*took, strict=True)]

    def add(self, case: str, goal: str, ours: str, other: str, *, share: float) -> None:
        row = Row(case=case, goal=goal, ours=ours, other=other, share=share)
        self.rows.append(row)
        print(f"{case}: {goal}: ours {ours}, other {other}: {'reached' if row.reached else 'MISSED'}", flush=True)

    # --- Cases ----------------------------------------------------------------------------------------------------

    def tiny(self) -> None:
        _tiny(self.images / "tiny.qcow2")
        source = {"http": {"url": f"{self.url}/tiny.qcow2"}}
        self.ours(["warm-up"], "64Mi", source)
        bare, ours = self.turns(
            lambda run: self.bare([f"bare-{run}"], "64Mi"), lambda run: self.ours([f"tiny-{run}"], "64Mi", source)
        )
        self.add(
            "tiny qcow2 over HTTP", "≤ 1.8 x bare pod", f"{ours:.2f} s", f"{bare:.2f} s ({ours / bare:.2f} x)",
            share=ours / (1.8 * bare),
        )  # fmt: skip

    def large(self, image: Path) -> None:
        shutil.copyfile(image, self.images / "large.qcow2")
        url = f"{self.url}/large.qcow2"
        bare, job, ours = self.turns(
            lambda run: self.bare([f"bare-{run}"], "3Gi"),
            lambda _: _by_hand(url),
            lambda run: self.ours([f"large-{run}"], "3Gi", {"http": {"url": url}}),
        )
        goal = bare + 1.3 * job
        size = image.stat().st_size / 1e6
        self.add(
            f"{size:.0f} MB compressed qcow2 of a 2 GiB disk over HTTP", "≤ bare pod + 1.3 x the Job by hand",
            f"{ours:.2f} s", f"{bare:.2f} s + 1.3 x {job:.2f} s = {goal:.2f} s", share=ours / goal,
        )  # fmt: skip

    def blanks(self) -> None:
        bare = self.bare([f"bare-{n}" for n in range(self.many)], "16Mi")
        before = self.running.processor_seconds()
        peak = _Peak(self.running)
        with peak:
            ours = self.ours([f"blank-{n}" for n in range(self.many)], "16Mi", {"blank": {}})
        cost = self.running.processor_seconds() - before
        case = f"{self.many} blank DataVolumes at once"
        self.add(
            case, "≤ 1.3 x as many bare pods", f"{ours:.1f} s", f"{bare:.1f} s ({ours / bare:.2f} x)",
            share=ours / (1.3 * bare),
        )  # fmt: skip
        self.add(case, "controller ≤ 32 CPU-s", f"{cost:.1f} CPU-s", "", share=cost / (32 * self.many / 200))
        self.add(case, "controller ≤ 160 MiB", f"{peak.mib:.0f} MiB", "", share=peak.mib / 160)

    def idle(self, count: int, seconds: float) -> None:
        """Measure with DataVolumes that adopt bound claims, which makes them Succeeded without any import."""
        names = [f"idle-{n:04}" for n in range(count)]
        try:
            for chunk in (names[at : at + 100] for at in range(0, count, 100)):
                documents = [each for name in chunk for each in self._adopted(name)]
                self.until(DATA_VOLUMES, set(chunk), "Succeeded", functools.partial(self.kubectl.apply, *documents))
            self._idle(count, seconds)
        finally:
            self.kubectl.run("delete", "datavolumes,persistentvolumeclaims", "--all", "--wait=true", patience=TIMEOUT)
            self.kubectl.run("delete", "persistentvolumes", f"--selector={IDLE}", "--wait=true", patience=TIMEOUT)

    def _adopted(self, name: str) -> list[Document]:
        """Build a PersistentVolume, a claim bound to it, and a DataVolume that adopts the claim."""
        place = f"{self.kubectl.namespace}-{name}"
        wanted = claim(name, "nobody", size="16Mi")
        wanted["spec"]["volumeName"] = place
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": place, "labels": {IDLE: ""}},
            "spec": {
                "capacity": {"storage": "16Mi"},
                "accessModes": wanted["spec"]["accessModes"],
                "storageClassName": "nobody",
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": self.kubectl.namespace, "name": name},
                "hostPath": {"path": "/nowhere"},
            },
        }
        one = data_volume(name, "16Mi", {"blank": {}})
        one["metadata"]["annotations"] = {"cdi.kubevirt.io/allowClaimAdoption": "true"}
        one["spec"]["pvc"]["storageClassName"] = "nobody"
        return [volume, wanted, one]

    def _idle(self, count: int, seconds: float) -> None:
        time.sleep(5)
        before, began = self.running.processor_seconds(), time.monotonic()
        time.sleep(seconds)
        share = (self.running.processor_seconds() - before) / (time.monotonic() - began)
        self.running.stop()
        began = time.monotonic()
        self.running.start()
        sync = time.monotonic() - began
        case = f"{count} DataVolumes already Succeeded"
        self.add(case, "idle controller under 2 % of a core", f"{share * 100:.2f} %", "", share=share / 0.02)
        self.add(case, "restart to in-sync ≤ 20 s", f"{sync:.1f} s", "", share=sync / 20)
        memory = self.running.memory() / (1 << 20)
        self.add(case, "controller ≤ 160 MiB", f"{memory:.0f} MiB", "", share=memory / 160)


class _Peak:
    """Peak memory of the controller in MiB, sampled by a thread."""

    def __init__(self, running: Controller) -> None:
        self._running = running
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.mib = 0.0

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            self.mib = max(self.mib, self._running.memory() / (1 << 20))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def data_volume(name: str, size: str, source: Document) -> Document:
    """Build a DataVolume of the measured storage class."""
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name},
        "spec": {
            "source": source,
            "pvc": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": CLASS,
                "resources": {"requests": {"storage": size}},
            },
        },
    }


def _by_hand(url: str) -> float:
    """Return the seconds that the same Job takes as a process on this machine."""
    with tempfile.TemporaryDirectory(dir=os.environ["CDI_CACHE"]) as directory:
        job = Job(id="bench", source=HttpSourceSpec(url=url), target=FileTargetSpec(path=f"{directory}/disk.img"))
        path = Path(directory) / "job.json"
        path.write_text(job.to_json())
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "cdi.worker", "run", str(path), "--status-dir", directory],
            check=True, capture_output=True, cwd=ROOT, timeout=TIMEOUT,
        )  # fmt: skip
        return time.monotonic() - began


def _tiny(path: Path) -> None:
    raw = path.with_suffix(".raw")
    raw.write_bytes(os.urandom(1 << 20) + bytes(3 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)


@contextmanager
def _nginx(root: Path) -> Iterator[str]:
    """Serve the files of `root` with nginx at an address that pods reach; yield the URL."""
    with http.server.ThreadingHTTPServer((HOST_ADDRESS, 0), http.server.SimpleHTTPRequestHandler) as probe:
        port = probe.server_address[1]
    work = root / ".nginx"
    work.mkdir(exist_ok=True)
    (work / "nginx.conf").write_text(
        f"daemon off; user root; pid {work}/pid; error_log {work}/error; events {{}} "
        f"http {{ access_log off; sendfile on; server {{ listen {HOST_ADDRESS}:{port}; root {root}; }} }}"
    )
    with subprocess.Popen(["nginx", "-p", str(work), "-c", str(work / "nginx.conf")]) as process:
        try:
            time.sleep(0.5)
            yield f"http://{HOST_ADDRESS}:{port}"
        finally:
            process.terminate()


def _large_image() -> Path:
    """Return the path of the large image of scripts/bench, which has put `bench_lib` on the module path."""
    images = importlib.import_module("bench_lib.images").Images(Path(os.environ["CDI_CACHE"]) / "bench", quick=False)
    path: Path = images.get("2g.qcow2c").path
    return path


@contextmanager
def _as_the_chart_installs(kubectl: Kubectl) -> Iterator[None]:
    """Create a CDI object with the chart's configuration: worker pods may use two CPUs.

    An existing CDI object is left unchanged.
    """
    if kubectl.get_all("cdis"):
        yield
        return
    values = yaml.safe_load((ROOT / "charts/cdi/values.yaml").read_text())
    with kept_config(kubectl):
        kubectl.create(
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "CDI",
                "metadata": {"name": "cdi"},
                "spec": {"config": values["config"]},
            }
        )
        try:
            yield
        finally:
            kubectl.delete("cdi", "cdi")


def _page(rows: list[Row], runs: int) -> str:
    lines = [
        "# Benchmarks in a cluster",
        "",
        "Written by `scripts/bench --cluster` on the [test cluster](../how-to/test-cluster.md), one node of two cores. The ratios"
        " matter,",
        f"each of one run. Medians of {runs} runs, the contenders taking turns. [Performance](../explanation/performance.md)"
        " explains the",
        "goals that are missed.",
        "",
        "A *bare pod* mounts a new volume of the same class and exits. *The Job by hand* is the same import as a process of the"
        " node's",
        "machine, without a processor limit; worker pods have the limits that the chart sets (two processors).",
        "",
        "![Share of each goal's limit](benchmarks-cluster.svg)",
        "",
        "| case | goal | ours | other | reached |",
        "|---|---|---|---|---|",
        *(
            f"| {row.case} | {row.goal} | {row.ours} | {row.other} | {'yes' if row.reached else '**no**'} |"
            for row in rows
        ),
        "",
    ]
    return "\n".join(lines)


def write(rows: list[Row], page: str, directory: Path) -> None:
    """Write the page, the numbers and the plot."""
    from bench_lib.plots import goals_plot  # scripts/bench puts it on the module path

    numbers = [asdict(row) for row in rows]
    (directory / "benchmarks-cluster.md").write_text(page)
    (directory / "benchmarks-cluster.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    (directory / "benchmarks-cluster.svg").write_text(goals_plot(numbers, "benchmarks-cluster.json"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench --cluster", description=__doc__)
    parser.add_argument("-n", type=int, default=5, metavar="RUNS")
    parser.add_argument("--many", type=int, default=200, help="blank DataVolumes at once")
    parser.add_argument("--clones", type=int, default=20, help="clones of one golden image at once")
    parser.add_argument("--idle", type=int, default=1000, help="DataVolumes that are Succeeded")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--no-write", action="store_true", help="leave the page, its numbers and its plot as they are")
    arguments = parser.parse_args()
    chosen = arguments.case or CASES
    layout = Layout.default()
    with ExitStack() as stack:
        if lifecycle.up(layout, lambda text: print(f"cluster: {text}", flush=True)):
            stack.callback(lifecycle.down, layout)
        cluster = own(layout)
        kubectl = stack.enter_context(cluster.namespace("bench"))
        definitions(cluster)
        stack.enter_context(_as_the_chart_installs(kubectl))
        images = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ["CDI_CACHE"])))
        bench = Bench(
            cluster=cluster,
            kubectl=kubectl,
            calls=stack.enter_context(SyncClient(connect(str(layout.kubeconfig)))),
            running=stack.enter_context(controller(cluster, kubectl)),
            images=images,
            url=stack.enter_context(_nginx(images)),
            runs=arguments.n,
            many=arguments.many,
        )
        if "tiny" in chosen:
            bench.tiny()
        if "large" in chosen:
            bench.large(_large_image())
        if "upload" in chosen:
            from tests.cluster.bench_upload import upload  # imports this module

            upload(bench, _large_image())
        if "clone" in chosen:
            from tests.cluster.bench_clone import clones  # imports this module

            clones(bench, _large_image(), arguments.clones)
        if "blanks" in chosen:
            bench.blanks()
        if "idle" in chosen:
            bench.idle(arguments.idle, 60.0)
    page = _page(bench.rows, arguments.n)
    print(page)
    if not arguments.no_write:
        write(bench.rows, page, ROOT / "docs/reference")
    return 0 if all(row.reached for row in bench.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
