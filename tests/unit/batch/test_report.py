from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdi.api.errors import ChecksumMismatch, SourceNotFound, TargetPermission
from cdi.api.job import Failure
from cdi.batch.report import Report, Result


def result(verdict, failure=None):
    made = None if failure is None else Failure.from_error(failure)
    return Result(label="a", namespace="default", name="a", url="u", verdict=verdict, failure=made)


def report(*results, **more):
    return Report(results=results, lockfile=Path("cdi.lock"), **more)


GOOD, BAD = result("imported"), result("failed", SourceNotFound("no"))
DAMAGED = result("failed", ChecksumMismatch("no"))


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (report(GOOD, result("unchanged"), result("outdated")), 0),
        (report(GOOD, BAD), 1),
        (report(GOOD, result("skipped")), 1),
        (report(GOOD, DAMAGED), 1),
        (report(GOOD, DAMAGED, locked=True), 5),
        (report(GOOD, BAD, locked=True), 1),
        (report(result("refused"), result("skipped")), 5),
        (report(BAD, result("running"), timed_out=True), 8),
        (report(BAD, result("running"), interrupted=True, timed_out=True), 130),
        (report(GOOD, lock_failure=Failure.from_error(TargetPermission("no"))), 1),
    ],
)
def test_how_it_ends(found, status):
    assert found.exit_status == status
    assert found.to_dict()["exitStatus"] == status


def test_what_programs_read():
    body = json.loads(json.dumps(report(GOOD, BAD).to_dict()))
    assert body["counts"]["imported"] == body["counts"]["failed"] == 1
    assert body["images"][1]["error"]["code"] == "SourceNotFound"
    assert body["images"][0]["error"] is None
