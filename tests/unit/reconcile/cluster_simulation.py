"""A model of a cluster: API objects, and everything that acts on them but the controller.

Binder, provisioner, scheduler, kubelet and garbage collector act one step at a time, in any order that a test chooses.
"""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime
from fractions import Fraction

from cdi.api.annotations import FILLED_FOR
from cdi.api.errors import CdiError, Conflict, QuotaExceeded
from cdi.api.job import Job, Outcome
from cdi.api.quantity import Quantity
from cdi.api.validation import parse
from cdi.controller.reconcilers.dependencies import PLATFORM as CLUSTER
from cdi.reconcile.actions import (
    CreateObject,
    DeleteObject,
    EnsureCertificate,
    MirrorObject,
    ObjectRef,
    PatchObject,
    RebindVolume,
    RequireVersion,
    StartWorker,
    StopWorker,
)
from cdi.reconcile.context_builder import build_context
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.datavolume.rejection import refusal_of
from cdi.reconcile.pods.status import worker_from_pod
from cdi.reconcile.settings import CLUSTER_RETRIES, ResolvedConfig, WorkerPodConfig
from cdi.reconcile.storage.capabilities import PropertySet
from cdi.reconcile.storage.claim_defaults import overhead_of
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.types import PVC, DataRef, Input, Profile, Service, StorageDefaults, Volume
from tests.unit.reconcile.simulation import HTTP, End, data_volume

NS = "default"
CLAIMS, VOLUMES, PODS, DVS = "persistentvolumeclaims", "persistentvolumes", "pods", "datavolumes"
KINDS = {
    "PersistentVolumeClaim": CLAIMS,
    "Pod": PODS,
    "DataVolume": DVS,
    "VolumeImportSource": "volumeimportsources",
    "VolumeUploadSource": "volumeuploadsources",
    "Service": "services",
    "Secret": "secrets",
    "ConfigMap": "configmaps",
}
CLASSES = {
    "csi": StorageClass(name="csi", provisioner="csi.example"),
    "csi-wait": StorageClass(name="csi-wait", provisioner="csi.example", wait_for_first_consumer=True),
    "local": StorageClass(name="local", provisioner="local.example"),
    "local-wait": StorageClass(name="local-wait", provisioner="local.example", wait_for_first_consumer=True),
}
CONFIG = ResolvedConfig(overhead=Fraction(6, 100), pods=WorkerPodConfig(image="example/cdi:1"))
COMPLETE = "complete"


