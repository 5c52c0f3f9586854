"""Defects of the controller, planted to show that the simulation finds them.

Runs needed from seed 1, as measured: counted-twice, retry-limit, retry-not-counted and write-loop 1; cleanup,
event-dropped and status-after-end 2; expired-watch 7; stale-read 44. In 150 runs relist was not found.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from cdi.api.kinds import CLAIMS, DATA_VOLUMES, PODS, SERVICES, VOLUMES
from cdi.api.proof import ProofResult
from cdi.controller import applier, event_recorder, informers, workqueue
from cdi.kube import reflector
from cdi.kube.client import Client
from cdi.reconcile.clone import manifests
from cdi.reconcile.dataimportcron import proof, retention
from cdi.reconcile.datavolume import next_attempt
from cdi.reconcile.datavolume.attempts import AttemptHistory
from tests.simulation.invariants import MAX_REPEATS

PlanApplier, InformerSet, WorkQueue, Reflector = (
    applier.PlanApplier, informers.InformerSet, workqueue.WorkQueue, reflector.Reflector
)  # fmt: skip
EventRecorder = event_recorder.EventRecorder


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect."""

    sentence: str
    owner: Any
    name: str
    """The function of `owner`, a class or module, that is replaced."""
    wrong: Callable[..., Any]
    """Called with the right function and its arguments."""

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Put the defect in place."""
        right = getattr(self.owner, self.name)
        wrong = self.wrong

        def replaced(*args: Any, **options: Any) -> Any:
            return wrong(right, *args, **options)

        with mock.patch.object(self.owner, self.name, replaced):
            yield


def _event_dropped(right: Callable[..., None], self: Any, change: Any) -> None:
    ended = self._resource == PODS and (change.object.get("status") or {}).get("phase") == "Succeeded"
    if not ended or change.type == "DELETED":
        right(self, change)


async def _stale_read_believed(_: Any, self: Any, action: Any) -> None:
    await self._create(dict(action.pod))


def _write_forgotten(*_: Any) -> None:
    pass


async def _started_twice(right: Any, self: Any, action: Any) -> None:
    await right(self, action)
    twin = {**action.pod, "metadata": {**action.pod["metadata"], "name": f"{action.pod['metadata']['name']}-twin"}}
    await self._client.create(PODS, twin)


async def _ended_early(right: Any, self: Any, involved_object: Any, status: Any, annotations: Any = None) -> None:
    if involved_object["kind"] == DATA_VOLUMES.kind and status is not None and status.get("phase") == "Pending":
        status = {**status, "phase": "Succeeded"}
    await right(self, involved_object, status, annotations)


async def _event_repeated(right: Any, self: Any, involved_object: Any, event: Any, now: float) -> None:
    for _ in range(MAX_REPEATS + 1):
        await right(self, involved_object, event, now)


async def _reclaim_policy_kept(right: Any, self: Any, action: Any) -> None:
    if action.policy == "Retain":
        await right(self, action)


def _failure_ignored(right: Any, self: Any, worker: Any) -> Any:
    result = right(self, worker)
    return replace(result, done=True, failure=None, failures=0) if result is not self else result


def _source_writable(right: Any, *args: Any, **options: Any) -> Any:
    spec = right(*args, **options)
    for one in (
        *spec["containers"][0].get("volumeMounts", ()),
        *(one.get("persistentVolumeClaim", {}) for one in spec["volumes"]),
    ):
        one.pop("readOnly", None)
    return spec


def _offered_unprotected(*_: Any) -> Iterator[str]:
    return iter(())


async def _precondition_left_out(
    right: Any, self: Any, resource: Any, namespace: Any, name: str, body: Any, **options: Any
) -> Any:
    if isinstance(body, dict) and "metadata" in body and resource in (CLAIMS, VOLUMES):
        kept = {key: value for key, value in body["metadata"].items() if key not in ("uid", "resourceVersion")}
        body = {**body, "metadata": kept}
    return await right(self, resource, namespace, name, body, **options)


async def _finalizer_kept(right: Any, self: Any, action: Any) -> None:
    if action.present:
        await right(self, action)


def _retry_not_counted(right: Any, self: Any, worker: Any) -> Any:
    result = right(self, worker)
    return self if result.failure is not None else result


async def _source_deleted(right: Any, self: Any, resource: Any, namespace: str, name: str, uid: str) -> None:
    if resource == PODS and name.endswith("-source-pod"):
        with contextlib.suppress(Exception):
            pod = await self._client.get(PODS, namespace, name)
            claim = pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
            await self._client.delete(
                CLAIMS, namespace, claim, uid=pod["metadata"]["annotations"]["cdi.kubevirt.io/storage.clone.sourceUID"]
            )
    await right(self, resource, namespace, name, uid)


async def _cleanup_forgotten(right: Any, self: Any, resource: Any, namespace: str, name: str, uid: str) -> None:
    if resource != SERVICES and not name.startswith("prime-"):
        await right(self, resource, namespace, name, uid)


def _offered_unverified(right: Any, ended: Any, claim: Any) -> Any:
    result = right(ended, claim)
    return replace(result, booted=True) if isinstance(result, ProofResult) else result


def _requeue_forgotten(right: Any, self: Any, key: Any, delay: float = 0.0, **options: Any) -> None:
    if delay < 1.0:
        right(self, key, delay, **options)


async def _written_after_end(right: Any, self: Any, involved_object: Any, status: Any, annotations: Any = None) -> None:
    await right(self, involved_object, status, annotations)
    if involved_object["kind"] == DATA_VOLUMES.kind and status is not None and status.get("phase") == "Succeeded":
        metadata = involved_object["metadata"]
        body = {"metadata": {"uid": metadata["uid"]}, "status": {"phase": "ImportInProgress"}}
        await self._client.patch(DATA_VOLUMES, metadata["namespace"], metadata["name"], body, subresource="status")


def _deletions_overlooked(right: Any, self: Any, items: Any, version: float) -> None:
    with mock.patch.object(Reflector, "_remove", lambda *_: None):
        right(self, items, version)


async def _watch_never_expires(right: Any, self: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
    async with contextlib.aclosing(right(self, *args, **options)) as events:
        async for event in events:
            if event["type"] != "ERROR":
                yield event


def _counted_twice(right: Any, self: Any, worker: Any) -> Any:
    if worker is not None and not worker.running and worker.attempt == self.attempt and self.failures == 1:
        return replace(self, failures=2)
    return right(self, worker)


def _final_failure_retried(*_: Any) -> None:
    pass


async def _written_again_and_again(right: Any, self: Any, plan: Any, involved_object: Any, now: float) -> Any:
    metadata = involved_object["metadata"]
    if involved_object["kind"] == DATA_VOLUMES.kind:
        body = {"metadata": {"uid": metadata["uid"], "annotations": {"reconciled": str(now)}}}
        await self._client.patch(DATA_VOLUMES, metadata["namespace"], metadata["name"], body)
    return await right(self, plan, involved_object, now)


PLANTED: dict[str, Defect] = {
    "event-dropped": Defect("The end of a pod is not passed on.", Reflector, "_dispatch", _event_dropped),
    "stale-read": Defect(
        "A worker is started without comparing the PVC with the API server's.",
        PlanApplier,
        "_start",
        _stale_read_believed,
    ),
    "write-forgotten": Defect(
        "The cache does not receive the controller's own writes.", InformerSet, "record_write", _write_forgotten
    ),
    "precondition": Defect("Patches name no UID and no version.", Client, "patch", _precondition_left_out),
    "finalizer": Defect("Finalizers are not removed.", PlanApplier, "_set_finalizer", _finalizer_kept),
    "retry-not-counted": Defect("A failed attempt is not recorded.", AttemptHistory, "with_result", _retry_not_counted),
    "source-deleted": Defect("The source of a clone is deleted with its pod.", PlanApplier, "_delete", _source_deleted),
    "cleanup": Defect("Temporary PVCs and Services are not deleted.", PlanApplier, "_delete", _cleanup_forgotten),
    "offered-unverified": Defect(
        "A failed boot proof counts as a success.", proof, "_parse_result", _offered_unverified
    ),
    "requeue": Defect("What is due later is forgotten.", WorkQueue, "add", _requeue_forgotten),
    "status-after-end": Defect("The status is written after the end.", PlanApplier, "write_status", _written_after_end),
    "relist": Defect("A list does not remove what was deleted.", Reflector, "_replace", _deletions_overlooked),
    "counted-twice": Defect("An attempt is counted twice.", AttemptHistory, "with_result", _counted_twice),
    "retry-limit": Defect("No failure is final.", next_attempt, "ended", _final_failure_retried),
    "write-loop": Defect("Each reconcile changes its object.", PlanApplier, "apply", _written_again_and_again),
    "started-twice": Defect("Two pods are created for an attempt.", PlanApplier, "_start", _started_twice),
    "ended-early": Defect("A DataVolume succeeds before its first attempt.", PlanApplier, "write_status", _ended_early),
    "event-repeated": Defect("Events are recorded again and again.", EventRecorder, "record", _event_repeated),
    "reclaim-policy": Defect(
        "The reclaim policy stays Retain after a transfer.", PlanApplier, "_set_reclaim_policy", _reclaim_policy_kept
    ),
    "failure-ignored": Defect("A failed attempt counts as a success.", AttemptHistory, "with_result", _failure_ignored),
    "source-writable": Defect("A clone mounts its source for writing.", manifests, "pod_spec", _source_writable),
    "retention": Defect("Retention removes what is offered.", retention, "_protected", _offered_unprotected),
    "expired-watch": Defect("A watch that has expired is continued.", Client, "watch", _watch_never_expires),
}
"""All of them, by name."""
