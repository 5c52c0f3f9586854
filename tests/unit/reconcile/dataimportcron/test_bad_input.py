"""Bad images, sources and clusters: each has its condition, event and remedy, and what is offered stays offered."""

from __future__ import annotations

import pytest

from cdi.api.errors import (
    CdiError,
    ChecksumMismatch,
    ContentTruncated,
    FormatUnrecognised,
    ImageCorrupt,
    ImageUnsafe,
    ImageUnsigned,
    PlatformNotFound,
    QuotaExceeded,
    SignatureInvalid,
    SourceChanged,
    SourceNotAnImage,
    SourceNotFound,
    SourceProtocolError,
    SourceTruncated,
    SourceUnavailable,
    TargetTooSmall,
)
from cdi.api.job import Failure
from cdi.api.poll import PollResult
from tests.unit.reconcile.dataimportcron.world import DESIRED, INSTALL_NAMESPACE, World, cron_body, digest

A, B, C = digest("a"), digest("b"), digest("c")
NAME_A, NAME_B, NAME_C = (f"fedora-{letter * 12}" for letter in "abc")
CRON_LABEL = "cdi.kubevirt.io/dataImportCron"
RUNNING = [{"type": "Running", "status": "False", "reason": "Error", "message": "exit status 1"}]
DAY = 86_400.0
BAD_IMAGES = [
    ImageUnsigned("the image has no signature"),
    SignatureInvalid("the signature is by another key"),
    ChecksumMismatch("the content has another checksum"),
    SourceChanged("the registry sent another manifest than the digest names"),
    SourceTruncated("the server closed the connection after 4 of 8 MiB"),
    ContentTruncated("the image ends in the middle of a cluster"),
    ImageCorrupt("a table points past the end of the image"),
    ImageUnsafe("the image names a backing file"),
    FormatUnrecognised("the content is no image"),
    SourceNotAnImage("the server sent a web page"),
    PlatformNotFound("the index has no image for arm64"),
    TargetTooSmall("the image is larger than the volume"),
]


def by_code(error: CdiError) -> str:
    return error.code


def offering(**options) -> World:
    """Return a world in which the first version is offered."""
    made = World(cron_body(**options))
    made.use_class("fast")
    made.desire(A)
    made.settle()
    made.now += 60
    return made


def warnings(made: World) -> list[tuple[str, str]]:
    return [(one.reason, one.message) for one in made.events if one.type == "Warning"]


def stops(made: World, name: str, error: CdiError, *, phase: str) -> None:
    """Let the import of a version fail, finally or for the moment."""
    conditions = RUNNING if phase != "Pending" else []
    detail = {"reason": error.code, "message": error.message}
    made.get("datavolumes", name)["status"] = {"phase": phase, "detail": detail, "conditions": conditions}


# --- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", BAD_IMAGES, ids=by_code)
def test_a_bad_image_is_named_with_its_cause_and_remedy_and_never_offered(error):
    assert error.remedy
    made = offering()
    made.outcomes[NAME_B] = ""
    made.desire(B)
    made.settle()
    stops(made, NAME_B, error, phase="Failed")
    made.settle()
    version = made.version(B)
    assert (version["state"], version["reason"], version["message"]) == ("Failed", error.code, error.message)
    assert made.condition("Progressing") == ("False", "Failed", "Import DataVolume phase Failed")
    assert made.condition("UpToDate")[0] == "False"
    assert warnings(made) == [("ImportFailed", f'Version "{NAME_B}" could not be imported: {error.message}')]
    assert error.remedy in made.events[-1].message
    # A good version follows.
    made.desire(C)
    made.settle()
    assert made.offers == [f"pvc/{NAME_A}", f"pvc/{NAME_C}"]


@pytest.mark.parametrize(
    "error", [ImageUnsigned("the image has no signature yet"), SourceUnavailable("503")], ids=by_code
)
def test_an_import_that_is_being_retried_says_why(error):
    made = offering()
    made.outcomes[NAME_B] = ""
    made.desire(B)
    made.settle()
    stops(made, NAME_B, error, phase="ImportInProgress")
    made.settle()
    message = f"Import is progressing: {error.message}"
    assert made.condition("UpToDate") == ("False", error.code, message)
    assert warnings(made) == [(error.code, message)]
    made.now += DAY
    made.settle()
    assert len(warnings(made)) == 1
    assert made.version(B)["state"] == "Importing"
    assert made.offered == f"pvc/{NAME_A}"
    made.outcomes.clear()
    made.settle()
    assert made.offered == f"pvc/{NAME_B}"
    assert made.condition("UpToDate")[:2] == ("True", "UpToDate")


# --- sources ------------------------------------------------------------------------------------------------------


def test_a_failed_import_is_deleted_only_once_the_newer_digest_is_recorded():
    """A controller that was killed in between would import the failed one again."""
    made = World(cron_body(schedule="0 0 * * *"))
    made.use_class("fast")
    made.outcomes[NAME_A] = "Failed"
    uid = made.body["metadata"]["uid"]
    end_poll(made, PollResult(id=uid, digest=A, identity="manifest"))
    made.now += made.plan().requeue_after
    end_poll(made, PollResult(id=uid, digest=B, identity="manifest"), settle=False)
    plan = made.reconcile()
    assert plan.annotations[DESIRED] == B
    assert NAME_A in made.names("datavolumes")
    made.settle()
    assert made.names("datavolumes") == [NAME_B]
    assert made.offered == f"pvc/{NAME_B}"


