"""Tests of polls: the schedule, who polls, results, failures and limits."""

import copy
import datetime as dt
import json

import pytest

from cdi.api.annotations import POLL_RECORD
from cdi.api.dataimportcron import DataImportCron
from cdi.api.errors import ClusterForbidden, SourceNotFound, SourceUnavailable
from cdi.api.job import Failure
from cdi.api.poll import PollJob, PollResult
from cdi.reconcile.actions import (
    CreateObject,
    DeleteObject,
    MirrorObject,
    ObjectRef,
    PatchObject,
    RequireVersion,
    StartTask,
)
from cdi.reconcile.dataimportcron.context import CronContext, ImageStream, LocalTask
from cdi.reconcile.dataimportcron.poll import (
    MAX_CLOCK_SKEW,
    NODE_TIMEOUT,
    POD_TIMEOUT,
    plan_poll,
)
from cdi.reconcile.dataimportcron.poll_record import LONGEST_DELAY, PollRecord
from cdi.reconcile.dataimportcron.poll_source import split_image_stream
from cdi.reconcile.dataimportcron.slots import MAX_POLLS
from cdi.reconcile.datavolume.rejection import refusal_of
from cdi.reconcile.settings import Platform, ResolvedConfig, WorkerPodConfig
from cdi.reconcile.types import PVC, Input

P = "cdi.kubevirt.io/storage.import."
NOW = dt.datetime(2026, 3, 4, 12, 30, 15, tzinfo=dt.UTC).timestamp()
DIGEST = f"sha256:{'ab' * 32}"
OTHER = f"sha256:{'cd' * 32}"
UID = "0f3c81d2-1111-2222-3333-444444444444"
CRON_JOB = "fedora-0f3c81d2"


