"""Boot proof on one machine: a process instead of a pod."""

from __future__ import annotations

import os

from cdi.api.dataimportcron import GoldenVersion, VersionState
from cdi.api.errors import Interrupted, WorkerLost
from cdi.api.job import Failure
from cdi.api.proof import ProofResult
from cdi.reconcile.actions import Action, StartTask, StopTask
from cdi.reconcile.dataimportcron.context import CronContext, LocalTask
from cdi.reconcile.dataimportcron.proof_pod import proof_job
from cdi.reconcile.dataimportcron.proof_result import (
    ProofAttempts,
    ProofStep,
    failing,
    forget_attempts,
    is_recorded,
    report_failure,
    report_result,
    waiting_for,
)
from cdi.reconcile.types import PVC


def plan_local_proof(context: CronContext, version: GoldenVersion, claim: PVC, *, required: bool) -> ProofStep:
    """Return the next step of the proof of a version whose volume is a directory of this machine."""
    task = context.objects.local_task("proof", claim.uid)
    if version.state != VersionState.PROVING or not required:
        stop: tuple[Action, ...] = (StopTask(task="proof", uid=claim.uid),) if task is not None and task.running else ()
        return ProofStep(actions=(*forget_attempts(claim), *stop))
    attempts = ProofAttempts.read(claim.annotations)
    if task is not None and task.running:
        return ProofStep(blocker=waiting_for("a virtual machine is booted from it"))
    ended = None if task is None else task.started if task.ended is None else task.ended
    if task is not None and ended is not None and ended != attempts.ended and not is_recorded(version, ended):
        result = _parse_result(task, claim)
        if isinstance(result, ProofResult):
            return report_result(version, claim, result, ended)
        _, step = report_failure(context.now, version, claim, attempts, attempts.attempt + 1, result, ended)
        return step
    left = attempts.left(claim.uid, context.now)
    if left > 0 and attempts.failure is not None:
        return ProofStep(blocker=failing(attempts.failure), requeue_after=left)
    disk = os.path.join(claim.path or "", "disk.img")
    job = proof_job(context.settings, claim, disk=disk, architecture=version.architecture)
    blocker = failing(attempts.failure) if attempts.failure is not None else waiting_for("the boot proof starts")
    return ProofStep(actions=(StartTask(uid=claim.uid, work=job),), blocker=blocker)


def _parse_result(task: LocalTask, claim: PVC) -> ProofResult | Failure:
    """Return the worker's result, or why there is none."""
    try:
        result = ProofResult.from_json(task.result) if task.result else None
    except ValueError:
        result = None
    if result is not None and result.failure is not None and result.failure.code != Interrupted.__name__:
        return result.failure
    if result is not None and result.failure is None and result.id == claim.uid:
        return result
    what = "the boot proof was interrupted" if result is not None else "the worker ended without a result"
    return Failure.from_error(WorkerLost(what, remedy="the boot proof is repeated automatically"))
