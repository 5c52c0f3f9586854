"""Polls of a DataImportCron's source: when they run, what runs them, and what follows from their results.

This controller schedules the polls of all kinds of sources by the annotation ``nextCronTime``. A poll is due when that
time has come or the annotation is missing. Setting it to now polls by hand, also while another poll is running, which
may have read the source before. A time that was missed while the controller was down is made up for at its start. After
a success it is set to the schedule's next time, after a failure to an earlier one. An empty schedule never polls:
another program then sets the desired digest.

A registry, a URL or an object store is polled by a Job in the installation's namespace (on one machine by a process), a
registry with pullMethod node by a pod, and a PVC or image stream by the controller itself. All state is in objects, so
that a restarted controller continues; at most `slots.MAX_POLLS` run at once, and the others wait for their turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cdi.api.annotations import DESIRED_DIGEST, IMAGE_STREAM_REFERENCE, LAST_POLL, NEXT_POLL
from cdi.api.errors import CdiError, Retry, WorkerLost
from cdi.api.job import Failure
from cdi.api.poll import PollResult
from cdi.api.schedule import Schedule
from cdi.reconcile.actions import Action, CreateObject, Event, RequireVersion, StartTask
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.poll_manifests import (
    build_cron_job,
    build_job,
    build_node_pod,
    cron_job_owner,
    cron_job_spec,
    mirror_actions,
    spec_digest,
)
from cdi.reconcile.dataimportcron.poll_objects import (
    correct_cron_job,
    cron_job_of,
    observed_poll,
    refusal_of_poll,
    remove_poll,
    remove_stale,
)
from cdi.reconcile.dataimportcron.poll_observed import ObservedPoll, failed, pull_failure
from cdi.reconcile.dataimportcron.poll_record import PollRecord, spread
from cdi.reconcile.dataimportcron.poll_source import (
    keeps_cron_job,
    method_of,
    node_image,
    poll_directly,
    prepared_poll,
)
from cdi.reconcile.dataimportcron.slots import may_poll
from cdi.reconcile.types import Pending

POD_TIMEOUT: Final = 300.0
"""Seconds until a poll Job without a result is given up; the poll itself takes at most 120."""
NODE_TIMEOUT: Final = 3600.0
"""Seconds until a poll pod is given up: its node pulls the whole image."""
MAX_CLOCK_SKEW: Final = 120.0
"""Seconds by which the API server's clock, which dates a poll's Job, may be ahead of the controller's."""
TURN_INTERVAL: Final = 10.0
"""Mean seconds until a due poll that has to wait for its turn is considered again."""
INPUT_INTERVAL: Final = 60.0
"""Seconds until a Secret or ConfigMap that is missing is looked up again."""
POLL_INTERVAL: Final = 3.0
"""Seconds until a poll that runs, or the deletion of an earlier one, is checked again."""
_CLOCK_GRANULARITY = 0.1
"""Seconds by which the time of a file, which records the start of a process, may be behind the clock."""
_NEVER = 5 * 365 * 86400.0
"""Seconds until the next poll of a schedule that matches no date."""
POLL_FAILED: Final = "PollFailed"
"""Reason of events."""
INVALID_SCHEDULE: Final = "InvalidSchedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Reason for which the source cannot be polled."""

    reason: str
    """Code of the error."""
    message: str
    """Cause and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollStep:
    """The part of a plan that concerns polls."""

    actions: tuple[Action, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Changed annotations of the DataImportCron."""
    events: tuple[Event, ...] = ()
    trouble: Trouble | None = None
    """Why the last poll failed or the next one waits; None if polls work."""
    requeue_after: float | None = None
    """Seconds until the next step, unless a change triggers it before."""
    desired_digest: str | None = None
    """The digest that is wanted after this step, set by a poll or by a user."""
    source_facts: PollResult | None = None
    """What the poll that found `desired_digest` reported; None if no poll found it."""


def plan_poll(context: CronContext) -> PollStep:
    """Plan the next step of the source's polls."""
    planner = _Planner(context, PollRecord.read(context.annotations))
    try:
        step = planner.plan()
    except CdiError as error:
        step = planner.wait(Failure.from_error(error))
    after = {**context.annotations, **step.annotations}
    digest, found = DESIRED_DIGEST.read(after), PollRecord.read(after).found
    facts = found if found is not None and found.digest == digest else None
    return replace(
        step,
        actions=(*remove_stale(context), *step.actions),
        annotations={name: text for name, text in step.annotations.items() if context.annotations.get(name) != text},
        desired_digest=digest,
        source_facts=facts,
    )