def text(moment):
    return dt.datetime.fromtimestamp(moment, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(stamp):
    return dt.datetime.fromisoformat(stamp).timestamp()


class Cluster:
    """The objects that polls concern; applied actions change them, as the API server would."""

    def __init__(self, source=None, *, schedule="0 * * * *", annotations=None, cluster=True, image_streams=False):
        self.source = source or {"registry": {"url": "docker://registry.example:5000/fedora:40"}}
        self.schedule, self.annotations = schedule, dict(annotations or {})
        self.platform = Platform(cluster=cluster, image_streams=image_streams)
        self.now = NOW
        self.objects, self.inputs, self.claims, self.streams = {}, {}, {}, {}
        self.task = None
        self.others = 0
        self.others_of_namespace = 0
        self.waiting = {}
        self.config = ResolvedConfig(
            insecure_registries=frozenset({"registry.example:5000"}),
            pods=WorkerPodConfig(image="cdi:1", pull_secrets=("pull",), placement={"nodeSelector": {"a": "b"}}),
        )
        self.counter = 0
        self.events = []
        self.uid = UID
        self.version = "1"
        """Version of the DataImportCron at the API server; that in the cache is always 1."""

    # --- the lister ---

    def _of(self, plural):
        return tuple(copy.deepcopy(body) for (kind, _, _), body in sorted(self.objects.items()) if kind == plural)

    def cron_jobs_of(self, namespace, cron):
        assert (namespace, cron) == ("golden", "fedora")
        return self._of("cronjobs")

    def jobs_of(self, namespace, cron):
        assert (namespace, cron) == ("golden", "fedora")
        return self._of("jobs")

    def job_pods(self, job):
        return tuple(pod for pod in self._of("pods") if pod["metadata"]["labels"].get("job") == job)

    def pod(self, namespace, name):
        return copy.deepcopy(self.objects.get(("pods", namespace, name)))

    def running_polls(self):
        return {"golden": self.others_of_namespace + len(self._of("jobs")), "other": self.others}

    def waiting_polls(self, now):
        assert now == self.now
        return self.waiting

    def input(self, ref):
        return self.inputs.get(ref)

    def claim(self, namespace, name):
        return self.claims.get((namespace, name))

    def image_stream(self, namespace, name):
        return self.streams.get((namespace, name))

    def local_task(self, task, uid):
        assert (task, uid) == ("poll", UID)
        return self.task

    # --- steps ---

    def context(self, **more):
        cron = DataImportCron.model_validate(
            {
                "metadata": {
                    "name": "fedora",
                    "namespace": "golden",
                    "uid": self.uid,
                    "resourceVersion": "1",
                    "annotations": self.annotations,
                },
                "spec": {
                    "schedule": self.schedule,
                    "managedDataSource": "fedora",
                    "template": {"spec": {"source": self.source, "storage": {}}},
                },
            }
        )
        owner = {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "CDI",
            "name": "cdi",
            "uid": "cdi-uid",
            "controller": True,
            "blockOwnerDeletion": True,
        }
        return CronContext(
            now=self.now, cron=cron, objects=self, config=self.config, platform=self.platform, owner=owner, **more
        )

    def step(self, **more):
        """Plan one step, apply it, and return it."""
        step = plan_poll(self.context(**more))
        for action in step.actions:
            match action:
                case RequireVersion():
                    assert (action.plural, action.name, action.uid) == ("dataimportcrons", "fedora", self.uid)
                    if action.version != self.version:
                        return step
                case CreateObject():
                    self.put(action.body)
                case DeleteObject():
                    self.objects.pop((action.plural, action.namespace, action.name), None)
                case PatchObject():
                    body = self.objects[action.plural, action.namespace, action.name]
                    body["metadata"].setdefault("annotations", {}).update(action.annotations)
                    body["spec"].update(action.spec)
        for name, value in step.annotations.items():
            self.annotations[name] = value
        self.events += step.events
        return step

    def put(self, body):
        plural = {"CronJob": "cronjobs", "Job": "jobs", "Pod": "pods"}[body["kind"]]
        body = copy.deepcopy(dict(body))
        key = (plural, body["metadata"]["namespace"], body["metadata"]["name"])
        if key not in self.objects:
            self.counter += 1
            body["metadata"] |= {"uid": f"uid-{self.counter}", "creationTimestamp": text(self.now)}
            if (job := self.objects.get(("jobs", "cdi", body["metadata"].get("labels", {}).get("job")))) is not None:
                body["metadata"].setdefault("ownerReferences", [{"uid": job["metadata"]["uid"]}])
            self.objects[key] = body
        return self.objects[key]

    def finish(self, result, *, job=None, code=None, container="cdi-source-update-poller"):
        """Let the pod of a Job end with a termination message."""
        job = job or self.jobs[0]
        message = result if isinstance(result, str) else result.to_json()
        if code is None:
            code = 1 if isinstance(result, str) or result.failure is not None else 0
        return self.put(
            {
                "kind": "Pod",
                "metadata": {"name": f"{job}-{code}-pod", "namespace": "cdi", "labels": {"job": job}},
                "status": {
                    "phase": "Failed" if code else "Succeeded",
                    "containerStatuses": [
                        {"name": container, "state": {"terminated": {"exitCode": code, "message": message}}}
                    ],
                },
            }
        )

    def poll(self, result=None):
        """Run a poll that is due now to its end and return the last step."""
        self.step()
        self.finish(result or PollResult(id=UID, digest=DIGEST, identity="manifest"))
        return self.step()

    @property
    def jobs(self):
        return [body["metadata"]["name"] for body in self._of("jobs")]

    @property
    def next_time(self):
        return seconds(self.annotations[f"{P}nextCronTime"])

    def due(self):
        self.annotations[f"{P}nextCronTime"] = text(self.now)


def failure(error=None):
    return PollResult(id=UID, failure=Failure.from_error(error or SourceUnavailable("the server answered 503")))


@pytest.fixture
def cluster():
    return Cluster()


# --- the schedule -------------------------------------------------------------------------------------------------


class TestSchedule:
    def test_the_first_poll_is_immediate(self, cluster):
        cluster.step()
        assert cluster.jobs == [f"initial-job-{CRON_JOB}"]

    def test_the_result_sets_times_and_digest(self, cluster):
        step = cluster.poll()
        assert cluster.annotations[f"{P}lastCronTime"] == text(NOW)
        assert cluster.annotations[f"{P}nextCronTime"] == "2026-03-04T13:00:00Z"
        assert cluster.annotations[f"{P}sourceDesiredDigest"] == DIGEST == step.desired_digest
        assert step.source_facts.identity == "manifest"
        assert step.trouble is None
        assert step.requeue_after == 1785

    def test_nothing_is_polled_before_the_next_time(self, cluster):
        cluster.poll()
        cluster.now += 100
        step = cluster.step()
        assert (cluster.jobs, step.annotations) == ([], {})
        assert step.requeue_after == 1685

    def test_the_next_poll_is_at_the_next_time_and_named_by_its_minute(self, cluster):
        cluster.poll()
        cluster.now = seconds("2026-03-04T13:00:00Z")
        cluster.step()
        assert cluster.jobs == [f"{CRON_JOB}-{int(cluster.now // 60)}"]

    def test_setting_the_time_to_now_polls(self, cluster):
        cluster.poll()
        cluster.now += 61
        cluster.due()
        cluster.step()
        assert len(cluster.jobs) == 1

    def test_a_time_missed_while_the_controller_was_down_is_polled_at_its_start(self, cluster):
        cluster.poll()
        cluster.now += 3 * 86400
        cluster.step()
        assert len(cluster.jobs) == 1

    def test_an_unchanged_digest_is_polled_all_the_same(self, cluster):
        cluster.poll()
        cluster.now = cluster.next_time
        step = cluster.poll()
        assert f"{P}sourceDesiredDigest" not in step.annotations
        assert step.annotations[f"{P}lastCronTime"] == text(cluster.now)

    def test_a_digest_set_by_hand_is_replaced_by_the_next_poll_only(self, cluster):
        cluster.poll()
        cluster.annotations[f"{P}sourceDesiredDigest"] = OTHER
        step = cluster.step()
        assert (step.desired_digest, step.source_facts) == (OTHER, None)
        cluster.now = cluster.next_time
        assert cluster.poll().desired_digest == DIGEST

    def test_an_empty_schedule_never_polls(self):
        cluster = Cluster(schedule="", annotations={f"{P}sourceDesiredDigest": OTHER, f"{P}nextCronTime": text(NOW)})
        step = cluster.step()
        assert (step.actions, step.annotations, step.requeue_after) == ((), {}, None)
        assert step.desired_digest == OTHER

    def test_an_interval_is_no_hot_loop(self):
        cluster = Cluster(schedule="@every 1h")
        cluster.poll()
        assert cluster.next_time == NOW + 3600
        for _ in range(5):
            cluster.now += 600
            step = cluster.step()
            assert step.annotations == {}
        assert cluster.jobs == []
        cluster.now += 600
        cluster.step()
        assert len(cluster.jobs) == 1

    def test_a_time_in_another_zone_is_that_of_the_schedule(self):
        cluster = Cluster(schedule="TZ=Asia/Tokyo 0 3 * * *")
        cluster.poll()
        assert cluster.annotations[f"{P}nextCronTime"] == "2026-03-04T18:00:00Z"

    def test_a_clock_that_was_years_ahead_is_put_right(self, cluster):
        cluster.poll()
        cluster.annotations[f"{P}nextCronTime"] = text(NOW + 400 * 86400)
        step = cluster.step()
        assert step.annotations == {f"{P}nextCronTime": "2026-03-04T13:00:00Z"}

    def test_a_time_that_cannot_be_read_polls(self, cluster):
        cluster.poll()
        cluster.now += 61
        cluster.annotations[f"{P}nextCronTime"] = "soon"
        cluster.step()
        assert len(cluster.jobs) == 1

    def test_a_date_that_never_comes_is_no_hot_loop(self):
        cluster = Cluster(schedule="0 0 30 2 *")
        cluster.poll()
        assert cluster.next_time > NOW + 365 * 86400
        assert cluster.step().annotations == {}
        assert cluster.jobs == []

    def test_an_invalid_schedule_is_reported(self):
        step = Cluster(schedule="often").step()
        assert step.trouble.reason == "InvalidSchedule"
        assert step.actions == ()

    def test_a_cron_without_annotations_gets_them(self, cluster):
        cluster.annotations = None
        context = cluster.context()
        assert plan_poll(context).actions
        cluster.annotations = {}
        cluster.poll()
        assert cluster.annotations[f"{P}lastCronTime"]

    def test_a_cron_that_was_created_again_with_its_annotations_is_polled_at_once(self, cluster):
        cluster.poll()
        cluster.uid = "aaaaaaaa-1111-2222-3333-444444444444"
        step = cluster.step()
        assert step.annotations == {f"{P}nextCronTime": text(NOW)}
        assert [action.name for action in step.actions] == [CRON_JOB]
        cluster.step()
        assert cluster.jobs == [f"fedora-aaaaaaaa-{int(NOW // 60)}"]


# --- Jobs ---------------------------------------------------------------------------------------------------------


class TestJobs:
    def test_a_job_that_runs_is_waited_for(self, cluster):
        cluster.step()
        cluster.now += 5
        step = cluster.step()
        assert (step.actions, step.annotations, step.trouble) == ((), {}, None)
        assert 0 < step.requeue_after <= 10

    def test_the_job_is_deleted_with_its_result(self, cluster):
        cluster.poll()
        assert cluster.jobs == []

    def test_the_job_stays_while_its_result_cannot_be_recorded(self, cluster):
        cluster.step()
        cluster.version = "2"
        cluster.finish(PollResult(id=UID, digest=DIGEST, identity="manifest"))
        cluster.step()
        assert cluster.jobs == [f"initial-job-{CRON_JOB}"]
        cluster.version = "1"
        assert cluster.step().desired_digest == DIGEST
        assert cluster.jobs == []

    def test_a_result_is_evaluated_once(self, cluster):
        cluster.poll()
        cluster.step()  # before the deletion is observed
        left = cluster.put(
            {"kind": "Job", "metadata": {"name": f"initial-job-{CRON_JOB}", "namespace": "cdi"}, "spec": {}}
        )
        left["metadata"]["uid"] = PollRecord.read(cluster.annotations).task
        cluster.now += 10
        step = cluster.step()
        assert step.annotations == {}
        assert isinstance(step.actions[0], DeleteObject)

    def test_a_controller_that_dies_before_it_records_the_result_records_it_later(self, cluster):
        cluster.step()
        cluster.finish(PollResult(id=UID, digest=DIGEST))
        plan_poll(cluster.context())
        cluster.now += 3
        assert cluster.step().desired_digest == DIGEST

    def test_a_job_that_vanished_with_its_result_is_polled_again(self, cluster):
        cluster.step()
        del cluster.objects["jobs", "cdi", f"initial-job-{CRON_JOB}"]
        cluster.now += 30
        cluster.step()
        assert len(cluster.jobs) == 1

    def test_kubectl_create_job_from_the_cronjob_polls_as_well(self, cluster):
        cluster.poll()
        owner = {"kind": "CronJob", "name": CRON_JOB, "uid": "x"}
        cluster.put({"kind": "Job", "metadata": {"name": "mine", "namespace": "cdi", "ownerReferences": [owner]}})
        cluster.finish(PollResult(id=UID, digest=OTHER), job="mine")
        assert cluster.step().desired_digest == OTHER

    @pytest.mark.parametrize("schedule", ["0 * * * *", "@every 1h"])
    @pytest.mark.parametrize("result", [PollResult(id=UID, digest=DIGEST), failure()])
    def test_a_poll_that_is_requested_while_another_runs_is_made_after_it_once(self, schedule, result):
        cluster = Cluster(schedule=schedule)
        cluster.step()
        cluster.now += 5
        cluster.due()
        requested = cluster.annotations[f"{P}nextCronTime"]
        cluster.now += 5
        cluster.finish(result)
        assert cluster.step().requeue_after == 0
        assert cluster.annotations[f"{P}nextCronTime"] == requested
        cluster.poll(PollResult(id=UID, digest=OTHER))
        assert cluster.annotations[f"{P}sourceDesiredDigest"] == OTHER
        assert cluster.next_time > cluster.now

    @pytest.mark.parametrize("skew", [-3600, -1, 3600])
    def test_the_time_by_which_a_poll_was_started_starts_no_other_whatever_the_clock_of_its_job(self, cluster, skew):
        cluster.poll()
        cluster.now = cluster.next_time
        cluster.step()
        (job,) = cluster._of("jobs")
        stamp = text(cluster.now + skew)
        cluster.objects["jobs", "cdi", job["metadata"]["name"]]["metadata"]["creationTimestamp"] = stamp
        cluster.finish(PollResult(id=UID, digest=DIGEST))
        cluster.step()
        assert cluster.next_time > cluster.now

    def test_a_time_in_the_future_that_is_set_while_a_poll_runs_is_replaced(self, cluster):
        cluster.step()
        cluster.annotations[f"{P}nextCronTime"] = text(NOW + 86400)
        cluster.finish(PollResult(id=UID, digest=DIGEST))
        cluster.step()
        assert cluster.annotations[f"{P}nextCronTime"] == "2026-03-04T13:00:00Z"

    def test_a_poll_that_is_requested_while_a_job_of_a_user_runs_is_made_after_it(self, cluster):
        cluster.poll()
        owner = {"kind": "CronJob", "name": CRON_JOB, "uid": "x"}
        cluster.put({"kind": "Job", "metadata": {"name": "mine", "namespace": "cdi", "ownerReferences": [owner]}})
        cluster.now += 5
        cluster.due()
        cluster.finish(PollResult(id=UID, digest=OTHER), job="mine")
        cluster.step()
        assert cluster.next_time == cluster.now

    def test_a_job_of_an_earlier_cron_of_the_name_is_deleted(self, cluster):
        cluster.put({"kind": "Job", "metadata": {"name": "initial-job-fedora-99999999", "namespace": "cdi"}})
        cluster.put({"kind": "CronJob", "metadata": {"name": "fedora-99999999", "namespace": "cdi"}, "spec": {}})
        cluster.finish(PollResult(id="old", digest=OTHER), job="initial-job-fedora-99999999")
        step = cluster.step()
        assert step.desired_digest is None
        assert cluster.jobs == [f"initial-job-{CRON_JOB}"]
        assert list(cluster.objects) == [key for key in cluster.objects if "99999999" not in key[2] or key[0] == "pods"]

    @pytest.mark.parametrize(
        ("message", "code"),
        [
            (PollResult(id="another", digest=DIGEST), 0),
            (PollResult(id=UID, digest="sha256:short"), 0),
            (PollResult(id=UID, digest=f"md5:{'0' * 32}"), 0),
            (PollResult(id=UID), 0),
            (PollResult(id=UID, digest=DIGEST), 1),
            ("Traceback (most recent call last)", 1),
            ("{" * 5000, 0),
        ],
    )
    def test_a_result_that_cannot_be_trusted_is_none(self, cluster, message, code):
        cluster.step()
        cluster.finish(message, code=code)
        assert cluster.step().desired_digest is None
        assert cluster.jobs == [f"initial-job-{CRON_JOB}"]
        cluster.objects["jobs", "cdi", cluster.jobs[0]]["status"] = {
            "conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]
        }
        step = cluster.step()
        assert step.trouble.reason == "WorkerLost"
        assert "BackoffLimitExceeded" in step.trouble.message
        assert cluster.jobs == []

    def test_a_pod_of_an_earlier_job_of_the_name_does_not_end_a_poll(self, cluster):
        cluster.step()
        pod = cluster.finish(PollResult(id=UID, digest=DIGEST))
        pod["metadata"]["ownerReferences"] = [{"uid": "an earlier one"}]
        cluster.step()
        assert cluster.jobs
        pod["metadata"]["ownerReferences"] = [{"uid": cluster.objects["jobs", "cdi", cluster.jobs[0]]["metadata"]["uid"]}]
        cluster.step()
        assert not cluster.jobs

    def test_a_job_that_gets_no_pod_is_given_up_and_says_why(self, cluster):
        cluster.step()
        cluster.put(
            {
                "kind": "Pod",
                "metadata": {"name": "p", "namespace": "cdi", "labels": {"job": cluster.jobs[0]}},
                "status": {
                    "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]
                },
            }
        )
        step = cluster.step()
        assert "0/3 nodes are available" in step.trouble.message
        assert step.annotations == {}
        cluster.now += POD_TIMEOUT
        step = cluster.step()
        assert (step.trouble.reason, cluster.jobs) == ("WorkerLost", [])
        assert "0/3 nodes are available" in step.trouble.message
        assert cluster.events[-1].reason == "PollFailed"

    def test_what_the_api_server_rejects_is_a_failed_poll(self, cluster):
        cluster.step()
        cluster.poll()
        cluster.now = cluster.next_time
        step = plan_poll(cluster.context())
        job = next(action for action in step.actions if isinstance(action, CreateObject))
        step = cluster.step(refusal=refusal_of(job, ClusterForbidden("jobs are forbidden")))
        assert (step.trouble.reason, cluster.jobs) == ("ClusterForbidden", [])
        assert cluster.next_time > cluster.now

    def test_a_rejected_cronjob_is_tried_again_after_the_delay_only(self, cluster):
        """The annotations that record a failure wake the controller at once."""
        rejected = ClusterForbidden("exceeded quota: count/cronjobs.batch")
        for failures in range(1, 4):
            create = plan_poll(cluster.context()).actions[0]
            assert create.body["kind"] == "CronJob"
            cluster.step(refusal=refusal_of(create, rejected))
            moment = cluster.next_time
            assert moment > cluster.now
            while cluster.now < moment:
                step = cluster.step()
                assert (step.actions, step.annotations, step.trouble.reason) == ((), {}, "ClusterForbidden")
                assert step.requeue_after == moment - cluster.now
                cluster.now += step.requeue_after / 2 + 1
            assert PollRecord.read(cluster.annotations).failures == failures
        cluster.step()
        assert len(cluster.jobs) == 1

    @pytest.mark.parametrize("ahead", [1, 5, MAX_CLOCK_SKEW])
    def test_a_job_that_is_dated_by_a_clock_ahead_of_ours_is_waited_for(self, cluster, ahead):
        cluster.step()
        cluster.now -= ahead
        step = cluster.step()
        assert (step.trouble, step.annotations) == (None, {})
        assert len(cluster.jobs) == 1
        cluster.now += ahead + POD_TIMEOUT
        assert cluster.step().trouble.reason == "WorkerLost"

    def test_a_job_from_before_the_clock_was_set_back_is_given_up(self, cluster):
        cluster.step()
        cluster.now -= MAX_CLOCK_SKEW + 1
        assert cluster.step().trouble.reason == "WorkerLost"
        assert cluster.jobs == []


class TestKnownDigest:
    FIRST = PollResult(
        id=UID, digest=DIGEST, identity="manifest", resolved=f"docker://r/x@{DIGEST}", architectures=("amd64",)
    )

    def known(self, cluster):
        template = cluster.objects["jobs", "cdi", cluster.jobs[0]]["spec"]["template"]
        return PollJob.from_json(template["metadata"]["annotations"]["cdi.kubevirt.io/job"]).known

    def test_a_registry_is_asked_whether_the_digest_is_the_same_and_the_facts_are_kept(self, cluster):
        cluster.step()
        assert self.known(cluster) is None
        cluster.finish(self.FIRST)
        cluster.step()
        cluster.now = cluster.next_time
        cluster.step()
        assert self.known(cluster) == DIGEST
        cluster.finish(PollResult(id=UID, digest=DIGEST, identity="manifest"))
        step = cluster.step()
        assert step.source_facts == self.FIRST
        assert step.annotations[f"{P}lastCronTime"] == text(cluster.now)
        # The CronJob is no copy of one poll.
        assert cluster.step().actions == ()

    def test_another_source_is_not(self):
        cluster = Cluster({"http": {"url": "https://h/disk.img"}})
        cluster.poll(PollResult(id=UID, digest=DIGEST, identity="etag"))
        cluster.now = cluster.next_time
        cluster.step()
        assert self.known(cluster) is None


class TestLimits:
    def test_many_polls_that_are_due_wait_for_their_turn_and_none_is_lost(self, cluster):
        cluster.others = MAX_POLLS
        delays = set()
        for _ in range(5):
            step = cluster.step()
            assert cluster.jobs == []
            assert 5 <= step.requeue_after <= 15
            delays.add(step.requeue_after)
            cluster.now += step.requeue_after
        assert len(delays) == 5
        cluster.others = MAX_POLLS - 1
        cluster.step()
        assert len(cluster.jobs) == 1

    def test_a_poll_waits_while_a_namespace_that_holds_fewer_turns_waits(self, cluster):
        cluster.others, cluster.others_of_namespace = 4, 3
        cluster.waiting = {"golden": 5, "third": 1}
        assert 5 <= cluster.step().requeue_after <= 15
        assert cluster.jobs == []
        cluster.waiting = {"golden": 5}
        cluster.step()
        assert len(cluster.jobs) == 1

    def test_200_crons_that_are_due_at_once_are_all_polled_and_at_most_eight_at_a_time(self):
        crons = []
        for number in range(200):
            one = Cluster()
            one.uid = f"{number:08x}-1111"
            crons.append((one, 0.0))
        done, most, now, running = 0, 0, 0.0, []
        while done < 200:
            waiting = []
            for one, when in crons:
                if when > now:
                    waiting.append((one, when))
                    continue
                one.now, one.others = NOW + now, len(running)
                step = one.step()
                if one.jobs:
                    running.append((one, now + 3))
                else:
                    waiting.append((one, now + step.requeue_after))
            crons = waiting
            most = max(most, len(running))
            for one, when in running:
                if when <= now:
                    one.now = NOW + now
                    one.finish(PollResult(id=one.uid, digest=DIGEST))
                    assert one.step().desired_digest == DIGEST
                    done += 1
            running = [(one, when) for one, when in running if when > now]
            now += 1
        assert most == MAX_POLLS
        assert now < 200


# --- failures -----------------------------------------------------------------------------------------------------


class TestFailures:
    def test_a_failure_is_reported_and_keeps_the_digest(self, cluster):
        cluster.poll()
        cluster.now = cluster.next_time
        last = cluster.annotations[f"{P}lastCronTime"]
        step = cluster.poll(failure())
        assert step.trouble.reason == "SourceUnavailable"
        assert "503" in step.trouble.message
        assert (step.desired_digest, step.source_facts.digest) == (DIGEST, DIGEST)
        assert cluster.annotations[f"{P}lastCronTime"] == last
        assert [(event.type, event.reason) for event in step.events] == [("Warning", "PollFailed")]
        assert cluster.jobs == []

    def test_a_failure_stays_visible_until_a_success(self, cluster):
        cluster.poll(failure())
        assert cluster.step().trouble.reason == "SourceUnavailable"
        assert len(cluster.events) == 1
        cluster.now = cluster.next_time
        assert cluster.poll().trouble is None
        assert cluster.step().trouble is None

    def test_retries_are_further_and_further_apart_and_never_after_the_next_time(self):
        cluster = Cluster(schedule="0 0 * * *")
        delays = []
        while sum(delays) < 80_000:
            cluster.poll(failure(SourceNotFound("there is no such tag")))
            delays.append(cluster.next_time - cluster.now)
            cluster.now = cluster.next_time
        assert 20 <= delays[0] <= 40
        assert len(delays) < 20
        assert max(delays) <= LONGEST_DELAY * 1.25
        hourly = Cluster()
        for _ in range(12):
            hourly.poll(failure())
            assert hourly.next_time - hourly.now <= 3600
            hourly.now = hourly.next_time

    def test_crons_of_a_registry_that_was_down_do_not_all_retry_at_once(self):
        moments = set()
        for number in range(50):
            cluster = Cluster()
            cluster.uid = f"{number:08x}-1111"
            cluster.step()
            cluster.finish(failure())
            moments.add(round(cluster.step().requeue_after, 3))
        assert len(moments) > 40

    def test_a_failure_after_a_failure_does_not_reuse_the_name_of_its_job(self, cluster):
        cluster.poll(failure())
        cluster.now = cluster.next_time
        cluster.step()
        assert cluster.jobs == [f"{CRON_JOB}-{int(cluster.now // 60)}"]

    def test_a_message_of_any_length_fits_the_annotation(self, cluster):
        cluster.poll(failure(SourceUnavailable("x" * 100_000)))
        assert len(cluster.annotations[POLL_RECORD.key]) < 4096
        assert len(cluster.events[-1].message) <= 1024

    @pytest.mark.parametrize("record", ["", "{", "[]", json.dumps({"failures": "many"}), "x" * 100_000])
    def test_a_record_that_cannot_be_read_is_empty(self, record):
        assert PollRecord.read({POLL_RECORD.key: record}) == PollRecord()


# --- Secrets and ConfigMaps ---------------------------------------------------------------------------------------


class TestInputs:
    SECRET = ObjectRef(kind="Secret", namespace="golden", name="login")
    SOURCE = {"registry": {"url": "docker://registry.example/fedora", "secretRef": "login"}}

    def test_a_secret_beside_the_cron_is_copied_for_the_poll(self):
        cluster = Cluster(self.SOURCE)
        cluster.inputs[self.SECRET] = Input(version="1", keys=frozenset({"accessKeyId", "secretKey"}))
        cluster.step()
        assert cluster.jobs == []  # the copy is owned by the CronJob
        step = cluster.step()
        mirror = next(action for action in step.actions if isinstance(action, MirrorObject))
        assert mirror.source == self.SECRET
        assert (mirror.copy.namespace, mirror.copy.name) == ("cdi", f"login-for-{CRON_JOB}")
        assert mirror.owner["kind"] == "CronJob"
        assert mirror.owner["uid"] == cluster.objects["cronjobs", "cdi", CRON_JOB]["metadata"]["uid"]
        assert len(cluster.jobs) == 1
        body = json.dumps(cluster.objects["jobs", "cdi", cluster.jobs[0]])
        assert f'"secret": {{"name": "login-for-{CRON_JOB}"}}' in body

    def test_a_missing_secret_says_so_once_and_is_waited_for(self):
        cluster = Cluster(self.SOURCE)
        step = cluster.step()
        assert step.trouble.reason == "NotFound"
        assert "Secret golden/login" in step.trouble.message
        assert step.requeue_after <= 60
        for _ in range(5):
            cluster.now += 60
            assert cluster.step().annotations == {}
        assert len(cluster.events) == 1
        cluster.inputs[self.SECRET] = Input(version="1", keys=frozenset({"accessKeyId", "secretKey"}))
        cluster.step()
        cluster.step()
        assert cluster.jobs == [f"initial-job-{CRON_JOB}"]

    def test_a_secret_without_its_keys_says_so(self):
        cluster = Cluster(self.SOURCE)
        cluster.inputs[self.SECRET] = Input(version="1", keys=frozenset({"accessKeyId"}))
        assert cluster.step().trouble.reason == "SourceCredentialsInvalid"

    def test_an_invalid_policy_says_so(self):
        cluster = Cluster(annotations={"cdi.kubevirt.io/policy.engine": "fast"})
        assert cluster.step().trouble.reason == "InvalidManifest"

    def test_the_policy_of_the_cron_is_that_of_the_poll(self):
        cluster = Cluster(
            {"http": {"url": "https://images.example/disk.img"}},
            annotations={"cdi.kubevirt.io/policy.requireChecksum": "true"},
        )
        cluster.step()
        template = cluster.objects["jobs", "cdi", cluster.jobs[0]]["spec"]["template"]
        job = PollJob.from_json(template["metadata"]["annotations"]["cdi.kubevirt.io/job"])
        assert job.policy.require_checksum


# --- sources that the controller reads ----------------------------------------------------------------------------


class TestPvc:
    SOURCE = {"pvc": {"namespace": "other", "name": "disk"}}

    def test_the_uid_is_the_digest(self):
        cluster = Cluster(self.SOURCE)
        cluster.claims["other", "disk"] = PVC(namespace="other", name="disk", uid="fd83ea4c-7ef", phase="Bound")
        step = cluster.step()
        assert step.actions == ()
        assert step.desired_digest == "uid:fd83ea4c-7ef"
        assert cluster.annotations[f"{P}lastCronTime"] == text(NOW)
        assert cluster.next_time == seconds("2026-03-04T13:00:00Z")

    def test_a_new_pvc_of_the_name_is_a_new_version(self):
        cluster = Cluster(self.SOURCE)
        for uid in ("one", "two"):
            cluster.claims["other", "disk"] = PVC(namespace="other", name="disk", uid=uid, phase="Bound")
            assert cluster.step().desired_digest == f"uid:{uid}"
            cluster.now = cluster.next_time

    def test_an_empty_namespace_is_that_of_the_cron(self):
        cluster = Cluster({"pvc": {"namespace": "", "name": "disk"}})
        cluster.claims["golden", "disk"] = PVC(namespace="golden", name="disk", uid="one", phase="Bound")
        assert cluster.step().desired_digest == "uid:one"

    def test_a_missing_pvc_is_a_failed_poll_that_keeps_the_digest(self):
        cluster = Cluster(self.SOURCE, annotations={f"{P}sourceDesiredDigest": "uid:one"})
        step = cluster.step()
        assert (step.trouble.reason, step.desired_digest) == ("SourceNotFound", "uid:one")
        assert "other/disk" in step.trouble.message
        assert cluster.next_time > NOW


class TestImageStream:
    SOURCE = {"registry": {"imageStream": "rhel:9", "pullMethod": "node"}}
    REFERENCE = f"image-registry.example/images/rhel@{DIGEST}"

    def stream(self, *tags):
        return ImageStream(body={"status": {"tags": list(tags)}})

    def tag(self, name, digest=DIGEST):
        return {"tag": name, "items": [{"image": digest, "dockerImageReference": self.REFERENCE}]}

    def polled(self, stream, source=None):
        cluster = Cluster(source or self.SOURCE, image_streams=True)
        name = (source or self.SOURCE)["registry"]["imageStream"].partition(":")[0]
        cluster.streams["golden", name] = stream
        return cluster, cluster.step()

    def test_the_newest_image_of_the_tag_is_wanted_with_its_reference(self):
        cluster, step = self.polled(self.stream(self.tag("8", OTHER), self.tag("9")))
        assert step.desired_digest == DIGEST
        assert cluster.annotations[f"{P}imageStreamDockerRef"] == self.REFERENCE

    def test_without_a_tag_the_first_one_counts(self):
        source = {"registry": {"imageStream": "rhel", "pullMethod": "node"}}
        _, step = self.polled(self.stream(self.tag("8", OTHER), self.tag("9")), source)
        assert step.desired_digest == OTHER

    @pytest.mark.parametrize(
        ("tags", "message"),
        [
            ([], "ImageStream rhel has no tags"),
            ([{"tag": "8", "items": []}], "ImageStream rhel has no tag 9"),
            ([{"tag": "9", "items": []}], "ImageStream rhel tag 9 has no items"),
            ([{"tag": "9", "items": [{"image": "md5:00"}]}], "Digest has no supported prefix"),
            ([{"tag": "9", "items": [{"image": "sha256:00"}]}], "Digest is too short"),
        ],
    )
    def test_errors_have_the_words_of_kubevirts_cdi(self, tags, message):
        _, step = self.polled(self.stream(*tags))
        assert step.trouble.message.startswith(message)

    @pytest.mark.parametrize("name", ["", ":", "a:", ":b", "a:b:c"])
    def test_an_illegal_name_is_refused(self, name):
        with pytest.raises(Exception, match=f"Illegal ImageStream name {name}"):
            split_image_stream(name)

    def test_a_stream_that_has_not_been_read_is_waited_for(self):
        _, step = self.polled(None)
        assert (step.annotations, step.actions, step.trouble) == ({}, (), None)

    def test_a_stream_that_cannot_be_read_is_a_failed_poll(self):
        _, step = self.polled(ImageStream(failure="ImageStream golden/rhel does not exist. Try: create it"))
        assert step.trouble.message == "ImageStream golden/rhel does not exist. Try: create it"

    def test_without_the_api_it_says_so_and_does_not_loop(self):
        cluster = Cluster(self.SOURCE)
        step = cluster.step()
        assert step.trouble.reason == "SourceNotSupported"
        assert "image.openshift.io/v1" in step.trouble.message
        assert cluster.step().annotations == {}
        assert cluster.step().requeue_after > 1


# --- node pull ----------------------------------------------------------------------------------------------------


class TestNode:
    SOURCE = {
        "registry": {
            "url": "docker://registry.example/fedora:40",
            "pullMethod": "node",
            "platform": {"architecture": "arm64"},
        }
    }
    POD = ("pods", "golden", "poller-fedora-0f3c81d2")

    def waiting(self, reason, **more):
        return {"containerStatuses": [{"name": "image-container", "state": {"waiting": {"reason": reason, **more}}}]}

    def ended(self, image, reason="Completed"):
        state = {"terminated": {"exitCode": 0, "reason": reason}}
        return {"containerStatuses": [{"name": "image-container", "imageID": image, "state": state}]}

    @pytest.fixture
    def cluster(self):
        return Cluster(self.SOURCE)

    def test_a_pod_of_the_cron_pulls_the_image(self, cluster):
        cluster.step()
        pod = cluster.objects[self.POD]
        (owner,) = pod["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("DataImportCron", UID, True)
        (container,) = pod["spec"]["containers"]
        assert container["name"] == "image-container"
        assert (container["image"], container["imagePullPolicy"]) == ("registry.example/fedora:40", "Always")
        assert container["command"] == ["/shared/server", "-h"]
        (init,) = pod["spec"]["initContainers"]
        assert (init["name"], init["image"], init["args"]) == ("init", "cdi:1", ["poll-program", "/shared/server"])
        assert pod["spec"]["volumes"][0] == {"name": "shared-volume", "emptyDir": {}}
        assert pod["spec"]["nodeSelector"] == {"a": "b", "kubernetes.io/arch": "arm64"}
        assert "serviceAccountName" not in pod["spec"]
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert "fsGroup" not in pod["spec"]["securityContext"]
        assert [key[0] for key in cluster.objects] == ["pods"]

    def test_the_digest_is_taken_only_from_a_container_that_has_ended(self, cluster):
        cluster.step()
        cluster.objects[self.POD]["status"] = {
            "containerStatuses": [
                {"name": "image-container", "imageID": f"registry.example/fedora@{DIGEST}", "state": {"running": {}}}
            ]
        }
        assert cluster.step().desired_digest is None
        cluster.objects[self.POD]["status"] = self.ended(f"docker-pullable://registry.example/fedora@{DIGEST}")
        step = cluster.step()
        assert step.desired_digest == DIGEST
        assert step.source_facts.resolved == f"docker://registry.example/fedora@{DIGEST}"
        assert cluster.objects == {}

    @pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
    def test_a_pull_that_fails_is_a_failed_poll(self, cluster, reason):
        cluster.step()
        cluster.objects[self.POD]["status"] = self.waiting(reason, message="manifest unknown")
        step = cluster.step()
        assert step.trouble.message.startswith("failed to pull image: registry.example/fedora:40")
        assert "manifest unknown" in step.trouble.message
        assert cluster.objects == {}
        assert cluster.next_time > cluster.now

    @pytest.mark.parametrize(
        ("image", "message"),
        [("registry.example/fedora", "Digest has no supported prefix"), ("x@sha256:abc", "Digest is too short")],
    )
    def test_an_image_id_without_a_digest_is_a_failed_poll(self, cluster, image, message):
        cluster.step()
        cluster.objects[self.POD]["status"] = self.ended(image)
        assert cluster.step().trouble.message.startswith(message)

    def test_a_pull_may_take_long_but_not_for_ever(self, cluster):
        cluster.step()
        cluster.objects[self.POD]["status"] = self.waiting("ContainerCreating")
        cluster.now += NODE_TIMEOUT - 1
        assert cluster.step().trouble is None
        cluster.now += 1
        assert cluster.step().trouble.reason == "WorkerLost"
        assert cluster.objects == {}

    def test_on_one_machine_it_is_polled_as_any_registry(self):
        cluster = Cluster(self.SOURCE, cluster=False)
        (start,) = cluster.step().actions
        assert isinstance(start, StartTask)


# --- on one machine -----------------------------------------------------------------------------------------------


class TestOneMachine:
    @pytest.fixture
    def cluster(self):
        return Cluster(cluster=False)

    def test_a_process_polls(self, cluster):
        (start,) = cluster.step().actions
        assert (start.uid, start.work.id, start.work.source.url) == (
            UID,
            UID,
            "docker://registry.example:5000/fedora:40",
        )
        cluster.task = LocalTask(running=True, started=NOW)
        assert cluster.step().actions == ()
        cluster.task = LocalTask(running=False, started=NOW, result=PollResult(id=UID, digest=DIGEST).to_json())
        assert cluster.step().desired_digest == DIGEST
        assert cluster.step().annotations == {}
        cluster.now = cluster.next_time
        assert len(cluster.step().actions) == 1

    @pytest.mark.parametrize(("offset", "again"), [(-0.002, False), (0.0, False), (0.9, False), (-1.2, True)])
    def test_a_poll_is_requested_if_the_time_is_in_a_later_second_than_the_start_of_the_process(
        self, cluster, offset, again
    ):
        cluster.due()
        cluster.task = LocalTask(
            running=False, started=NOW + offset, result=PollResult(id=UID, digest=DIGEST).to_json()
        )
        cluster.step()
        assert (cluster.next_time == NOW) is again

    def test_a_process_that_ends_without_a_result_is_a_failed_poll(self, cluster):
        cluster.step()
        cluster.task = LocalTask(running=False, started=NOW)
        assert cluster.step().trouble.reason == "WorkerLost"
