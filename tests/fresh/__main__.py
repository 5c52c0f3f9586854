"""Run the two commands of the README on minimal Debian systems.

    scripts/test fresh [CASE ...]

Each case is a new root of a Debian release, with what a cloud image has and nothing else, and a clean clone of this
checkout's HEAD.  In it run scripts/quickstart, the stages check, unit and fuzz of scripts/test, and the set-up of the test
cluster, as root or as a user with sudo; one of them then runs scripts/quickstart again without a network.  Two cases only
look at the line that is printed where root cannot be had.

A case that runs everything takes 10 to 40 minutes, all of them an hour or two, on a machine with much else to do nearly an
hour each; it takes 4 GB of disk at a time.  It needs root, for mounts and namespaces; the packages come from where this
machine's apt and pip get theirs.

The output of a case is in a file that its last line names.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from cdi.cli.elapsed import Elapsed
from tests.fresh import system
from tests.fresh.cases import CASES, Case, Step

TIMEOUT = 2 * 3600.0
"""Seconds for one command of a case, after which it is killed."""


class CaseFailed(Exception):
    """A command of a case failed; the text says which."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/test fresh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="*", help=f"of {', '.join(case.name for case in CASES)}; default: all")
    arguments = parser.parse_args()
    unknown = set(arguments.case) - {case.name for case in CASES}
    if unknown:
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("this needs root: run sudo scripts/test fresh")
    base = Path(os.environ["CDI_CACHE"]) / "fresh"
    base.mkdir(parents=True, exist_ok=True)
    chosen = [case for case in CASES if not arguments.case or case.name in arguments.case]
    return max([run_case(base, case) for case in chosen])


def run_case(base: Path, case: Case) -> int:
    """Run one case, print its line, and return the exit status."""
    began = time.monotonic()
    log = base / f"{case.name}.log"
    root = base / f"root-{case.name}"
    failure = ""
    with system.locked(base / f"{case.name}.lock"):  # another run may be about another case
        try:
            with log.open("w") as output, Elapsed(f"fresh: {case.name}") as elapsed:
                system.unpack(base, root, case)
                for step in case.steps:
                    run_step(root, case, step, output, elapsed)
                if dirt := system.untracked(root, case):
                    raise CaseFailed(f"the case modified the checkout: {', '.join(dirt[:5])}")
        except (CaseFailed, SystemExit) as error:
            failure = str(error)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    state = f"FAILED: {failure} (see {log})" if failure else "ok"
    print(f"== fresh: {case.name}: {state}, {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failure else 0


def run_step(root: Path, case: Case, step: Step, log: TextIO, elapsed: Elapsed) -> None:
    """Run one command in the root; raise CaseFailed unless it ends as expected.

    All that it prints goes into the log, and the last line is shown with the elapsed seconds.
    """
    command = " ".join(step.command) + (" (offline)" if step.offline else "")
    print(f"$ {command}", file=log, flush=True)
    last = ""
    with subprocess.Popen(
        [*system.entering(root, case.user, case.checkout, tmpfs=case.tmpfs, offline=step.offline), *step.command],
        env=system.environment(case),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        with limited(process):
            for line in process.stdout:
                log.write(line)
                log.flush()
                last = line.strip() or last
                elapsed.note(f"{command}: {''.join(c for c in last if c.isprintable())}")
        status = process.wait()
    if step.refusal is None and status != 0:
        raise CaseFailed(f"{command} exited with status {status}")
    if step.refusal is not None and (status == 0 or not last.endswith(step.refusal)):
        raise CaseFailed(f"{command} exited with status {status} and said: {last}")


@contextlib.contextmanager
def limited(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill the process, and with it its whole namespace, at the timeout."""
    timer = threading.Timer(TIMEOUT, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


if __name__ == "__main__":
    sys.exit(main())
