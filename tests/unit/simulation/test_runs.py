"""Tests of the simulation itself: it repeats a run exactly, and finds defects that are planted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cdi.controller.workqueue import WorkQueue
from tests.simulation import invariants
from tests.simulation.faults import Fault
from tests.simulation.planted import PLANTED
from tests.simulation.runner import run, shrink
from tests.simulation.simulation import Plan
from tests.simulation.users import Operation

IMPORT = {"source": "http", "results": ("SourceUnreachable",), "storage_class": "", "immediate": True}


def test_a_seed_gives_the_same_run_each_time():
    first, second = run(Plan.of_seed(4)), run(Plan.of_seed(4))
    assert first.trace == second.trace
    assert first.digest == second.digest
    assert first.violations == ()


def test_a_seed_gives_the_same_run_in_another_process():
    command = [sys.executable, "-m", "tests.simulation", "--seed", "2"]
    texts = {subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0] for _ in "ab"}  # noqa: S603  our own program
    (text,) = texts
    assert text.startswith("seed 2: trace ")


def test_other_seeds_give_other_plans():
    assert len({str(Plan.of_seed(seed)) for seed in range(20)}) == 20


@pytest.mark.parametrize("name", ["event-dropped", "cleanup", "status-after-end", "counted-twice", "write-loop"])
def test_a_planted_defect_violates_an_invariant(name):
    found = run(plan(), name)
    assert found.violations
    assert run(plan()).violations == ()


def test_a_snapshot_that_is_kept_because_a_requeue_is_forgotten_is_found():
    assert run(snapshot_clone(), "requeue").names == {"nothing_leaks"}
    assert run(snapshot_clone()).violations == ()


def test_a_controller_that_ends_by_itself_is_reported(monkeypatch):
    monkeypatch.setattr(WorkQueue, "done", lambda *_: 1 / 0)
    assert "controllers_run" in run(plan()).names


def test_writes_without_an_end_are_reported(monkeypatch):
    for name in ("MAX_WRITES_AT_REST", "MAX_WRITES_OF_OPERATION", "MAX_WRITES_OF_FAULT"):
        monkeypatch.setattr(invariants, name, 1)
    assert run(plan()).names == {"writes_are_bounded"}


def test_a_failure_is_shrunk_to_what_it_needs():
    failed = run(plan(), "event-dropped")
    shortest = shrink(failed, "event-dropped")
    assert shortest.names & failed.names
    assert len(shortest.plan.operations) == 1
    assert shortest.plan.faults == ()


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_defect_is_in_place_only_while_it_is_planted(name):
    defect = PLANTED[name]
    before = vars(defect.owner)[defect.name]
    with defect.planted():
        assert vars(defect.owner)[defect.name] is not before
    assert vars(defect.owner)[defect.name] is before


def plan() -> Plan:
    """Return a plan of two imports and a fault."""
    return Plan(
        seed=7,
        operations=(
            Operation(0.0, "data_volume", ("default", "a"), IMPORT),
            Operation(3.0, "data_volume", ("default", "b"), {**IMPORT, "source": "blank", "results": ()}),
        ),
        faults=(Fault(4.0, "crash", 1.0, 0),),
    )


def snapshot_clone() -> Plan:
    """Return a plan of a clone by a temporary snapshot."""
    source = {"source": "http", "results": (), "storage_class": ""}
    return Plan(
        seed=7,
        operations=(
            Operation(0.0, "data_volume", ("default", "a"), source),
            Operation(15.0, "clone_strategy", ("", "ceph"), {"strategy": "snapshot"}),
            Operation(
                30.0,
                "data_volume",
                ("default", "b"),
                {"source": "pvc", "of": ("default", "a"), "storage_class": "ceph"},
            ),
        ),
        faults=(),
    )
