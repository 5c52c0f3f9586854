"""Dry run of a DataVolume: its reconciler runs over an overlay of the objects, up to the worker that it would start.

So the result has the references, the storage class, the sizes, the Secrets and the errors of a real run, in a cluster
and on one machine. Nothing is written.
"""

from __future__ import annotations

import abc
import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import CLONE_PLAN, CLONE_SOURCE_UID
from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError, InternalError, NotFound, by_code
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, resource_of
from cdi.api.names import LABEL_COMPONENT
from cdi.api.phases import Phase
from cdi.api.status_detail import status_detail
from cdi.api.validation import parse
from cdi.client.status_view import error_of, failure_of
from cdi.reconcile.actions import Action, CreateObject, PatchObject, StartWorker, Work
from cdi.reconcile.clone.size_detection import unknown_size
from cdi.reconcile.context import Lister, ReconcileContext
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.datavolume.result import operation_of
from cdi.reconcile.merge_patch import apply_patch
from cdi.reconcile.pods.roles import SIZE_DETECTION
from cdi.reconcile.types import Operation
from cdi.store.base import Key, Object

SIMULATED: Final = "explained"
"""Prefix of the UID and of the resourceVersion of simulated objects."""
_STEPS: Final = 12
"""Largest number of reconciles; more than any DataVolume needs from its creation to its worker."""


class Overlay(abc.ABC):
    """The objects of a cluster or of one machine, and in their place the simulated ones, which are kept in memory."""

    def __init__(self) -> None:
        self._serials = itertools.count()

    @abc.abstractmethod
    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        """Return an object, which must not be modified; None if there is none."""

    @abc.abstractmethod
    def put(self, body: Object) -> None:
        """Add a simulated object, or replace an object by it."""

    @abc.abstractmethod
    def context(self, key: Key) -> ReconcileContext | None:
        """Return the context of a DataVolume; None if there is nothing to reconcile."""

    def create(self, manifest: Mapping[str, Any], *, status: Mapping[str, Any] | None = None) -> Object:
        """Add an object as a server would create it, and return it."""
        serial = f"{SIMULATED}-{next(self._serials)}"
        body: Object = {
            **copy.deepcopy({name: value for name, value in manifest.items() if name != "status"}),
            **({} if status is None else {"status": dict(status)}),
        }
        body["metadata"] |= {"uid": serial, "resourceVersion": serial, "creationTimestamp": "2000-01-01T00:00:00Z"}
        self.put(body)
        return body

    def replace(self, body: Object) -> None:
        """Replace an object, under a new resourceVersion."""
        version = f"{SIMULATED}-{next(self._serials)}"
        self.put({**body, "metadata": {**body["metadata"], "resourceVersion": version}})


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunResult:
    """State that a DataVolume would reach without intervention."""

    key: Key
    operation: Operation
    worker: StartWorker | None = None
    """The worker that it would start first."""
    claims: tuple[Object, ...] = ()
    """The PVCs that would be created, the DataVolume's own first."""
    clone: Object | None = None
    """Its PVC, if it is a clone whose strategy has been chosen."""
    phase: str = ""
    failure: CdiError | None = None
    """The error with which it would end before any worker is started."""
    waits: str = ""
    """What it would wait for, as a sentence; empty if it would not."""
    reason: str = ""
    """The reason in its Ready condition while it waits."""
    measured: bool = False
    """Whether a size-detection pod would run first."""

    @property
    def work(self) -> Work | None:
        """The worker's job."""
        return None if self.worker is None else self.worker.work


def dry_run(overlay: Overlay, key: Key, *, claim_annotations: Mapping[str, str] | None = None) -> DryRunResult:
    """Dry-run a DataVolume.

    Args:
        overlay: The objects, with the DataVolume; the objects that its reconciler creates and changes are added.
        key: The DataVolume.
        claim_annotations: Annotations that its PVC gets from others, such as an upload request.

    Raises:
        InternalError: The reconciler's plans never end.

    """
    run = _Run(overlay, key, claim_annotations or {})
    for _ in range(_STEPS):
        if not run.step():
            return run.result()
    raise InternalError(f"the dry run of {key} does not terminate")


