"""Labels for a volume, from the environment of its containerDisk.

Follows KubeVirt: in a variable whose name contains ``KUBEVIRT_IO_``, the part before it becomes the label's prefix with
dots (``INSTANCETYPE_`` → ``instancetype.``), and the part after it becomes the name with dashes, all in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_MARK = "KUBEVIRT_IO_"
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_MAX_LABELS = 64
_MAX_VALUE = 1024


def labels_of(env: Iterable[str]) -> dict[str, str]:
    """Return the labels for ``NAME=value`` entries, at most 64.

    Labels that are invalid in Kubernetes are omitted, because they would prevent the valid ones, or the PVC itself,
    from being written.
    """
    labels: dict[str, str] = {}
    for entry in env:
        name, equals, value = entry.partition("=")
        before, mark, after = name.partition(_MARK)
        if not equals or not mark or len(entry) > _MAX_VALUE:
            continue
        words = before.removesuffix("_")
        prefix = (words.replace("_", ".") + "." if words else "").lower() + "kubevirt.io"
        key = after.replace("_", "-").lower()
        valid = _PREFIX.fullmatch(prefix) and len(prefix) <= 253 and _NAME.fullmatch(key) and _VALUE.fullmatch(value)
        if valid and len(labels) < _MAX_LABELS:
            labels[f"{prefix}/{key}"] = value
    return labels
