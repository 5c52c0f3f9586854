"""What would become of a DataVolume in a cluster: the controller's own reconciler, run in thought.

So what is explained is what runs: same class, claims, sizes, secrets and refusals.  Nothing is written.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cdi.api import names
from cdi.api.conditions import find_condition
from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError, InternalError, QuotaExceeded, TargetUnsuitable, by_code
from cdi.api.phases import ConditionType, Phase, Reason
from cdi.api.quantity import Quantity
from cdi.api.validation import parse
from cdi.controller.clones import ObservedClones, Unwatched
from cdi.controller.cloning import measures
from cdi.controller.lookups import IMAGINED, Lookups
from cdi.kube.resources import CLAIMS, DATA_VOLUMES, PODS, Object, resource_named, resource_of
from cdi.reconcile.actions import CreateObject, PatchObject, Plan, StartWorker, Work
from cdi.reconcile.clone.facts import Grant
from cdi.reconcile.clone.measuring import unknown
from cdi.reconcile.clone.record import ANN_SOURCE_UID, ANNOTATION
from cdi.reconcile.cluster import observe
from cdi.reconcile.datavolume import reconcile
from cdi.reconcile.decision import operation_of
from cdi.reconcile.origin import Clone, find_origin
from cdi.reconcile.storageclass import StorageClass
from cdi.reconcile.world import Operation, Platform, Retries, World
from cdi.runtime.view import error_of, failure_of
from cdi.store.base import Key

PLATFORM: Final = Platform(cluster=True)
_STEPS: Final = 12
"""More than any DataVolume takes from being made to its worker."""
_LEAVE: Final = "explained"
_WAITING: Final = (Phase.WAIT_FOR_FIRST_CONSUMER.value, Phase.PENDING_POPULATION.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """How far a DataVolume would come by itself."""

    key: Key
    operation: Operation
    claims: tuple[Object, ...] = ()
    """That would be made, the DataVolume's own first."""
    storage_class: StorageClass | None = None
    named_class: str | None = None
    """What the manifest itself says."""
    waits_for_consumer: bool = False
    """It would stand still until a pod that uses the volume is scheduled; the rest is what comes then."""
    work: Work | None = None
    """What its worker would be given."""
    pod: Mapping[str, Any] | None = None
    failure: CdiError | None = None
    """What it would end with before any worker is started."""
    waits: str = ""
    """What it would wait for."""
    reason: str = ""
    """Of the waiting, as its Ready condition has it."""
    clone: Object | None = None
    """Its own claim, where that is a clone and says how it is made."""
    measured: bool = False
    """A pod would look first how large the disk in the source is."""

    @property
    def populated(self) -> bool:
        """It is filled through a claim in its place."""
        return len(self.claims) > 1


May = Callable[[Clone], bool]
"""Whether whoever asks may clone what is in another namespace.  Raises `ClusterError`."""


def foresee(lookups: Lookups, manifest: Object, may: May) -> Foreseen:
    """Of a DataVolume that does not exist yet: a whole, valid manifest with its namespace."""
    found = _foresee(lookups, manifest, may, at_once=False)
    return found if not found.waits_for_consumer else _foresee(lookups, manifest, may, at_once=True)


