"""Table rows of the page, computed from DataVolumes without side effects."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Literal

from cdi.api.errors import CdiError
from cdi.api.job import Progress
from cdi.api.phases import ConditionType, Phase, Reason
from cdi.api.quantity import Quantity
from cdi.api.status_detail import status_detail
from cdi.client.backend import Advance, Fraction
from cdi.image.sizes import format_size
from cdi.reconcile.datavolume.lineage import source_notice

Tone = Literal["good", "bad", "wait", "work"]

_WORDS = 2000
"""Largest number of characters of one text; messages may quote a server or an image."""
_CONDITIONS = 20
_READY = frozenset({Phase.UPLOAD_READY})
_WAITING = frozenset(
    {
        Phase.UNSET,
        Phase.PENDING,
        Phase.PVC_BOUND,
        Phase.WAIT_FOR_FIRST_CONSUMER,
        Phase.PENDING_POPULATION,
        Phase.UPLOAD_SCHEDULED,
        Phase.UPLOAD_READY,
        Phase.PAUSED,
        Phase.UNKNOWN,
    }
)


def row(body: Mapping[str, Any], advance: Advance | None, now: dt.datetime) -> dict[str, Any]:
    """Return the row of a DataVolume; its texts are the object's own, and not trustworthy.

    `advance` is the progress of its worker, None if unknown.
    """
    metadata, spec, status = _map(body, "metadata"), _map(body, "spec"), _map(body, "status")
    text = _text(status.get("phase"))
    phase = Phase(text) if text in set(Phase) else Phase.UNKNOWN
    conditions = _conditions(status)
    by_type = {one["type"]: one for one in conditions}
    running = by_type.get(ConditionType.RUNNING, {})
    failing = running.get("reason") in {Reason.ERROR, Reason.CHECKSUM_ERROR}
    moving = advance is not None and running.get("status") == "True" and _has_begun(advance)
    return {
        "uid": _text(metadata.get("uid")),
        "namespace": _text(metadata.get("namespace")),
        "name": _text(metadata.get("name")),
        "phase": text,
        "tone": _tone(phase, failing=failing, moving=moving),
        "takesUpload": phase in _READY and "upload" in _map(spec, "source"),
        "deleting": "deletionTimestamp" in metadata,
        "kind": "archive" if spec.get("contentType") == "archive" else "disk",
        "source": _source(spec),
        "size": _size(spec),
        "age": _age(metadata, now),
        "restarts": status.get("restartCount") if isinstance(status.get("restartCount"), int) else 0,
        "message": _notice(metadata, now) if phase is Phase.SUCCEEDED else _text(status_detail(body)[1]),
        "conditions": conditions,
        "progress": _progress(advance),
    }


def _notice(metadata: Mapping[str, Any], now: dt.datetime) -> str:
    """Return that a version of a golden image is deprecated, beyond its end of life or revoked; else an empty text."""
    annotations = {name: text for name, text in _map(metadata, "annotations").items() if isinstance(text, str)}
    notice = source_notice(annotations, now.timestamp())
    return _text(f"This version of a golden image {notice[1]}.") if notice is not None else ""


def _tone(phase: Phase, *, failing: bool, moving: bool) -> Tone:
    if phase is Phase.SUCCEEDED:
        return "good"
    if phase is Phase.FAILED:
        return "bad"
    if failing:
        return "wait"
    return "wait" if phase in _WAITING and not moving else "work"


def _has_begun(advance: Advance) -> bool:
    return advance.fraction > 0 if isinstance(advance, Fraction) else advance.done > 0


def _progress(advance: Advance | None) -> dict[str, Any] | None:
    match advance:
        case None:
            return None
        case Fraction():
            return {"fraction": advance.fraction}
        case Progress():
            return {
                "fraction": advance.fraction,
                "done": advance.done,
                "total": advance.total,
                "rate": advance.rate,
                "eta": advance.eta,
                "note": _text(advance.note),
            }


def _conditions(status: Mapping[str, Any]) -> list[dict[str, str]]:
    given = status.get("conditions")
    return [
        {name: _text(one.get(name)) for name in ("type", "status", "reason", "message")}
        for one in (given if isinstance(given, list) else [])[:_CONDITIONS]
        if isinstance(one, dict)
    ]


def _source(spec: Mapping[str, Any]) -> str:
    source = _map(spec, "source")
    kind = next(iter(source), "")
    if kind in {"pvc", "snapshot"}:
        return f"{kind} {_text(_map(source, kind).get('name'))}"
    if kind:
        return _text(kind)
    return f"DataSource {_text(_map(spec, 'sourceRef').get('name'))}" if "sourceRef" in spec else "nothing"


def _size(spec: Mapping[str, Any]) -> str:
    for field in ("storage", "pvc"):
        wanted = _map(_map(_map(spec, field), "resources"), "requests").get("storage")
        if wanted is not None:
            try:
                return format_size(Quantity.parse(str(wanted)).bytes)
            except (CdiError, ValueError):
                return _text(wanted)
    return ""


def _age(metadata: Mapping[str, Any], now: dt.datetime) -> float | None:
    try:
        then = dt.datetime.fromisoformat(str(metadata.get("creationTimestamp")))
    except ValueError:
        return None
    return max(0.0, (now - (then if then.tzinfo else then.replace(tzinfo=dt.UTC))).total_seconds())


def _map(body: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    found = body.get(field)
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str:
    return str(value)[:_WORDS] if value is not None else ""
