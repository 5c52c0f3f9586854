"""A model in which plans are carried out, wholly or in part."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

from cdi.api.datavolume import DataVolume
from cdi.api.errors import Retry
from cdi.api.job import Failure, Outcome, Progress
from cdi.api.validation import parse
from cdi.reconcile.actions import CreateObject, ObjectRef, PatchObject, StartWorker
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.pods.types import VolumeLayout, Worker
from cdi.reconcile.settings import Platform, ResolvedConfig, Retries
from cdi.reconcile.types import PVC, Input, Profile

LAYOUT = VolumeLayout(
    disk="/v/disk.img", directory="/v", journal="/w/journal", scratch="/w/scratch", inputs="/w/inputs"
)


def data_volume(source=None, *, name="a", size="1Gi", annotations=None, labels=None, uid="dv-uid", **spec):
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "annotations": annotations or {},
            "labels": labels or {},
        },
        "spec": {"storage": {"resources": {"requests": {"storage": size}}} if size else {}, **spec},
    }
    if source is not None:
        body["spec"]["source"] = source
    return body


HTTP = {"http": {"url": "http://server/image.qcow2"}}


@dataclass
class Objects:
    claims: dict = field(default_factory=dict)
    volumes: dict = field(default_factory=dict)
    sources: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)

    def claim(self, namespace, name):
        return self.claims.get((namespace, name))

    def data_volume(self, namespace, name):
        return self.volumes.get((namespace, name))

    def data_source(self, namespace, name):
        return self.sources.get((namespace, name))

    def input(self, ref):
        return self.inputs.get(ref)

    def profile(self, storage_class):
        return Profile()


@dataclass
class End:
    """The end of an attempt."""

    failure: Failure | None = None
    done: int = 100
    labels: dict = field(default_factory=dict)


def failing(code="SourceUnreachable", retry=Retry.BACKOFF, done=0, message="it failed. Try: again"):
    return End(failure=Failure(code=code, message=message, retry=retry), done=done)


class Simulation:
    """One DataVolume, and the objects that a test adds."""

    def __init__(self, body=None, *, script=(), retries=None, config=None, admitted=True, binds=True):
        self.body = copy.deepcopy(body or data_volume(HTTP))
        self.objects = Objects()
        self.script = list(script)
        self.worker = None
        self.worked = False
        self.now = 1_000_000.0
        self.retries = retries or Retries()
        self.config = config or ResolvedConfig()
        self.admitted = admitted
        self.binds = binds
        self.events = []
        self.starts = []
        self.phases = []
        self.plan = None

    @property
    def key(self):
        return self.body["metadata"]["namespace"], self.body["metadata"]["name"]

    @property
    def status(self):
        return self.body.get("status", {})

    def condition(self, kind):
        return next(c for c in self.status["conditions"] if c["type"] == kind)

    @property
    def detail(self):
        """Return reason and message of the status beyond its conditions."""
        return {"reason": "", "message": "", **self.status.get("detail", {})}

    @property
    def claim(self):
        return self.objects.claim(*self.key)

    def model(self) -> DataVolume:
        return parse(self.body)

    def context(self):
        return ReconcileContext(
            now=self.now,
            datavolume=self.model(),
            objects=self.objects,
            worker=self.worker,
            layout=LAYOUT if self.claim else None,
            config=self.config,
            retries=self.retries,
            platform=Platform(local_files=True),
            has_worker_slot=self.admitted,
            queue_message="" if self.admitted else "waits for one of 4 workers",
        )

    def add_input(self, kind, name, *keys, version="1"):
        self.objects.inputs[ObjectRef(kind=kind, namespace="default", name=name)] = Input(
            version=version, keys=frozenset(keys)
        )

    def add_claim(self, name, **facts):
        facts = {
            "namespace": "default",
            "uid": f"{name}-uid",
            "phase": "Bound",
            "capacity": 1 << 30,
            "path": f"/volumes/{name}",
            **facts,
        }
        self.objects.claims[facts["namespace"], name] = PVC(name=name, **facts)

    # --- execution --------------------------------------------------------------------------------------------

    def step(self, kept=None):
        """Reconcile once and carry out the first `kept` of actions and status; None means all."""
        self.plan = plan = reconcile(self.context())
        effects = [("act", action) for action in plan.actions]
        if plan.status is not None:
            effects.append(("status", plan.status))
        for kind, effect in effects[:kept]:
            if kind == "status":
                self.body["status"] = copy.deepcopy(dict(effect))
                self.phases.append(effect["phase"])
                self.events.extend(plan.events)
            else:
                self._act(effect)
        return plan

    def _act(self, action):
        match action:
            case CreateObject(body=body):
                metadata = body["metadata"]
                key = metadata["namespace"], metadata["name"]
                if key not in self.objects.claims:
                    owner = metadata["ownerReferences"][0]
                    self.objects.claims[key] = PVC(
                        namespace=key[0], name=key[1], uid="claim-uid", phase="Pending",
                        controller_kind=owner["kind"], controller_name=owner["name"], controller_uid=owner["uid"],
                        annotations=metadata["annotations"], labels=metadata["labels"], path="/v",
                    )  # fmt: skip
            case PatchObject(plural="datavolumes"):
                assert action.uid == self.body["metadata"]["uid"]
                self.body["metadata"]["labels"] |= action.labels
            case PatchObject():
                claim = self.objects.claims.get((action.namespace, action.name))
                if claim is not None and claim.uid == action.uid:
                    annotations = {
                        **claim.annotations,
                        **{k: v for k, v in action.annotations.items() if v is not None},
                    }
                    claim = replace(claim, annotations=annotations, labels={**claim.labels, **action.labels})
                    if action.owner is not None:
                        claim = replace(
                            claim,
                            controller_kind="DataVolume",
                            controller_name=action.owner["name"],
                            controller_uid=action.owner["uid"],
                        )
                    self.objects.claims[action.namespace, action.name] = claim
            case StartWorker():
                if self.worker is None or (not self.worker.running and self.worker.attempt < action.attempt):
                    self.starts.append(action)
                    self.worked = False
                    self.worker = Worker(
                        attempt=action.attempt,
                        running=True,
                        started=self.now,
                        fingerprint=action.fingerprint,
                        upload=action.upload,
                    )

    def nature(self):
        """Carry out one step outside the controller: a claim is bound, or a worker ends."""
        claim = self.claim
        if claim is not None and claim.phase == "Pending" and self.binds:
            self.objects.claims[self.key] = replace(claim, phase="Bound", capacity=1 << 30)
        elif self.worker is not None and self.worker.running and not self.worked:
            self.worked = True
        elif self.worker is not None and self.worker.running:
            number = self.worker.attempt - 1
            end = self.script[number] if number < len(self.script) else End()
            self.worker = replace(
                self.worker, running=False, ended=self.now,
                progress=Progress(phase="transferring", done=end.done, total=1000),
                outcome=Outcome(id="claim-uid", failure=end.failure, labels=end.labels, digest="sha256:" + "0" * 64),
            )  # fmt: skip
        else:
            return False
        return True

    def run(self, steps=300, losses=()):
        """Run to the fixpoint; in step n only ``losses[n]`` effects happen."""
        for number in range(steps):
            plan = self.step(losses[number] if number < len(losses) else None)
            happened = self.nature()
            whole = number >= len(losses)
            if whole and not happened and not plan.actions and plan.status is None:
                if plan.requeue_after is None:
                    return self
                self.now += plan.requeue_after
            else:
                self.now += 0.25
        raise AssertionError(f"no fixpoint after {steps} steps: {self.status}")

    def summary(self):
        """Return everything that must not depend on lost effects."""
        conditions = [
            {k: v for k, v in c.items() if not k.startswith("last")} for c in self.status.get("conditions", [])
        ]
        return {
            **self.status,
            "conditions": conditions,
            "annotations": {
                k: v for k, v in (self.claim.annotations if self.claim else {}).items() if "attempts" not in k
            },
            "own labels": self.body["metadata"]["labels"],
            "labels": dict(self.claim.labels) if self.claim else None,
        }
