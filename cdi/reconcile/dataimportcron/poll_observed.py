"""State of a poll, read from its Job, its pod, or the process on one machine.

Their status is written by a kubelet and other controllers, and the termination message by a worker that has talked to
any server: nothing of it is used without validation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cdi.api.annotations import NEXT_POLL
from cdi.api.decode import DecodeError, decode_parsed
from cdi.api.errors import CdiError, SourceProtocolError, SourceUnreachable, WorkerLost
from cdi.api.job import Failure
from cdi.api.phases import TERMINAL_PHASES
from cdi.api.poll import PollResult
from cdi.api.printable import one_line
from cdi.api.timestamps import epoch_seconds
from cdi.reconcile.dataimportcron.context import Body, CronContext, LocalTask
from cdi.reconcile.pods.roles import POLL
from cdi.reconcile.pods.status import PULL_FAILURES, STARTING, container_status, termination

IMAGE_CONTAINER: Final = "image-container"
"""Container of a node's poll pod, whose image is the one that is polled."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_LINE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPoll:
    """A poll that runs or has ended."""

    task: str
    """Identifies it among all polls of the DataImportCron."""
    started: float
    """Seconds since the epoch."""
    due: str | None = None
    """The annotation nextCronTime by which it was started; None if that is unknown."""
    result: PollResult | None = None
    """None while it runs."""
    blocked: str = ""
    """Why it does not get on; empty if nothing is known to be wrong."""
    final: bool = False
    """Whether `blocked` cannot be expected to pass by itself soon."""


def failed(uid: str, error: CdiError) -> PollResult:
    """Return the result of a poll that failed."""
    return PollResult(id=uid, failure=Failure.from_error(error))


# --- Jobs ---------------------------------------------------------------------------------------------------------


def poll_of_job(context: CronContext, job: Body) -> ObservedPoll:
    """Return the state of a poll Job.

    The first pod with a result ends the poll, whether or not the Job would start another one.
    """
    metadata, status = job.get("metadata") or {}, job.get("status") or {}
    poll = _started_poll(metadata)
    # A pod of an earlier Job of this name may still be there.
    pods = [pod for pod in context.objects.job_pods(str(metadata.get("name") or "")) if _belongs_to(pod, poll.task)]
    results = [result for pod in pods if (result := _result_of(pod, context.uid)) is not None]
    if results:
        # A success counts more than the failure of another attempt.
        return replace(poll, result=min(results, key=lambda result: result.failure is not None))
    ended = next((one for one in status.get("conditions") or () if _is_end(one)), None)
    if ended is not None:
        why = _first_line(ended.get("message") or ended.get("reason"))
        last = next((text for pod in pods if (text := _termination(pod))), "")
        text = f"the poll's Job {metadata.get('name')} ended without a result{': ' if why else ''}{why}{last}"
        return replace(poll, result=failed(context.uid, WorkerLost(text)))
    blocked = [text for pod in pods if (text := blocker(pod, POLL.container))]
    return replace(poll, blocked=blocked[0] if blocked else "")


def _started_poll(metadata: Mapping[str, Any]) -> ObservedPoll:
    return ObservedPoll(
        task=str(metadata.get("uid") or ""),
        started=epoch_seconds(metadata.get("creationTimestamp")) or 0.0,
        due=(metadata.get("annotations") or {}).get(NEXT_POLL.key),
    )


def _belongs_to(pod: Body, job: str) -> bool:
    return any(owner.get("uid") == job for owner in pod["metadata"].get("ownerReferences") or ())


def _is_end(condition: Mapping[str, Any]) -> bool:
    return condition.get("type") in ("Complete", "Failed") and condition.get("status") == "True"


def _result_of(pod: Body, uid: str) -> PollResult | None:
    """Return the result in a pod's termination message; None if it has none, or none that can be trusted."""
    end = termination(pod, POLL.container)
    if end is None:
        return None
    try:
        result = decode_parsed(PollResult, end.document)
    except DecodeError:
        return None
    # A success counts only if the exit status agrees with it.
    return result if _is_valid(result, uid) and (result.failure is None) == (end.exit_status == 0) else None


