"""Parse the status of worker pods.

The pod status is written by a kubelet and a scheduler, and the termination message by a worker that has processed an
untrusted image: nothing of it is used without validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cdi.api.annotations import ATTEMPT, FINGERPRINT, LIMITS, SPEC_DIGEST, UPLOAD
from cdi.api.decode import DecodeError, decode_parsed
from cdi.api.errors import CdiError, ResourceLimit, WorkerEvicted, WorkerLost
from cdi.api.job import Failure, Outcome, Progress
from cdi.api.json_document import parse_json
from cdi.api.names import COMPONENT_IMPORTER, COMPONENT_UPLOAD_SERVER, LABEL_COMPONENT
from cdi.api.phases import PULL_FAILED, TERMINAL_PHASES, Reason
from cdi.api.printable import one_line
from cdi.api.timestamps import epoch_seconds
from cdi.reconcile.pods.roles import CONTAINER
from cdi.reconcile.pods.types import Pod, PodBlocker, Worker

WORKERS = frozenset({COMPONENT_IMPORTER, COMPONENT_UPLOAD_SERVER})
"""Values of the label `LABEL_COMPONENT` of pods that fill a volume."""
NODE_LOST = "NodeLost"
TERMINATING = "Terminating"
PULL_FAILURES: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
"""Reasons why a container waits for an image that cannot be pulled."""
STARTING: Final = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons of a container that waits for nothing but its start."""
_IMAGE_TROUBLE = PULL_FAILURES | {"ImageInspectError", "SignatureValidationFailed"}
_MAX_MESSAGE = 8192
_MAX_JOURNAL = 40 * 1024


def worker_from_pod(
    pod: Mapping[str, Any],
    *,
    progress: Progress | None = None,
    refused: Failure | None = None,
    node_lost: bool = False,
) -> Worker | None:
    """Parse a pod from the API; return None if it is not a worker pod.

    Args:
        pod: The API object.
        progress: The progress that the pod reported when it was last polled.
        refused: The failure of the last rejected upload, reported in the same way.
        node_lost: Whether its node does not exist or is not ready.

    """
    metadata, status = pod.get("metadata") or {}, pod.get("status") or {}
    annotations = metadata.get("annotations") or {}
    attempt = ATTEMPT.read(annotations)
    owner = next((one for one in metadata.get("ownerReferences") or () if one.get("controller")), None)
    if (
        (metadata.get("labels") or {}).get(LABEL_COMPONENT) not in WORKERS
        or attempt is None
        or owner is None
        or owner.get("kind") != "PersistentVolumeClaim"
    ):
        return None
    container = container_status(pod)
    state = container.get("state") or {}
    restarts = (pod.get("spec") or {}).get("restartPolicy") == "OnFailure"
    number = attempt + (_restart_count(container) if restarts else 0)
    last = (container.get("lastState") or {}).get("terminated") if restarts else None
    terminated = last if _needs_new_pod(last) else last_termination(container)
    # Other containers of the pod (a service mesh's proxy) do not count: the attempt ends with the worker's container.
    ended = terminated is not None or status.get("phase") in TERMINAL_PHASES
    created = epoch_seconds(metadata.get("creationTimestamp")) or 0.0
    began = epoch_seconds((state.get("running") or terminated or {}).get("startedAt")) or created
    claim = str(owner.get("uid") or "")
    base = Worker(
        attempt=number,
        running=True,
        started=began,
        progress=progress,
        fingerprint=FINGERPRINT.read(annotations) or "",
        upload=UPLOAD.read(annotations) or "",
    )
    worker = _ended_worker(base, pod, terminated or {}, claim, attempt) if ended else base
    previous = None
    # The container may have been restarted and have ended again since it was last observed.
    if last is not None and terminated is not last and number > attempt:
        previous = _ended_worker(replace(base, attempt=number - 1), pod, last, claim, attempt)
    return replace(
        worker,
        refused=refused,
        previous=previous,
        pod=Pod(
            name=str(metadata.get("name") or ""),
            uid=str(metadata.get("uid") or ""),
            claim=claim,
            node=str((pod.get("spec") or {}).get("nodeName") or ""),
            started=state.get("running") is not None or terminated is not None,
            restarts=restarts and status.get("phase") not in TERMINAL_PHASES,
            restarted=number > attempt,
            scheduled=_scheduled(status),
            hold=None if ended else _hold(pod, container, node_lost=node_lost),
            deleting=metadata.get("deletionTimestamp") is not None,
            limits=LIMITS.read(annotations) or "",
            spec=SPEC_DIGEST.read(annotations) or "",
            address=str(status.get("podIP") or ""),
            serves=(metadata.get("labels") or {}).get(LABEL_COMPONENT) == COMPONENT_UPLOAD_SERVER,
            ready=container.get("ready") is True,
            scratch=any(one.get("name") == "scratch" for one in (pod.get("spec") or {}).get("volumes") or ()),
        ),
    )


