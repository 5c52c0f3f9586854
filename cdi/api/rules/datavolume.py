"""Validation of a DataVolume."""

from __future__ import annotations

from cdi.api.claims import StorageSpec, VolumeMode
from cdi.api.datavolume import Checkpoint, ContentType, DataVolume, DataVolumeSpec, SourceRef
from cdi.api.policy import check_policy, check_signed_source
from cdi.api.rules.claims import check_claim, check_external_population, external_population
from cdi.api.rules.problems import Cause, Problem, Problems, object_name, optional_name, truncate
from cdi.api.rules.sources import WARM_SOURCES, check_content_type, check_one_source
from cdi.api.sources import ImportSource


def check_datavolume(datavolume: DataVolume) -> Problems:
    """Yield the problems of a DataVolume."""
    yield from check_policy(datavolume.metadata.annotations)
    yield from check_signed_source(datavolume.metadata.annotations, datavolume.spec.source)
    yield from check_spec(datavolume.spec, "spec")


def check_spec(spec: DataVolumeSpec, field: str) -> Problems:
    """Yield the problems of the spec of a DataVolume or a template."""
    claim = spec.claim
    if claim is None:
        yield Problem(field=f"{field}.storage", message="Missing Data volume PVC: give storage or pvc")
    elif spec.pvc is not None and spec.storage is not None:
        yield Problem(
            field=f"{field}.storage",
            message="Duplicate storage definition, both target storage and target pvc defined",
        )
    else:
        path = f"{field}.pvc" if spec.pvc is not None else f"{field}.storage"
        yield from check_claim(claim, path, size_optional=spec.storage is not None and spec.is_clone)
        if spec.content_type == ContentType.ARCHIVE and claim.volume_mode == VolumeMode.BLOCK:
            yield Problem(field=f"{path}.volumeMode", message="an archive needs volumeMode Filesystem")
    yield from _origin(spec, claim, field)
    yield from check_content_type(spec.content_type, spec.source, f"{field}.contentType")
    yield from check_checkpoints(spec.checkpoints, spec.source, f"{field}.checkpoints")
    yield from optional_name(spec.priority_class_name, f"{field}.priorityClassName", "PriorityClass")
    yield from optional_name(spec.service_account_name, f"{field}.serviceAccountName", "ServiceAccount")


def _origin(spec: DataVolumeSpec, claim: StorageSpec | None, field: str) -> Problems:
    if claim is not None and external_population(claim):
        if spec.source is not None or spec.source_ref is not None:
            yield Problem(field=field, message="External population is incompatible with Source and SourceRef")
        yield from check_external_population(claim, f"{field}.pvc" if spec.pvc is not None else f"{field}.storage")
    elif (spec.source is None) == (spec.source_ref is None):
        yield Problem(
            field=f"{field}.source",
            message="Data volume should have either Source or SourceRef, or be externally populated"
            + ("; not both" if spec.source is not None else ""),
        )
    elif spec.source_ref is not None:
        yield from _source_ref(spec.source_ref, f"{field}.sourceRef")
    else:
        yield from check_one_source(spec.source, f"{field}.source", "Data volume")


def _source_ref(ref: SourceRef, field: str) -> Problems:
    if not ref.kind:
        yield Problem(field=f"{field}.kind", message="Missing sourceRef kind")
    elif ref.kind != "DataSource":
        yield Problem(
            field=f"{field}.kind",
            message=f"Unsupported sourceRef kind {truncate(ref.kind)}, currently only DataSource is supported",
        )
    if not ref.name:
        yield Problem(field=f"{field}.name", message="Missing sourceRef name")
    else:
        yield from object_name(ref.name, f"{field}.name", "DataSource")
    yield from optional_name(ref.namespace, f"{field}.namespace", "namespace")


def check_checkpoints(checkpoints: list[Checkpoint] | None, source: ImportSource | None, field: str) -> Problems:
    """Yield a problem if the source has no checkpoints, or if a checkpoint lacks its own, unique snapshot."""
    if not checkpoints:
        return
    if source is None or not any(kind in WARM_SOURCES for kind, _ in source.given()):
        yield Problem(field=field, message="checkpoints are for the sources imageio and vddk only")
    seen: set[str] = set()
    for index, checkpoint in enumerate(checkpoints):
        if not checkpoint.current:
            yield Problem(
                field=f"{field}[{index}].current",
                message="Required value: the snapshot of this stage is missing",
                cause=Cause.REQUIRED,
            )
        elif checkpoint.current in seen:
            yield Problem(
                field=f"{field}[{index}].current",
                message=f"Duplicate value: {truncate(checkpoint.current)!r}",
                cause=Cause.DUPLICATE,
            )
        seen.add(checkpoint.current)
