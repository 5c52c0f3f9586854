"""Polls of a DataImportCron's source: when, by whom, and what follows from their results.

This controller schedules the polls of all kinds of sources by the annotation ``nextCronTime``. A poll is due when that
time has come or the annotation is missing; setting it to now polls by hand, and a time that was missed while the
controller was down is made up for at its start. After a success it is set to the schedule's next time, after a failure
to an earlier one. An empty schedule never polls: another program then sets the desired digest.

A registry, a URL or an object store is polled by a Job in the installation's namespace (on one machine by a process), a
registry with pullMethod node by a pod, and a PVC or image stream by the controller itself. All state is in objects, so
that a restarted controller continues; at most `MAX_POLLS` run at once, and the others wait for their turn.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from cdi.api.datavolume import DataVolume
from cdi.api.errors import (
    CdiError,
    InvalidManifest,
    Retry,
    SourceNotFound,
    SourceNotSupported,
    SourceProtocolError,
    WorkerLost,
)
from cdi.api.job import Failure
from cdi.api.meta import ObjectMeta
from cdi.api.names import (
    ANN_CRON_DESIRED_DIGEST,
    ANN_CRON_IMAGE_STREAM_DOCKER_REF,
    ANN_CRON_LAST_TIME,
    ANN_CRON_NEXT_TIME,
    ANN_CRON_POLL,
    poll_cron_job,
    poll_pod,
)
from cdi.api.policy import PREFIX as POLICY_PREFIX
from cdi.api.poll import PollResult
from cdi.api.schedule import Schedule
from cdi.api.sources import SourceGcs, SourceHttp, SourcePvc, SourceRegistry, SourceS3
from cdi.api.timestamps import parse_timestamp, timestamp
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, Event, MirrorObject, PatchObject, StartTask
from cdi.reconcile.dataimportcron.context import Body, CronContext
from cdi.reconcile.dataimportcron.poll_manifests import (
    build_cron_job,
    build_job,
    build_node_pod,
    cron_job_owner,
    cron_job_spec,
    job_name,
    mirror_actions,
    spec_digest,
)
from cdi.reconcile.dataimportcron.poll_observed import (
    ObservedPoll,
    failed,
    poll_of_job,
    poll_of_pod,
    poll_of_task,
    pull_failure,
)
from cdi.reconcile.dataimportcron.poll_record import PollRecord, spread
from cdi.reconcile.job_builder import PollSpec, prepare_poll
from cdi.reconcile.merge_patch import merge_patch
from cdi.reconcile.pod_builder import ANN_SPEC
from cdi.reconcile.source import Pending

MAX_POLLS: Final = 8
"""Maximum number of polls that run at once, for all DataImportCrons together."""
POD_TIMEOUT: Final = 300.0
"""Seconds until a poll Job without a result is given up; the poll itself takes at most 120."""
NODE_TIMEOUT: Final = 3600.0
"""Seconds until a poll pod is given up: its node pulls the whole image."""
TURN_INTERVAL: Final = 10.0
"""Mean seconds until a due poll that has to wait for its turn is considered again."""
INPUT_INTERVAL: Final = 60.0
"""Seconds until a Secret or ConfigMap that is missing is looked up again."""
POLL_INTERVAL: Final = 3.0
"""Seconds until a poll that runs, or the deletion of an earlier one, is looked at again."""
_NEVER = 5 * 365 * 86400.0
"""Seconds until the next poll of a schedule that matches no date."""
_MIN_DIGEST = 12
"""Hex digits of a digest that are part of a version's name."""
POLL_FAILED: Final = "PollFailed"
"""Reason of events."""
INVALID_SCHEDULE: Final = "InvalidSchedule"

