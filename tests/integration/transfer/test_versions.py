"""Tests that parts of two versions of a content never make one disk, with validators and without."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest

from cdi.api.job import FileSourceSpec, FileTargetSpec, HttpSourceSpec, Job, Policy
from cdi.explain.examine import examine
from cdi.explain.findings import Ask
from cdi.explain.source_report import report_source
from cdi.image.plan import plan, render
from cdi.transfer.control import TransferControl
from cdi.transfer.plan_input import plan_input
from cdi.transfer.qemu.convert import ConvertResult, MirrorJob, convert
from cdi.transfer.run import transfer
from cdi.transfer.unwrap import UnwrappedImage
from tests.faults.server import Fault, FaultServer, Request

MIB = 1 << 20
OLD = random.Random(1).randbytes(24 * MIB)
NEW = random.Random(2).randbytes(24 * MIB)
NOTHING = {"etag": None, "modified": None}
QUICK = Policy(discover_checksum=False, retries=2, stall_timeout=20)


@pytest.fixture
def job(fault_server: FaultServer, tmp_path) -> Job:
    return Job(
        id="x",
        source=HttpSourceSpec(url=fault_server.url("/disk")),
        target=FileTargetSpec(path=str(tmp_path / "disk.img")),
        policy=QUICK,
        journal=str(tmp_path / "journal"),
        scratch=str(tmp_path),
    )


def is_data(request: Request) -> bool:
    """Return whether a request is for more than a probe of the beginning or the end."""
    begin, end = request.range or (0, None)
    return end is None or end - begin >= MIB


def test_a_content_that_is_replaced_midway_is_one_or_the_other(fault_server: FaultServer, job: Job, tmp_path) -> None:
    """The second request for data gets another content of the same length, and no response has a validator."""
    replaced = threading.Event()

    def behave(request: Request) -> Fault | None:
        if is_data(request) and sum(is_data(one) for one in fault_server.asked("/disk")) > 1 and not replaced.is_set():
            replaced.set()
            fault_server.file("/disk").data = NEW
        return None

    fault_server.put("/disk", OLD, always=behave, **NOTHING)
    outcome = transfer(job, TransferControl(job))
    assert outcome.failure is None, outcome.failure
    assert (tmp_path / "disk.img").read_bytes() in (OLD, NEW)
    assert outcome.path == "raw-stream"
    assert [request.range for request in fault_server.asked("/disk") if is_data(request)] == [None]


def test_a_break_begins_again_instead_of_going_on_in_what_may_be_another_content(
    fault_server: FaultServer, job: Job, tmp_path
) -> None:
    def behave(request: Request) -> Fault | None:
        if not is_data(request) or fault_server.file("/disk").data == NEW:
            return None
        fault_server.file("/disk").data = NEW
        return Fault(data=OLD, drop_after=10 * MIB)

    fault_server.put("/disk", OLD, always=behave, **NOTHING)
    outcome = transfer(job, TransferControl(job))
    assert outcome.failure is None, outcome.failure
    assert (tmp_path / "disk.img").read_bytes() == NEW
    assert any("starting over" in warning for warning in outcome.warnings)


def test_a_worker_that_is_stopped_leaves_nothing_to_go_on_from(fault_server: FaultServer, job: Job, tmp_path) -> None:
    fault_server.put(
        "/disk", OLD, always=lambda request: Fault(drop_after=20 * MIB) if is_data(request) else None, **NOTHING
    )
    stopped = transfer(replace(job, policy=replace(QUICK, retries=0)), TransferControl(job))
    assert stopped.failure is not None
    assert not (tmp_path / "journal").exists()
    fault_server.put("/disk", NEW, **NOTHING)
    outcome = transfer(job, TransferControl(job))
    assert outcome.failure is None, outcome.failure
    assert outcome.resumed_at == 0
    assert (tmp_path / "disk.img").read_bytes() == NEW


def test_a_checksum_allows_ranges_and_going_on(fault_server: FaultServer, job: Job, tmp_path) -> None:
    import hashlib

    fault_server.put("/disk", OLD, **NOTHING)
    outcome = transfer(replace(job, checksum=f"sha256:{hashlib.sha256(OLD).hexdigest()}"), TransferControl(job))
    assert outcome.failure is None, outcome.failure
    assert outcome.path == "raw-ranged"
    assert outcome.verified_by == ("length", "checksum")


@pytest.mark.parametrize(
    "validators",
    [
        {"etag": None},
        {"etag": 'W/"weak"', "modified": None},
        {"etag": '"strong"', "modified": None},
    ],
    ids=["Last-Modified", "weak ETag", "strong ETag"],
)
def test_every_validator_allows_ranges(fault_server: FaultServer, job: Job, validators: dict[str, str | None]) -> None:
    fault_server.put("/disk", OLD, **validators)
    outcome = transfer(job, TransferControl(job))
    assert outcome.failure is None, outcome.failure
    assert outcome.path == "raw-ranged"


@pytest.mark.parametrize("name", ["qcow2-zlib", "vmdk-sparse", "vmdk-2M"])
def test_other_formats_are_read_in_one_answer_too(images, fault_server: FaultServer, job: Job, name: str) -> None:
    fault_server.put("/disk", images.get(name).content, **NOTHING)
    outcome = transfer(job, TransferControl(job))
    assert outcome.failure is None, outcome.failure
    assert outcome.path == {"qcow2-zlib": "qcow2-stream", "vmdk-sparse": "mapped-stream", "vmdk-2M": "qemu-spool"}[name]
    asked = fault_server.asked("/disk")
    assert [request.range for request in asked] == [(0, 0), None]


def test_what_is_wrapped_is_read_in_one_answer_too(images, fault_server: FaultServer, job: Job) -> None:
    fault_server.put("/disk", images.get("raw", "gz").content, **NOTHING)
    outcome = transfer(replace(job, policy=replace(QUICK, connections=4)), TransferControl(job))
    assert outcome.failure is None, outcome.failure
    assert [request.range for request in fault_server.asked("/disk")] == [(0, 0), None]


def test_a_digest_that_is_computed_for_a_look_is_of_one_answer(fault_server: FaultServer, job: Job) -> None:
    fault_server.put("/disk", OLD, **NOTHING)
    found = examine(job, TransferControl(job), Ask(digest=True))
    assert found.refusal is None
    assert [request.range for request in fault_server.asked("/disk") if is_data(request)] == [None]


def test_the_plan_says_why_no_ranges_are_used(fault_server: FaultServer, job: Job) -> None:
    fault_server.put("/disk", OLD, **NOTHING)
    found = examine(job, TransferControl(job), Ask(expected=True, allocation=True))
    assert found.facts is not None
    chosen = plan(plan_input(job, found.facts, UnwrappedImage(found.wrappers, found.image), None))
    text = render(chosen)
    assert "ETag or Last-Modified" in text and "a checksum would allow them" in text
    assert (chosen.path, chosen.connections) == ("raw-stream", 1)
    assert chosen.resumable.startswith("from the start: ")


def test_a_local_file_that_is_replaced_while_qemu_reads_it_is_imported_again(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """QEMU opens the path itself, so what it read may not be what was inspected."""
    path, new = tmp_path / "source", tmp_path / "new"
    path.write_bytes(OLD)
    new.write_bytes(NEW)

    def replaced(conversion: MirrorJob, workdir: str) -> ConvertResult:
        done = convert(conversion, workdir)
        if new.exists():
            new.rename(path)
        return done

    monkeypatch.setattr("cdi.transfer.pipeline.qemu.convert", replaced)
    local = replace(job, source=FileSourceSpec(path=str(path)), policy=replace(QUICK, engine="qemu"))
    outcome = transfer(local, TransferControl(local))
    assert outcome.failure is None, outcome.failure
    assert (tmp_path / "disk.img").read_bytes() == NEW
    assert (outcome.path, outcome.warnings) == ("qemu-file", ("the file was replaced or modified; starting over",))


def test_a_preview_plans_the_attempt_that_has_scratch_space(images, fault_server: FaultServer, job: Job) -> None:
    fault_server.put("/disk", images.get("vmdk-2M").content)
    report = report_source(replace(job, scratch=None), None, None, None)
    assert report.refusal is None
    assert report.plan is not None
    assert (report.plan.path, report.plan.scratch_bytes) == ("qemu-spool", report.plan.fetch_bytes)
