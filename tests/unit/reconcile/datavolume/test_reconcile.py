from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.annotations import UPLOAD_REQUEST
from cdi.api.errors import Retry
from cdi.api.job import Progress
from cdi.api.validation import parse
from cdi.reconcile.actions import CloneJob, CreateObject, StartWorker
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.datavolume.upload import UploadRequest
from cdi.reconcile.settings import Retries
from tests.unit.reconcile.simulation import HTTP, End, Simulation, data_volume, failing

ADOPT = {"cdi.kubevirt.io/allowClaimAdoption": "true"}


def test_an_import_goes_through_its_phases():
    sim = Simulation().run()
    assert sim.phases == ["Pending", "ImportScheduled", "ImportInProgress", "Succeeded"]
    assert sim.status["progress"] == "100.0%"
    assert sim.status["claimName"] == "a"
    assert sim.status["restartCount"] == 0
    assert [(c["type"], c["status"], c["reason"]) for c in sim.status["conditions"]] == [
        ("Ready", "True", ""),
        ("Bound", "True", "Bound"),
        ("Running", "False", "Completed"),
    ]
    assert [e.reason for e in sim.events if e.reason not in ("Pending", "Bound")] == [
        "ImportScheduled", "ImportInProgress", "ImportSucceeded",
    ]  # fmt: skip
    assert sim.events[0].message == "PVC a Pending"
    assert sim.events[-1].message == "Successfully imported into PVC a"
    assert sim.claim.annotations["cdi.kubevirt.io/storage.pod.phase"] == "Succeeded"
    assert sim.claim.annotations["cdi.kubevirt.io/image.digest"].startswith("sha256:")


def test_progress_is_shown_while_it_runs_and_the_end_only_at_the_end():
    sim = Simulation()
    while not (sim.worker and sim.worker.running):
        sim.step()
        if not (sim.worker and sim.worker.running):
            sim.nature()
    for done, shown in [(0, "0.00%"), (421, "42.10%"), (1000, "99.99%")]:
        sim.worker = replace(sim.worker, progress=Progress(phase="transferring", done=done, total=1000))
        sim.step()
        assert sim.status["progress"] == shown
        assert sim.condition("Running")["status"] == "True"
    sim.worker = replace(sim.worker, progress=Progress(phase="transferring", done=5, total=None))
    sim.step()
    assert sim.status["progress"] == "N/A"


def test_a_fixpoint_stays():
    sim = Simulation().run()
    before = dict(sim.body["status"])
    sim.now += 1000
    plan = sim.step()
    assert not plan.actions
    assert plan.status is None
    assert plan.requeue_after is None
    assert sim.body["status"] == before


def test_a_permanent_failure_ends_it_at_once_with_its_code():
    sim = Simulation(script=[failing("ImageCorrupt", Retry.NEVER, message="gone. Try: x")]).run()
    assert sim.status["phase"] == "Failed"
    assert sim.detail["reason"] == "ImageCorrupt"
    assert sim.detail["message"] == "gone. Try: x"
    assert sim.condition("Running")["reason"] == "Error"
    assert len(sim.starts) == 1
    assert sim.events[-1].type == "Warning"
    assert sim.events[-1].reason == "ImportFailed"
    assert sim.claim.annotations["cdi.kubevirt.io/storage.pod.phase"] == "Failed"


def test_a_checksum_mismatch_is_told_in_the_word_that_clients_know():
    sim = Simulation(script=[failing("ChecksumMismatch", Retry.NEVER)]).run()
    assert sim.condition("Running")["reason"] == "ChecksumError"
    assert sim.detail["reason"] == "ChecksumMismatch"


