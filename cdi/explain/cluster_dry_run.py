"""Dry run of a DataVolume in a cluster with the controller's own reconciler.

So the explanation has the same storage class, PVCs, sizes, Secrets and errors as a real run. Nothing is written.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cdi.api import names
from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError, InternalError, QuotaExceeded, TargetUnsuitable, by_code
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, PODS, Object, resource_named, resource_of
from cdi.api.phases import Phase, Reason
from cdi.api.quantity import Quantity
from cdi.api.status_detail import status_detail
from cdi.api.validation import parse
from cdi.client.status_view import error_of, failure_of
from cdi.controller.clone_lister import InformerCloneLister, NoPodUsage, is_size_detection_pod
from cdi.explain.live_reader import SIMULATED, LiveReader
from cdi.reconcile.actions import CreateObject, PatchObject, Plan, StartWorker, Work
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID, ANNOTATION
from cdi.reconcile.clone.size_detection import unknown_size
from cdi.reconcile.clone.types import CloneAuthorization
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.context_builder import build_context
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.datavolume.result import operation_of
from cdi.reconcile.settings import Platform, Retries
from cdi.reconcile.source import resolve_source
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.types import Clone, Operation
from cdi.store.base import Key

PLATFORM: Final = Platform(cluster=True)
_STEPS: Final = 12
"""More reconciles than any DataVolume needs from its creation to its worker."""
_SIMULATED_TOKEN: Final = "explained"  # noqa: S105  no secret: stands for a token that the dry run does not need
_WAITING: Final = (Phase.WAIT_FOR_FIRST_CONSUMER.value, Phase.PENDING_POPULATION.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunResult:
    """How far a DataVolume would get without further input."""

    key: Key
    operation: Operation
    claims: tuple[Object, ...] = ()
    """PVCs that would be created, the DataVolume's own first."""
    storage_class: StorageClass | None = None
    named_class: str | None = None
    """The class that the manifest itself names."""
    waits_for_consumer: bool = False
    """Whether it would wait until a pod that uses the volume is scheduled.

    The other fields describe what follows then.
    """
    work: Work | None = None
    """The worker's job."""
    pod: Mapping[str, Any] | None = None
    failure: CdiError | None = None
    """The error with which it would end before any worker is started."""
    waits: str = ""
    """The reason for which it would wait, as a sentence; empty if it would not."""
    reason: str = ""
    """The reason in its Ready condition while it waits."""
    clone: Object | None = None
    """Its PVC, if it is a clone whose strategy has been chosen."""
    measured: bool = False
    """Whether a size-detection pod would run first."""

    @property
    def populated(self) -> bool:
        """Return whether it is filled through a prime PVC."""
        return len(self.claims) > 1


CanClone = Callable[[Clone], bool]
"""Function that returns whether the caller may clone from another namespace, or raises `ClusterError`."""


def dry_run(lookups: LiveReader, manifest: Object, may: CanClone) -> DryRunResult:
    """Dry-run a DataVolume that does not exist yet.

    Args:
        lookups: The cluster's objects.
        manifest: A complete, valid manifest with its namespace.
        may: Called to find out whether the caller may clone from another namespace.

    """
    found = _simulate(lookups, manifest, may, at_once=False)
    return found if not found.waits_for_consumer else _simulate(lookups, manifest, may, at_once=True)


def _simulate(lookups: LiveReader, manifest: Object, may: CanClone, *, at_once: bool) -> DryRunResult:
    """Dry-run a DataVolume; with `at_once` as if immediate binding had been requested."""
    body = _imagined(manifest, "explained")
    if at_once:
        body["metadata"]["annotations"] = {
            **(body["metadata"].get("annotations") or {}), names.ANN_IMMEDIATE_BINDING: "",
        }  # fmt: skip
    key = Key.of_object(body)
    thought = _SimulatedCluster(lookups.overlay(), body, may)
    dv = parse(body)
    assert isinstance(dv, DataVolume)
    plan = Plan()
    for _ in range(_STEPS):
        plan = thought.step(key)
        if thought.started is not None or not thought.moved:
            break
    else:
        raise InternalError(f"the dry run of {key} does not terminate")
    shown = thought.shown(key, plan)
    failure = failure_of(shown)
    reason, message = status_detail(shown)
    clone = thought.cloned(key)
    # Once its strategy has been chosen, a clone completes without further input.
    waits = thought.started is None and failure is None and clone is None
    phase = (shown.get("status") or {}).get("phase")
    return DryRunResult(
        key=key,
        operation=operation_of(dv),
        claims=tuple(thought.claims),
        storage_class=thought.storage_class(),
        named_class=(dv.spec.claim.storage_class_name if dv.spec.claim is not None else None),
        waits_for_consumer=at_once or phase in _WAITING,
        work=thought.started.work if thought.started is not None else None,
        pod=thought.started.pod if thought.started is not None else None,
        failure=None if failure is None else error_of(failure),
        waits=(message or reason) if waits else "",
        reason=reason if waits else "",
        clone=clone,
        measured=thought.measured,
    )


def blocked(found: DryRunResult) -> CdiError | None:
    """Return the error for what it would wait for, if waiting does not help; None otherwise."""
    kinds: dict[str, type[CdiError]] = {
        Reason.ERR_CLAIM_NOT_VALID: TargetUnsuitable,
        Reason.ERR_EXCEEDED_QUOTA: QuotaExceeded,
    }
    kind = kinds.get(found.reason) or by_code(found.reason)
    if found.reason in kinds or kind.__name__ == found.reason:
        return kind(found.waits, remedy="")
    return None