class _Run:
    """One dry run, step by step."""

    def __init__(self, overlay: Overlay, key: Key, claim_annotations: Mapping[str, str]) -> None:
        self._overlay = overlay
        self._key = key
        self._claim_annotations = claim_annotations
        self._worker: StartWorker | None = None
        self._claims: list[Object] = []
        self._measured = False
        self._status: Mapping[str, Any] | None = None

    def step(self) -> bool:
        """Reconcile once and apply the plan to the overlay; return whether that calls for another reconcile."""
        context = self._overlay.context(self._key)
        if context is None:
            return False
        plan = reconcile(context)
        self._status = plan.status if plan.status is not None else self._status
        changes = [self._apply(action, context.objects) for action in plan.actions]
        return self._worker is None and any(changes)

    def _apply(self, action: Action, objects: Lister) -> bool:
        """Apply an action; return whether it changes an object."""
        match action:
            case StartWorker():
                self._worker = action
                return False
            case CreateObject():
                return self._create(action.body, objects)
            case PatchObject():
                return self._patch(action)
            case _:
                # Up to the first worker, no decision depends on the effect of another action.
                return False

    def _create(self, manifest: Mapping[str, Any], objects: Lister) -> bool:
        metadata = manifest["metadata"]
        if (metadata.get("labels") or {}).get(LABEL_COMPONENT) == SIZE_DETECTION.component:
            # No size-detection pod runs in a dry run; the source volume's size is the upper bound.
            self._measured = True
            return self._patch(
                PatchObject(
                    plural=self._key.plural,
                    namespace=self._key.namespace,
                    name=self._key.name,
                    uid="",
                    annotations=unknown_size(CLONE_SOURCE_UID.read(metadata["annotations"]) or ""),
                )
            )
        resource = resource_of(manifest["apiVersion"], manifest["kind"])
        if self._overlay.find(resource.plural, metadata.get("namespace") or "", metadata["name"]) is not None:
            return False
        if resource != CLAIMS:
            self._overlay.create(manifest)
            return True
        if metadata["name"] == self._key.name and self._claim_annotations:
            annotations = {**(metadata.get("annotations") or {}), **self._claim_annotations}
            manifest = {**manifest, "metadata": {**metadata, "annotations": annotations}}
        spec = manifest["spec"]
        storage_class = objects.storage_class(spec.get("storageClassName") or "")
        waits = storage_class is not None and storage_class.wait_for_first_consumer and not self._claims
        is_populated = (spec.get("dataSourceRef") or spec.get("dataSource")) is not None
        # A populator binds its PVC at the end; the prime PVC is bound as soon as its own pod is scheduled.
        status = {"phase": "Pending"} if waits or is_populated else bound(spec)
        self._claims.append(self._overlay.create(manifest, status=status))
        return True

    def _patch(self, action: PatchObject) -> bool:
        before = self._overlay.find(action.plural, action.namespace, action.name)
        if before is None:
            return False
        body = copy.deepcopy(before)
        apply_patch(body, action)
        if body == before:
            return False
        self._overlay.replace(body)
        return True

    def result(self) -> DryRunResult:
        """Return the state that was reached."""
        key = self._key
        body = self._overlay.find(DATA_VOLUMES.plural, key.namespace, key.name)
        assert body is not None
        shown = body if self._status is None else {**body, "status": dict(self._status)}
        dv = parse(body)
        assert isinstance(dv, DataVolume)
        failure = failure_of(shown)
        reason, message = status_detail(shown)
        claim = self._overlay.find(CLAIMS.plural, key.namespace, key.name) if self._claims else None
        annotations = annotations_of(claim)
        clone = claim if CLONE_PLAN.key in annotations else None
        phase = (shown.get("status") or {}).get("phase") or ""
        # Once its strategy has been chosen, a clone completes without further input.
        waits = self._worker is None and failure is None and clone is None and phase != Phase.SUCCEEDED
        return DryRunResult(
            key=key,
            operation=operation_of(dv),
            worker=self._worker,
            claims=tuple(self._claims),
            clone=clone,
            phase=phase,
            failure=None if failure is None else error_of(failure),
            waits=(message or reason) if waits else "",
            reason=reason if waits else "",
            measured=self._measured,
        )


def bound(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the status of a bound PVC with this spec."""
    size = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    return {"phase": "Bound", **({} if size is None else {"capacity": {"storage": size}})}


def blocking_error(result: DryRunResult, unresolvable: Mapping[str, Callable[[str], CdiError]]) -> CdiError | None:
    """Return the error that prevents the import: one that ends it, or one that waiting does not resolve.

    Args:
        result: The result of the dry run.
        unresolvable: Makes the error of a message, for reasons of waiting that are not the code of an error.

    """
    if result.failure is not None:
        return result.failure
    if result.reason in unresolvable:
        return unresolvable[result.reason](result.waits)
    kind = by_code(result.reason)
    return kind(result.waits, remedy="") if kind.__name__ == result.reason else None


def missing(message: str) -> NotFound:
    """Return the error for a message about a missing object, which may end with its remedy."""
    what, _, remedy = message.partition(". Try: ")
    return NotFound(what, remedy=remedy or None)
