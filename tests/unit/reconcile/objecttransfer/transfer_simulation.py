"""The controller without its connection, on an in-memory API server, carrying out ObjectTransfers.

Each resource's watch delivers its changes late and independently; Kubernetes' own controllers act one step at a time;
the controller is killed after any of its writes. Changes enqueue keys by the controller's own mapping.
"""

from __future__ import annotations

import asyncio
import copy

from cdi.api.errors import Conflict
from cdi.api.kinds import (
    CLAIMS,
    CSI_DRIVERS,
    DATA_VOLUMES,
    NAMESPACES,
    OBJECT_TRANSFERS,
    PODS,
    STORAGE_CLASSES,
    VOLUMES,
)
from cdi.controller.manager import Manager
from cdi.controller.metrics import Metrics
from cdi.controller.reconcilers.registry import initial_requests
from cdi.controller.request import Scope
from cdi.kube.reflector import WatchEvent
from cdi.reconcile.objecttransfer.record import FINALIZER
from cdi.reconcile.settings import WorkerPodConfig
from tests.unit.reconcile.objecttransfer.api import PROTECTION, Api, Crash

PV = "pv-1"
SOURCE, TARGET = ("a", "disk"), ("b", "disk")
HELD = PROTECTION[CLAIMS]


class Keys:
    """The controller's queue, with the keys that are due and those that are due later."""

    def __init__(self):
        self.now, self.later = {}, {}

    def add(self, key, pause=0.0, *, reason=None):
        if key.kind not in ("volume", "transfer"):
            return
        if pause:
            self.later[key] = pause
        else:
            self.now[key] = None


