"""Runs by seed, the search for the shortest failing plan, and what is printed of them."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.simulation.invariants import SENTENCES
from tests.simulation.planted import PLANTED
from tests.simulation.process import installation
from tests.simulation.simulation import Plan, Simulation

MAX_SHRINKS = 60
"""Runs that shrinking one failure takes at most."""
_GARBAGE = 100_000
"""Number of new objects after which the garbage collector looks for cycles."""
_TRACE = 80
"""Lines of a trace that are printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run has shown."""

    plan: Plan
    violations: tuple[str, ...]
    trace: tuple[str, ...]
    digest: str
    seconds: float
    """Virtual time."""

    @property
    def names(self) -> frozenset[str]:
        """Names of the violated invariants."""
        return frozenset(one.partition(":")[0] for one in self.violations)


def run(plan: Plan, plant: str | None = None) -> Result:
    """Run a plan, with a planted defect if one is named."""
    _prepare()
    with _quiet(), PLANTED[plant].planted() if plant else contextlib.nullcontext():
        simulation = Simulation(plan)
        simulation.run()
    return Result(
        plan=plan,
        violations=tuple(dict.fromkeys(simulation.violations)),
        trace=tuple(simulation.trace),
        digest=simulation.digest,
        seconds=simulation.loop.time(),
    )


@functools.cache
def _prepare() -> None:
    """Make what all runs of a process share, and let the garbage collector leave it alone.

    A tenth of the time of a run was spent in looking through modules, schemas and results of earlier runs.
    """
    installation()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE, 50, 1000)


def shrink(failed: Result, plant: str | None = None) -> Result:
    """Return the failure of the shortest plan found, which has only operations and faults that it needs."""
    best, left = failed, MAX_SHRINKS

    def fails(plan: Plan) -> Result | None:
        result = run(plan, plant)
        return result if result.names & failed.names else None

    for size in (4, 2, 1):
        index = 0
        while left > 0 and index < len(_parts(best.plan)):
            parts = _parts(best.plan)
            kept = (*parts[:index], *parts[index + size :])
            left -= 1
            shorter = fails(
                replace(
                    best.plan,
                    operations=tuple(one for one in best.plan.operations if one in kept),
                    faults=tuple(one for one in best.plan.faults if one in kept),
                )
            )
            if shorter is None:
                index += size
            else:
                best = shorter
    return best


def _parts(plan: Plan) -> tuple[object, ...]:
    return (*plan.operations, *plan.faults)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing be logged: runs with faults log thousands of warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def search(seeds: range, *, plant: str | None, say: Callable[[str], None]) -> int:
    """Run seeds until one fails, which is shrunk and printed; return the exit status."""
    began, virtual = time.monotonic(), 0.0
    for number, seed in enumerate(seeds, 1):
        result = run(Plan.of_seed(seed), plant)
        virtual += result.seconds
        if len(seeds) == 1:
            say(f"seed {seed}: trace {result.digest}, {len(result.trace)} lines, {result.seconds:.0f} virtual seconds")
        if result.violations:
            say(f"seed {seed} violates an invariant, found by run {number} after {time.monotonic() - began:.1f} s")
            report(shrink(result, plant), plant, say)
            return 1
        if number % 500 == 0:
            say(f"{number} runs, {number / (time.monotonic() - began):.1f} a second")
    seconds = max(time.monotonic() - began, 0.001)
    say(
        f"{len(seeds)} runs without a violation in {seconds:.0f} s ({len(seeds) / seconds:.1f} a second, "
        f"{virtual / 3600:.1f} virtual hours)"
    )
    return 0


def report(result: Result, plant: str | None, say: Callable[[str], None]) -> None:
    """Print a failure: its plan, its trace, and how it is run again."""
    say("the shortest plan that fails (seconds, who, what):")
    say(str(result.plan))
    say("its trace (virtual seconds, who, request, phase of the object):")
    for line in result.trace[-_TRACE:]:
        if " setup " not in line:
            say(line)
    for text in result.violations:
        say(f"violated: {text}")
    for name in sorted(result.names):
        say(f"{name} requires: {SENTENCES[name]}")
    planted = f" --plant {plant}" if plant else ""
    say(f"replay: scripts/test simulate --seed {result.plan.seed}{planted}")
    say("what the invariants mean and how a failure becomes a test: docs/explanation/simulation.md")
