"""A model of a cluster whose storage takes snapshots, clones and expands volumes, with a golden image to clone."""

from __future__ import annotations

import copy
from dataclasses import replace

from cdi.api.copy import TICKET_PREFIX, Ticket
from cdi.api.job import Job, Outcome
from cdi.api.quantity import Quantity
from cdi.api.storageprofile import CloneStrategy
from cdi.api.validation import parse
from cdi.reconcile.actions import DeleteObject, EnsureCertificate, ExpandClaim
from cdi.reconcile.clone.gc import (
    is_copying,
    reconcile_claim,
    reconcile_measurement,
    reconcile_reader,
    reconcile_snapshot,
)
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID, ANN_TARGET
from cdi.reconcile.clone.types import PrepPod, SizeDetectionPod, Snapshot, SourcePod
from cdi.reconcile.context_builder import build_context
from cdi.reconcile.pods.roles import PREPARATION, SIZE_DETECTION
from cdi.reconcile.pods.status import termination_outcome, worker_from_pod
from cdi.reconcile.storage.classes import StorageClass
from tests.unit.reconcile import cluster_simulation as base
from tests.unit.reconcile.cluster_simulation import CLAIMS, CLASSES, CLUSTER, KINDS, NS, PODS, VOLUMES, Cluster

GOLDEN = "golden"
SNAPSHOTS = "volumesnapshots"
KINDS.update(VolumeSnapshot=SNAPSHOTS, VolumeCloneSource="volumeclonesources")
CLASSES.update(
    fixed=StorageClass(name="fixed", provisioner="csi.example"),
    grows=StorageClass(name="grows", provisioner="csi.example", allow_expansion=True),
)
MIB = 1 << 20


def tickets_of(pod):
    """Return the targets that a source pod sends to, by the uids of their claims."""
    notes = pod["metadata"]["annotations"].items()
    prefix = TICKET_PREFIX
    return {name.removeprefix(prefix): Ticket.from_json(text) for name, text in notes if name.startswith(prefix)}


