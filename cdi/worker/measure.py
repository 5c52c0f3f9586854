"""Size detection of the disk in a volume: ``cdi-worker measure PATH ID [TERMINATION-LOG]``.

A clone's target may have to be as large as the disk in its source's filesystem, which can only be found out there. The
termination message is an `Outcome` with `disk_size`, as in other pods; everything is opened read-only.
"""

from __future__ import annotations

import sys

from cdi.api.errors import CdiError, UsageError
from cdi.api.job import Outcome
from cdi.transfer.clone.disk_reader import DiskReader
from cdi.transfer.run import failure_of
from cdi.worker import log
from cdi.worker.pod import Options
from cdi.worker.termination import termination_message


def main(arguments: list[str]) -> int:
    """Run ``measure`` and return the exit status."""
    if len(arguments) not in (2, 3):
        print("usage: cdi-worker measure PATH ID [TERMINATION-LOG]", file=sys.stderr)  # noqa: T201 - usage errors go to standard error
        return UsageError.exit_status
    path, identity, *rest = arguments
    try:
        with DiskReader(path) as origin:
            outcome = Outcome(id=identity, disk_size=origin.size)
    except CdiError as error:
        outcome = Outcome(id=identity, failure=failure_of(error))
    with open(rest[0] if rest else Options().termination_log, "w", encoding="ascii") as file:
        file.write(termination_message(outcome))
    log.log_finished(outcome)
    return outcome.failure.exit_status if outcome.failure is not None else 0