def _ended_worker(
    worker: Worker, pod: Mapping[str, Any], terminated: Mapping[str, Any], claim: str, first: int
) -> Worker:
    """Return the attempt with the result of a container that has terminated; `first` is the first one in its pod."""
    document = _document(terminated.get("message"))
    journal = document.get("journal")
    began = epoch_seconds(terminated.get("startedAt")) or worker.started
    outcome = _outcome(pod, terminated, document, claim)
    run = document.get("run")
    return replace(
        worker,
        # A restarted container that only repeats its end is not another attempt.
        attempt=min(worker.attempt, first + (run if isinstance(run, int) and run > 0 else 1) - 1)
        if _needs_new_pod(terminated)
        else worker.attempt,
        running=False,
        started=began,
        ended=epoch_seconds(terminated.get("finishedAt")) or began,
        outcome=outcome,
        journal=journal if isinstance(journal, str) and len(journal) <= _MAX_JOURNAL else "",
    )


def _needs_new_pod(terminated: Mapping[str, Any] | None) -> bool:
    """Return whether a container has ended in such a way that its restarts only repeat that end."""
    outcome = outcome_in(terminated or {})
    return outcome is not None and outcome.failure is not None and outcome.failure.needs_new_pod


def _restart_count(container: Mapping[str, Any]) -> int:
    count = container.get("restartCount")
    return count if isinstance(count, int) and 0 <= count < 1_000_000 else 0


def pending_reason(pod: Mapping[str, Any]) -> PodBlocker | None:
    """Return why a pod does not run although it has not failed; None if it runs or has ended.

    This also works for pods of other importers, which are blocked for the same reasons.
    """
    status = pod.get("status") or {}
    container = container_status(pod)
    if "terminated" in (container.get("state") or {}) or status.get("phase") in TERMINAL_PHASES:
        return None
    return _hold(pod, container, node_lost=False)


