"""Deletion at every step: a controller that deletes DataVolumes between its own writes.

    python -m tests.cluster.cancellation controller …

A DataVolume with the annotation is deleted right after that many different writes for it, while the controller is still
reconciling it. With one DataVolume for each number, a deletion occurs between every two writes.
"""

from __future__ import annotations

import contextvars
import sys
from typing import Any

import cdi.cli.controller  # noqa: F401
from cdi.api.errors import NotFound
from cdi.api.kinds import DATA_VOLUMES, Object
from cdi.cli.main import main
from cdi.controller.applier import PlanApplier
from cdi.kube.client import Client
from tests.cluster.kill_points import after_writes, say

ANNOTATION = "tests.cdi.kubevirt.io/deleted-after"
_about: contextvars.ContextVar[tuple[Client, Object] | None] = contextvars.ContextVar("about", default=None)


def follow() -> None:
    """Intercept the writes of this process and delete the annotated DataVolumes."""
    steps: dict[str, set[str]] = {}
    carry_out, delete = PlanApplier.apply, Client.delete

    async def noted(executor: PlanApplier, plan: Any, about: Object, now: float) -> Any:
        token = _about.set((executor._writer._client, about))
        try:
            return await carry_out(executor, plan, about, now)
        finally:
            _about.reset(token)

    async def count(step: str) -> None:
        client, about = _about.get() or (None, {})
        metadata = about.get("metadata") or {}
        last = (metadata.get("annotations") or {}).get(ANNOTATION)
        if client is None or last is None or about["kind"] != DATA_VOLUMES.kind:
            return
        seen = steps.setdefault(metadata["uid"], set())
        if step in seen:
            return
        seen.add(step)
        if len(seen) == int(last):
            say("deleted", name=metadata["name"], after=step)
            try:
                await delete(client, DATA_VOLUMES, metadata["namespace"], metadata["name"], uid=metadata["uid"])
            except NotFound:
                say("unexpected", text=f"{metadata['name']} was gone before")

    PlanApplier.apply = noted  # type: ignore[method-assign, assignment]
    after_writes(count)


if __name__ == "__main__":
    follow()
    sys.exit(main())
