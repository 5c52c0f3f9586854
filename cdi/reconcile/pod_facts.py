"""What a pod says of the attempt that runs in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdi.api.job import Progress
from cdi.reconcile.world import Worker


def observe_pod(pod: Mapping[str, Any], *, progress: Progress | None = None, node_lost: bool = False) -> Worker | None:
    """From a pod as the API has it; None where it is no worker of ours.

    `progress` is what the pod told when it was last asked; `node_lost` that its node is gone or not ready.
    """
    raise NotImplementedError((pod, progress, node_lost))