def _foresee(lookups: Lookups, manifest: Object, may: May, *, at_once: bool) -> Foreseen:
    """With `at_once`, as if somebody had asked for it to be bound without a consumer."""
    body = _imagined(manifest, "explained")
    if at_once:
        body["metadata"]["annotations"] = {
            **(body["metadata"].get("annotations") or {}), names.ANN_IMMEDIATE_BINDING: "",
        }  # fmt: skip
    key = Key.of_object(body)
    thought = _Thought(lookups.branch(), body, may)
    dv = parse(body)
    assert isinstance(dv, DataVolume)
    plan = Plan()
    for _ in range(_STEPS):
        plan = thought.step(key)
        if thought.started is not None or not thought.moved:
            break
    else:
        raise InternalError(f"{key} never comes to rest")
    shown = thought.shown(key, plan)
    failure = failure_of(shown)
    ready = find_condition(_conditions(shown), ConditionType.READY)
    clone = thought.cloned(key)
    # Once it is decided how it is cloned, it goes on by itself.
    waits = thought.started is None and failure is None and ready is not None and clone is None
    phase = (shown.get("status") or {}).get("phase")
    return Foreseen(
        key=key,
        operation=operation_of(dv),
        claims=tuple(thought.claims),
        storage_class=thought.storage_class(),
        named_class=(dv.spec.claim.storage_class_name if dv.spec.claim is not None else None),
        waits_for_consumer=at_once or phase in _WAITING,
        work=thought.started.work if thought.started is not None else None,
        pod=thought.started.pod if thought.started is not None else None,
        failure=None if failure is None else error_of(failure),
        waits=(ready.message or ready.reason or "") if waits and ready is not None else "",
        reason=(ready.reason or "") if waits and ready is not None else "",
        clone=clone,
        measured=thought.measured,
    )


def blocked(found: Foreseen) -> CdiError | None:
    """What it would wait for, where that will not come by itself."""
    kinds: dict[str, type[CdiError]] = {
        Reason.ERR_CLAIM_NOT_VALID: TargetUnsuitable,
        Reason.ERR_EXCEEDED_QUOTA: QuotaExceeded,
    }
    kind = kinds.get(found.reason) or by_code(found.reason)
    if found.reason in kinds or kind.__name__ == found.reason:
        return kind(found.waits, remedy="")
    return None


class _Clones(ObservedClones):
    """No key is needed for a token that nobody signed."""

    leave: Grant | None = None

    def grant(self, token: str, moment: float) -> Grant | None:
        return self.leave if token == _LEAVE else super().grant(token, moment)

    def extend(self, grant: Grant) -> str:  # noqa: ARG002  the protocol's
        return _LEAVE