class CloneCluster(Cluster):
    """A DataVolume ``a`` that is cloned from claim ``fedora`` of `namespace`."""

    def __init__(self, body=None, *, namespace=NS, strategy="snapshot", size="1Gi", mode="Filesystem", **options):
        self.strategy_said = strategy
        self.namespace = namespace
        self.stuck = options.pop("stuck", False)
        """Whether storage never restores snapshots or clones volumes; ``stand-in``: only in the target claim itself."""
        self.disk = options.pop("disk", 900 * MIB)
        """Bytes of the disk in the source, or how the size-detection pod fails."""
        self.withdrawn = ()
        """Names of StorageClasses that were deleted."""
        self.pods_of_source = []
        self.certificates = set()
        """Client certificates of source pods, as (pod uid, entry, name)."""
        self.measured = 0
        """Number of size detections."""
        self.unlucky = options.pop("unlucky", ())
        """Failures of the first size-detection pods."""
        self.grants = options.pop("grants", {})
        kept = options.pop("kept", False)
        super().__init__(body, **options)
        self.golden(size, mode)
        if kept:
            self.keep(size, mode)

    def golden(self, size, mode):
        """Create the source claim and its volume."""
        self.objects[VOLUMES, "", "pv-golden"] = {
            "kind": "PersistentVolume",
            "metadata": {"name": "pv-golden", "uid": "uid-pv-golden"},
            "spec": {"claimRef": {"namespace": self.namespace, "name": "fedora", "uid": "uid-golden"}},
            "status": {"phase": "Bound"},
            "content": GOLDEN,
            "size": size,
        }
        self.create(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {
                    "name": "fedora",
                    "namespace": self.namespace,
                    "uid": "uid-golden",
                    "labels": {"instancetype.kubevirt.io/default-preference": "fedora"},
                },
                "spec": {
                    "storageClassName": "csi",
                    "volumeMode": mode,
                    "volumeName": "pv-golden",
                    "resources": {"requests": {"storage": size}},
                },
            }
        )
        source = self.get(CLAIMS, "fedora", self.namespace)
        source["status"] = {"phase": "Bound", "capacity": {"storage": size}}

    def keep(self, size, mode):
        """Create a user's own snapshot of the source."""
        self.create(
            {
                "apiVersion": "snapshot.storage.k8s.io/v1",
                "kind": "VolumeSnapshot",
                "metadata": {"name": "kept", "namespace": self.namespace, "uid": "uid-kept"},
                "spec": {"volumeSnapshotClassName": "fast", "source": {"persistentVolumeClaimName": "fedora"}},
            }
        )
        self.objects[SNAPSHOTS, self.namespace, "kept"].update(content=GOLDEN, size=size, mode=mode, begun=self.now)

    def source_face(self):
        """Return everything that a clone must not change."""
        places = (
            (CLAIMS, self.namespace, "fedora"),
            (VOLUMES, "", "pv-golden"),
            (SNAPSHOTS, self.namespace, "kept"),
        )
        return copy.deepcopy([self.objects.get(place) for place in places])

    # --- objects: found in any namespace, since each name is unique -----------------------------------------------

    def get(self, plural, name, namespace=NS):
        exact = self.objects.get((plural, namespace, name))
        if exact is not None or (plural, name) == (CLAIMS, "a"):
            return exact
        return next((one for (kind, _, own), one in self.objects.items() if (kind, own) == (plural, name)), None)

    # --- what reconcilers query ---------------------------------------------------------------------------------

    def context(self, name=None, refusal=None):
        return build_context(
            self, self.key[0], name or self.key[1],
            now=self.now, config=self.config, retries=self.retries, platform=CLUSTER, refusal=refusal, clones=self,
        )  # fmt: skip

    def users(self, namespace, claim):
        return tuple(self.pods_of_source) if claim == "fedora" else ()

    def volume(self, name):
        found = super().volume(name)
        body = self._see(VOLUMES, name, "")
        return None if found is None else replace(found, capacity=Quantity.parse(body["size"]).bytes)

    def worker(self, namespace, pod):
        body = self._see(PODS, pod, namespace)
        if body is None:
            return None
        return worker_from_pod({**body, "status": {**body["status"], "podIP": f"ip-{body['metadata']['uid']}"}})

    def snapshot(self, namespace, name):
        body = self.objects.get((SNAPSHOTS, namespace, name))
        if body is None:
            return None
        metadata = body["metadata"]
        return Snapshot(
            namespace=namespace,
            name=name,
            uid=metadata["uid"],
            ready="content" in body,
            taken="content" in body,
            begun=body.get("begun", self.now),
            size=Quantity.parse(body["size"]).bytes if "size" in body else None,
            driver="csi.example",
            volume_mode=body.get("mode", ""),
            storage_class="csi",
            source=body["spec"]["source"].get("persistentVolumeClaimName", ""),
            annotations=metadata["annotations"],
            labels=metadata["labels"],
        )

    def clone_source(self, namespace, name):
        body = self.objects.get(("volumeclonesources", namespace, name))
        return None if body is None else parse(body)

    def unmounted_since(self, namespace, claim):
        return None if self.pods_of_source else 0.0

    def snapshot_class(self, storage_class, driver):
        return "fast" if driver == "csi.example" else None

    def classes(self, driver):
        return tuple(one for one in CLASSES.values() if one.provisioner == driver and one.name not in self.withdrawn)

    def strategy(self, storage_class):
        return CloneStrategy(self.strategy_said) if self.strategy_said else None

    def size_detection_pod(self, namespace, name):
        body = self._see(PODS, name, namespace)
        if body is None:
            return None
        notes = body["metadata"]["annotations"]
        source = notes["cdi.kubevirt.io/storage.clone.sourceUID"]
        end = termination_outcome(body, source)
        return SizeDetectionPod(
            uid=body["metadata"]["uid"],
            target=notes["cdi.kubevirt.io/ownerUID"],
            source=source,
            outcome=end[0] if end is not None else None,
            ended=end[1] if end is not None else 0.0,
            deleting="deletionTimestamp" in body["metadata"],
        )

    def prep_pod(self, namespace, name):
        body = self._see(PODS, name, namespace)
        if body is None:
            return None
        return PrepPod(
            uid=body["metadata"]["uid"],
            phase=body["status"]["phase"],
            deleting="deletionTimestamp" in body["metadata"],
        )

    def source_pod(self, namespace, name):
        body = self._see(PODS, name, namespace)
        if body is None:
            return None
        notes = body["metadata"]["annotations"]
        return SourcePod(
            uid=body["metadata"]["uid"],
            source=notes.get(ANN_SOURCE_UID, ""),
            tickets=tickets_of(body),
            running=body["status"]["phase"] == "Running",
            ended=body.get("ended", self.now - 100) if body["status"]["phase"] in ("Failed", "Succeeded") else None,
            deleting="deletionTimestamp" in body["metadata"],
        )

    def active_copies(self, source):
        claims = [self.claim(one["metadata"]["namespace"], one["metadata"]["name"]) for one in self.all(CLAIMS)]
        return sum(is_copying(one, source) for one in claims if one is not None)

    def verify_token(self, token, moment):
        return self.grants.get(token)

    def sign_long_lived_token(self, grant):
        self.grants["lasting"] = grant
        return "lasting"

    # --- the controller -----------------------------------------------------------------------------------------

    def act(self, action):
        if isinstance(action, EnsureCertificate) and action.entry:
            self.certificates.add((action.owner["uid"], action.entry, action.name))
        if isinstance(action, ExpandClaim):
            claim = self._uid(action.uid)
            if claim is not None:
                claim["spec"]["resources"]["requests"]["storage"] = Quantity.of_bytes(action.size).text
        if isinstance(action, DeleteObject):
            assert action.name not in ("fedora", "pv-golden", "kept")
            if action.plural == SNAPSHOTS:
                # No further event would requeue the snapshot's deletion for a long time.
                assert not self._being_made_of(action.name)
        super().act(action)

    def _being_made_of(self, snapshot):
        return [
            claim["metadata"]["name"]
            for claim in self.all(CLAIMS)
            if claim["status"]["phase"] == "Pending" and claim["spec"].get("dataSource", {}).get("name") == snapshot
        ]

    def settle_deletions(self, name=None):
        self.late = {}
        here = self.key
        for body in self.all(CLAIMS):
            if "deletionTimestamp" in body["metadata"]:
                self.key = (body["metadata"]["namespace"], body["metadata"]["name"])
                self.step()
        self.key = here
        everything = [self.claim(one["metadata"]["namespace"], one["metadata"]["name"]) for one in self.all(CLAIMS)]
        plans = [reconcile_claim(one, self, everything) for one in everything]
        plans += [
            reconcile_snapshot(self.snapshot(one["metadata"]["namespace"], one["metadata"]["name"]), everything)
            for one in self.all(SNAPSHOTS)
        ]
        for pod in self.all(PODS):
            if pod["metadata"]["name"].endswith("-source-pod"):
                namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
                plans.append(reconcile_reader(namespace, name, self.source_pod(namespace, name), self))
            if pod["metadata"]["name"].startswith("size-detection-"):
                namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
                wanted = self.data_volume(*pod["metadata"]["annotations"][ANN_TARGET].split("/"))
                plans.append(reconcile_measurement(namespace, name, self.size_detection_pod(namespace, name), wanted))
        for plan in plans:
            for action in plan.actions:
                self.act(action)

    # --- Kubernetes and storage ---------------------------------------------------------------------------------

    def _binding(self):
        yield from super()._binding()
        for snapshot in self.all(SNAPSHOTS):
            source = self.objects.get((CLAIMS, snapshot["metadata"]["namespace"], "fedora"))
            if "content" not in snapshot and not self.stuck and source is not None:
                size = source["status"]["capacity"]["storage"]
                yield lambda snapshot=snapshot, size=size: snapshot.update(content=GOLDEN, size=size, begun=self.now)
        for claim in self.all(CLAIMS):
            volume = self.objects.get((VOLUMES, "", claim["spec"].get("volumeName", "")))
            if claim["status"]["phase"] != "Bound" or volume is None:
                continue
            wanted = claim["spec"]["resources"]["requests"]["storage"]
            if Quantity.parse(volume["size"]).bytes < Quantity.parse(wanted).bytes:
                yield lambda volume=volume, wanted=wanted: volume.update(size=wanted)
            elif claim["status"]["capacity"]["storage"] != volume["size"] and self._may_grow(claim):
                yield lambda claim=claim, volume=volume: claim["status"].update(capacity={"storage": volume["size"]})

    def _bind(self, claim, volume):
        wanted = claim["spec"]["resources"]["requests"]["storage"]
        if Quantity.parse(volume["size"]).bytes >= Quantity.parse(wanted).bytes:
            super()._bind(claim, volume)

    def _collecting(self):
        """Keep a claim as long as any scheduled pod has it, even one that has ended."""
        held = {
            key
            for key in self.objects
            if key[0] == CLAIMS and any(pod["spec"].get("nodeName") for pod in self._uses(key[2]))
        }
        kept = {key: self.objects.pop(key) for key in held if "deletionTimestamp" in self.objects[key]["metadata"]}
        doable = list(super()._collecting())
        self.objects.update(kept)
        owners = {body["metadata"]["uid"] for body in kept.values()}
        for act in doable:
            defaults = act.__defaults__ or ()
            key = defaults[0] if defaults else ()
            body = self.objects.get((key[0], key[3], key[1])) if len(key) == 4 else None
            owned = [one["uid"] for one in (body or {}).get("metadata", {}).get("ownerReferences", ())]
            if not owners.intersection(owned):
                yield act

    def _may_grow(self, claim):
        mounted = any(pod["status"]["phase"] != "Pending" for pod in self._uses(claim["metadata"]["name"]))
        return claim["spec"].get("volumeMode") == "Block" or mounted

    def _provision(self, claim):
        reference = claim["spec"].get("dataSource")
        content, size = "", claim["spec"]["resources"]["requests"]["storage"]
        if reference is not None:
            namespace = claim["metadata"]["namespace"]
            if self._hangs(claim):
                return
            if reference["kind"] == "VolumeSnapshot":
                snapshot = self.objects.get((SNAPSHOTS, namespace, reference["name"]))
                if snapshot is None or "content" not in snapshot:
                    return
                content = snapshot["content"]
            else:
                assert (namespace, reference["name"]) == (self.namespace, "fedora")
                content = self.objects[VOLUMES, "", "pv-golden"]["content"]
        super()._provision(claim)
        volume = self.objects[VOLUMES, "", f"pv-{self.counter}"]
        volume.update(content=content, size=size)
        volume["spec"]["claimRef"]["namespace"] = claim["metadata"]["namespace"]

    def _may_provision(self, claim):
        reference = claim["spec"].get("dataSource")
        if reference is not None:
            snapshot = self.objects.get((SNAPSHOTS, claim["metadata"]["namespace"], reference["name"]))
            missing = reference["kind"] == "VolumeSnapshot" and (snapshot is None or "content" not in snapshot)
            if self._hangs(claim) or missing:
                return False
        return super()._may_provision(claim)

    def _hangs(self, claim):
        return bool(self.stuck) and (self.stuck != "stand-in" or "ownerReferences" in claim["metadata"])

    def _comes(self, pod):
        component = pod["metadata"]["labels"]["cdi.kubevirt.io"]
        if component in (PREPARATION.component, SIZE_DETECTION.component):
            return True
        if component == "cdi-clone-source":
            return False
        return bool(self._readers_for(pod))

    def _readers_for(self, pod):
        """Return the source pods that are sending to this pod."""
        job = Job.from_json(pod["metadata"]["annotations"]["cdi.kubevirt.io/job"])
        return [
            one
            for one in self.all(PODS)
            for ticket in tickets_of(one).values()
            if one["status"]["phase"] == "Running"
            and ticket.address == f"ip-{pod['metadata']['uid']}:8444"
            and (ticket.id, ticket.attempt) == (job.id, pod["metadata"]["uid"])
            and (one["metadata"]["uid"], job.id, job.source.client_name) in self.certificates
        ]

    def _end(self, pod):
        if pod["metadata"]["labels"]["cdi.kubevirt.io"] == PREPARATION.component:
            pod["status"]["phase"] = "Succeeded"
            return
        if pod["metadata"]["labels"]["cdi.kubevirt.io"] == SIZE_DETECTION.component:
            self.measured += 1
            identity = pod["spec"]["containers"][0]["args"][-1]
            disk = self.disk if self.measured > len(self.unlucky) else self.unlucky[self.measured - 1]
            known = {"disk_size": disk} if isinstance(disk, int) else {"failure": disk}
            words = {"outcome": base.json.loads(Outcome(id=identity, **known).to_json())}
            code = 0 if isinstance(disk, int) else 3
            pod["status"] = base._ended(code, base.json.dumps(words), self._time())
            return
        job = Job.from_json(pod["metadata"]["annotations"]["cdi.kubevirt.io/job"])
        for one in self._readers_for(pod):
            read = self.objects[CLAIMS, one["metadata"]["namespace"], self._claims_of(one)[0]]
            assert self.objects[VOLUMES, "", read["spec"]["volumeName"]]["content"] == GOLDEN
        claim = self._uid(pod["metadata"]["ownerReferences"][0]["uid"])
        end = self.script[self.attempts] if self.attempts < len(self.script) else base.End()
        self.attempts += 1
        outcome = Outcome(id=job.id, failure=end.failure)
        code = 0 if end.failure is None else 3
        document = {"message": "", "outcome": base.json.loads(outcome.to_json())}
        pod["status"] = base._ended(code, base.json.dumps(document), self._time())
        if end.failure is None and claim is not None:
            self.get(VOLUMES, claim["spec"]["volumeName"], "")["content"] = GOLDEN