class _Clones(InformerCloneLister):
    """Clones with a placeholder token, which needs no signing key."""

    leave: CloneAuthorization | None = None

    def verify_token(self, token: str, moment: float) -> CloneAuthorization | None:
        return self.leave if token == _SIMULATED_TOKEN else super().verify_token(token, moment)

    def sign_long_lived_token(self, grant: CloneAuthorization) -> str:  # noqa: ARG002  signature of the protocol
        return _SIMULATED_TOKEN


class _SimulatedCluster:
    """The cluster's objects, overlaid with those that the reconciler would create or change."""

    def __init__(self, lookups: LiveReader, dv: Object, may: CanClone) -> None:
        self.claims: list[Object] = []
        self.started: StartWorker | None = None
        self.moved = False
        self.measured = False
        self._lookups = lookups
        self._dv = dv
        self._may = may
        self._leave: CloneAuthorization | None = None
        self._version = 0
        lookups.set(DATA_VOLUMES, dv)

    def step(self, key: Key) -> Plan:
        """Run one reconcile and apply its plan to the overlay."""
        self.moved = False
        context = self._context(key)
        if context is None:
            return Plan()
        if self._leave is None:
            context = self._with_leave(key, context)
        plan = reconcile(context)
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
        """Return the DataVolume with the status that it would have."""
        body = self._lookups.get(DATA_VOLUMES, key.namespace, key.name) or self._dv
        return {**body, "status": dict(plan.status)} if plan.status is not None else body

    def cloned(self, key: Key) -> Object | None:
        """Return its PVC once that records how it is cloned; None before."""
        body = self._lookups.get(CLAIMS, key.namespace, key.name) if self.claims else None
        notes = (body or {}).get("metadata", {}).get("annotations") or {}
        return body if ANNOTATION in notes else None

    def _context(self, key: Key) -> ReconcileContext | None:
        observed = self._lookups.observed()
        clones = _Clones(self._lookups, observed, NoPodUsage())
        clones.leave = self._leave
        return build_context(
            observed,
            key.namespace,
            key.name,
            now=time.time(),
            config=observed.config(),
            retries=Retries(),
            platform=PLATFORM,
            clones=clones,
        )

    def _with_leave(self, key: Key, context: ReconcileContext) -> ReconcileContext:
        """Return the context with the token that the webhook would add if the caller may clone from there."""
        origin = resolve_source(context)
        if not isinstance(origin, Clone) or origin.namespace == key.namespace or not self._may(origin):
            return context
        self._leave = CloneAuthorization(
            kind=origin.kind,
            namespace=origin.namespace,
            name=origin.name,
            target_namespace=key.namespace,
            target_name=key.name,
        )
        self._note_dv(key, {names.ANN_CLONE_TOKEN: _SIMULATED_TOKEN})
        return self._context(key) or context

    def storage_class(self) -> StorageClass | None:
        """Return the storage class of the PVC, else that of the manifest, else the default class."""
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
        if resource == PODS and is_size_detection_pod(body):
            # No size-detection pod runs in a dry run; the source volume's size is the upper bound.
            self._note_dv(Key.of_object(self._dv), unknown_size(body["metadata"]["annotations"][ANN_SOURCE_UID]))
            self.measured = self.moved = True
            return
        if self._lookups.get(resource, body["metadata"].get("namespace") or "", body["metadata"]["name"]) is not None:
            return
        self.moved = True
        if resource == CLAIMS:
            self.claims.append(body)
            self._bind(body)
        self._lookups.set(resource, body)

    def _note_dv(self, key: Key, notes: Mapping[str, str]) -> None:
        body = copy.deepcopy(self._lookups.get(DATA_VOLUMES, key.namespace, key.name) or self._dv)
        body["metadata"]["annotations"] = {**(body["metadata"].get("annotations") or {}), **notes}
        self._lookups.set(DATA_VOLUMES, body)

    def _bind(self, body: Object) -> None:
        """Set the status of a new PVC: Bound, unless it waits for a consumer or is bound by a populator at the end."""
        spec = body["spec"]
        size = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
        ref = spec.get("dataSourceRef") or spec.get("dataSource")
        observed = self._lookups.observed()
        found = observed.storage_class(spec.get("storageClassName") or "")
        waits = found is not None and found.wait_for_first_consumer
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
        metadata["resourceVersion"] = f"{SIMULATED}-{self._version}"
        self.moved = True
        self._lookups.set(resource, body)


def _imagined(manifest: Mapping[str, Any], uid: str) -> Object:
    body: Object = copy.deepcopy(dict(manifest))
    body["metadata"] = {
        **body["metadata"],
        "uid": uid,
        "resourceVersion": SIMULATED,
        "creationTimestamp": "2000-01-01T00:00:00Z",
    }
    body.pop("status", None)
    return body


def requested(claim: Object) -> int | None:
    """Return the size in bytes that a PVC requests; None if there is none."""
    text = (((claim.get("spec") or {}).get("resources") or {}).get("requests") or {}).get("storage")
    return None if text is None else Quantity.parse(str(text)).bytes