class _Thought:
    """Objects as they are, and over them those that would be."""

    def __init__(self, lookups: Lookups, dv: Object, may: May) -> None:
        self.claims: list[Object] = []
        self.started: StartWorker | None = None
        self.moved = False
        self.measured = False
        self._lookups = lookups
        self._dv = dv
        self._may = may
        self._leave: Grant | None = None
        self._version = 0
        lookups.put(DATA_VOLUMES, dv)

    def step(self, key: Key) -> Plan:
        """One reconcile, and what follows from it."""
        self.moved = False
        world = self._world(key)
        if world is None:
            return Plan()
        if self._leave is None:
            world = self._with_leave(key, world)
        plan = reconcile(world)
        for action in plan.actions:
            match action:
                case StartWorker():
                    self.started = action
                case CreateObject():
                    self._create(action.body)
                case PatchObject():
                    self._patch(action)
                case _:
                    pass
        return plan

    def shown(self, key: Key, plan: Plan) -> Object:
        """The DataVolume with the status that it would show."""
        body = self._lookups.get(DATA_VOLUMES, key.namespace, key.name) or self._dv
        return {**body, "status": dict(plan.status)} if plan.status is not None else body

    def cloned(self, key: Key) -> Object | None:
        """Its claim, once that says how it is cloned."""
        body = self._lookups.get(CLAIMS, key.namespace, key.name) if self.claims else None
        notes = (body or {}).get("metadata", {}).get("annotations") or {}
        return body if ANNOTATION in notes else None

    def _world(self, key: Key) -> World | None:
        observed = self._lookups.observed()
        clones = _Clones(self._lookups, observed, Unwatched())
        clones.leave = self._leave
        return observe(
            observed,
            key.namespace,
            key.name,
            now=time.time(),
            config=observed.config(),
            retries=Retries(),
            platform=PLATFORM,
            clones=clones,
        )

    def _with_leave(self, key: Key, world: World) -> World:
        """As the webhook lets it in: with a token, where whoever asks may clone out of another namespace."""
        origin = find_origin(world)
        if not isinstance(origin, Clone) or origin.namespace == key.namespace or not self._may(origin):
            return world
        self._leave = Grant(
            kind=origin.kind,
            namespace=origin.namespace,
            name=origin.name,
            target_namespace=key.namespace,
            target_name=key.name,
        )
        self._note_dv(key, {names.ANN_CLONE_TOKEN: _LEAVE})
        return self._world(key) or world

    def storage_class(self) -> StorageClass | None:
        """Of the claim, else of the manifest, else the default one."""
        spec = self._dv.get("spec") or {}
        claim = self.claims[0]["spec"] if self.claims else spec.get("storage") or spec.get("pvc") or {}
        name = claim.get("storageClassName")
        observed = self._lookups.observed()
        if name:
            return observed.storage_class(name)
        return observed.default_storage_class(virtualization=spec.get("contentType") != "archive")

    def _create(self, manifest: Mapping[str, Any]) -> None:
        body = _imagined(manifest, f"explained-{len(self.claims)}")
        resource = resource_of(body["apiVersion"], body["kind"])
        if resource == PODS and measures(body):
            # Nobody looks now; the source's volume is the bound.
            self._note_dv(Key.of_object(self._dv), unknown(body["metadata"]["annotations"][ANN_SOURCE_UID]))
            self.measured = self.moved = True
            return
        if self._lookups.get(resource, body["metadata"].get("namespace") or "", body["metadata"]["name"]) is not None:
            return
        self.moved = True
        if resource == CLAIMS:
            self.claims.append(body)
            self._bind(body)
        self._lookups.put(resource, body)

    def _note_dv(self, key: Key, notes: Mapping[str, str]) -> None:
        body = copy.deepcopy(self._lookups.get(DATA_VOLUMES, key.namespace, key.name) or self._dv)
        body["metadata"]["annotations"] = {**(body["metadata"].get("annotations") or {}), **notes}
        self._lookups.put(DATA_VOLUMES, body)

    def _bind(self, body: Object) -> None:
        """A claim is bound as soon as it can be; one that a populator fills is bound at the end only."""
        spec = body["spec"]
        size = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
        ref = spec.get("dataSourceRef") or spec.get("dataSource")
        observed = self._lookups.observed()
        found = observed.storage_class(spec.get("storageClassName") or "")
        waits = found is not None and found.waits
        body["status"] = {"phase": "Pending"}
        if ref is None and size is not None and not (waits and not self.claims[:-1]):
            body["status"] = {"phase": "Bound", "capacity": {"storage": size}}

    def _patch(self, action: PatchObject) -> None:
        resource = resource_named(action.plural)
        before = self._lookups.get(resource, action.namespace, action.name)
        if before is None:
            return
        body = copy.deepcopy(before)
        metadata = body["metadata"]
        notes = {**(metadata.get("annotations") or {}), **action.annotations}
        metadata["annotations"] = {name: text for name, text in notes.items() if text is not None}
        metadata["labels"] = {**(metadata.get("labels") or {}), **action.labels}
        if body == before:
            return
        self._version += 1
        metadata["resourceVersion"] = f"{IMAGINED}-{self._version}"
        self.moved = True
        self._lookups.put(resource, body)


def _imagined(manifest: Mapping[str, Any], uid: str) -> Object:
    body: Object = copy.deepcopy(dict(manifest))
    body["metadata"] = {
        **body["metadata"],
        "uid": uid,
        "resourceVersion": IMAGINED,
        "creationTimestamp": "2000-01-01T00:00:00Z",
    }
    body.pop("status", None)
    return body


def _conditions(body: Object) -> Any:
    model = parse(body)
    return model.status.conditions if isinstance(model, DataVolume) and model.status is not None else None


def requested(claim: Object) -> int | None:
    """Bytes that a claim asks for."""
    text = (((claim.get("spec") or {}).get("resources") or {}).get("requests") or {}).get("storage")
    return None if text is None else Quantity.parse(str(text)).bytes
