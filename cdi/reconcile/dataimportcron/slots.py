"""Fair division of a limited number of pods among namespaces.

Max-min fairness: a namespace takes another slot only if enough remain for every namespace that holds fewer and waits to
draw level. A single namespace may hold all slots while no other one waits. Nothing that runs is ended, so a namespace
that comes later waits for the end of a pod at most, and then takes its slot.

All is decided from the objects as they are, without a queue: whatever has to wait is considered again later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from cdi.reconcile.dataimportcron.poll_record import spread

ROTATION_INTERVAL: Final = 60.0
"""Seconds after which the order of namespaces that hold equally many slots changes.

It exceeds every interval after which what waits is considered again. Without an order, a namespace with many objects
that ask for each free slot would always precede one with a single object.
"""


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