def last_termination(container: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return how a container ended, from its status in the pod; None if it runs or has not started.

    A container that waits for its restart (CrashLoopBackOff) has ended.
    """
    state = container.get("state") or {}
    if "waiting" in state:
        return (container.get("lastState") or {}).get("terminated")
    return state.get("terminated")


def termination_outcome(pod: Mapping[str, Any], identity: str) -> tuple[Outcome, float] | None:
    """Return the outcome of a pod created by CDI and its end (seconds since the epoch); None while it runs.

    A success counts only if the outcome's id equals `identity`.
    """
    end = termination(pod)
    if end is None:
        return None
    return _outcome(pod, _terminated(pod, CONTAINER) or {}, end.document, identity), end.ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination:
    """How a container of a pod ended."""

    document: Mapping[str, Any]
    """Termination message; empty if the container ended without one, which must not be trusted then."""
    exit_status: int | None
    """None if the container has none: the pod was evicted, or its node is gone."""
    ended: float
    """Seconds since the epoch."""
    cause: CdiError
    """Why there is no termination message, if there is none."""


def termination(pod: Mapping[str, Any], container: str = CONTAINER) -> Termination | None:
    """Return how a pod's container ended, whatever the format of its termination message; None while it runs."""
    terminated = _terminated(pod, container)
    if terminated is None and (pod.get("status") or {}).get("phase") not in TERMINAL_PHASES:
        return None
    terminated = terminated or {}
    code = terminated.get("exitCode")
    trusted = terminated.get("reason") != "OOMKilled"
    return Termination(
        document=_document(terminated.get("message")) if trusted else {},
        exit_status=code if isinstance(code, int) else None,
        ended=epoch_seconds(terminated.get("finishedAt")) or created_at(pod),
        cause=_infer_failure(pod, terminated),
    )


def _terminated(pod: Mapping[str, Any], container: str) -> Mapping[str, Any] | None:
    return (container_status(pod, container).get("state") or {}).get("terminated")


def is_started(pod: Mapping[str, Any]) -> bool:
    """Return whether the worker's container of a pod runs or has run."""
    state = container_status(pod).get("state") or {}
    return "running" in state or "terminated" in state


def created_at(pod: Mapping[str, Any]) -> float:
    """Return when the pod was created, in seconds since the epoch; 0 if unknown."""
    return epoch_seconds((pod.get("metadata") or {}).get("creationTimestamp")) or 0.0


def container_status(pod: Mapping[str, Any], container: str = CONTAINER) -> Mapping[str, Any]:
    """Return the status of a pod's container; empty if the kubelet has not reported it."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((one for one in statuses if one.get("name") == container), {})


# --- unfinished pods ----------------------------------------------------------------------------------------------


def _scheduled(status: Mapping[str, Any]) -> bool | None:
    said = next((one for one in status.get("conditions") or () if one.get("type") == "PodScheduled"), None)
    return None if said is None else said.get("status") == "True"


def _hold(pod: Mapping[str, Any], container: Mapping[str, Any], *, node_lost: bool) -> PodBlocker | None:
    """Return the first reason why the pod does not run, or does not run properly."""
    metadata, spec, status = pod.get("metadata") or {}, pod.get("spec") or {}, pod.get("status") or {}
    name, node = metadata.get("name"), spec.get("nodeName")
    deleting = metadata.get("deletionTimestamp") is not None
    if node and (node_lost or status.get("reason") == NODE_LOST or status.get("phase") == "Unknown"):
        rest = (
            f"Pod {name} is kept until the node is back, since it may still write. Try: bring the node back; if it is "
            f"lost for good, delete its Node object"
            if deleting
            else "Try: bring it back; the import continues on another node when Kubernetes evicts the pod"
        )
        return PodBlocker(reason=NODE_LOST, message=f"node {node} is not responding. {rest}")
    if deleting:
        return PodBlocker(
            reason=TERMINATING, message=f"Pod {name} is being deleted; it will be recreated automatically"
        )
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            message = f"Pod {name} cannot be scheduled: {one_line(condition.get('message') or condition.get('reason'))}"
            return PodBlocker(reason=Reason.UNSCHEDULABLE, message=message)
    state = container.get("state") or {}
    if state.get("running") is not None:
        return None
    if not node:
        return PodBlocker(reason=Reason.PENDING, message=f"Pod {name} is waiting for the scheduler")
    waiting = state.get("waiting") or {}
    reason, message = str(waiting.get("reason") or ""), one_line(waiting.get("message"))
    if reason in _IMAGE_TROUBLE:
        image = (spec.get("containers") or [{}])[0].get("image")
        text = (
            f"{PULL_FAILED}: {image}, the worker's image ({reason}{': ' if message else ''}{message}). "
            "Try: check the controller's IMPORTER_IMAGE, and imagePullSecrets of CDIConfig"
        )
        return PodBlocker(reason=Reason.IMAGE_PULL_FAILED, message=text)
    if reason in STARTING:
        return PodBlocker(reason=Reason.CONTAINER_CREATING, message=message or f"creating pod {name} on node {node}")
    # CreateContainerConfigError and similar reasons are used as they are.
    return PodBlocker(reason=_sanitize_reason(reason), message=f"Pod {name}: {message or reason}")


# --- finished pods ------------------------------------------------------------------------------------------------


def _outcome(pod: Mapping[str, Any], terminated: Mapping[str, Any], document: Mapping[str, Any], claim: str) -> Outcome:
    reason = str(terminated.get("reason") or "")
    code = terminated.get("exitCode")
    outcome = _parse_outcome(document) if reason != "OOMKilled" else None
    # A success counts only if the exit status and the id agree with it.
    if outcome is not None and (
        outcome.failure is not None if code != 0 else (outcome.failure is None and outcome.id == claim)
    ):
        return outcome
    return Outcome(id=claim, failure=Failure.from_error(_infer_failure(pod, terminated)))


def outcome_in(terminated: Mapping[str, Any]) -> Outcome | None:
    """Return the outcome in the message of a terminated container; None if there is none."""
    return _parse_outcome(_document(terminated.get("message")))


def _parse_outcome(document: Mapping[str, Any]) -> Outcome | None:
    try:
        return decode_parsed(Outcome, document.get("outcome"))
    except DecodeError:
        return None


def _infer_failure(pod: Mapping[str, Any], terminated: Mapping[str, Any]) -> CdiError:
    """Infer the failure of a container that ended without a termination message of its own."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    node = spec.get("nodeName") or "no node"
    reason, code = str(terminated.get("reason") or ""), terminated.get("exitCode")
    whole, why = str(status.get("reason") or ""), one_line(status.get("message"))
    if reason == "OOMKilled":
        container = (spec.get("containers") or [{}])[0]
        limit = ((container.get("resources") or {}).get("limits") or {}).get("memory")
        held = f"its limit of {limit}" if limit else "the node had available"
        return ResourceLimit(
            f"the worker needed more memory than {held} and was killed (OOMKilled)",
            where=f"node {node}",
            remedy="raise limits.memory in CDIConfig's podResourceRequirements, then delete and apply the DataVolume",
        )
    if whole == "Evicted":
        return WorkerEvicted(f"the pod was evicted: {why or 'no reason was given'}", where=f"node {node}")
    if whole == "DeadlineExceeded" or reason == "DeadlineExceeded":
        return WorkerLost("the pod ran longer than its deadline allows (DeadlineExceeded)", where=f"node {node}")
    if whole:
        return WorkerLost(f"the pod ended: {_sanitize_reason(whole)}{': ' if why else ''}{why}", where=f"node {node}")
    if code == 137:
        return WorkerLost("the worker was killed (signal 9)", where=f"node {node}")
    last = _last_line(terminated.get("message"))
    told = f"; its termination message: {last}" if last else ""
    if code is None:
        return WorkerLost("the pod ended without a status of its container", where=f"node {node}")
    return WorkerLost(f"the worker ended without an outcome (exit status {code}){told}", where=f"node {node}")


def _document(message: object) -> dict[str, Any]:
    """Parse the termination message; return an empty dict if it is truncated or the end of a log."""
    if not isinstance(message, str) or not 2 <= len(message) <= _MAX_MESSAGE or message[0] != "{":
        return {}
    try:
        document = parse_json(message, unique_fields=True)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _last_line(message: object) -> str:
    lines = [line for line in str(message or "")[-4096:].splitlines() if line.strip()]
    return one_line(lines[-1])[:200] if lines else ""


def _sanitize_reason(text: str) -> str:
    """Return the text reduced to the characters allowed in a condition's reason."""
    word = "".join(character for character in text if character.isascii() and character.isalnum())
    return word[:64] or "Unknown"
