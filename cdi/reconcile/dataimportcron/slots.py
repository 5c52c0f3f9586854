"""Turns of polls and boot proofs: fair division of a limited number of pods among namespaces.

Max-min fairness: a namespace takes another slot only if enough remain for every namespace that holds fewer and waits to
draw level. A single namespace may hold all slots while no other one waits. Nothing that runs is ended, so a namespace
that comes later waits for the end of a pod at most, and then takes its slot.

All is decided from the objects as they are, without a queue: whatever has to wait is considered again later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from cdi.api.annotations import NEXT_POLL
from cdi.api.dataimportcron import VersionState
from cdi.api.schedule import Schedule
from cdi.reconcile.dataimportcron.context import CronContext, settings_of
from cdi.reconcile.dataimportcron.poll_record import PollRecord, spread
from cdi.reconcile.dataimportcron.proof_result import ProofAttempts

MAX_POLLS: Final = 8
"""Maximum number of polls that run at once, for all DataImportCrons together."""
MAX_PROOFS: Final = 8
"""Maximum number of boot proofs that run at once, for all DataImportCrons together."""
ROTATION_INTERVAL: Final = 60.0
"""Seconds after which the order of namespaces that hold equally many slots changes.

It exceeds every interval after which what waits is considered again. Without an order, a namespace with many objects
that ask for each free slot would always precede one with a single object.
"""


def may_poll(context: CronContext) -> bool:
    """Return whether a due poll may start now."""
    objects, now = context.objects, context.now
    return may_start(context.namespace, objects.running_polls(), lambda: objects.waiting_polls(now), MAX_POLLS, now)


def waits_to_poll(spec: Mapping[str, Any], annotations: Mapping[str, str], now: float) -> bool:
    """Return whether a poll is due that needs a Job or a pod, and that nothing but its turn is known to prevent."""
    schedule = spec.get("schedule")
    source = ((spec.get("template") or {}).get("spec") or {}).get("source") or {}
    if not schedule or "pvc" in source or (source.get("registry") or {}).get("imageStream"):
        return False
    moment = NEXT_POLL.read(annotations)
    if moment is not None and moment.timestamp() > now:
        return False
    record = PollRecord.read(annotations)
    if record.failure is not None and record.failures == 0:
        return False  # it waits for a Secret or ConfigMap
    try:
        Schedule.parse(schedule)
    except ValueError:
        return False
    return True


def may_prove(context: CronContext) -> bool:
    """Return whether a proof may start now."""
    objects, now = context.objects, context.now
    return may_start(context.namespace, objects.running_proofs(), lambda: objects.waiting_proofs(now), MAX_PROOFS, now)


def versions_to_prove(annotations: Mapping[str, str], status: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a DataImportCron's versions whose proofs have not ended."""
    names = [one["name"] for one in status.get("versions") or () if one.get("state") == VersionState.PROVING]
    if not names:
        return
    settings, problem = settings_of(annotations)
    if settings.proof == "boot" or problem:
        yield from names


def waits_to_prove(uid: str, annotations: Mapping[str, str], now: float) -> bool:
    """Return whether the next attempt at a proof is due.

    Args:
        uid: UID of the version's PVC.
        annotations: Annotations of the PVC.
        now: Seconds since the epoch.

    """
    return ProofAttempts.read(annotations).left(uid, now) <= 0


def may_start(
    namespace: str, running: Mapping[str, int], waiting: Callable[[], Mapping[str, int]], maximum: int, now: float
) -> bool:
    """Return whether a namespace that waits may take another slot.

    The waiting namespace that holds the fewest slots, and among those the first in the order of the moment, may always
    take a free one. A namespace that waits but for some other reason never starts therefore delays others, but cannot
    keep them out.

    Args:
        namespace: The namespace.
        running: Slots held, by namespace.
        waiting: Returns the number of objects that wait for a slot, by namespace; called only if a slot is free.
        maximum: Number of slots.
        now: Seconds since the epoch.

    """
    free = maximum - sum(running.values())
    if free <= 0:
        return False
    held, position = running.get(namespace, 0), _position(namespace, now)
    reserved = 0
    for other, wanted in waiting().items():
        if other != namespace:
            level = held + 1 if _position(other, now) < position else held
            reserved += min(wanted, max(level - running.get(other, 0), 0))
    return free > reserved


def _position(namespace: str, now: float) -> tuple[float, str]:
    return spread(namespace, int(now // ROTATION_INTERVAL)), namespace