_Object = SourceHttp | SourceS3 | SourceGcs | SourceRegistry
_Method = Literal["job", "node", "stream", "claim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What keeps the source from being polled."""

    reason: str
    """Code of the error."""
    message: str
    """Cause and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollStep:
    """The part of a plan that concerns polls."""

    actions: tuple[Action, ...] = ()
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Changed annotations of the DataImportCron."""
    events: tuple[Event, ...] = ()
    trouble: Trouble | None = None
    """Why the last poll failed or the next one waits; None if polls work."""
    requeue_after: float | None = None
    """Seconds until the next step, unless a change triggers it before."""
    desired_digest: str | None = None
    """The digest that is wanted after this step, whoever has set it."""
    source_facts: PollResult | None = None
    """What the poll that found `desired_digest` reported; None if no poll found it."""


def plan_poll(context: CronContext) -> PollStep:
    """Plan the next step of the source's polls."""
    record = PollRecord.read(context.annotations.get(ANN_CRON_POLL))
    planner = _Planner(context, record)
    try:
        step = planner.plan()
    except CdiError as error:
        step = planner.wait(Failure.from_error(error))
    digest = step.annotations.get(ANN_CRON_DESIRED_DIGEST, context.annotations.get(ANN_CRON_DESIRED_DIGEST)) or None
    found = PollRecord.read(step.annotations.get(ANN_CRON_POLL) or context.annotations.get(ANN_CRON_POLL)).found
    facts = found if found is not None and found.digest == digest else None
    return replace(
        step,
        actions=(*planner.stale(), *step.actions),
        annotations={name: text for name, text in step.annotations.items() if context.annotations.get(name) != text},
        desired_digest=digest,
        source_facts=facts,
    )


class _Planner:
    def __init__(self, context: CronContext, record: PollRecord) -> None:
        self._context = context
        self._record = record
        self._source = _source_of(context)
        self._method = _method_of(self._source, cluster=context.platform.cluster)

    def plan(self) -> PollStep:
        context, record = self._context, self._record
        if not context.cron.spec.schedule:
            return PollStep()
        try:
            schedule = Schedule.parse(context.cron.spec.schedule)
        except ValueError as error:
            text = f"the schedule is invalid: {error}. Try: create the DataImportCron again with a valid one"
            return PollStep(trouble=Trouble(reason=INVALID_SCHEDULE, message=text))
        running = self._observe()
        if running is not None and running.task != record.task:
            return self._while_running(running, schedule)
        return self._when_due(schedule, ended=running is not None)

    def stale(self) -> tuple[Action, ...]:
        """Return the deletion of what an earlier DataImportCron of this name, or another source, has left."""
        context = self._context
        if not context.platform.cluster:
            return ()
        wanted = poll_cron_job(context.name, context.uid) if self._keeps_cron_job else None
        actions = [
            _delete("cronjobs", body)
            for body in context.objects.cron_jobs_of(context.namespace, context.name)
            if body["metadata"]["name"] != wanted and not _is_deleting(body)
        ]
        for body in context.objects.jobs_of(context.namespace, context.name):
            uid = str(body["metadata"].get("uid") or "")
            if not _is_deleting(body) and (not self._is_ours(body) or uid == self._record.task):
                actions.append(_delete("jobs", body))
        return tuple(actions)

    @property
    def _keeps_cron_job(self) -> bool:
        return self._method == "job" and bool(self._context.cron.spec.schedule)

    # --- tasks ----------------------------------------------------------------------------------------------------

    def _observe(self) -> ObservedPoll | None:
        """Return the newest poll that runs or has ended; None if there is none."""
        context = self._context
        if self._method == "job" and not context.platform.cluster:
            task = context.objects.local_task("poll", context.uid)
            return None if task is None else poll_of_task(context, task)
        if self._method == "job":
            jobs = [body for body in context.objects.jobs_of(context.namespace, context.name) if self._is_ours(body)]
            polls = [poll_of_job(context, body) for body in jobs]
            fresh = [poll for poll in polls if poll.task != self._record.task]
            return max(fresh or polls, key=lambda poll: poll.started, default=None)
        if self._method == "node":
            pod = context.objects.pod(context.namespace, poll_pod(context.name, context.uid))
            return None if pod is None else poll_of_pod(context, pod)
        return None

    def _is_ours(self, job: Body) -> bool:
        """Return whether a Job belongs to this DataImportCron, and not to an earlier one of its name."""
        name = poll_cron_job(self._context.name, self._context.uid)
        owners = job["metadata"].get("ownerReferences") or ()
        # Anybody may start a poll with kubectl create job --from=cronjob/NAME.
        return name in str(job["metadata"].get("name")) or any(owner.get("name") == name for owner in owners)

    def _while_running(self, poll: ObservedPoll, schedule: Schedule) -> PollStep:
        context = self._context
        if poll.result is not None:
            return self._finish(poll.result, schedule, poll)
        if poll.final and self._method == "node":
            return self._finish(pull_failure(context.uid, poll, self._image), schedule, poll)
        # A process ends by itself.
        longest = NODE_TIMEOUT if self._method == "node" else POD_TIMEOUT
        left = poll.started + longest - context.now
        if context.platform.cluster and (left <= 0 or left > longest):
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

    def _remove(self, poll: ObservedPoll | None) -> tuple[Action, ...]:
        """Return the deletion of a poll's Job or pod."""
        context = self._context
        if poll is None or not context.platform.cluster:
            return ()
        bodies: list[tuple[str, Body]] = []
        if self._method == "job":
            bodies = [("jobs", body) for body in context.objects.jobs_of(context.namespace, context.name)]
        elif self._method == "node":
            pod = context.objects.pod(context.namespace, poll_pod(context.name, context.uid))
            bodies = [("pods", pod)] if pod is not None else []
        return tuple(
            _delete(plural, body)
            for plural, body in bodies
            if body["metadata"].get("uid") == poll.task and not _is_deleting(body)
        )

    # --- time -----------------------------------------------------------------------------------------------------

    def _when_due(self, schedule: Schedule, *, ended: bool) -> PollStep:
        context = self._context
        moment = parse_timestamp(context.annotations.get(ANN_CRON_NEXT_TIME))
        due = None if moment is None else moment.timestamp()
        if due is not None and due > context.now:
            return self._before(due, schedule, ended=ended)
        if self._method in ("stream", "claim"):
            return self._poll_directly(schedule)
        if ended and context.platform.cluster:
            poll = self._observe()
            # The next one may have the same name.
            return PollStep(
                actions=self._remove(poll), trouble=_trouble(self._record.failure), requeue_after=POLL_INTERVAL
            )
        return self._start(schedule)

    def _before(self, due: float, schedule: Schedule, *, ended: bool) -> PollStep:
        context = self._context
        annotations: dict[str, str] = {}
        if self._keeps_cron_job and context.platform.cluster and self._cron_job is None:
            # A DataImportCron that was created again with its annotations is polled at once.
            annotations[ANN_CRON_NEXT_TIME] = _text(context.now)
            return PollStep(annotations=annotations, trouble=_trouble(self._record.failure), requeue_after=1.0)
        latest = schedule.next_after(context.now, context.zone)
        if due > (latest or context.now + _NEVER):
            # The clock was set back, or somebody set a time that is too late.
            due = latest or context.now + _NEVER
            annotations[ANN_CRON_NEXT_TIME] = _text(due)
        actions: tuple[Action, ...] = ()
        if ended:
            actions = self._remove(self._observe())
        if self._keeps_cron_job and context.platform.cluster:
            actions = (*actions, *self._correct_cron_job())
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
        refused = self._refusal()
        if refused is not None:
            return self._finish(PollResult(id=context.uid, failure=refused), schedule, None)
        if self._method == "node":
            return self._start_pod()
        poll = self._prepared()
        if isinstance(poll, Pending):
            return self.wait(Failure(code=poll.reason, message=poll.message, retry=Retry.ON_CHANGE))
        if not context.platform.cluster:
            return self._started((StartTask(uid=context.uid, work=poll.work, mounts=poll.mounts),))
        cron_job = self._cron_job
        if cron_job is None:
            body = build_cron_job(context, poll, spec_digest(cron_job_spec(context, poll)))
            template: tuple[Action, ...] = (CreateObject(body=body),)
        else:
            template = self._correct_cron_job(poll)
        if not self._has_turn():
            return self._wait_for_turn(template)
        if cron_job is not None:
            mirrors = mirror_actions(context, poll, cron_job_owner(cron_job))
        elif mirror_actions(context, poll, {}):
            # The copies are owned by the CronJob, which does not have a UID yet.
            return self._started(template)
        else:
            mirrors = ()
        first = ANN_CRON_LAST_TIME not in context.annotations and self._record.failures == 0
        return self._started((*template, *mirrors, CreateObject(body=build_job(context, poll, first=first))))

    def _start_pod(self) -> PollStep:
        context = self._context
        if not self._has_turn():
            return self._wait_for_turn()
        assert isinstance(self._source, SourceRegistry)
        platform = self._source.platform
        architecture = platform.architecture if platform is not None else None
        return self._started((CreateObject(body=build_node_pod(context, self._image, architecture)),))

    def _started(self, actions: tuple[Action, ...]) -> PollStep:
        return PollStep(actions=actions, trouble=_trouble(self._record.failure), requeue_after=POLL_INTERVAL)

    def _has_turn(self) -> bool:
        return self._context.objects.active_polls() < MAX_POLLS

    def _wait_for_turn(self, actions: tuple[Action, ...] = ()) -> PollStep:
        # Spread over the interval, and in another order each time, so that nobody always comes last.
        part = spread(self._context.uid, int(self._context.now))
        return PollStep(
            actions=actions, trouble=_trouble(self._record.failure), requeue_after=TURN_INTERVAL * (0.5 + part)
        )

    def _refusal(self) -> Failure | None:
        """Return why the API server rejected an object of this poll in the previous plan."""
        refusal = self._context.refusal
        if refusal is None:
            return None
        context, action = self._context, refusal.action
        cron_job = poll_cron_job(context.name, context.uid)
        names = {
            cron_job,
            poll_pod(context.name, context.uid),
            *(job_name(context, first=one) for one in (True, False)),
        }
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

    def _prepared(self) -> PollSpec | Pending:
        context, source = self._context, self._source
        if not isinstance(source, _Object):
            raise InvalidManifest("the template has no source that can be polled", where="spec.template.spec.source")
        policy = {name: text for name, text in context.annotations.items() if name.startswith(POLICY_PREFIX)}
        template = DataVolume(
            metadata=ObjectMeta(namespace=context.namespace, name=context.name, annotations=policy),
            spec=context.cron.spec.template.spec,
        )
        return prepare_poll(
            context.uid,
            template,
            source,
            context.objects,
            context.config,
            context.platform,
            inputs=context.poll_inputs,
        )

    @property
    def _image(self) -> str:
        source = self._source
        if not isinstance(source, SourceRegistry) or not source.url:
            raise InvalidManifest(
                "pullMethod node requires the image's url", where="spec.template.spec.source.registry"
            )
        return source.url.strip().removeprefix("docker://")

    # --- the CronJob ----------------------------------------------------------------------------------------------

    @property
    def _cron_job(self) -> Body | None:
        context = self._context
        name = poll_cron_job(context.name, context.uid)
        found = context.objects.cron_jobs_of(context.namespace, context.name)
        return next((body for body in found if body["metadata"]["name"] == name and not _is_deleting(body)), None)

    def _correct_cron_job(self, poll: PollSpec | None = None) -> tuple[Action, ...]:
        """Return the action that corrects the CronJob after a change of the image, the placement or the labels."""
        context, body = self._context, self._cron_job
        if body is None or self._refusal() is not None:
            return ()
        if poll is None:
            prepared = self._prepared()
            if isinstance(prepared, Pending):
                return ()
            poll = prepared
        spec = cron_job_spec(context, poll)
        digest = spec_digest(spec)
        metadata = body["metadata"]
        # Anybody who resumes it would poll twice.
        suspended = (body.get("spec") or {}).get("suspend") is True
        if suspended and (metadata.get("annotations") or {}).get(ANN_SPEC) == digest:
            return ()
        return (
            PatchObject(
                plural="cronjobs",
                namespace=context.install_namespace,
                name=metadata["name"],
                uid=metadata["uid"],
                annotations={ANN_SPEC: digest},
                labels=spec["jobTemplate"]["metadata"]["labels"],
                spec=merge_patch(body.get("spec") or {}, spec),
            ),
        )

    # --- sources that the controller reads ------------------------------------------------------------------------

    def _poll_directly(self, schedule: Schedule) -> PollStep:
        context, source = self._context, self._source
        reference = None
        try:
            if isinstance(source, SourcePvc):
                result = self._poll_claim(source)
            else:
                assert isinstance(source, SourceRegistry)
                found = self._poll_image_stream(source.image_stream or "")
                if found is None:
                    return PollStep(trouble=_trouble(self._record.failure))
                result, reference = found
        except CdiError as error:
            result = failed(context.uid, error)
        step = self._finish(result, schedule, None)
        if reference is None:
            return step
        return replace(step, annotations={**step.annotations, ANN_CRON_IMAGE_STREAM_DOCKER_REF: reference})

    def _poll_claim(self, source: SourcePvc) -> PollResult:
        context = self._context
        namespace = source.namespace or context.namespace
        claim = context.objects.claim(namespace, source.name)
        if claim is None or claim.deleting:
            raise SourceNotFound(
                f"the source PVC {namespace}/{source.name} does not exist", remedy="create it; the poll is repeated"
            )
        return PollResult(id=context.uid, digest=f"uid:{claim.uid}", identity="uid", size=claim.capacity)

    def _poll_image_stream(self, text: str) -> tuple[PollResult, str] | None:
        context = self._context
        if not context.platform.image_streams:
            raise SourceNotSupported(
                "image streams exist only in OpenShift clusters: this cluster has no API image.openshift.io/v1",
                where="spec.template.spec.source.registry.imageStream",
                remedy="set the image's url",
            )
        name, tag = split_image_stream(text)
        stream = context.objects.image_stream(context.namespace, name)
        if stream is None:
            return None
        if stream.body is None:
            raise SourceNotFound(stream.failure.partition(". Try: ")[0], remedy=stream.failure.partition(". Try: ")[2])
        digest, reference = newest_of_image_stream(stream.body, name, tag)
        return PollResult(
            id=context.uid, digest=digest, resolved=f"docker://{reference}", identity="manifest"
        ), reference

    # --- results --------------------------------------------------------------------------------------------------

    def _finish(self, result: PollResult, schedule: Schedule, poll: ObservedPoll | None) -> PollStep:
        """Record a result: of `poll`, or of a source that was read directly."""
        context = self._context
        task = poll.task if poll is not None else self._record.task
        actions = self._remove(poll)
        following = self._next_time(schedule, context.now)
        if result.failure is not None:
            record = self._record.with_failure(task, result.failure)
            moment = min(context.now + record.delay(context.uid), following)
            return PollStep(
                actions=actions,
                annotations={ANN_CRON_NEXT_TIME: _text(moment), ANN_CRON_POLL: record.write()},
                events=(Event(type="Warning", reason=POLL_FAILED, message=_shown(result.failure)),),
                trouble=_trouble(result.failure),
                requeue_after=moment - context.now,
            )
        record = self._record.with_success(task, result)
        return PollStep(
            actions=actions,
            annotations={
                ANN_CRON_NEXT_TIME: _text(following),
                ANN_CRON_LAST_TIME: _text(context.now),
                ANN_CRON_DESIRED_DIGEST: result.digest,
                ANN_CRON_POLL: record.write(),
            },
            requeue_after=following - context.now,
        )

    def wait(self, failure: Failure) -> PollStep:
        """Return the step while something in the cluster keeps the poll from being started."""
        record = self._record.with_obstacle(failure)
        if record == self._record:
            return PollStep(trouble=_trouble(failure), requeue_after=INPUT_INTERVAL)
        return PollStep(
            annotations={ANN_CRON_POLL: record.write()},
            events=(Event(type="Warning", reason=POLL_FAILED, message=_shown(failure)),),
            trouble=_trouble(failure),
            requeue_after=INPUT_INTERVAL,
        )


# --- sources ------------------------------------------------------------------------------------------------------


def _source_of(context: CronContext) -> Any:
    source = context.cron.spec.template.spec.source
    given = [member for _, member in source.given()] if source is not None else []
    return given[0] if len(given) == 1 else None


def _method_of(source: Any, *, cluster: bool) -> _Method:
    match source:
        case SourcePvc():
            return "claim"
        case SourceRegistry() if source.url is None and source.image_stream is not None:
            return "stream"
        case SourceRegistry() if source.pull_method == "node" and cluster:
            return "node"
        case _:
            return "job"


def split_image_stream(text: str) -> tuple[str, str]:
    """Return name and tag of ``name[:tag]``; an empty tag stands for the first one listed.

    Raises:
        InvalidManifest: The text has an empty part or several colons.

    """
    name, colon, tag = text.partition(":")
    if not name or ":" in tag or (colon and not tag):
        raise InvalidManifest(f"Illegal ImageStream name {text[:256]}", remedy="write it as name or name:tag")
    return name, tag


def newest_of_image_stream(stream: Body, name: str, tag: str) -> tuple[str, str]:
    """Return digest and Docker reference of the newest image of a tag.

    Raises:
        SourceNotFound: There is no such tag, or it has no image.

    """
    tags = (stream.get("status") or {}).get("tags") or ()
    remedy = "import an image into the stream, or correct the tag; the poll is repeated"
    if not tags:
        raise SourceNotFound(f"ImageStream {name} has no tags", remedy=remedy)
    found = next((one for one in tags if one.get("tag") == tag), None) if tag else tags[0]
    if found is None:
        raise SourceNotFound(f"ImageStream {name} has no tag {tag}", remedy=remedy)
    items = found.get("items") or ()
    if not items:
        raise SourceNotFound(f"ImageStream {name} tag {tag} has no items", remedy=remedy)
    digest = str(items[0].get("image") or "")
    if not digest.startswith("sha256:"):
        raise SourceProtocolError("Digest has no supported prefix", where=digest[:100], remedy=remedy)
    if len(digest.removeprefix("sha256:")) < _MIN_DIGEST:
        raise SourceProtocolError("Digest is too short", where=digest[:100], remedy=remedy)
    return digest, str(items[0].get("dockerImageReference") or "")


# --- parts --------------------------------------------------------------------------------------------------------


def _delete(plural: str, body: Body) -> DeleteObject:
    metadata = body["metadata"]
    return DeleteObject(
        plural=plural, namespace=metadata["namespace"], name=metadata["name"], uid=str(metadata.get("uid") or "")
    )


def _is_deleting(body: Body) -> bool:
    return body["metadata"].get("deletionTimestamp") is not None


def _trouble(failure: Failure | None) -> Trouble | None:
    return None if failure is None else Trouble(reason=failure.code, message=failure.message)


def _shown(failure: Failure) -> str:
    return f"{failure.code}: {failure.message}"[:1024]


def _text(moment: float) -> str:
    return timestamp(dt.datetime.fromtimestamp(moment, dt.UTC))
