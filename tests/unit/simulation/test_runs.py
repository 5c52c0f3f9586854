"""Tests of the simulation itself: it repeats a run exactly, and finds defects that are planted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cdi.controller.workqueue import WorkQueue
from tests.simulation import invariants
from tests.simulation.faults import Fault
from tests.simulation.invariants import SENTENCES
from tests.simulation.planted import PLANTED
from tests.simulation.runner import report, run, shrink
from tests.simulation.simulation import Plan, Simulation
from tests.simulation.users import Operation

PAGE = Path(__file__).parents[3] / "docs/explanation/simulation.md"
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
    assert run(clone("snapshot"), "requeue").names == {"nothing_leaks"}
    assert run(clone("snapshot")).violations == ()


def test_a_controller_that_ends_by_itself_is_reported(monkeypatch):
    monkeypatch.setattr(WorkQueue, "done", lambda *_: 1 / 0)
    assert "controllers_run" in run(plan()).names


def test_a_controller_runs_after_an_overlap_in_which_the_second_one_was_killed(monkeypatch):
    begin = Simulation._begin

    def crash_second(self, fault):
        self._crash("controller-2") if fault.kind == "crash" else begin(self, fault)

    monkeypatch.setattr(Simulation, "_begin", crash_second)
    late = Operation(40.0, "data_volume", ("default", "c"), IMPORT)
    faults = (Fault(1.0, "overlap", 30.0, 0), *plan().faults)
    assert run(replace(plan(), operations=(*plan().operations, late), faults=faults)).violations == ()


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


def test_a_cache_that_keeps_what_was_deleted_is_found():
    deleted = Operation(45.0, "delete_data_volume", ("default", "b"))
    expired = replace(plan(), operations=(*plan().operations, deleted), faults=(Fault(40.0, "expire", 15.0, 0),))
    assert run(expired, "relist").names == {"caches_match_the_server"}
    assert run(expired).violations == ()


def test_the_worker_of_a_deleted_volume_is_not_replaced_without_a_pause():
    made = Operation(0.0, "data_volume", ("default", "a"), {**IMPORT, "results": ()})
    deleted = Operation(4.4, "delete_data_volume", ("default", "a"))
    behind = Fault(4.3, "expire", 4.0, 1)
    assert run(Plan(seed=7, operations=(made, deleted), faults=(behind, Fault(5.8, "evict pod", 3.0, 0)))).violations == ()


def test_a_write_that_the_cache_does_not_receive_is_found():
    assert run(clone("snapshot"), "write-forgotten").names == {"own_writes_are_known"}


def test_a_pod_that_writes_to_the_source_of_a_clone_is_found():
    assert "sources_are_never_written" in run(clone("copy"), "source-writable").names
    assert run(clone("copy")).violations == ()


def test_the_page_names_each_invariant_with_a_planted_defect():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    for name in SENTENCES:
        assert any(row.startswith(f"| `{name}` |") for row in rows), name
    for name, defect in PLANTED.items():
        assert any(row.startswith(f"| `{defect.violates}` |") and f"`{name}`" in row for row in rows), name


def test_a_failure_is_printed_with_what_it_violates_and_how_to_run_it_again():
    lines: list[str] = []
    report(run(clone("snapshot"), "write-forgotten"), "write-forgotten", lines.append)
    text = "\n".join(lines)
    assert "VIOLATED own_writes_are_known" in text
    assert SENTENCES["own_writes_are_known"] in text
    assert "replay: scripts/test simulate --seed 7 --plant write-forgotten" in text


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


def clone(strategy: str) -> Plan:
    """Return a plan of a clone with a strategy."""
    source = {"source": "http", "results": (), "storage_class": ""}
    return Plan(
        seed=7,
        operations=(
            Operation(0.0, "data_volume", ("default", "a"), source),
            Operation(15.0, "clone_strategy", ("", "ceph"), {"strategy": strategy}),
            Operation(
                30.0,
                "data_volume",
                ("default", "b"),
                {"source": "pvc", "of": ("default", "a"), "storage_class": "ceph"},
            ),
        ),
        faults=(),
    )
