"""Validation of an ObjectTransfer."""

from __future__ import annotations

from cdi.api.rules.problems import Problem, Problems, optional_name, truncate
from cdi.api.rules.sources import check_reference
from cdi.api.transfer import ObjectTransfer

KINDS = ("DataVolume", "PersistentVolumeClaim")


def check_transfer(transfer: ObjectTransfer) -> Problems:
    """Yield the problems of an ObjectTransfer."""
    source, target = transfer.spec.source, transfer.spec.target
    if source.kind not in KINDS:
        yield Problem(
            field="spec.source.kind", message=f'Unsupported kind "{truncate(source.kind)}": {" or ".join(KINDS)}'
        )
    yield from check_reference(source.namespace, source.name, "spec.source", "source")
    if not target.namespace and not target.name:
        yield Problem(field="spec.target", message="Target namespace and/or target name must be supplied")
    elif (target.namespace or source.namespace, target.name or source.name) == (source.namespace, source.name):
        yield Problem(field="spec.target", message="the target is the source itself")
    yield from optional_name(target.namespace, "spec.target.namespace", "namespace")
    yield from optional_name(target.name, "spec.target.name", "target")