class Cluster:
    """One volume, its objects, and their changes."""

    def __init__(self, body=None, *, claim=None, script=(), retries=None, config=CONFIG, default="csi", bodies=()):
        self.objects = {}
        self.inputs = {}
        self.script = list(script)
        self.retries = retries or CLUSTER_RETRIES
        self.progress = None
        """The progress that running pods report."""
        self.config = config
        self.default = default
        self.now = 1_767_225_600.0
        self.counter = 0
        self.attempts = 0
        self.ended = {}
        """Exit status and termination message of the pods whose worker only repeats them, by uid."""
        self.events, self.claim_events, self.phases, self.log = [], [], [], []
        self.refuse = {}
        self.reclaimed = []
        self.consumer = False
        self.overlooked = False
        """Whether volumes that are reserved for a claim are not bound to it."""
        self.foreign = {}
        """Pods of other owners, by the claim that they use."""
        self.history, self.late = [], {}
        self.shown: dict[str, int] = {}
        self.key = (NS, "a")
        for each in bodies:
            self.create(each)
        if body is not None or claim is None:
            self.create(body or data_volume(HTTP))
        if claim is not None:
            self.create(claim)

    # --- objects ------------------------------------------------------------------------------------------------

    def create(self, body):
        body = copy.deepcopy(dict(body))
        plural = KINDS[body["kind"]]
        metadata = body["metadata"]
        place = (plural, metadata.get("namespace", ""), metadata["name"])
        if place in self.objects:
            return
        self.counter += 1
        metadata.setdefault("annotations", {})
        metadata.setdefault("labels", {})
        metadata["uid"] = metadata.get("uid") or f"uid-{self.counter}"
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
        if plural == CLAIMS:
            body["status"] = {"phase": "Pending"}
            if body["spec"].get("storageClassName") is None and self.default:
                body["spec"]["storageClassName"] = self.default
        if plural == PODS:
            body["status"] = {"phase": "Pending"}
        self.objects[place] = body

    def all(self, plural):
        return [body for (kind, _, _), body in sorted(self.objects.items()) if kind == plural]

    def names(self, plural):
        return {body["metadata"]["name"] for body in self.all(plural)}

    def get(self, plural, name, namespace=NS):
        return self.objects.get((plural, namespace, name))

    def _see(self, plural, name, namespace=NS):
        """Return an object as the controller's cache has it, which may be stale."""
        # However stale, a cache never goes back in time.
        now = len(self.history)
        at = max(now - self.late.get(plural, 0), self.shown.get(plural, 0))
        self.shown[plural] = at
        if at == now:
            return self.objects.get((plural, namespace, name))
        if isinstance(self.history[at], bytes):
            self.history[at] = pickle.loads(self.history[at])
        return self.history[at].get((plural, namespace, name))

    def _uid(self, uid):
        return next((body for body in self.objects.values() if body["metadata"]["uid"] == uid), None)

    def remove(self, plural, name, uid=None, namespace=NS):
        body = self.get(plural, name, namespace)
        if body is not None and uid in (None, body["metadata"]["uid"]):
            body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            if plural not in (CLAIMS, PODS):
                del self.objects[plural, namespace, name]

    # --- what reconcilers query ---------------------------------------------------------------------------------

    def claim(self, namespace, name):
        body = self._see(CLAIMS, name, namespace)
        if body is None:
            return None
        metadata, spec, status = body["metadata"], body["spec"], body["status"]
        owner = next((one for one in metadata.get("ownerReferences", ()) if one.get("controller")), {})
        ref = spec.get("dataSourceRef") or spec.get("dataSource")
        return PVC(
            namespace=namespace,
            name=name,
            uid=metadata["uid"],
            phase=status["phase"],
            capacity=Quantity.parse(status["capacity"]["storage"]).bytes if "capacity" in status else None,
            controller_kind=owner.get("kind", ""),
            controller_name=owner.get("name", ""),
            controller_uid=owner.get("uid", ""),
            annotations=dict(metadata["annotations"]),
            labels=dict(metadata["labels"]),
            volume_mode=spec.get("volumeMode", "Filesystem"),
            access_modes=tuple(spec.get("accessModes", ())),
            storage_class=spec.get("storageClassName"),
            requested=Quantity.parse(spec["resources"]["requests"]["storage"]).bytes,
            volume_name=spec.get("volumeName", ""),
            data_ref=DataRef(group=ref.get("apiGroup", ""), kind=ref["kind"], name=ref["name"]) if ref else None,
            selected_node=metadata["annotations"].get("volume.kubernetes.io/selected-node", ""),
            deleting="deletionTimestamp" in metadata,
            version=_version(body),
        )

    def data_volume(self, namespace, name):
        body = self._see(DVS, name, namespace)
        if body is None:
            return None
        return parse({**body, "metadata": {**body["metadata"], "resourceVersion": _version(body)}})

    def data_source(self, namespace, name):
        return None

    def input(self, ref):
        return self.inputs.get(ref)

    def profile(self, storage_class):
        return Profile()

    def storage_class(self, name):
        return CLASSES.get(name)

    def default_storage_class(self, *, virtualization):
        return CLASSES.get(self.default)

    def csi_driver(self, provisioner):
        return provisioner == "csi.example"

    def storage_defaults(self, storage_class, *, virtualization):
        name = self.default if storage_class is None else storage_class
        both = [PropertySet(access_modes=("ReadWriteOnce",), volume_mode=mode) for mode in ("Filesystem", "Block")]
        sets = tuple(both) if name in CLASSES else ()
        return StorageDefaults(
            storage_class=name, exists=name in CLASSES, sets=sets, overhead=overhead_of(name, self.config)
        )

    def volume(self, name):
        body = self._see(VOLUMES, name, "")
        if body is None:
            return None
        ref = body["spec"].get("claimRef", {})
        return Volume(
            name=name,
            uid=body["metadata"]["uid"],
            claim_uid=ref.get("uid", ""),
            claim_namespace=ref.get("namespace", ""),
            claim_name=ref.get("name", ""),
            phase=body["status"]["phase"],
            capacity=Quantity.parse(body["size"]).bytes,
            access_modes=("ReadWriteOnce",),
            storage_class=body["spec"].get("storageClassName", ""),
            filled_for=body["metadata"].get("annotations", {}).get(FILLED_FOR.key, ""),
        )

    def volumes_for(self, namespace, claim):
        found = (self.volume(body["metadata"]["name"]) for body in self.all(VOLUMES))
        return tuple(one for one in found if one and (one.claim_namespace, one.claim_name) == (namespace, claim))

    def users(self, namespace, claim):
        return tuple(self.foreign.get(claim, ()))

    def import_source(self, namespace, name):
        body = self._see("volumeimportsources", name, namespace)
        return None if body is None else parse(body)

    def upload_source(self, namespace, name):
        body = self._see("volumeuploadsources", name, namespace)
        return None if body is None else parse(body)

    def service(self, namespace, name):
        body = self._see("services", name, namespace)
        if body is None:
            return None
        owner = next((one for one in body["metadata"].get("ownerReferences", ()) if one.get("controller")), {})
        return Service(name=name, uid=body["metadata"]["uid"], claim=owner.get("uid", ""))

    def worker(self, namespace, pod):
        body = self._see(PODS, pod, namespace)
        return None if body is None else worker_from_pod(body, progress=self.progress)

    def add_input(self, kind, name, *keys, namespace=NS):
        self.inputs[ObjectRef(kind=kind, namespace=namespace, name=name)] = Input(version="1", keys=frozenset(keys))

    # --- the controller -----------------------------------------------------------------------------------------

    def context(self, name=None, refusal=None):
        return build_context(
            self, self.key[0], name or self.key[1],
            now=self.now, config=self.config, retries=self.retries, platform=CLUSTER, refusal=refusal,
        )  # fmt: skip

    def step(self, kept=None, name=None, repeat=False, late=()):
        """Reconcile once and carry out the first `kept` of the effects, twice if `repeat`.

        Claims, pods, volumes and DataVolumes are seen as they were `late` steps ago, one number for each.
        """
        self.late = dict(zip((CLAIMS, PODS, VOLUMES, DVS), late, strict=False))
        context = self.context(name)
        if context is None:
            return None
        plan = reconcile(context)
        try:
            for _ in range(1 + repeat):
                for action in plan.actions[:kept]:
                    self.act(action)
        except Conflict:
            return plan
        except CdiError as error:
            plan = reconcile(self.context(name, refusal_of(action, error)))
            for each in plan.actions[:kept]:
                self.act(each)
        if kept is None or kept > len(plan.actions):
            self.events.extend(plan.events)
            self.claim_events.extend(plan.claim_events)
            body = self.get(DVS, self.key[1])
            if plan.status is not None and body is not None:
                body["status"] = copy.deepcopy(dict(plan.status))
                self.phases.append(plan.status["phase"])
        return plan

    def act(self, action):
        self.log.append(action)
        match action:
            case CreateObject(body=body):
                self._refused(body["kind"], body["metadata"]["name"])
                self.create(body)
            case MirrorObject():
                self.create(
                    {
                        "kind": action.copy.kind,
                        "metadata": {"name": action.copy.name, "namespace": NS, "ownerReferences": [action.owner]},
                    }
                )
            case PatchObject():
                body = self.get(action.plural, action.name, action.namespace)
                if body is not None and body["metadata"]["uid"] == action.uid:
                    if action.version not in ("", _version(body)):
                        raise Conflict("it changed in the meantime")
                    metadata = body["metadata"]
                    for annotation, text in action.annotations.items():
                        if text is None:
                            metadata["annotations"].pop(annotation, None)
                        else:
                            metadata["annotations"][annotation] = str(text)
                    metadata["labels"] |= action.labels
                    if action.owner is not None:
                        metadata["ownerReferences"] = [dict(action.owner)]
            case RequireVersion():
                body = self.get(action.plural, action.name, action.namespace)
                if ("" if body is None else _version(body)) != action.version:
                    raise Conflict("it changed in the meantime")
            case EnsureCertificate():
                if self._uid(action.owner["uid"]) is not None:
                    body = {"kind": "Secret", "metadata": {"name": action.secret, "namespace": NS}}
                    self.create({**body, "metadata": {**body["metadata"], "ownerReferences": [action.owner]}})
                    self.get("secrets", action.secret)["metadata"]["ownerReferences"] = [action.owner]
            case DeleteObject():
                self.remove(action.plural, action.name, action.uid, action.namespace)
            case RebindVolume():
                volume = self.get(VOLUMES, action.volume, "")
                prime, target = self._uid(action.prime_uid), self._uid(action.target_uid)
                if (
                    volume is not None and prime is not None and target is not None
                    and volume["status"]["phase"] != "Released"
                    and volume["spec"]["claimRef"]["uid"] == action.prime_uid
                ):  # fmt: skip
                    reference = {"namespace": NS, "name": action.target, "uid": action.target_uid}
                    volume["spec"]["claimRef"] = reference
                    volume["metadata"]["annotations"] = {FILLED_FOR.key: action.target_uid}
            case StartWorker():
                self._refused("Pod", action.pod["metadata"]["name"])
                claim = self._uid(action.claim)
                volume = self.get(VOLUMES, claim["spec"].get("volumeName", ""), "") if claim is not None else None
                assert volume is None or volume["content"] != COMPLETE or self._pod_unread(action)
                self.create(action.pod)
            case StopWorker():
                self.remove(PODS, action.pod, action.pod_uid, action.namespace)

    def _pod_unread(self, action):
        """Return whether the pod of the attempt that filled the volume still exists; creating it again does nothing."""
        return self.get(PODS, action.pod["metadata"]["name"]) is not None

    def _refused(self, kind, name):
        error = self.refuse.get((kind, name)) or self.refuse.get(kind)
        if error is not None:
            raise error

    def quota(self, kind):
        self.refuse[kind] = QuotaExceeded("exceeded quota: small", where="namespace default")

    # --- Kubernetes and users -----------------------------------------------------------------------------------

    def nature(self, choice=0):
        """Carry out one step of the cluster; return False if there is none."""
        # Pickled, because most of it is never read.
        self.history.append(pickle.dumps(self.objects))
        doable = [
            act
            for act in (
                *self._binding(), *self._scheduling(), *self._working(), *self._collecting(), *self._consuming()
            )
        ]  # fmt: skip
        if not doable:
            return False
        doable[choice % len(doable)]()
        return True

    def _uses(self, claim_name):
        return [
            pod
            for pod in self.all(PODS)
            if any(
                one.get("persistentVolumeClaim", {}).get("claimName") == claim_name for one in pod["spec"]["volumes"]
            )
        ]

    def _binding(self):
        for claim in self.all(CLAIMS):
            metadata, spec, status = claim["metadata"], claim["spec"], claim["status"]
            volume = self.get(VOLUMES, spec.get("volumeName", ""), "")
            if status["phase"] == "Bound" and (volume is None or volume["spec"]["claimRef"]["uid"] != metadata["uid"]):
                yield lambda status=status: status.update(phase="Lost")
            if status["phase"] != "Pending" or "deletionTimestamp" in metadata:
                continue
            # The binder may learn late that a volume is reserved.
            mine = [
                v for v in self.all(VOLUMES) if metadata["uid"] in (v["spec"]["claimRef"].get("uid"), v.get("made for"))
            ]
            kept = [
                v for v in self.all(VOLUMES) if v["spec"]["claimRef"] == {"namespace": NS, "name": metadata["name"]}
            ]
            if kept and not self.overlooked:
                yield lambda volume=kept[0], uid=metadata["uid"]: self._keep(volume, uid)
            if mine:
                yield lambda claim=claim, volume=mine[0]: self._bind(claim, volume)
            elif spec.get("dataSourceRef", {}).get("apiGroup") != "cdi.kubevirt.io" and self._may_provision(claim):
                yield lambda claim=claim: self._provision(claim)
        for volume in self.all(VOLUMES):
            uid = volume["spec"]["claimRef"].get("uid")
            if uid is not None and self._uid(uid) is None:
                yield lambda volume=volume: self._reclaim(volume)

    def _may_provision(self, claim):
        storage_class = CLASSES.get(claim["spec"].get("storageClassName"))
        if storage_class is None:
            return False
        if not storage_class.wait_for_first_consumer:
            return True
        scheduled = any(pod["spec"].get("nodeName") for pod in self._uses(claim["metadata"]["name"]))
        return scheduled or "volume.kubernetes.io/selected-node" in claim["metadata"]["annotations"]

    def _provision(self, claim):
        self.counter += 1
        name = f"pv-{self.counter}"
        self.objects[VOLUMES, "", name] = {
            "kind": "PersistentVolume",
            "metadata": {"name": name, "uid": f"uid-{name}"},
            "spec": {"claimRef": {"namespace": NS, "name": claim["metadata"]["name"], "uid": claim["metadata"]["uid"]}},
            "status": {"phase": "Pending"},
            "content": "",
            "made for": claim["metadata"]["uid"],
            "size": claim["spec"]["resources"]["requests"]["storage"],
        }

    def _keep(self, volume, uid):
        volume["spec"]["claimRef"]["uid"] = uid
        volume["status"]["phase"] = "Bound"

    def static_volume(self, name, *, size="2Gi", storage_class="csi", phase="Available", content=COMPLETE, uid=""):
        """Create a volume that an administrator made for the claim; with a `uid`, for another claim of its name."""
        self.objects[VOLUMES, "", name] = {
            "kind": "PersistentVolume",
            "metadata": {"name": name, "uid": f"uid-{name}"},
            "spec": {
                "claimRef": {"namespace": NS, "name": "a", **({"uid": uid} if uid else {})},
                "storageClassName": storage_class,
            },
            "status": {"phase": phase},
            "content": content,
            "size": size,
        }

    def _bind(self, claim, volume):
        claim["spec"]["volumeName"] = volume["metadata"]["name"]
        if volume["status"]["phase"] != "Released":
            volume["status"]["phase"] = "Bound"
        claim["status"] = {"phase": "Bound", "capacity": {"storage": volume["size"]}}

    def _reclaim(self, volume):
        if volume["status"]["phase"] != "Released":
            volume["status"]["phase"] = "Released"
            return
        self.reclaimed.append((volume["content"], self.get(DVS, "a") is not None))
        del self.objects[VOLUMES, "", volume["metadata"]["name"]]

    def _scheduling(self):
        for pod in self.all(PODS):
            if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
                continue
            claims = [self.get(CLAIMS, name) for name in self._claims_of(pod)]
            if all(
                claim is not None
                and (
                    claim["status"]["phase"] == "Bound"
                    or CLASSES[claim["spec"]["storageClassName"]].wait_for_first_consumer
                )
                for claim in claims
            ):
                yield lambda pod=pod: pod["spec"].update(nodeName="node-1")

    @staticmethod
    def _claims_of(pod):
        volumes = pod["spec"]["volumes"]
        return [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]

    def _working(self):
        for pod in self.all(PODS):
            if "deletionTimestamp" in pod["metadata"] or not pod["spec"].get("nodeName"):
                continue
            bound = all(
                (claim := self.get(CLAIMS, name)) is not None and claim["status"]["phase"] == "Bound"
                for name in self._claims_of(pod)
            )
            secrets = [one["secret"]["secretName"] for one in pod["spec"]["volumes"] if "secret" in one]
            if pod["status"]["phase"] == "Pending" and bound and all(self.get("secrets", one) for one in secrets):
                yield lambda pod=pod: pod.update(status=_running(self._time()))
            elif (
                pod["status"]["phase"] == "Running" and "running" not in pod["status"]["containerStatuses"][0]["state"]
            ):
                yield lambda pod=pod: pod.update(status=_restarted(pod["status"], self._time()))
            elif pod["status"]["phase"] == "Running" and not pod["status"]["containerStatuses"][0]["ready"]:
                yield lambda pod=pod: pod["status"]["containerStatuses"][0].update(ready=True)
            elif pod["status"]["phase"] == "Running" and self._comes(pod):
                yield lambda pod=pod: self._end(pod)

    def _comes(self, pod):
        """Return whether an upload reaches the pod.

        Clients wait for the target's ready annotation, as virtctl does, and find the pod by its Service.
        """
        if pod["metadata"]["labels"]["cdi.kubevirt.io"] != "cdi-upload-server":
            return True
        target = self.get(CLAIMS, "a")
        ready = (
            target is not None and target["metadata"]["annotations"].get("cdi.kubevirt.io/storage.pod.ready") == "true"
        )
        return ready and self.get("services", pod["metadata"]["name"]) is not None

    def _end(self, pod):
        job = Job.from_json(pod["metadata"]["annotations"]["cdi.kubevirt.io/job"])
        claim = self._uid(pod["metadata"]["ownerReferences"][0]["uid"])
        assert claim is None or job.id == claim["metadata"]["uid"]
        before = self.ended.get(pod["metadata"]["uid"])
        if before is not None:
            # A restarted worker repeats a failure that a restart cannot mend.
            pod["status"] = _failed_in(pod, *before, self._time())
            return
        end = self.script[self.attempts] if self.attempts < len(self.script) else End()
        self.attempts += 1
        if end.failure is not None and end.failure.code == "ScratchNeeded" and job.scratch:
            end = End()
        outcome = Outcome(id=job.id, failure=end.failure, labels=end.labels, digest="sha256:" + "0" * 64)
        document = {"message": "", "outcome": json.loads(outcome.to_json())}
        code = 0 if end.failure is None else 3
        run = pod["status"]["containerStatuses"][0].get("restartCount", 0) + 1
        document |= {"run": run} if run > 1 else {}
        if end.failure is not None and end.failure.needs_new_pod:
            self.ended[pod["metadata"]["uid"]] = code, json.dumps(document)
        pod["status"] = _failed_in(pod, code, json.dumps(document), self._time())
        if end.failure is None and claim is not None:
            self.get(VOLUMES, claim["spec"]["volumeName"], "")["content"] = COMPLETE

    def _time(self):
        return datetime.fromtimestamp(self.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _collecting(self):
        for (plural, namespace, name), body in sorted(self.objects.items()):
            metadata = body["metadata"]
            if "deletionTimestamp" not in metadata:
                owners = metadata.get("ownerReferences", ())
                if owners and all(self._uid(owner["uid"]) is None for owner in owners):
                    yield lambda key=(plural, name, metadata["uid"], namespace): self.remove(*key)
            elif plural == PODS or all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in self._uses(name)):
                yield lambda key=(plural, namespace, name): self.objects.pop(key, None)

    def _consuming(self):
        target = self.get(CLAIMS, "a")
        if self.consumer and target is not None and target["status"]["phase"] == "Pending":
            annotations = target["metadata"]["annotations"]
            if "volume.kubernetes.io/selected-node" not in annotations:
                yield lambda: annotations.update({"volume.kubernetes.io/selected-node": "node-1"})

    # --- runs ---------------------------------------------------------------------------------------------------

    def settle_deletions(self, name=None):
        """Reconcile every claim that is being deleted, as the controller does."""
        for claim in self.all(CLAIMS):
            if "deletionTimestamp" in claim["metadata"]:
                self.step(name=claim["metadata"]["name"])

    def run(self, steps=400, losses=(), choices=(), lags=()):
        """Run to the fixpoint; in step n only ``losses[n]`` effects happen (negative: all, twice)."""
        for number in range(steps):
            kept = losses[number] if number < len(losses) else None
            plan = self.step(
                None if kept is not None and kept < 0 else kept,
                repeat=kept is not None and kept < 0,
                late=lags[number] if number < len(lags) else (),
            )
            self.late = {}
            self.settle_deletions()
            happened = self.nature(choices[number] if number < len(choices) else 0)
            if (
                number < max(len(losses), len(lags))
                or happened
                or (plan is not None and (plan.actions or plan.status is not None))
            ):
                self.now += 0.25
            elif plan is None or plan.requeue_after is None or self._rests(plan):
                return self
            else:
                self.now += plan.requeue_after
        raise AssertionError(f"no fixpoint after {steps} steps: {self.get(DVS, 'a')}")

    def _rests(self, plan):
        """Return whether a later reconcile would change nothing."""
        before = self.now
        self.now += plan.requeue_after + 1000
        again = reconcile(self.context())
        self.now = before
        return not again.actions and again.status is None

    @property
    def status(self):
        return self.get(DVS, "a").get("status", {})

    def condition(self, kind):
        return next(c for c in self.status["conditions"] if c["type"] == kind)

    @property
    def detail(self):
        """Return reason and message of the status beyond its conditions."""
        return {"reason": "", "message": "", **self.status.get("detail", {})}

    @property
    def annotations(self):
        prefix = "cdi.kubevirt.io/"
        return {
            name.removeprefix(prefix): text for name, text in self.get(CLAIMS, "a")["metadata"]["annotations"].items()
        }

    @property
    def content(self):
        """Return the content of the target's volume, None until it is bound."""
        claim = self.get(CLAIMS, "a")
        volume = self.get(VOLUMES, claim["spec"].get("volumeName", ""), "")
        return None if volume is None or claim["status"]["phase"] != "Bound" else volume["content"]


