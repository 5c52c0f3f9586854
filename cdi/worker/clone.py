"""Both ends of a host-assisted clone, each in a pod of its own: ``cdi-worker clone-source`` and ``clone-target``.

    target   pod on the claim that is filled, container port 8444; waits for its source
    source   pod on the claim that is read, mounted read-only; connects to its targets, of which there may be many

They are made and read as the pod of an import is (`cdi.worker.pod`): the same files, options and last words.

    /var/run/cdi/pod/job         `cdi.api.copy.CopySourceJob` or `CopyTargetJob`, in JSON
    /var/run/cdi/pod/targets     a source's: whom it sends to, a `Ticket` each, read again whenever it changes
    /var/run/cdi/pod/limits      `Limits`, read again whenever it changes; the source keeps to its bandwidth
    /var/run/cdi/pod/journal     a target's: what an earlier pod left, for a device, which cannot keep it itself
    /var/run/cdi/tls/{tls.crt,tls.key,ca.crt}   the own certificate and who signed the other's, unless the job says
                                 else; a source's are ``<target's id>.crt`` and ``.key``, and may come with the ticket
    /dev/termination-log         how it ended; what a target of a device has to carry on is in `journal`
    :8443                        ``/progress``, ``/metrics``, ``/healthz`` over HTTPS, as an import's; both ends

**Order.**  Either may be started first and either may be lost: the source connects until its target is there, the
target waits until its source is, each for its job's `patience` (ten minutes) without getting further.  Whoever comes
later is told where to go on.  So a pod that is lost is simply made anew, with the same job, and nothing has to be told
to the other.  A target's `id` is its claim's uid, and stands in its ticket; a source's own is that of what it reads.

**Result.**  The clone is done when the *target* ended without a failure; the disk has its name then.  The source ends
with status 0 once all have everything, after its job's `linger`; it fails where none of them has.  Where the last word
to it was lost (a target ended first and cannot be asked again) it ends with `PeerUnreachable`, which means nothing once
the target is done.  Failures of one end that trying again cannot mend are told to the other, and both end with the same
code: `TargetTooSmall` (with both sizes, nothing is written), `SourceNotFound`, `ChecksumMismatch` (the volume is wiped)
and so on; of a source that has other targets only what it serves that one by.  A target that ends with a retry class of
``backoff`` is made anew while its source waits; and the other way round.

**Target.**  `target`, `size`, `journal` are those of `Job`: ``/data/disk.img`` with journal ``/data/.cdi/journal``, or
``/dev/cdi-block-volume`` with journal ``/var/run/cdi/state/journal`` and the carried one, or directory ``/data`` with
`content_type` archive.  `size` is the claim's (None for a device: all of it); what the disk has beyond the source's
reads as zeros.  `/metrics` says ``kubevirt_cdi_clone_progress_total``.

**Source.**  `path` is ``…/disk.img``, a device, or a directory; `identity` the source claim's uid, so that a journal is
not continued with another volume.  It is opened for reading only.  A file that is written to meanwhile is noticed by
its size and time, and begun again (`SourceChanged` after `retries` times); a device tells nothing, so after a break
its first part is read again and compared.

SIGTERM stops either end where it is; what was done is kept for the next attempt.
"""

from __future__ import annotations

from cdi.api.copy import CopySourceJob, CopyTargetJob
from cdi.api.job import Outcome
from cdi.transfer.control import Control
from cdi.transfer.copy.receive import receive
from cdi.transfer.copy.send import send
from cdi.worker import log
from cdi.worker.pod import Errand, Options, attempt, started


def source(arguments: list[str]) -> int:
    """Gives the exit status."""
    return started(arguments, run_source)


def target(arguments: list[str]) -> int:
    """Gives the exit status."""
    return started(arguments, run_target)


def run_source(options: Options) -> int:
    """Send one volume, from the pod's files to its last words."""
    return attempt(
        options,
        Errand(
            parse=CopySourceJob.from_json,
            asked=lambda job: log.say(f"clone of {job.path} to those of {job.targets}"),
            control=Control,
            carry_out=send,
            volume=lambda _: None,
            work="clone",
        ),
    )


def run_target(options: Options) -> int:
    """Fill one volume, from the pod's files to its last words."""
    return attempt(
        options,
        Errand(
            parse=CopyTargetJob.from_json,
            asked=lambda job: log.say(f"clone onto {job.target.kind} {job.target.path}"),
            control=Control,
            carry_out=_receive,
            volume=CopyTargetJob.as_job,
            work="clone",
        ),
    )


def _receive(job: CopyTargetJob, control: Control) -> Outcome:
    return receive(job, control, lambda port: log.say(f"a source may come to port {port}"))