def test_a_passing_failure_is_tried_again_after_growing_pauses():
    sim = Simulation(script=[failing()] * 4, retries=Retries(base=1.0))
    starts = []
    while sim.status.get("phase") != "Succeeded":
        seen = len(sim.starts)
        sim.step()
        if len(sim.starts) > seen:
            starts.append(sim.now)
        if not sim.nature() and sim.plan.requeue_after:
            assert sim.status["phase"] == "ImportInProgress"
            assert sim.condition("Running")["status"] == "False"
            assert sim.condition("Running")["reason"] == "Error"
            assert sim.detail["reason"] == "SourceUnreachable"
            sim.now += sim.plan.requeue_after
    assert sim.status["restartCount"] == 4
    pauses = [b - a for a, b in zip(starts, starts[1:], strict=False)]
    assert all(0.75 * 2**n <= pause <= 1.25 * 2**n + 1 for n, pause in enumerate(pauses))
    assert [e.reason for e in sim.events].count("Error") == 1, "it failed in the same way each time"


def test_the_budget_is_spent_by_failures_without_progress():
    sim = Simulation(script=[failing()] * 50, retries=Retries(budget=5)).run()
    assert sim.status["phase"] == "Failed"
    assert len(sim.starts) == 5
    assert sim.detail["reason"] == "RetryBudgetSpent"
    assert "it failed" in sim.detail["message"]


