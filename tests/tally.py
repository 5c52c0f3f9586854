"""A tally of skipped and failed tests over several runs of pytest.

As a plugin it appends one line of JSON for each run to the file that CDI_TEST_TALLY names.  As a program,

    python -m tests.tally [--strict] FILE ENDING

prints the skipped tests by reason and, in the last line after ENDING, the tests that passed only when they were run again.
With --strict the status is 1 where a reason is not among those of tests/skips.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ALLOWED = Path(__file__).with_name("skips.toml")
NAMES = 5
"""Maximum number of tests to name for a reason that is not allowed."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Tests by outcome; a test that several runs had counts once."""

    skipped: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Skipped tests by reason."""
    failed: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    """Tests that passed after a failure."""
    runs: int = 0

    @classmethod
    def read(cls, lines: Iterable[str]) -> Tally:
        """Read what the plugin wrote."""
        tally = cls()
        for line in lines:
            run = json.loads(line)
            tally.runs += 1
            for reason, tests in run["skipped"].items():
                tally.skipped[reason] |= set(tests)
            tally.passed -= set(run["failed"])
            tally.passed |= set(run["passed"]) & tally.failed
            tally.failed |= set(run["failed"])
        return tally

    def unexplained(self, allowed: Iterable[str]) -> dict[str, set[str]]:
        """Return the skipped tests whose reasons are not allowed."""
        known = set(allowed)
        return {reason: tests for reason, tests in self.skipped.items() if reason not in known}


class Recorder:
    """The plugin: records one run's outcomes and writes them at its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._skipped: dict[str, set[str]] = defaultdict(set)
        self._failed: set[str] = set()
        self._passed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.skipped and not hasattr(report, "wasxfail"):
            self._skipped[reason(report.longrepr)].add(report.nodeid)
        elif report.passed and getattr(report, "when", "") == "call":
            self._passed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        run = {
            "skipped": {text: sorted(tests) for text, tests in self._skipped.items()},
            "failed": sorted(self._failed),
            "passed": sorted(self._passed - self._failed),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(run) + "\n")


def reason(longrepr: Any) -> str:
    """Return the reason of a skip: pytest gives (file, line, "Skipped: reason")."""
    text = longrepr[2] if isinstance(longrepr, (tuple, list)) else str(longrepr)
    return str(text).removeprefix("Skipped: ")


def pytest_configure(config: pytest.Config) -> None:
    """Record outcomes if asked to, in the process that the workers of pytest-xdist report to."""
    path = os.environ.get("CDI_TEST_TALLY")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)), "tally")


def summary(tally: Tally, allowed: Iterable[str], ending: str) -> list[str]:
    """Return the lines to print; the last one is `ending` with the tests that passed only on a rerun."""
    lines = []
    if tally.runs:
        counts = sorted(((len(tests), text) for text, tests in tally.skipped.items()), reverse=True)
        words = "; ".join(f"{count} because {text}" for count, text in counts)
        lines.append(f"skipped: {sum(count for count, _ in counts)}" + (f" ({words})" if words else ""))
        for text, tests in sorted(tally.unexplained(allowed).items()):
            names = ", ".join(sorted(tests)[:NAMES]) + (" …" if len(tests) > NAMES else "")
            lines.append(f"not among the reasons in tests/skips.toml: {text} ({names})")
        again = ", ".join(sorted(tally.passed))
        ending += f"; passed only when run again: {again or 'none'}"
    return [*lines, ending]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tally")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("file", type=Path)
    parser.add_argument("ending")
    arguments = parser.parse_args()
    with arguments.file.open() as file:
        tally = Tally.read(file)
    allowed = tomllib.loads(ALLOWED.read_text())
    for line in summary(tally, allowed, arguments.ending):
        print(f"== {line}")
    return 1 if arguments.strict and tally.unexplained(allowed) else 0


if __name__ == "__main__":
    sys.exit(main())
