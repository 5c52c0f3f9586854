"""The CronJob, Jobs and pods of one DataImportCron's polls: which of them exist, and what has to be corrected."""

from __future__ import annotations

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import SPEC_DIGEST
from cdi.api.job import Failure
from cdi.api.names import poll_cron_job, poll_pod
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, MirrorObject, PatchObject
from cdi.reconcile.dataimportcron.context import Body, CronContext
from cdi.reconcile.dataimportcron.poll_manifests import cron_job_spec, job_name, spec_digest
from cdi.reconcile.dataimportcron.poll_observed import ObservedPoll, poll_of_job, poll_of_pod, poll_of_task
from cdi.reconcile.dataimportcron.poll_source import keeps_cron_job, method_of, prepared_poll
from cdi.reconcile.merge_patch import merge_patch
from cdi.reconcile.pods.job import PollSpec
from cdi.reconcile.types import Pending


def observed_poll(context: CronContext, recorded: str) -> ObservedPoll | None:
    """Return the newest poll that runs or has ended; None if there is none.

    Args:
        context: The DataImportCron.
        recorded: `ObservedPoll.task` of the poll whose result is recorded; it counts only if there is no other.

    """
    method = method_of(context)
    if method == "job" and not context.platform.cluster:
        task = context.objects.local_task("poll", context.uid)
        return None if task is None else poll_of_task(context, task)
    if method == "job":
        polls = [poll_of_job(context, job) for job in _jobs(context) if _is_ours(context, job)]
        fresh = [poll for poll in polls if poll.task != recorded]
        return max(fresh or polls, key=lambda poll: poll.started, default=None)
    if method == "node":
        pod = context.objects.pod(context.namespace, poll_pod(context.name, context.uid))
        return None if pod is None else poll_of_pod(context, pod)
    return None


def remove_poll(context: CronContext, task: str) -> tuple[Action, ...]:
    """Return the deletion of the Job or pod of a poll."""
    if not context.platform.cluster or not task:
        return ()
    jobs = tuple(_delete("jobs", job) for job in _jobs(context) if _uid(job) == task and not _is_deleting(job))
    pod = context.objects.pod(context.namespace, poll_pod(context.name, context.uid))
    if pod is None or _uid(pod) != task or _is_deleting(pod):
        return jobs
    return (*jobs, _delete("pods", pod))


def remove_stale(context: CronContext) -> tuple[Action, ...]:
    """Return the deletion of what an earlier DataImportCron of this name, or another source, has left."""
    if not context.platform.cluster:
        return ()
    wanted = poll_cron_job(context.name, context.uid) if keeps_cron_job(context) else None
    cron_jobs = context.objects.cron_jobs_of(context.namespace, context.name)
    return (
        *(_delete("cronjobs", one) for one in cron_jobs if _name(one) != wanted and not _is_deleting(one)),
        *(_delete("jobs", one) for one in _jobs(context) if not _is_ours(context, one) and not _is_deleting(one)),
    )


def cron_job_of(context: CronContext) -> Body | None:
    """Return the CronJob."""
    name = poll_cron_job(context.name, context.uid)
    found = context.objects.cron_jobs_of(context.namespace, context.name)
    return next((body for body in found if _name(body) == name and not _is_deleting(body)), None)


def correct_cron_job(context: CronContext, poll: PollSpec | None = None) -> tuple[Action, ...]:
    """Return the action that corrects the CronJob after a change of the image, the placement or the labels."""
    body = cron_job_of(context)
    if body is None or refusal_of_poll(context) is not None:
        return ()
    if poll is None:
        prepared = prepared_poll(context)
        if isinstance(prepared, Pending):
            return ()
        poll = prepared
    spec = cron_job_spec(context, poll)
    digest = spec_digest(spec)
    before = body.get("spec") or {}
    # A CronJob that a user resumed would poll twice.
    if before.get("suspend") is True and SPEC_DIGEST.read(annotations_of(body)) == digest:
        return ()
    return (
        PatchObject(
            plural="cronjobs",
            namespace=context.install_namespace,
            name=_name(body),
            uid=_uid(body),
            annotations=SPEC_DIGEST.write(digest),
            labels=spec["jobTemplate"]["metadata"]["labels"],
            spec=merge_patch(before, spec),
        ),
    )


def refusal_of_poll(context: CronContext) -> Failure | None:
    """Return why the API server rejected an object of the poll in the previous plan."""
    refusal = context.refusal
    if refusal is None:
        return None
    action, cron_job = refusal.action, poll_cron_job(context.name, context.uid)
    names = {cron_job, poll_pod(context.name, context.uid), *(job_name(context, first=one) for one in (True, False))}
    match action:
        case CreateObject():
            concerned = action.body["metadata"]["name"] in names
        case MirrorObject():
            concerned = action.owner.get("name") == cron_job
        case PatchObject():
            concerned = action.plural == "cronjobs" and action.name == cron_job
        case _:
            concerned = False
    return refusal.failure if concerned else None


def _jobs(context: CronContext) -> tuple[Body, ...]:
    return context.objects.jobs_of(context.namespace, context.name)


def _is_ours(context: CronContext, job: Body) -> bool:
    """Return whether a Job belongs to this DataImportCron, and not to an earlier one of its name."""
    name = poll_cron_job(context.name, context.uid)
    owners = job["metadata"].get("ownerReferences") or ()
    # Anybody may start a poll with kubectl create job --from=cronjob/NAME.
    return name in _name(job) or any(owner.get("name") == name for owner in owners)


def _delete(plural: str, body: Body) -> DeleteObject:
    return DeleteObject(plural=plural, namespace=body["metadata"]["namespace"], name=_name(body), uid=_uid(body))


def _name(body: Body) -> str:
    return str(body["metadata"].get("name") or "")


def _uid(body: Body) -> str:
    return str(body["metadata"].get("uid") or "")


def _is_deleting(body: Body) -> bool:
    return body["metadata"].get("deletionTimestamp") is not None