class _Planner:
    def __init__(self, context: CronContext, record: PollRecord) -> None:
        self._context = context
        self._record = record
        self._method = method_of(context)

    def plan(self) -> PollStep:
        context, record = self._context, self._record
        if not context.cron.spec.schedule:
            return PollStep()
        try:
            schedule = Schedule.parse(context.cron.spec.schedule)
        except ValueError as error:
            text = f"the schedule is invalid: {error}. Try: create the DataImportCron again with a valid one"
            return PollStep(trouble=Trouble(reason=INVALID_SCHEDULE, message=text))
        running = observed_poll(context, record.task)
        if running is not None and running.task != record.task:
            return self._while_running(running, schedule)
        return self._when_due(schedule, ended=running is not None)

    def _while_running(self, poll: ObservedPoll, schedule: Schedule) -> PollStep:
        context = self._context
        if poll.result is not None:
            return self._finish(poll.result, schedule, poll)
        if poll.final and self._method == "node":
            return self._finish(pull_failure(context.uid, poll, node_image(context)[0]), schedule, poll)
        # The limit is for pods: a local polling process always ends, and its end is seen.
        longest = NODE_TIMEOUT if self._method == "node" else POD_TIMEOUT
        left = poll.started + longest - context.now
        # A Job from the future beyond that is one that was created before the clock was set back.
        if context.platform.cluster and (left <= 0 or left > longest + MAX_CLOCK_SKEW):
            why = f": {poll.blocked}" if poll.blocked else ""
            error = WorkerLost(
                f"the poll had no result after {longest:.0f} s{why}",
                remedy="remove the obstacle that is named, or look at the pod's events; the poll is repeated",
            )
            return self._finish(failed(context.uid, error), schedule, poll)
        trouble = _trouble(self._record.failure)
        if poll.blocked:
            trouble = Trouble(reason=POLL_FAILED, message=f"the poll is waiting: {poll.blocked}")
        return PollStep(trouble=trouble, requeue_after=POLL_INTERVAL)

    # --- time -----------------------------------------------------------------------------------------------------

    def _when_due(self, schedule: Schedule, *, ended: bool) -> PollStep:
        context = self._context
        moment = NEXT_POLL.read(context.annotations)
        due = None if moment is None else moment.timestamp()
        if due is not None and due > context.now:
            return self._before(due, schedule, ended=ended)
        if self._method in ("stream", "claim"):
            return self._read(schedule)
        if ended and context.platform.cluster:
            # The next one may have the same name.
            return self._started(remove_poll(context, self._record.task))
        return self._start(schedule)

    def _before(self, due: float, schedule: Schedule, *, ended: bool) -> PollStep:
        context = self._context
        annotations: dict[str, str] = {}
        if keeps_cron_job(context) and cron_job_of(context) is None and self._record.failures == 0:
            # A DataImportCron that was created again with its annotations is polled at once. After a failure the delay
            # stands: the API server may have rejected the CronJob.
            return PollStep(
                annotations=NEXT_POLL.write(context.now), trouble=_trouble(self._record.failure), requeue_after=1.0
            )
        latest = schedule.next_after(context.now, context.zone)
        if due > (latest or context.now + _NEVER):
            # The clock was set back, or a user set a time that is too late.
            due = latest or context.now + _NEVER
            annotations = NEXT_POLL.write(due)
        actions = remove_poll(context, self._record.task) if ended else ()
        if keeps_cron_job(context):
            actions = (*actions, *correct_cron_job(context))
        return PollStep(
            actions=actions,
            annotations=annotations,
            trouble=_trouble(self._record.failure),
            requeue_after=max(due - context.now, 0.0),
        )

    def _next_time(self, schedule: Schedule, now: float) -> float:
        following = schedule.next_after(now, self._context.zone)
        return now + _NEVER if following is None else following

    # --- start ----------------------------------------------------------------------------------------------------

    def _start(self, schedule: Schedule) -> PollStep:
        context = self._context
        refused = refusal_of_poll(context)
        if refused is not None:
            return self._finish(PollResult(id=context.uid, failure=refused), schedule, None)
        if self._method == "node":
            return self._start_pod()
        poll = prepared_poll(context)
        if isinstance(poll, Pending):
            return self.wait(Failure(code=poll.reason, message=poll.message, retry=Retry.ON_CHANGE))
        work = replace(poll.work, known=self._record.known)
        if not context.platform.cluster:
            return self._started((StartTask(uid=context.uid, work=work, mounts=poll.mounts),))
        cron_job = cron_job_of(context)
        if cron_job is None:
            body = build_cron_job(context, poll, spec_digest(cron_job_spec(context, poll)))
            template: tuple[Action, ...] = (CreateObject(body=body),)
        else:
            template = correct_cron_job(context, poll)
        if not may_poll(context):
            return self._wait_for_turn(template)
        if cron_job is not None:
            mirrors = mirror_actions(context, poll, cron_job_owner(cron_job))
        elif mirror_actions(context, poll, {}):
            # The copies are owned by the CronJob, which does not have a UID yet.
            return self._started(template)
        else:
            mirrors = ()
        first = LAST_POLL.key not in context.annotations and self._record.failures == 0
        job = CreateObject(body=build_job(context, replace(poll, work=work), first=first))
        return self._started((*template, *mirrors, job))

    def _start_pod(self) -> PollStep:
        context = self._context
        if not may_poll(context):
            return self._wait_for_turn()
        return self._started((CreateObject(body=build_node_pod(context, *node_image(context))),))

    def _started(self, actions: tuple[Action, ...]) -> PollStep:
        return PollStep(actions=actions, trouble=_trouble(self._record.failure), requeue_after=POLL_INTERVAL)

    def _wait_for_turn(self, actions: tuple[Action, ...] = ()) -> PollStep:
        # Spread over the interval, and in another order each time, so that no cron always comes last.
        part = spread(self._context.uid, int(self._context.now))
        return PollStep(
            actions=actions, trouble=_trouble(self._record.failure), requeue_after=TURN_INTERVAL * (0.5 + part)
        )

    def _read(self, schedule: Schedule) -> PollStep:
        """Poll a source that the controller reads itself."""
        found = poll_directly(self._context)
        if found is None:
            return PollStep(trouble=_trouble(self._record.failure))
        step = self._finish(found.result, schedule, None)
        if found.docker_reference is None:
            return step
        return replace(step, annotations={**step.annotations, **IMAGE_STREAM_REFERENCE.write(found.docker_reference)})

    # --- results --------------------------------------------------------------------------------------------------

    def _finish(self, result: PollResult, schedule: Schedule, poll: ObservedPoll | None) -> PollStep:
        """Record a result: of `poll`, or of a source that was read directly."""
        context = self._context
        task = poll.task if poll is not None else self._record.task
        actions = remove_poll(context, poll.task) if poll is not None else ()
        if actions:
            # The result is recorded after the deletion, which an outdated DataImportCron would prevent: it would be
            # lost, and the poll repeated at once.
            actions = (RequireVersion.of_object("dataimportcrons", context.cron.metadata), *actions)
        following = self._next_time(schedule, context.now)
        requested = self._requested_since(poll)
        again = {NEXT_POLL.key: requested} if requested else {}
        if result.failure is not None:
            record = self._record.with_failure(task, result.failure)
            moment = context.now if requested else min(context.now + record.delay(context.uid), following)
            return PollStep(
                actions=actions,
                annotations={**(again or NEXT_POLL.write(moment)), **record.write()},
                events=(Event(type="Warning", reason=POLL_FAILED, message=_shown(result.failure)),),
                trouble=_trouble(result.failure),
                requeue_after=moment - context.now,
            )
        record = self._record.with_success(task, result)
        return PollStep(
            actions=actions,
            annotations={
                **(again or NEXT_POLL.write(following)),
                **LAST_POLL.write(context.now),
                **(DESIRED_DIGEST.write(result.digest) if result.digest else {}),
                **record.write(),
            },
            requeue_after=0.0 if requested else following - context.now,
        )

    def _requested_since(self, poll: ObservedPoll | None) -> str | None:
        """Return the annotation nextCronTime if it requests another poll since `poll` was started, else None."""
        text, moment = self._context.annotations.get(NEXT_POLL.key), NEXT_POLL.read(self._context.annotations)
        if poll is None or moment is None or moment.timestamp() > self._context.now:
            return None
        if poll.due is not None:
            # Whatever the clocks of the controller and the API server show, one value starts no second poll.
            return text if text != poll.due else None
        # A process, which was started by the clock that is read here, or a Job of a user; both in whole seconds.
        return text if int(moment.timestamp()) > int(poll.started + _CLOCK_GRANULARITY) else None

    def wait(self, failure: Failure) -> PollStep:
        """Return the step while something in the cluster keeps the poll from being started."""
        record = self._record.with_obstacle(failure)
        if record == self._record:
            return PollStep(trouble=_trouble(failure), requeue_after=INPUT_INTERVAL)
        return PollStep(
            annotations=record.write(),
            events=(Event(type="Warning", reason=POLL_FAILED, message=_shown(failure)),),
            trouble=_trouble(failure),
            requeue_after=INPUT_INTERVAL,
        )


# --- parts --------------------------------------------------------------------------------------------------------


def _trouble(failure: Failure | None) -> Trouble | None:
    return None if failure is None else Trouble(reason=failure.code, message=failure.message)


def _shown(failure: Failure) -> str:
    return f"{failure.code}: {failure.message}"[:1024]
