"""Command line of the simulation: see ``python -m tests.simulation --help``."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.planted import PLANTED
from tests.simulation.runner import search

FIXED = range(1, 61)
"""The seeds that are run unless others are named."""


def main() -> int:
    """Run the seeds that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="scripts/test simulate",
        description="Run the controller against an in-memory API server in virtual time, with faults chosen by seed.",
    )
    parser.add_argument("--seed", type=int, help="run this seed only, or begin with it if --runs is given")
    parser.add_argument("--runs", type=int, help=f"number of seeds to run (default: {len(FIXED)} fixed ones)")
    parser.add_argument("--plant", choices=sorted(PLANTED), help="plant a defect, which has to be found")
    parser.add_argument("--random", action="store_true", help="begin with a seed that no run had before")
    arguments = parser.parse_args()
    first = time.time_ns() // 1_000_000 if arguments.random else arguments.seed
    if first is None:
        first, count = FIXED.start, arguments.runs or len(FIXED)
    else:
        count = arguments.runs or (len(FIXED) if arguments.random else 1)
    return search(range(first, first + count), plant=arguments.plant, say=lambda text: print(text, flush=True))


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set of strings, and so of work, depends on it.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    sys.exit(main())
