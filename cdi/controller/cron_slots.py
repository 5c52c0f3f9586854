"""Counts of the polls and boot proofs that run and that wait, by namespace.

Any tenant may create pods with the labels of ours. A pod counts only if it is the one that a DataImportCron's poll or
proof has; otherwise pods of one tenant could stop the polls and proofs of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from cdi.api.annotation_types import annotations_of
from cdi.api.kinds import CLAIMS, DATA_IMPORT_CRONS, JOBS, PODS, Object
from cdi.api.names import (
    COMPONENT_PROOF,
    LABEL_COMPONENT,
    LABEL_DATA_IMPORT_CRON,
    LABEL_DATA_IMPORT_CRON_NAMESPACE,
    poll_pod,
    proof_pod,
)
from cdi.api.phases import TERMINAL_PHASES
from cdi.controller.informers import InformerSet
from cdi.controller.request import Scope
from cdi.reconcile.dataimportcron.slots import versions_to_prove, waits_to_poll, waits_to_prove


def running_polls(watches: InformerSet) -> Counter[str]:
    """Return the number of unfinished poll Jobs and poll pods, by the namespace of the DataImportCron."""
    return Counter(namespace for namespace, _ in _active_polls(watches))


def _active_polls(watches: InformerSet) -> Iterator[tuple[str, str]]:
    """Yield namespace and name of the DataImportCron of each unfinished poll Job and poll pod."""
    # Only the installation's own namespace is watched for Jobs. A pod of a Job is counted with its Job.
    for job in watches.values(JOBS):
        if not _is_finished(job):
            labels = _labels(job)
            yield labels.get(LABEL_DATA_IMPORT_CRON_NAMESPACE) or "", labels.get(LABEL_DATA_IMPORT_CRON) or ""
    for cron in watches.values(DATA_IMPORT_CRONS):
        if not _pulls_by_node(cron):
            continue
        metadata = cron["metadata"]
        pod = watches.get(PODS, metadata["namespace"], poll_pod(metadata["name"], metadata["uid"]))
        if pod is not None and not _has_ended(pod):
            yield metadata["namespace"], metadata["name"]


def waiting_polls(watches: InformerSet, scope: Scope, now: float) -> Counter[str]:
    """Return the number of DataImportCrons that wait for their turn to poll, by namespace."""
    running = set(_active_polls(watches))
    waiting: Counter[str] = Counter()
    for cron in _reconciled(watches, scope):
        metadata = cron["metadata"]
        key = metadata["namespace"], metadata["name"]
        if key not in running and waits_to_poll(cron.get("spec") or {}, metadata.get("annotations") or {}, now):
            waiting[metadata["namespace"]] += 1
    return waiting


def running_proofs(watches: InformerSet) -> Counter[str]:
    """Return the number of unfinished proof pods, by namespace."""
    pods = (pod for pod in watches.values(PODS) if not _has_ended(pod) and _is_proof(watches, pod))
    return Counter(pod["metadata"]["namespace"] for pod in pods)


def waiting_proofs(watches: InformerSet, scope: Scope, now: float) -> Counter[str]:
    """Return the number of versions that wait for their turn to be proven, by namespace."""
    waiting: Counter[str] = Counter()
    for cron in _reconciled(watches, scope):
        metadata = cron["metadata"]
        for version in versions_to_prove(metadata.get("annotations") or {}, cron.get("status") or {}):
            if _has_no_proof_pod(watches, metadata["namespace"], version, now):
                waiting[metadata["namespace"]] += 1
    return waiting


def _has_no_proof_pod(watches: InformerSet, namespace: str, version: str, now: float) -> bool:
    """Return whether a version's proof is due and has no pod."""
    claim = watches.get(CLAIMS, namespace, version)
    if claim is None or "deletionTimestamp" in claim["metadata"]:
        return False
    uid = claim["metadata"]["uid"]
    pod = watches.get(PODS, namespace, proof_pod(uid, version))
    return pod is None and waits_to_prove(uid, annotations_of(claim), now)


def _reconciled(watches: InformerSet, scope: Scope) -> Iterator[Object]:
    """Yield the DataImportCrons that this controller handles and that are not being deleted."""
    for cron in watches.values(DATA_IMPORT_CRONS):
        metadata = cron["metadata"]
        if (
            "deletionTimestamp" not in metadata
            and scope.includes_namespace(metadata["namespace"])
            and scope.matches(cron)
        ):
            yield cron


def _is_proof(watches: InformerSet, pod: Object) -> bool:
    """Return whether a pod proves a version that the status of its DataImportCron names."""
    if _labels(pod).get(LABEL_COMPONENT) != COMPONENT_PROOF:
        return False
    metadata = pod["metadata"]
    owner = next((one for one in metadata.get("ownerReferences") or () if one.get("kind") == CLAIMS.kind), None)
    claim = watches.get(CLAIMS, metadata["namespace"], owner["name"]) if owner is not None else None
    if owner is None or claim is None or claim["metadata"]["uid"] != owner["uid"]:
        return False
    version = claim["metadata"]["name"]
    cron = watches.get(DATA_IMPORT_CRONS, metadata["namespace"], _labels(claim).get(LABEL_DATA_IMPORT_CRON) or "")
    recorded = ((cron or {}).get("status") or {}).get("versions") or ()
    return metadata["name"] == proof_pod(owner["uid"], version) and any(one.get("name") == version for one in recorded)


def _pulls_by_node(cron: Object) -> bool:
    template = ((cron.get("spec") or {}).get("template") or {}).get("spec") or {}
    return ((template.get("source") or {}).get("registry") or {}).get("pullMethod") == "node"


def _labels(body: Object) -> dict[str, Any]:
    return body["metadata"].get("labels") or {}


def _has_ended(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in TERMINAL_PHASES


def _is_finished(job: Object) -> bool:
    """Return whether a Job has succeeded or failed."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(one.get("type") in ("Complete", "Failed") and one.get("status") == "True" for one in conditions)