def _is_valid(result: PollResult, uid: str) -> bool:
    """Return whether a result is a failure, or names a digest and belongs to the DataImportCron."""
    if result.failure is not None:
        return True
    return result.id == uid and result.digest is not None and _DIGEST.fullmatch(result.digest) is not None


def _termination(pod: Body) -> str:
    terminated = (container_status(pod, POLL.container).get("state") or {}).get("terminated")
    if terminated is None:
        return ""
    reason, code = _first_line(terminated.get("reason")), terminated.get("exitCode")
    return f"; its pod ended with exit status {code}{f' ({reason})' if reason else ''}"


# --- pods of nodes ------------------------------------------------------------------------------------------------


def poll_of_pod(context: CronContext, pod: Body) -> ObservedPoll:
    """Return the state of a node's poll pod, which has ended when its image was pulled and its container has ended."""
    metadata = pod.get("metadata") or {}
    poll = _started_poll(metadata)
    status = container_status(pod, IMAGE_CONTAINER)
    if "terminated" not in (status.get("state") or {}):
        waiting = (status.get("state") or {}).get("waiting") or {}
        phase = (pod.get("status") or {}).get("phase")
        if phase in TERMINAL_PHASES:
            why = _first_line((pod.get("status") or {}).get("message") or (pod.get("status") or {}).get("reason"))
            text = f"the pod that pulls the image ended before that{': ' if why else ''}{why}"
            return replace(poll, result=failed(context.uid, WorkerLost(text)))
        return replace(
            poll, blocked=blocker(pod, IMAGE_CONTAINER), final=str(waiting.get("reason") or "") in PULL_FAILURES
        )
    image = str(status.get("imageID") or "")
    return replace(poll, result=_from_image_id(context.uid, image))


def _from_image_id(uid: str, image: str) -> PollResult:
    at = image.find("sha256:")
    if at < 0:
        return failed(uid, SourceProtocolError("Digest has no supported prefix", where=_first_line(image), remedy=""))
    digest = _DIGEST.match(image[at:])
    if digest is None:
        return failed(uid, SourceProtocolError("Digest is too short", where=_first_line(image), remedy=""))
    name = image[:at].removesuffix("@").rpartition("://")[2]
    resolved = f"docker://{name}@{digest[0]}" if name else None
    return PollResult(id=uid, digest=digest[0], resolved=resolved, identity="manifest")


# --- processes ----------------------------------------------------------------------------------------------------


def poll_of_task(context: CronContext, task: LocalTask) -> ObservedPoll:
    """Return the state of a poll that runs as a process of this machine."""
    poll = ObservedPoll(task=f"{task.started:.6f}", started=task.started)
    if task.running:
        return poll
    try:
        result = PollResult.from_json(task.result)
    except ValueError:
        result = None
    if result is None or not _is_valid(result, context.uid):
        result = failed(context.uid, WorkerLost("the poll ended without a result"))
    return replace(poll, result=result)


# --- parts of a pod -----------------------------------------------------------------------------------------------


def blocker(pod: Body, container: str) -> str:
    """Return why a pod's container does not run, empty if it does or is about to."""
    status = pod.get("status") or {}
    name = (pod.get("metadata") or {}).get("name")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            why = _first_line(condition.get("message") or condition.get("reason"))
            return f"pod {name} cannot be scheduled: {why}"
    statuses: Iterable[Mapping[str, Any]] = (
        *(status.get("initContainerStatuses") or ()),
        container_status(pod, container),
    )
    for one in statuses:
        waiting = (one.get("state") or {}).get("waiting") or {}
        reason = str(waiting.get("reason") or "")
        if reason not in STARTING:
            message = _first_line(waiting.get("message"))
            return f"pod {name}: {_first_line(reason)}{': ' if message else ''}{message}"
    return ""


def pull_failure(uid: str, poll: ObservedPoll, image: str) -> PollResult:
    """Return the result of a poll whose image cannot be pulled by the node."""
    error = SourceUnreachable(
        f"failed to pull image: {image} ({poll.blocked})",
        remedy="check the image's name, and the node's or CDIConfig's imagePullSecrets; the poll is repeated",
    )
    return failed(uid, error)


def _first_line(text: object) -> str:
    return one_line(text, _MAX_LINE)
