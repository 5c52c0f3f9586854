"""Mutated documents: values are replaced, removed, repeated or moved to other places."""

from __future__ import annotations

import copy
from typing import Any

import atheris

ODD = (
    None, True, False, 0, -1, 1, 1 << 62, 1 << 64, 0.5, 1e300, "", "a", "A", "../x", "a/b", "x" * 300, "\0", "\ud800", "é",
    "1Gi", "-1Gi", "1e400", "true", "2020-01-01T00:00:00Z", [], {}, [[]], {"": None}, {"a": {"a": {"a": 1}}}, ["a", 1, None],
)  # fmt: skip
_EDITS = 6


def spoilt(document: Any, data: atheris.FuzzedDataProvider) -> Any:
    """Return a copy of `document` with some edits."""
    root = [copy.deepcopy(document)]
    for _ in range(data.ConsumeIntInRange(0, _EDITS)):
        places = list(_places(root))
        holder, key = places[data.ConsumeIntInRange(0, len(places) - 1)]
        match data.ConsumeIntInRange(0, 4):
            case 0 | 1:
                holder[key] = copy.deepcopy(ODD[data.ConsumeIntInRange(0, len(ODD) - 1)])
            case 2:
                holder[key] = data.ConsumeUnicode(data.ConsumeIntInRange(0, 40))
            case 3 if isinstance(holder, dict):
                holder[data.ConsumeUnicode(data.ConsumeIntInRange(0, 12))] = holder.pop(key)
            case _:
                other, at = places[data.ConsumeIntInRange(0, len(places) - 1)]
                holder[key] = copy.deepcopy(other[at])
    return root[0]


def _places(holder: Any) -> Any:
    """Yield the holder and key of every value, breadth first."""
    level = [holder]
    while level:
        below = []
        for each in level:
            for key in list(each) if isinstance(each, dict) else range(len(each)):
                yield each, key
                if isinstance(each[key], (dict, list)):
                    below.append(each[key])
        level = below
