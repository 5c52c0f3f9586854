"""Defects of the controller, planted to show that the simulation finds them.

Runs needed from seed 1, as measured: counted-twice, ended-early, event-count, failure-ignored, precondition, retry-limit,
retry-not-counted, started-twice, write-forgotten and write-loop 1; cleanup, event-dropped and status-after-end 2;
source-deleted and source-writable 3; offered-unverified 8; requeue 13; expired-watch 18; retention 27; finalizer and
reclaim-policy 28; relist 31; stale-read 44, which takes ten seconds on one core. The last one needs two controllers at
once, of which one changes a PVC while the other one acts on the version before: a single controller knows its writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import ATTEMPT
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, PODS, SERVICES, VOLUMES
from cdi.api.proof import ProofResult
from cdi.controller import applier, event_recorder, informers, object_writer, workqueue
from cdi.kube import reflector
from cdi.kube.client import Client
from cdi.reconcile.dataimportcron import proof, retention
from cdi.reconcile.datavolume import next_attempt
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.pods import roles
from tests.simulation.invariants import MAX_REPEATS

PlanApplier, ObjectWriter, InformerSet, WorkQueue, Reflector = (
    applier.PlanApplier, object_writer.ObjectWriter, informers.InformerSet, workqueue.WorkQueue, reflector.Reflector
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect."""

    sentence: str
    violates: str
    """Name of the invariant that finds it first."""
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


async def _stale_read_believed(*_: Any) -> None:
    pass


def _write_forgotten(*_: Any) -> None:
    pass


async def _started_twice(right: Any, self: Any, body: Any) -> Any:
    created = await right(self, body)
    if body["kind"] == PODS.kind and ATTEMPT.key in annotations_of(body):
        twin = {**body, "metadata": {**body["metadata"], "name": f"{body['metadata']['name']}-twin"}}
        await self._client.create(PODS, twin)
    return created


async def _ended_early(right: Any, self: Any, involved_object: Any, status: Any, annotations: Any = None) -> None:
    if involved_object["kind"] == DATA_VOLUMES.kind and status is not None and status.get("phase") == "Pending":
        status = {**status, "phase": "Succeeded"}
    await right(self, involved_object, status, annotations)


def _event_overcounted(right: Any, known: Any, now: float) -> Any:
    return {**right(known, now), "count": known.get("count", 1) * (MAX_REPEATS + 1)}


async def _reclaim_policy_kept(right: Any, self: Any, action: Any) -> None:
    if action.policy == "Retain":
        await right(self, action)


def _failure_ignored(right: Any, self: Any, worker: Any) -> Any:
    result = right(self, worker)
    return replace(result, done=True, failure=None, failures=0) if result is not self else result


def _source_writable(right: Any, *args: Any) -> Any:
    volumes = right(*args)
    for one in volumes:
        one.get("persistentVolumeClaim", {}).pop("readOnly", None)
    return volumes


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
        await self._writer._client.patch(
            DATA_VOLUMES, metadata["namespace"], metadata["name"], body, subresource="status"
        )


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
        await self._writer._client.patch(DATA_VOLUMES, metadata["namespace"], metadata["name"], body)
    return await right(self, plan, involved_object, now)


PLANTED: dict[str, Defect] = {
    "event-dropped": Defect(
        "The end of a pod is not passed on.",
        "data_volumes_end_as_their_source_says",
        Reflector,
        "_dispatch",
        _event_dropped,
    ),
    "stale-read": Defect(
        "What a plan requires to be the newest version is not compared with the API server's.",
        "phases_follow_allowed_edges",
        ObjectWriter,
        "require_version",
        _stale_read_believed,
    ),
    "write-forgotten": Defect(
        "The cache does not receive the controller's own writes.",
        "own_writes_are_known",
        InformerSet,
        "record_write",
        _write_forgotten,
    ),
    "precondition": Defect(
        "Patches name no UID and no version.", "writes_name_the_object", Client, "patch", _precondition_left_out
    ),
    "finalizer": Defect("Finalizers are not removed.", "transfers_end", ObjectWriter, "set_finalizer", _finalizer_kept),
    "retry-not-counted": Defect(
        "A failed attempt is not recorded.",
        "quiescence_is_reached",
        AttemptHistory,
        "with_result",
        _retry_not_counted,
    ),
    "source-deleted": Defect(
        "The source of a clone is deleted with its pod.", "users_data_is_kept", ObjectWriter, "delete", _source_deleted
    ),
    "cleanup": Defect(
        "Temporary PVCs and Services are not deleted.", "nothing_leaks", ObjectWriter, "delete", _cleanup_forgotten
    ),
    "offered-unverified": Defect(
        "A failed boot proof counts as a success.", "offered_is_verified", proof, "_parse_result", _offered_unverified
    ),
    "requeue": Defect("What is due later is forgotten.", "nothing_leaks", WorkQueue, "add", _requeue_forgotten),
    "status-after-end": Defect(
        "The status is written after the end.",
        "phases_follow_allowed_edges",
        PlanApplier,
        "write_status",
        _written_after_end,
    ),
    "relist": Defect(
        "A list does not remove what was deleted.",
        "caches_match_the_server",
        Reflector,
        "_replace",
        _deletions_overlooked,
    ),
    "counted-twice": Defect(
        "An attempt is counted twice.", "attempts_are_counted_once", AttemptHistory, "with_result", _counted_twice
    ),
    "retry-limit": Defect("No failure is final.", "retry_limits_hold", next_attempt, "ended", _final_failure_retried),
    "write-loop": Defect(
        "Each reconcile changes its object.", "writes_are_bounded", PlanApplier, "apply", _written_again_and_again
    ),
    "started-twice": Defect(
        "Two pods are created for an attempt.", "one_writer", ObjectWriter, "create", _started_twice
    ),
    "ended-early": Defect(
        "A DataVolume succeeds before its first attempt.",
        "nothing_starts_after_the_end",
        PlanApplier,
        "write_status",
        _ended_early,
    ),
    "event-count": Defect(
        "Repetitions of an event are counted wrongly.",
        "events_are_bounded",
        event_recorder,
        "build_repetition",
        _event_overcounted,
    ),
    "reclaim-policy": Defect(
        "The reclaim policy stays Retain after a transfer.",
        "no_volume_without_owner",
        ObjectWriter,
        "set_reclaim_policy",
        _reclaim_policy_kept,
    ),
    "failure-ignored": Defect(
        "A failed attempt counts as a success.",
        "succeeded_means_complete",
        AttemptHistory,
        "with_result",
        _failure_ignored,
    ),
    "source-writable": Defect(
        "A clone mounts its source for writing.", "sources_are_never_written", roles, "_volumes", _source_writable
    ),
    "retention": Defect(
        "Retention removes what is offered.", "offered_is_not_removed", retention, "_protected", _offered_unprotected
    ),
    "expired-watch": Defect(
        "A watch that has expired is continued.", "caches_match_the_server", Client, "watch", _watch_never_expires
    ),
}
"""All of them, by name."""