def _running(time):
    started = {"running": {"startedAt": time}}
    return {
        "phase": "Running",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{"name": "importer", "state": started, "ready": False}],
    }


def _ended(code, message, time):
    state = {
        "exitCode": code,
        "reason": "Completed" if code == 0 else "Error",
        "message": message,
        "startedAt": time,
        "finishedAt": time,
    }
    return {
        "phase": "Succeeded" if code == 0 else "Failed",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{"name": "importer", "state": {"terminated": state}}],
    }


def _failed_in(pod, code, message, time):
    """Return the status of a pod whose container has ended: the kubelet restarts it after a failure if it may."""
    status = _ended(code, message, time)
    before = pod["status"]["containerStatuses"][0]
    status["containerStatuses"][0] |= {"restartCount": before.get("restartCount", 0), "ready": False}
    if "lastState" in before:
        status["containerStatuses"][0]["lastState"] = before["lastState"]
    restarts = code != 0 and pod["spec"]["restartPolicy"] == "OnFailure"
    return {**status, "phase": "Running"} if restarts else status


def _restarted(status, time):
    """Return the status after the kubelet's next step: the container waits for its restart, then it runs again."""
    container = status["containerStatuses"][0]
    if "terminated" in container["state"]:
        waits = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
        return {**status, "containerStatuses": [{**container, "state": waits, "lastState": container["state"]}]}
    again = _running(time)
    again["containerStatuses"][0] |= {
        "restartCount": container["restartCount"] + 1,
        "lastState": container["lastState"],
    }
    return again


def _version(body):
    return str(hash(json.dumps(body)))


def dv(storage_class=None, *, form="storage", source=None, size="1Gi", mode=None, **options):
    """Return a DataVolume's manifest for one of `CLASSES`."""
    body = data_volume(source or HTTP, size=size, **options)
    claim = body["spec"].pop("storage")
    if storage_class is not None:
        claim["storageClassName"] = storage_class
    if mode is not None:
        claim["volumeMode"] = mode
    if form == "pvc":
        claim["accessModes"] = ["ReadWriteOnce"]
    body["spec"][form] = claim
    return body


def pvc(storage_class="csi", *, annotations=None, ref=None, kind="VolumeImportSource", mode="Filesystem"):
    """Return a claim made by hand."""
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": mode,
        "storageClassName": storage_class,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    if ref is not None:
        spec["dataSourceRef"] = {"apiGroup": "cdi.kubevirt.io", "kind": kind, "name": ref}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "a", "namespace": NS, "annotations": dict(annotations or {})},
        "spec": spec,
    }