class Simulation:
    """A claim ``a/disk`` with its volume, of a DataVolume if `moves` says so, and one transfer of it."""

    def __init__(
        self,
        moves="PersistentVolumeClaim",
        *,
        target=TARGET,
        reclaim="Delete",
        namespaces=("a", "b"),
        forgets=False,
        behind=0,
    ):
        self.api = Api()
        self.moves, self.target = moves, target
        self.behind = behind
        """Number of changes by which the list of volumes is staler than the others when the controller starts."""
        self.forgets = forgets
        """Whether the controller does not know even its own writes until the watch delivers them."""
        self.now = 1_767_225_600.0
        self.reclaimed = []
        self.safe = True
        """Whether the controller alone touches the claims; then their volume must be protected at every moment."""
        for name in namespaces:
            self.api.add(NAMESPACES, {"metadata": {"name": name}})
        self.api.add(STORAGE_CLASSES, {"metadata": {"name": "csi"}, "provisioner": "csi.example"})
        self.api.add(CSI_DRIVERS, {"metadata": {"name": "csi.example"}})
        self._source(reclaim)
        self.before = self.face()
        self.transfer("t", kind=moves, target=target)
        self.api.look = self._look
        self.first = len(self.api.log)
        self.start()

    def _source(self, reclaim):
        owners, annotations = [], {"mine": "kept", "pv.kubernetes.io/bind-completed": "yes"}
        if self.moves == "DataVolume":
            body = {
                "metadata": {
                    "namespace": "a",
                    "name": "disk",
                    "labels": {"tier": "gold"},
                    "annotations": {"said": "so"},
                },
                "spec": {
                    "source": {"http": {"url": "http://server/disk.img"}},
                    "storage": {"resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "csi"},
                },
                "status": {"phase": "Succeeded", "progress": "100.0%", "claimName": "disk"},
            }
            owner = self.api.add(DATA_VOLUMES, body)
            reference = {name: owner[name] for name in ("apiVersion", "kind")}
            reference |= {"name": "disk", "uid": owner["metadata"]["uid"], "controller": True}
            owners = [reference]
            annotations |= {
                "cdi.kubevirt.io/storage.pod.phase": "Succeeded",
                "cdi.kubevirt.io/storage.import.source": "http",
                "cdi.kubevirt.io/storage.import.endpoint": "http://server/disk.img",
                "cdi.kubevirt.io/image.digest": "sha256:1",
            }
        body = {
            "metadata": {"namespace": "a", "name": "disk", "annotations": annotations, "labels": {"tier": "gold"}},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "csi",
                "volumeMode": "Filesystem",
                "volumeName": PV,
                "resources": {"requests": {"storage": "1Gi"}},
                "dataSourceRef": {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeImportSource", "name": "s"},
            },
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        }
        if self.moves != "DataVolume":
            del body["spec"]["dataSourceRef"]
        body["metadata"] |= {"ownerReferences": owners} if owners else {}
        claim = self.api.add(CLAIMS, body)
        ref = {"kind": "PersistentVolumeClaim", "namespace": "a", "name": "disk", "uid": claim["metadata"]["uid"]}
        body = {
            "metadata": {"name": PV},
            "spec": {
                "claimRef": ref,
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "csi",
                "persistentVolumeReclaimPolicy": reclaim,
            },
            "status": {"phase": "Bound"},
        }
        self.api.add(VOLUMES, body)

    # --- state ------------------------------------------------------------------------------------------------------

    def transfer(self, name, *, kind="PersistentVolumeClaim", source=SOURCE, target=TARGET, annotations=None):
        spec = {
            "source": {"kind": kind, "namespace": source[0], "name": source[1]},
            "target": {"namespace": target[0], "name": target[1]},
        }
        if annotations:
            spec["source"]["requiredAnnotations"] = annotations
        self.api.add(OBJECT_TRANSFERS, {"metadata": {"name": name}, "spec": spec})

    def status(self, name="t"):
        return (self.api.find(OBJECT_TRANSFERS, "", name) or {}).get("status", {})

    def said(self, name="t"):
        """Return phase and reason."""
        status = self.status(name)
        return status.get("phase"), status["conditions"][0]["reason"] if status.get("conditions") else None

    @property
    def volume(self):
        return self.api.find(VOLUMES, "", PV)

    def claim(self, place):
        return self.api.find(CLAIMS, *place)

    def face(self, place=SOURCE):
        """Return everything that must be unchanged if nothing was moved."""
        claim, volume = self.claim(place), self.volume
        kept = [
            copy.deepcopy(part)
            for part in (claim and {**claim, "metadata": {**claim["metadata"], "resourceVersion": ""}}, volume["spec"])
        ]
        return [*kept, [body["metadata"]["name"] for body in self.api.all(DATA_VOLUMES)]]

    def locks(self):
        """Return the finalizers that transfers still hold."""
        bodies = [*self.api.all(CLAIMS), *self.api.all(OBJECT_TRANSFERS)]
        return [one for body in bodies for one in body["metadata"].get("finalizers", ()) if one.startswith(FINALIZER)]

    def _look(self):
        volume = self.volume
        assert volume is not None, "the volume is gone"
        assert "deletionTimestamp" not in volume["metadata"]
        if self.safe and volume["spec"]["persistentVolumeReclaimPolicy"] != "Retain":
            ref = volume["spec"]["claimRef"]
            claim = self.api.find(CLAIMS, ref["namespace"], ref["name"])
            assert claim is not None, "nothing keeps the volume"
            assert claim["metadata"]["uid"] == ref["uid"]
            assert "deletionTimestamp" not in claim["metadata"], "the claim goes, and the volume with it"

    # --- the controller ---------------------------------------------------------------------------------------------

    def start(self):
        """Start a new controller process, which lists all objects."""
        metrics = Metrics(lambda _: (), version="1", waiting=lambda: 0, in_work=lambda: 0)
        self.life = Manager(
            self.api, scope=Scope(), pods=WorkerPodConfig(image="example/cdi:1"), install_namespace="cdi", version="1", workers=1,
            metrics=metrics, stop=asyncio.Event(), now=lambda: self.now,
        )  # fmt: skip
        self.keys = self.life.queue = Keys()
        # The resources that are watched in the namespace of CDI only have nothing to do with transfers.
        watched = self.life.watches._reflectors
        self.reflectors = {kind: spaces[None] for kind, spaces in watched.items() if None in spaces}
        if self.forgets:
            self.life.watches.record_write = lambda *_: None
        self.told = {}
        for kind, reflector in self.reflectors.items():
            at = len(self.api.log) - (self.behind if kind == VOLUMES else 0)
            at = max(at, self.first)
            items = {} if kind == PODS else self._listed(kind, at)
            version = max((int(body["metadata"]["resourceVersion"]) for _, _, body in self.api.log[:at]), default=0)
            reflector._version = str(version)
            reflector._replace(list(items.values()), version)
            self.told[kind] = at
        for pod in self.api.all(PODS):
            self._use("ADDED", pod)
        # A set's order depends on the hash seed, and the steps of an example on the order of the keys.
        for key in sorted(initial_requests(self.life.watches), key=str, reverse=True):
            self.keys.add(key)
        self.life._synced = True

    def _listed(self, kind, at):
        """Return the objects of a resource at a position in the log."""
        found = {}
        for resource, what, body in self.api.log[:at]:
            if resource == kind:
                key = (body["metadata"].get("namespace"), body["metadata"]["name"])
                found[key] = copy.deepcopy(body)
                if what == "DELETED":
                    del found[key]
        return found

    def untold(self):
        """Return the resources whose watch has changes to deliver."""
        found = []
        for kind in self.reflectors:
            at = self.told[kind]
            while at < len(self.api.log) and self.api.log[at][0] != kind:
                at += 1
            self.told[kind] = at
            if at < len(self.api.log):
                found.append(kind)
        return found

    def tell(self, kind):
        """Deliver the next change of a resource."""
        _, what, body = self.api.log[self.told[kind]]
        self.told[kind] += 1
        if kind == PODS:
            self._use(what, body)
            return
        reflector = self.reflectors[kind]
        body = reflector._stripped(copy.deepcopy(body))
        key = (body["metadata"].get("namespace") or "", body["metadata"]["name"])
        if what == "DELETED":
            reflector._remove(key, body["metadata"]["uid"])
        else:
            reflector._put(body)
        reflector._version = body["metadata"]["resourceVersion"]

    def _use(self, what, pod):
        """Deliver a change of a pod; all pods here belong to others."""
        claims = tuple(one["persistentVolumeClaim"]["claimName"] for one in pod["spec"]["volumes"])
        body = {"metadata": pod["metadata"], "claims": claims}
        self.life._users.changed(
            WatchEvent(type=what, old=body if what == "DELETED" else None, new=None if what == "DELETED" else body)
        )

    async def work(self, which=0, lives=None):
        """Reconcile one key that is due; the controller is killed after `lives` writes."""
        key = list(self.keys.now)[which % len(self.keys.now)]
        del self.keys.now[key]
        self.keys.later.pop(key, None)
        self.api.fuse = lives
        try:
            result = await self.life._reconcilers.reconcile(key)
        except Conflict:
            self.keys.add(key)
        except Crash:
            self.start()
        else:
            if result.requeue_after is not None:
                self.keys.later[key] = result.requeue_after
        self.api.fuse = None

    # --- Kubernetes and users ---------------------------------------------------------------------------------------

    def nature(self):
        """Return the steps that Kubernetes could take now."""
        return [*self._binding(), *self._protecting(), *self._collecting()]

    def _binding(self):
        volume = self.volume
        ref = volume["spec"].get("claimRef", {})
        for claim in self.api.all(CLAIMS):
            metadata = claim["metadata"]
            place, mine = (metadata["namespace"], metadata["name"]), ref.get("uid") == metadata["uid"]
            if claim["status"]["phase"] == "Bound" and not mine:
                yield lambda place=place: self.api.change(
                    CLAIMS, *place, lambda body: body["status"].update(phase="Lost")
                )
            elif claim["status"]["phase"] == "Pending" and mine and claim["spec"].get("volumeName") == PV:
                bound = {"phase": "Bound", "capacity": volume["spec"]["capacity"]}
                yield lambda place=place, bound=bound: self.api.change(
                    CLAIMS, *place, lambda body: body.update(status=bound)
                )
        claim = self.api.find(CLAIMS, ref.get("namespace"), ref.get("name", ""))
        if ref and (claim is None or claim["metadata"]["uid"] != ref["uid"]):
            if volume["status"]["phase"] == "Bound":
                yield lambda: self.api.change(VOLUMES, "", PV, lambda body: body["status"].update(phase="Released"))
            elif volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
                raise AssertionError("the volume is deleted")

    def _protecting(self):
        for claim in self.api.all(CLAIMS):
            metadata = claim["metadata"]
            if "deletionTimestamp" in metadata and HELD in metadata["finalizers"] and not self.pods_of(claim):
                place = (metadata["namespace"], metadata["name"])
                yield lambda place=place: self.release(place, HELD)

    def _collecting(self):
        uids = {body["metadata"].get("uid") for body in self.api.objects.values()}
        for (resource, namespace, name), body in sorted(self.api.objects.items(), key=lambda one: one[0][1:]):
            owners = body["metadata"].get("ownerReferences")
            if owners and not uids & {one["uid"] for one in owners} and "deletionTimestamp" not in body["metadata"]:
                yield lambda key=(resource, namespace, name): self.api.remove(*key)

    def pods_of(self, claim):
        namespace, name = claim["metadata"]["namespace"], claim["metadata"]["name"]
        return [
            pod
            for pod in self.api.all(PODS)
            if pod["metadata"]["namespace"] == namespace
            and any(one["persistentVolumeClaim"]["claimName"] == name for one in pod["spec"]["volumes"])
        ]

    def release(self, place, *finalizers):
        """Remove finalizers of a claim, as another client."""

        def alter(body):
            body["metadata"]["finalizers"] = [one for one in body["metadata"]["finalizers"] if one not in finalizers]

        self.api.change(CLAIMS, *place, alter)

    def use(self, place=SOURCE, name="vm"):
        """Create a pod that uses a claim."""
        volumes = [{"persistentVolumeClaim": {"claimName": place[1]}}]
        self.api.add(PODS, {"metadata": {"namespace": place[0], "name": name}, "spec": {"volumes": volumes}})

    # --- runs -------------------------------------------------------------------------------------------------------

    async def go(self, moves, lives=()):
        """Take steps as `moves` choose; in reconcile n only ``lives[n]`` writes happen (0: all)."""
        reconciles = 0
        for choice in moves:
            doable = [*(("tell", kind) for kind in self.untold()), *(("do", one) for one in self.nature())]
            doable += [("work", number) for number in range(len(self.keys.now))]
            if not doable:
                break
            what, which = doable[choice % len(doable)]
            if what == "tell":
                self.tell(which)
            elif what == "do":
                which()
            else:
                await self.work(which, lives[reconciles % len(lives)] or None if lives else None)
                reconciles += 1

    async def until(self, write):
        """Run until the controller is killed right after its n-th write, or to the fixpoint."""
        while self.keys.now or self.untold() or self.nature():
            for kind in self.untold():
                self.tell(kind)
            if self.keys.now:
                await self.work(0, write - len(self.api.written))
                if len(self.api.written) >= write:
                    return
            elif acts := self.nature():
                acts[0]()

    async def run(self, steps=2000, hasty=False):
        """Run to the fixpoint: no step is left, and repeated reconciles change nothing.

        If `hasty`, Kubernetes acts before any watch delivers anything.
        """
        idle = 0
        for _ in range(steps):
            kinds, acts = self.untold(), self.nature()
            if hasty and acts:
                acts[0]()
                idle = 0
            elif kinds:
                for kind in kinds:
                    self.tell(kind)
            elif self.keys.now:
                before = len(self.api.written)
                await self.work()
                idle = 0 if len(self.api.written) > before else idle
            elif acts:
                acts[0]()
                idle = 0
            elif self.keys.later and idle < 3:
                idle += 1
                self.now += max(self.keys.later.values())
                for key in list(self.keys.later):
                    self.keys.add(key)
                self.keys.later.clear()
            else:
                return self
        raise AssertionError(f"no fixpoint after {steps} steps: {self.status()}, {list(self.keys.now)}")
