"""Validation of the claim in a DataVolume, in both forms."""

from __future__ import annotations

from cdi.api.claims import AccessMode, ClaimSpec, StorageSpec, VolumeMode
from cdi.api.meta import TypedLocalObjectReference, TypedObjectReference
from cdi.api.quantity import MAX_BYTES, MIB
from cdi.api.rules.problems import Cause, Problem, Problems, one_of, optional_name, unsupported


def check_claim(claim: StorageSpec, field: str, *, size_optional: bool) -> Problems:
    """Yield the problems of a claim.

    Args:
        claim: The claim in either form.
        field: Path of the claim for messages.
        size_optional: The content determines the size (a clone into the storage form).
    """
    what = "PVC" if isinstance(claim, ClaimSpec) else "Storage"
    yield from check_size(claim, field, what, optional=size_optional)
    modes = claim.access_modes or []
    if isinstance(claim, ClaimSpec) and len(modes) != 1:
        yield Problem(
            field=f"{field}.accessModes",
            message="PVC multiple accessModes: exactly 1 access mode is allowed"
            if modes
            else "Required value: at least 1 access mode is required",
            cause=Cause.INVALID if modes else Cause.REQUIRED,
        )
    yield from check_access_modes(modes, f"{field}.accessModes")
    yield from one_of(claim.volume_mode, tuple(VolumeMode), f"{field}.volumeMode")
    yield from optional_name(claim.storage_class_name, f"{field}.storageClassName", "StorageClass")
    yield from optional_name(claim.volume_name, f"{field}.volumeName", "PersistentVolume")


def check_size(claim: StorageSpec, field: str, what: str, *, optional: bool) -> Problems:
    """Yield a problem if the size is missing, below 1 MiB or does not fit into 64 bits."""
    path = f"{field}.resources.requests.storage"
    size = claim.size
    if size is None:
        if not optional:
            yield Problem(field=path, message=f"{what} size is missing", cause=Cause.REQUIRED)
    elif size.value <= 0:
        yield Problem(field=path, message=f"{what} size can't be equal or less than zero")
    elif size.bytes < MIB:
        yield Problem(field=path, message=f"{what} size {size} is smaller than the minimum of 1Mi")
    elif size.bytes > MAX_BYTES:
        yield Problem(field=path, message=f"{what} size {size} is larger than a volume can be (8Ei)")


def check_access_modes(modes: list[str], field: str) -> Problems:
    """Yield a problem for each unknown access mode."""
    for mode in dict.fromkeys(modes):
        if mode not in tuple(AccessMode):
            yield Problem(field=field, message=unsupported(mode, tuple(AccessMode)), cause=Cause.NOT_SUPPORTED)


def external_population(claim: StorageSpec) -> bool:
    """Return whether the volume is filled by something other than CDI."""
    return claim.data_source is not None or claim.data_source_ref is not None


def check_external_population(claim: StorageSpec, field: str) -> Problems:
    """Yield the problems of the references to what fills the volume instead of CDI."""
    source, ref = claim.data_source, claim.data_source_ref
    if source is not None and ref is not None and _identity(source) != _identity(ref):
        yield Problem(field=field, message="DataSourceRef and DataSource must match")
    if source is not None:
        yield from _check_object(source, f"{field}.dataSource", "DataSource")
    if ref is None:
        return
    if ref.namespace:
        yield Problem(
            field=f"{field}.dataSourceRef.namespace",
            message="Invalid value: DataSourceRef namespace not supported: "
            "the object has to be in the namespace of the volume",
        )
    yield from _check_object(ref, f"{field}.dataSourceRef", "DataSourceRef")


def _check_object(reference: TypedLocalObjectReference | TypedObjectReference, field: str, what: str) -> Problems:
    if not reference.name:
        yield Problem(field=f"{field}.name", message=f"Required value: {what} name", cause=Cause.REQUIRED)
    if not reference.kind:
        yield Problem(field=f"{field}.kind", message=f"Required value: {what} kind", cause=Cause.REQUIRED)
    if not reference.api_group and reference.kind != "PersistentVolumeClaim":
        yield Problem(
            field=f"{field}.apiGroup",
            message=f"Required value: {what} apiGroup when kind is not 'PersistentVolumeClaim'",
            cause=Cause.REQUIRED,
        )


def _identity(reference: TypedLocalObjectReference | TypedObjectReference) -> tuple[str, str, str]:
    return reference.api_group or "", reference.kind, reference.name
