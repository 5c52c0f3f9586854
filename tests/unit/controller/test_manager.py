"""Tests of the controller's loop: errors of one object do not affect another, and shutdown finishes running work."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging

import pytest

from cdi.api.annotations import ATTEMPT
from cdi.api.errors import AdmissionDenied, ClusterUnavailable, Conflict, InvalidManifest
from cdi.api.kinds import CLAIMS, PODS, Object
from cdi.controller.manager import Manager
from cdi.controller.metrics import Metrics
from cdi.controller.request import Request, Scope, datavolume
from cdi.controller.result import Result, TerminalError
from cdi.logs import JsonFormatter
from cdi.reconcile.settings import WorkerPodConfig
from tests.unit.controller.objects import added, body, deleted, modified

KEY = datavolume("ns", "a")


class Reconcilers:
    """A fake reconciler with a scripted answer for each key."""

    def __init__(self, **answers) -> None:
        self.answers = answers
        self.seen: list[Request] = []

    async def reconcile(self, key: Request) -> Result:
        self.seen.append(key)
        answer = self.answers.get(key.name)
        if callable(answer):
            answer = await answer()
        if isinstance(answer, BaseException):
            raise answer
        return answer or Result()

    async def report_invalid(self, *_: object) -> None:
        pass


def life(reconcilers: Reconcilers, stop: asyncio.Event | None = None) -> Manager:
    metrics = Metrics(lambda _: (), version="1", waiting=lambda: 0, in_work=lambda: 0)
    made = Manager(
        None,  # type: ignore[arg-type]
        scope=Scope(), pods=WorkerPodConfig(), install_namespace="cdi", version="1", workers=1, metrics=metrics,
        stop=stop or asyncio.Event(),
    )  # fmt: skip
    made._reconcilers = reconcilers  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("answer", "failures"),
    [
        (None, 0),
        (Conflict("older"), 1),
        (ClusterUnavailable("away"), 1),
        (ZeroDivisionError("a defect"), 1),
        (TerminalError(InvalidManifest("never")), 0),
        (AdmissionDenied("not today"), 1),
    ],
)
async def test_a_failure_is_tried_again_with_a_pause_and_one_of_the_object_is_not(answer, failures) -> None:
    made = life(Reconcilers(a=answer))
    await made._process_next(KEY)
    assert len(made.queue) == failures
    assert made.queue.ready == 0


async def test_what_a_plan_asks_for_is_looked_at_later() -> None:
    made = life(Reconcilers(a=Result(requeue_after=30.0)))
    await made._process_next(KEY)
    assert (len(made.queue), made.queue.ready) == (1, 0)


async def test_one_that_hangs_or_fails_stops_nobody_else() -> None:
    done = asyncio.Event()

    async def good() -> None:
        done.set()

    reconcilers = Reconcilers(bad=ZeroDivisionError("a defect"), good=good)
    made = life(reconcilers)
    for name in ("bad", "good"):
        made.queue.add(datavolume("ns", name))
    task = asyncio.create_task(made._work())
    await done.wait()
    task.cancel()
    assert [key.name for key in reconcilers.seen] == ["bad", "good"]


async def test_asked_to_stop_it_finishes_what_it_is_at_and_takes_nothing_new() -> None:
    stop, under_way, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    finished: list[bool] = []

    async def slow() -> None:
        under_way.set()
        await go_on.wait()
        finished.append(True)

    reconcilers = Reconcilers(a=slow)
    made = life(reconcilers, stop)
    made.queue.add(KEY)
    made.queue.add(datavolume("ns", "b"))
    task = asyncio.create_task(made._work())
    await under_way.wait()
    stop.set()
    drained = asyncio.create_task(made._drain())
    await asyncio.sleep(0)
    assert not drained.done()
    go_on.set()
    await drained
    task.cancel()
    assert finished == [True]
    assert [key.name for key in reconcilers.seen] == ["a"]


def worker(phase: str, **state):
    owner = body(CLAIMS, "a")
    status = {"phase": phase, "podIP": "10.0.0.7", "containerStatuses": [{"name": "importer", "state": state}]}
    return body(
        PODS, "importer-a", owner=owner, labels={"cdi.kubevirt.io": "importer"}, annotations={ATTEMPT.key: "1"},
        spec={"containers": [{"name": "importer", "volumeDevices": [{}]}]}, status=status,
    )  # fmt: skip


async def test_a_worker_is_followed_from_its_start_to_its_end() -> None:
    made = life(Reconcilers())
    followed = made._worker_pods.progress._targets
    pending, running = worker("Pending", waiting={}), worker("Running", running={})
    ended = worker("Failed", terminated={"exitCode": 137, "reason": "OOMKilled"})
    made._worker_pods.changed(added(pending))
    assert not followed
    made._worker_pods.changed(modified(pending, running))
    (target,) = followed.values()
    assert (target.address, target.keeps_journal) == ("10.0.0.7:8443", True)
    made._worker_pods.changed(modified(running, ended))
    assert not followed
    made._worker_pods.changed(deleted(ended))
    count = made._metrics.registry.get_sample_value
    assert sum(count("cdi_imports_total", {"outcome": code}) or 0 for code in ("ResourceLimit", "WorkerLost")) == 1


async def test_each_run_of_a_restarted_container_is_counted() -> None:
    made = life(Reconcilers())
    killed = {"exitCode": 137, "reason": "OOMKilled"}

    def restarting(count: int, last: Object | None = None, **state: Object) -> Object:
        pod = worker("Running", **state)
        pod["spec"]["restartPolicy"] = "OnFailure"
        container = pod["status"]["containerStatuses"][0]
        container["restartCount"] = count
        if last is not None:
            container["lastState"] = {"terminated": last}
        return pod

    course = (
        restarting(0, running={}),
        restarting(0, terminated=killed),
        restarting(0, killed, waiting={"reason": "CrashLoopBackOff"}),
        restarting(1, killed, running={}),
        restarting(2, killed, running={}),  # its end was not observed
    )
    for before, after in itertools.pairwise(course):
        made._worker_pods.changed(modified(before, after))
    count = made._metrics.registry.get_sample_value
    assert sum(count("cdi_imports_total", {"outcome": code}) or 0 for code in ("ResourceLimit", "WorkerLost")) == 2


async def test_what_was_there_at_the_start_is_not_counted_as_news() -> None:
    made = life(Reconcilers())
    made._worker_pods.changed(added(worker("Failed", terminated={"exitCode": 1})))
    assert not [
        sample
        for metric in made._metrics.registry.collect()
        if metric.name == "cdi_imports"
        for sample in metric.samples
        if sample.name.endswith("_total")
    ]


# --- reasons --------------------------------------------------------------------------------------------------------


def sample(made: Manager, **labels: str) -> float | None:
    return made._metrics.registry.get_sample_value("cdi_reconciles_total", labels)


async def test_a_reconcile_is_counted_by_what_led_to_it_and_logs_say_so() -> None:
    done = asyncio.Event()
    lines: list[dict[str, object]] = []

    async def answer() -> None:
        record = logging.LogRecord("cdi.controller", logging.INFO, __file__, 1, "phase changed", (), None)
        lines.append(json.loads(JsonFormatter().format(record)))
        done.set()

    made = life(Reconcilers(a=answer))
    made._synced = True
    claim = body(CLAIMS, "a", spec={})
    made._on_event(CLAIMS, modified(claim, claim))
    task = asyncio.create_task(made._work())
    await done.wait()
    task.cancel()
    assert (lines[0]["key"], lines[0]["because"]) == ("volume ns/a", "PersistentVolumeClaim ns/a changed")
    assert sample(made, kind="volume", trigger="persistentvolumeclaims") == 1


async def test_a_requeue_and_a_retry_are_reasons_too() -> None:
    made = life(Reconcilers(a=Result(requeue_after=30.0), b=Conflict("older")))
    for request in (KEY, datavolume("ns", "b")):
        await made._process_next(request)
    found = {request.name: [each.text for each in reasons] for request, reasons in made.queue._reasons.items()}
    assert found == {"a": ["requeued after 30 s"], "b": ["retried after Conflict"]}
