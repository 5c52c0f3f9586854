"""Turns of boot proofs: how many run at once, and which versions wait."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cdi.api.dataimportcron import VersionState
from cdi.reconcile.dataimportcron.context import CronContext, settings_of
from cdi.reconcile.dataimportcron.proof_result import ANNOTATION, ProofAttempts
from cdi.reconcile.dataimportcron.slots import may_start

MAX_PROOFS: Final = 8
"""Maximum number of boot proofs that run at once, for all DataImportCrons together."""


def has_turn(context: CronContext) -> bool:
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


def is_due(uid: str, annotations: Mapping[str, str], now: float) -> bool:
    """Return whether the next attempt at a proof is due.

    Args:
        uid: UID of the version's PVC.
        annotations: Annotations of the PVC.
        now: Seconds since the epoch.

    """
    return ProofAttempts.read(annotations.get(ANNOTATION)).left(uid, now) <= 0
