"""Stored results, so that the page can be written from several runs of single cases."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench_lib.cases import Case, Goal, Metric
from bench_lib.measure import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    name: str
    case: Case
    runs: dict[str, list[Measurement]]
    """By label, in the order they were made."""
    notes: list[str]
    sizes: dict[str, int]
    """Of the images as served, bytes."""
    when: str
    machine: dict[str, str]

    @property
    def complete(self) -> bool:
        """Return whether all of our own runs succeeded."""
        return bool(self.runs.get("ours"))

    def median(self, label: str, metric: Metric) -> float | None:
        """Median of the contender; None if it could not be measured."""
        values = [float(getattr(run, metric)) for run in self.runs.get(label, ())]
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    goal: Goal
    ours: float | None
    other: float | None
    """The least of those it is compared with; None for an absolute goal, or where none could be measured."""
    best: str | None
    """Whose value `other` is."""

    @property
    def ratio(self) -> float | None:
        if self.ours is None or not self.goal.against or self.other is None:
            return None
        return self.ours / self.other if self.other else 0.0

    @property
    def reached(self) -> bool | None:
        """Return whether the goal is reached, or None if it cannot be determined."""
        if self.goal.against:
            if self.ours is None or self.other is None:
                return None
            return self.ours <= self.goal.limit * self.other + self.goal.extra
        return None if self.ours is None else self.ours <= self.goal.limit


def judge(result: CaseResult, goal: Goal) -> Verdict:
    others = {label: result.median(label, goal.metric) for label in goal.against}
    known = {label: value for label, value in others.items() if value is not None}
    best = min(known, key=known.__getitem__, default=None)
    return Verdict(
        goal=goal,
        ours=result.median(goal.label, goal.metric),
        other=None if best is None else known[best],
        best=best,
    )


class Store:
    """Store with one JSON file for each case."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, result: CaseResult) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        body = {
            "runs": {label: [dataclasses.asdict(run) for run in runs] for label, runs in result.runs.items()},
            "notes": result.notes,
            "sizes": result.sizes,
            "when": result.when,
            "machine": result.machine,
        }
        path = self.directory / f"{result.name}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(body, indent=1))
        partial.replace(path)

    def load(self, cases: Iterable[Case]) -> list[CaseResult]:
        """Return the stored results in the order of `cases`."""
        found = []
        for case in cases:
            path = self.directory / f"{case.name}.json"
            if path.exists():
                body = json.loads(path.read_text())
                found.append(
                    CaseResult(
                        name=case.name,
                        case=case,
                        runs={label: [Measurement(**run) for run in runs] for label, runs in body["runs"].items()},
                        notes=body["notes"],
                        sizes=body["sizes"],
                        when=body["when"],
                        machine=body["machine"],
                    )
                )
        return found