def end_poll(made: World, result: PollResult, *, settle: bool = True) -> None:
    """Run the poll that is due and let its pod end with a result."""
    made.reconcile()
    jobs = [body for (plural, _, _), body in made.objects.items() if plural == "jobs"]
    assert len(jobs) == 1
    job = jobs[0]["metadata"]["name"]
    terminated = {"exitCode": 0 if result.failure is None else 1, "message": result.to_json()}
    made.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{job}-pod",
                "namespace": INSTALL_NAMESPACE,
                "labels": {"batch.kubernetes.io/job-name": job},
                "ownerReferences": [{"uid": jobs[0]["metadata"]["uid"], "kind": "Job", "name": job}],
            },
            "status": {
                "phase": "Succeeded" if result.failure is None else "Failed",
                "containerStatuses": [{"name": "cdi-source-update-poller", "state": {"terminated": terminated}}],
            },
        }
    )
    if settle:
        made.settle()


@pytest.mark.parametrize(
    "error",
    [
        SourceUnavailable("the registry answered 503"),
        SourceNotFound("there is no such tag"),
        SourceProtocolError("the registry states another digest than it serves"),
    ],
    ids=by_code,
)
def test_a_source_that_is_bad_for_days_is_reported_and_costs_nothing(error):
    made = World(cron_body(schedule="0 0 * * *", importsToKeep=1))
    made.use_class("fast")
    uid = made.body["metadata"]["uid"]
    end_poll(made, PollResult(id=uid, digest=A, identity="manifest"))
    assert made.offered == f"pvc/{NAME_A}"
    until = made.now + 5 * DAY
    polls = 0
    while made.now < until:
        following = made.plan().requeue_after
        assert following is not None
        made.now += following
        end_poll(made, PollResult(id=uid, failure=Failure.from_error(error)))
        polls += 1
        assert made.condition("Polled") == ("False", error.code, error.message)
        assert made.condition("UpToDate")[:2] == ("True", "UpToDate")
        assert made.offered == f"pvc/{NAME_A}"
    assert polls < 150
    assert {reason for reason, _ in warnings(made)} == {"PollFailed"}
    assert error.remedy in warnings(made)[-1][1]
    assert made.names("persistentvolumeclaims") == [NAME_A]
    made.now += made.plan().requeue_after
    end_poll(made, PollResult(id=uid, digest=B, identity="manifest"))
    assert made.condition("Polled") is None
    assert made.offered == f"pvc/{NAME_B}"


# --- the cluster --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("QuotaExceeded", QuotaExceeded("PVC cannot be created: exceeded quota: storage").message),
        ("ErrClaimNotValid", "StorageClass fast does not exist. Try: create it; the import starts automatically"),
        ("NotFound", "Secret registry does not exist. Try: create it"),
    ],
)
def test_a_new_version_without_quota_class_or_secret_says_what_it_is_waiting_for(reason, message):
    made = offering()
    made.outcomes[NAME_B] = ""
    made.desire(B)
    made.settle()
    waiting = {"phase": "Pending", "detail": {"reason": reason, "message": message}}
    made.get("datavolumes", NAME_B)["status"] = waiting
    made.settle()
    assert made.condition("UpToDate") == ("False", reason, f"Import is progressing: {message}")
    assert warnings(made) == [(reason, f"Import is progressing: {message}")]
    assert made.offered == f"pvc/{NAME_A}"
    made.outcomes.clear()
    made.settle()
    assert made.offered == f"pvc/{NAME_B}"


@pytest.mark.parametrize("phase", ["Pending", "ImportScheduled", "ImportInProgress"])
def test_an_import_in_its_regular_course_has_upstreams_message(phase):
    made = offering()
    made.outcomes[NAME_B] = ""
    made.desire(B)
    made.settle()
    detail = {"reason": "TransferRunning" if phase == "ImportInProgress" else phase, "message": "12% of 8 MiB"}
    made.get("datavolumes", NAME_B)["status"] = {"phase": phase, "detail": detail}
    made.settle()
    assert made.condition("UpToDate") == ("False", "ImportProgressing", "Import is progressing")
    assert warnings(made) == []


def test_of_two_crons_on_one_data_source_the_first_one_goes_on_and_the_second_one_has_a_remedy():
    first = offering()
    second = World(cron_body("second"))
    second.use_class("fast")
    second.put(first.cron_now)
    second.put(first.get("datasources", "fedora"))
    second.desire(B)
    second.settle()
    assert second.offered == f"pvc/{NAME_A}"
    assert second.names("datavolumes") == []
    _, reason, message = second.condition("GoldenSettings")
    assert reason == "ErrDataSourceAlreadyManaged"
    assert message.endswith("Delete one of the two, or create this one with another managedDataSource")
    assert {one for one, _ in warnings(second)} == {"ErrDataSourceAlreadyManaged"}
    assert second.get("datasources", "fedora")["metadata"]["labels"][CRON_LABEL] == "fedora-cron"
