"""Validation of volume populators."""

from __future__ import annotations

from cdi.api.populators import VolumeCloneSource, VolumeImportSource, VolumeUploadSource
from cdi.api.rules.datavolume import check_checkpoints
from cdi.api.rules.problems import Cause, Problem, Problems, object_name, one_of, optional_name
from cdi.api.rules.sources import WARM_SOURCES, check_content_type, check_one_source

CLONE_KINDS = {"PersistentVolumeClaim": "", "VolumeSnapshot": "snapshot.storage.k8s.io"}
"""Kinds that can be cloned, with their API groups."""


def check_import_source(populator: VolumeImportSource) -> Problems:
    """Yield the problems of a VolumeImportSource."""
    spec = populator.spec
    yield from check_one_source(spec.source, "spec.source", "VolumeImport")
    yield from check_content_type(spec.content_type, spec.source, "spec.contentType")
    yield from check_checkpoints(spec.checkpoints, spec.source, "spec.checkpoints")
    kinds = {kind for kind, _ in spec.source.given()} if spec.source else set()
    if spec.checkpoints and kinds & WARM_SOURCES and not spec.target_claim:
        yield Problem(
            field="spec.targetClaim",
            message="Unable to do multi-stage import without specifying a target claim",
        )
    yield from optional_name(spec.target_claim, "spec.targetClaim", "PersistentVolumeClaim")


def check_upload_source(populator: VolumeUploadSource) -> Problems:
    """Yield the problems of a VolumeUploadSource."""
    yield from check_content_type(populator.spec.content_type, None, "spec.contentType")


def check_clone_source(populator: VolumeCloneSource) -> Problems:
    """Yield the problems of a VolumeCloneSource."""
    spec = populator.spec
    if not spec.source.kind:
        yield Problem(field="spec.source.kind", message="Required value: the kind is empty", cause=Cause.REQUIRED)
    yield from one_of(spec.source.kind, tuple(CLONE_KINDS), "spec.source.kind")
    group = CLONE_KINDS.get(spec.source.kind)
    if group is not None and spec.source.api_group and spec.source.api_group != group:
        yield Problem(
            field="spec.source.apiGroup",
            message=f"the API group of a {spec.source.kind} is {group or 'empty'}",
        )
    yield from object_name(spec.source.name, "spec.source.name", spec.source.kind or "the source")
    yield from optional_name(spec.priority_class_name, "spec.priorityClassName", "PriorityClass")