def test_progress_renews_the_budget():
    script = [failing(done=100 * (n // 3)) for n in range(30)]
    sim = Simulation(script=script, retries=Retries(budget=5)).run(2000)
    assert sim.status["phase"] == "Succeeded"
    assert sim.status["restartCount"] == 30


def test_a_worker_without_an_outcome_is_lost_and_comes_again():
    sim = Simulation()
    while not sim.starts:
        sim.step()
        sim.nature()
    sim.worker = replace(sim.worker, running=False, ended=sim.now, outcome=None)
    sim.step()
    sim.step()
    assert sim.detail["reason"] == "WorkerLost"
    sim.run()
    assert sim.status["phase"] == "Succeeded"
    assert sim.status["restartCount"] == 1


def test_what_a_person_must_change_is_looked_at_now_and_then():
    sim = Simulation(script=[failing("SourceUnauthorized", Retry.ON_CHANGE)] * 30, retries=Retries(budget=3))
    for _ in range(60):
        sim.step()
        sim.nature()
        sim.now += min(sim.plan.requeue_after or 0.25, 15)
    assert sim.status["phase"] == "ImportInProgress"
    assert sim.detail["reason"] == "SourceUnauthorized"
    assert 3 < len(sim.starts) < 20


def test_a_changed_secret_is_tried_at_once():
    sim = Simulation(
        data_volume({"http": {"url": "http://s/i", "secretRef": "s"}}),
        script=[failing("SourceUnauthorized", Retry.ON_CHANGE)],
    )
    sim.add_input("Secret", "s", "accessKeyId", "secretKey")
    for _ in range(10):
        sim.step()
        sim.nature()
    assert len(sim.starts) == 1
    sim.add_input("Secret", "s", "accessKeyId", "secretKey", version="2")
    sim.step()
    assert len(sim.starts) == 2


@pytest.mark.parametrize(
    "source",
    [
        {"imageio": {"url": "https://e/api", "diskId": "1"}},
        {"vddk": {"url": "https://v"}},
        {"snapshot": {"namespace": "default", "name": "s"}},
        {"registry": {"imageStream": "i", "pullMethod": "node"}},
    ],
)
def test_sources_that_this_build_cannot_read_end_at_once(source):
    sim = Simulation(data_volume(source)).run()
    assert sim.status["phase"] == "Failed"
    assert sim.detail["reason"] == "SourceNotSupported"
    assert sim.claim is None


def test_a_warm_import_ends_at_once():
    sim = Simulation(data_volume(HTTP, checkpoints=[{"previous": "", "current": "x"}])).run()
    assert sim.detail["reason"] == "SourceNotSupported"


def test_unknown_policy_ends_with_the_annotation_named():
    sim = Simulation(data_volume(HTTP, annotations={"cdi.kubevirt.io/policy.bandwith": "1M"})).run()
    assert sim.detail["reason"] == "InvalidManifest"
    assert "policy.bandwith" in sim.detail["message"]


def test_a_missing_secret_is_named_and_waited_for():
    sim = Simulation(data_volume({"http": {"url": "http://s/i", "secretRef": "s"}})).run()
    assert sim.status["phase"] == "PVCBound"
    assert "Secret default/s does not exist" in sim.condition("Running")["message"]
    sim.add_input("Secret", "s", "accessKeyId")
    sim.run()
    assert sim.detail["reason"] == "SourceCredentialsInvalid"
    assert "secretKey" in sim.detail["message"]
    sim.add_input("Secret", "s", "accessKeyId", "secretKey")
    assert sim.run().status["phase"] == "Succeeded"


def test_without_room_for_a_worker_it_is_scheduled_and_says_what_for():
    sim = Simulation(admitted=False).run()
    assert sim.status["phase"] == "ImportScheduled"
    assert "workers" in sim.condition("Running")["message"]
    assert sim.plan.wants_worker
    sim.admitted = True
    assert sim.run().status["phase"] == "Succeeded"


def test_a_claim_that_is_not_bound_keeps_it_pending_and_says_why():
    sim = Simulation(binds=False)
    sim.run()
    assert sim.status["phase"] == "Pending"
    sim.objects.claims["default", "a"] = replace(sim.claim, provisioning_message="no room on the shelf")
    sim.run()
    assert sim.condition("Bound")["message"] == "target PVC a Pending and no room on the shelf"
    assert sim.condition("Bound")["status"] == "False"


# --- existing claims ----------------------------------------------------------------------------------------------


def test_a_foreign_claim_is_not_touched():
    sim = Simulation()
    sim.add_claim("a")
    before = sim.claim
    sim.run()
    assert sim.status["phase"] == "Failed"
    assert "already exists" in sim.detail["message"]
    assert sim.detail["reason"] == "AlreadyExists"
    assert sim.claim == before
    assert sim.events[-1].reason == "ErrResourceExists"


def test_a_claim_of_another_controller_is_not_adopted():
    sim = Simulation(data_volume(HTTP, annotations=ADOPT))
    sim.add_claim("a", controller_kind="VirtualMachine", controller_name="vm", controller_uid="x")
    assert sim.run().status["phase"] == "Failed"


@pytest.mark.parametrize(
    "facts", [{"deleting": True}, {"controller_kind": "DataVolume", "controller_name": "a", "controller_uid": "old"}]
)
def test_the_volume_of_an_earlier_life_is_waited_for(facts):
    sim = Simulation()
    sim.add_claim("a", **facts)
    assert sim.run().status["phase"] == "Pending"
    assert "earlier" in sim.detail["message"]
    del sim.objects.claims["default", "a"]
    assert sim.run().status["phase"] == "Succeeded"


@pytest.mark.parametrize("annotations", [ADOPT, {"cdi.kubevirt.io/storage.prePopulated": "a"}])
def test_an_adopted_claim_succeeds_at_once(annotations):
    sim = Simulation(data_volume(HTTP, annotations=annotations))
    sim.add_claim("a")
    sim.run()
    assert sim.status["phase"] == "Succeeded"
    assert sim.claim.controller_uid == "dv-uid"
    assert not sim.starts


def test_a_claim_that_was_populated_for_it_is_adopted():
    sim = Simulation()
    sim.add_claim("a", annotations={"cdi.kubevirt.io/storage.populatedFor": "a"})
    assert sim.run().status["phase"] == "Succeeded"


def test_a_lost_volume_is_not_imported_again_silently():
    sim = Simulation().run()
    sim.objects.claims["default", "a"] = replace(sim.claim, phase="Lost")
    sim.run()
    assert sim.status["phase"] == "Failed"
    assert sim.condition("Bound")["reason"] == "ClaimLost"
    assert sim.events[-1].reason == "ErrClaimLost"


def test_a_claim_that_is_deleted_under_a_finished_volume_is_imported_again():
    sim = Simulation().run()
    sim.objects.claims["default", "a"] = replace(sim.claim, deleting=True)
    assert sim.run().status["phase"] == "Succeeded"
    assert len(sim.starts) == 1
    del sim.objects.claims["default", "a"]
    sim.worker = None
    assert sim.run().status["phase"] == "Succeeded"
    assert len(sim.starts) == 2


def test_a_deleted_datavolume_is_left_alone():
    body = data_volume(HTTP)
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    sim = Simulation(body)
    plan = sim.step()
    assert not plan.actions
    assert plan.status is None


# --- clones -------------------------------------------------------------------------------------------------------

CLONE = {"pvc": {"namespace": "default", "name": "src"}}


def test_a_clone_waits_for_its_source_and_then_copies_it():
    sim = Simulation(data_volume(CLONE)).run()
    assert sim.status["phase"] == "Pending"
    assert "default/src does not exist" in sim.detail["message"]
    assert [e.reason for e in sim.events] == ["CloneWithoutSource"]
    sim.add_claim("src", phase="Pending", capacity=None)
    assert "not bound" in sim.run().detail["message"]
    owner = data_volume(HTTP, name="src")
    owner["status"] = {"phase": "ImportInProgress"}
    sim.objects.volumes["default", "src"] = parse(owner)
    sim.add_claim(
        "src",
        controller_kind="DataVolume",
        controller_name="src",
        controller_uid="u",
        labels={
            "instancetype.kubevirt.io/default-preference": "fedora",
            "cdi.kubevirt.io/dataImportCron": "fedora",
            "cdi.kubevirt.io/dataImportCron.cleanup": "true",
            "x.kubevirt.io/os": "fedora",
        },
    )
    assert "ImportInProgress" in sim.run().detail["message"]
    owner["status"] = {"phase": "Succeeded"}
    sim.objects.volumes["default", "src"] = parse(owner)
    sim.run()
    assert sim.phases[-3:] == ["CloneScheduled", "CloneInProgress", "Succeeded"]
    assert sim.starts[0].work == CloneJob(
        id="claim-uid", source="/volumes/src/disk.img", target="/v/disk.img", size=1 << 30
    )
    # With the labels of a DataImportCron the clone would be garbage-collected with its images.
    inherited = {"instancetype.kubevirt.io/default-preference": "fedora"}
    assert {name: text for name, text in sim.claim.labels.items() if "kubevirt.io/" in name} == inherited
    assert sim.body["metadata"]["labels"] == inherited


def test_a_clone_into_something_smaller_names_both_sizes():
    sim = Simulation(data_volume(CLONE, size="512Mi"))
    sim.add_claim("src")
    sim.run()
    assert sim.status["phase"] == "Failed"
    message = sim.detail["message"]
    assert str(1 << 30) in message
    assert str(1 << 29) in message
    assert sim.claim is None


def test_a_clone_of_itself_is_refused():
    sim = Simulation(data_volume({"pvc": {"namespace": "default", "name": "a"}})).run()
    assert sim.detail["reason"] == "InvalidManifest"


def test_a_clone_without_a_size_takes_its_sources():
    sim = Simulation(data_volume(CLONE, size=None))
    sim.add_claim("src", capacity=3 << 30)
    created = [a for a in sim.step().actions if isinstance(a, CreateObject)]
    assert created[0].body["spec"]["resources"]["requests"]["storage"] == "3Gi"


def test_a_clone_keeps_to_the_source_that_it_began_with():
    from tests.unit.reconcile.test_datasource import source

    sim = Simulation(data_volume(None, sourceRef={"kind": "DataSource", "name": "golden"}))
    sim.add_claim("one")
    sim.add_claim("two")
    sim.objects.sources["default", "golden"] = source("golden", pvc="one")
    sim.step()
    sim.objects.sources["default", "golden"] = source("golden", pvc="two")
    sim.run()
    assert sim.starts[0].work.source == "/volumes/one/disk.img"


# --- uploads ------------------------------------------------------------------------------------------------------


def ask(sim, request):
    annotations = {**sim.claim.annotations, **UPLOAD_REQUEST.write(request)}
    sim.objects.claims[sim.key] = replace(sim.claim, annotations=annotations)


def test_an_upload_waits_for_its_file():
    sim = Simulation(data_volume({"upload": {}})).run()
    assert sim.status["phase"] == "UploadReady"
    assert "cdi upload" in sim.condition("Running")["message"]
    assert sim.claim.annotations["cdi.kubevirt.io/storage.pod.ready"] == "true"
    ask(sim, UploadRequest(id="1", path="/tmp/x"))
    sim.run()
    assert sim.status["phase"] == "Succeeded"
    assert sim.starts[0].work.source.path == "/tmp/x"
    assert sim.starts[0].upload == "1"
    assert list(dict.fromkeys(sim.phases)) == ["Pending", "UploadReady", "Succeeded"]
    assert sim.phases == sorted(sim.phases, key=["Pending", "UploadReady", "Succeeded"].index)


def test_a_broken_stream_is_asked_for_again_not_read_again():
    sim = Simulation(data_volume({"upload": {}}), script=[failing("SourceTruncated")]).run()
    ask(sim, UploadRequest(id="1", length=5))
    sim.run()
    assert sim.status["phase"] == "UploadReady"
    assert sim.condition("Running")["reason"] == "Error"
    assert len(sim.starts) == 1
    ask(sim, UploadRequest(id="2", length=5))
    assert sim.run().status["phase"] == "Succeeded"


def test_after_a_refused_upload_another_may_be_tried():
    sim = Simulation(data_volume({"upload": {}}), script=[failing("ImageUnsafe", Retry.NEVER)]).run()
    ask(sim, UploadRequest(id="1", path="/x"))
    assert sim.run().status["phase"] == "Failed"
    ask(sim, UploadRequest(id="2", path="/y"))
    assert sim.run().status["phase"] == "Succeeded"


# --- properties ---------------------------------------------------------------------------------------------------

ENDS = st.sampled_from(
    [
        failing(),
        failing(done=50),
        failing(done=70),
        failing("SourceUnauthorized", Retry.ON_CHANGE),
        failing("ImageCorrupt", Retry.NEVER),
        End(labels={"x.kubevirt.io/os": "fedora"}),
        End(),
    ]
)
BODIES = st.sampled_from(
    [data_volume(HTTP), data_volume(CLONE), data_volume({"blank": {}}), data_volume(HTTP, annotations=ADOPT)]
)


@settings(max_examples=150, deadline=None)
@given(
    body=BODIES,
    script=st.lists(ENDS, max_size=6),
    losses=st.lists(st.integers(0, 3), max_size=25),
    foreign=st.booleans(),
)
def test_whatever_is_lost_on_the_way_the_end_is_the_same(body, script, losses, foreign):
    def context():
        sim = Simulation(body, script=script, retries=Retries(budget=4))
        sim.add_claim("src")
        if foreign:
            sim.add_claim("a")
        return sim

    whole, lossy = context().run(), context().run(losses=losses)
    assert lossy.summary() == whole.summary()
    assert [s.attempt for s in lossy.starts] == sorted({s.attempt for s in lossy.starts})


@settings(max_examples=60, deadline=None)
@given(body=BODIES, script=st.lists(ENDS, max_size=4), steps=st.integers(0, 20))
def test_the_same_world_gives_the_same_plan(body, script, steps):
    sim = Simulation(body, script=script)
    sim.add_claim("src")
    for _ in range(steps):
        sim.step()
        sim.nature()
        sim.now += 1
    assert reconcile(sim.context()) == reconcile(sim.context())


@settings(max_examples=60, deadline=None)
@given(script=st.lists(ENDS, max_size=6))
def test_no_attempt_is_begun_before_the_last_is_recorded(script):
    sim = Simulation(script=script)
    sim.run(2000)
    for action in sim.starts:
        assert isinstance(action, StartWorker)
    assert [a.attempt for a in sim.starts] == list(range(1, len(sim.starts) + 1))
