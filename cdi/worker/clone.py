"""Source and target of a host-assisted clone, each in its own pod: ``cdi-worker clone-source`` and ``clone-target``.

    target   pod with the PVC that is filled, container port 8444; waits for its source
    source   pod with the PVC that is read, mounted read-only; connects to its targets, of which there may be many

Both use the same files, options and termination message as an import's pod (`cdi.worker.pod`):

    /var/run/cdi/pod/job         `cdi.api.copy.CopySourceJob`, or a `cdi.api.job.Job` with a peer as source, in JSON
    /var/run/cdi/pod/targets     source only: a `Ticket` for each target, read again when it changes
    /var/run/cdi/pod/limits      `Limits`, read again when it changes; the source limits its bandwidth
    /var/run/cdi/pod/journal     target only: journal of an earlier pod, for a device, which cannot store it
    /var/run/cdi/tls/{tls.crt,tls.key,ca.crt}   own certificate and the peer's CA, unless the job names other files;
                                 a source's are ``<target's id>.crt`` and ``.key``, and may arrive with the ticket
    /dev/termination-log         the outcome; a device target's journal for the next attempt is in `journal`
    :8443                        ``/progress``, ``/metrics``, ``/healthz`` over HTTPS as in an import; both pods

**Order.**  Either pod may start first, and either may be lost. The source connects until its target accepts, and the
target sends its requests over these connections (`cdi.source.peer`); each gives up after its job's `patience` (ten
minutes) without the other. The target knows where to continue. So a lost pod is simply recreated with the same job, and
the other pod needs no notification. A target's `id` is its PVC's UID, which is also in its ticket; a source's `id` is
that of what it reads.

**Result.**  The clone is complete when the *target* has ended without a failure; only then does the disk have its final
name. The source ends with status 0 when all targets have everything and its job's `linger` has passed; it fails if none
of them has. If a target could not report its end, the source ends with `PeerUnreachable`, which has no effect once the
target is complete. Failures that a retry cannot fix are reported to the peer, and both end with the same code:
`TargetTooSmall` (with both sizes; nothing is written), `SourceNotFound`, `ChecksumMismatch` (the volume is wiped) and
so on; a source with other targets only stops to serve this one. A target that ends with the class ``backoff`` is
recreated while its source waits, and vice versa.

**Target.**  `target`, `size` and `journal` are those of any import: ``/data/disk.img`` with journal
``/data/.cdi/journal``, or ``/dev/cdi-block-volume`` with journal ``/var/run/cdi/state/journal`` and the earlier pod's
journal, or directory ``/data`` with `content_type` archive. `size` is the PVC's (None for all of a device); the part of
the disk beyond the end of the source reads as zeros. The metric in ``/metrics`` is
``kubevirt_cdi_clone_progress_total``.

**Source.**  `path` is ``…/disk.img``, a device, or a directory; `identity` is the source PVC's UID, so that a journal
is never continued with another volume. It is opened read-only. A write to a file during the clone is detected by its
size and modification time and restarts the clone (`SourceChanged` after `retries` times). A device has neither, so
when the source pod was replaced, the part that was sent before is read again and compared.

SIGTERM stops either pod at its current position; its progress is kept for the next attempt.
"""

from __future__ import annotations

import logging

from cdi.api.copy import CopySourceJob
from cdi.api.job import Job, Limits, Outcome
from cdi.transfer.control import TransferControl
from cdi.worker.pod import Options, WorkerTask, parse_and_run, run_task

LOG = logging.getLogger(__name__)


def source(arguments: list[str]) -> int:
    """Run ``clone-source`` and return the exit status."""
    return parse_and_run(arguments, run_source)


def target(arguments: list[str]) -> int:
    """Run ``clone-target`` and return the exit status."""
    return parse_and_run(arguments, run_target)


def run_source(options: Options) -> int:
    """Send one volume, from reading the job to the termination message."""
    from cdi.transfer.clone.send import send

    return run_task(
        options,
        WorkerTask(
            parse=CopySourceJob.from_json,
            asked=lambda job: LOG.info(f"clone of {job.path} to those of {job.targets}"),
            control=TransferControl,
            execute=send,
            volume=lambda _: None,
            work="clone",
        ),
    )


def run_target(options: Options) -> int:
    """Fill one volume, from reading the job to the termination message."""
    return run_task(
        options,
        WorkerTask(
            parse=Job.from_json,
            asked=lambda job: LOG.info(f"clone onto {job.target.kind} {job.target.path}"),
            control=_TargetControl,
            execute=_receive,
            volume=lambda job: job,
            work="clone",
        ),
    )


class _TargetControl(TransferControl):
    """Control of a target, for which its source keeps the limits."""

    def limit(self, limits: Limits) -> None:
        """Do nothing: the source counts what it sends, which may be compressed, and decides on the connections."""


def _receive(job: Job, control: TransferControl) -> Outcome:
    from cdi.transfer.clone.receive import receive

    return receive(job, control, lambda port: LOG.info(f"waiting for the source on port {port}"))
