"""Resolution of a DataVolume's source, including references."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from cdi.api.datasource import DataSource
from cdi.api.datavolume import ContentType, DataVolume
from cdi.api.errors import InvalidManifest, SourceNotSupported, TargetTooSmall
from cdi.api.names import ANN_PERMISSIVE_CLONE, ANN_POD_PHASE, ANN_POPULATOR_KIND
from cdi.api.phases import EventReason, Phase, Reason
from cdi.api.quantity import human
from cdi.api.rules.problems import truncate
from cdi.api.sources import (
    SourceBlank,
    SourceGcs,
    SourceHttp,
    SourceImageio,
    SourceKind,
    SourcePvc,
    SourceRegistry,
    SourceS3,
    SourceSnapshot,
    SourceUpload,
    SourceVddk,
)
from cdi.reconcile.clone.plan_annotation import requested_source
from cdi.reconcile.clone.types import SourceKind as CloneKind
from cdi.reconcile.context import Lister, ReconcileContext
from cdi.reconcile.datavolume.annotated_claims import (
    names_clone_source,
    names_import_source,
    names_upload_source,
    recorded_source,
)
from cdi.reconcile.datavolume.status_table import WITHOUT_SOURCE
from cdi.reconcile.datavolume.upload import UPLOAD_SOURCE
from cdi.reconcile.settings import Platform
from cdi.reconcile.types import (
    PVC,
    Clone,
    DataRef,
    ExternalPopulator,
    Import,
    Origin,
    Pending,
    Rejected,
    ResolvedSource,
    Upload,
)


def resolve_source(context: ReconcileContext) -> ResolvedSource:
    """Resolve the source and check its kind.

    Whether the source can be used now is not checked.
    """
    spec = context.datavolume.spec
    if spec.checkpoints:
        return Rejected.because(
            SourceNotSupported("warm imports (checkpoints) are not supported by this build", where="spec.checkpoints")
        )
    if spec.content_type not in (None, "", *ContentType) and not context.synthetic:
        # For a PVC without a DataVolume any unknown content type has always meant a disk.
        remedy = f"delete it, and create another one with {' or '.join(ContentType)}"
        what = f"{truncate(str(spec.content_type))} is not a content type"
        return Rejected.because(InvalidManifest(what, where="spec.contentType", remedy=remedy))
    claim = _own_claim(context)
    kept = requested_source(claim.annotations if claim else {})
    if kept is not None:
        # Clone the source that the size was taken from, even if the DataSource has been updated meanwhile.
        return _of_request(kept)
    if context.platform.cluster and claim is not None and names_clone_source(claim.data_ref):
        assert claim.data_ref is not None
        return _of_clone_source(context, claim.data_ref.name)
    ref = _data_ref(context.datavolume, claim)
    if context.platform.cluster and names_upload_source(ref) and (context.synthetic or spec.source is None):
        assert ref is not None
        return _of_upload_source(context, ref.name)
    if spec.source_ref is not None:
        namespace = spec.source_ref.namespace or context.datavolume.metadata.namespace or ""
        data_source = context.objects.data_source(namespace, spec.source_ref.name)
        if data_source is None:
            return Pending(
                reason=Reason.NOT_FOUND,
                message=f"DataSource {namespace}/{spec.source_ref.name} does not exist. Try: create it; "
                "this continues automatically",
            )
        end = resolve_data_source(data_source, context.objects)
        if isinstance(end, UnresolvedDataSource):
            where = f"DataSource {namespace}/{spec.source_ref.name}"
            return Pending(reason=end.reason, message=f"{where}: {end.message}")
        return _of_source(end, context.platform)
    given = [member for _, member in spec.source.given()] if spec.source else []
    if not given and context.platform.cluster:
        if names_import_source(ref):
            assert ref is not None
            return _of_import_source(context, ref.name)
        if ref is not None:
            return ExternalPopulator(name=ref.name)
    if len(given) != 1:
        return Rejected.because(InvalidManifest("exactly one source must be set", where="spec.source"))
    return _of_source(given[0], context.platform)


def _data_ref(dv: DataVolume, claim: PVC | None) -> DataRef | None:
    """Return the data source reference of the PVC, or of the DataVolume's template if there is no PVC yet."""
    if claim is not None:
        return claim.data_ref
    wanted = dv.spec.claim
    ref = (wanted.data_source_ref or wanted.data_source) if wanted is not None else None
    return None if ref is None else DataRef(group=ref.api_group or "", kind=ref.kind, name=ref.name)


def _of_import_source(context: ReconcileContext, name: str) -> ResolvedSource:
    namespace = context.datavolume.metadata.namespace or ""
    found = context.objects.import_source(namespace, name)
    if found is None:
        recorded = recorded_source(context.prime) if context.prime is not None else None
        if recorded is not None:
            return _kept_in(name, _of_source(recorded, context.platform))
        return Pending(
            reason=Reason.NOT_FOUND,
            message=(
                f"VolumeImportSource {namespace}/{name} does not exist. Try: create it; this continues automatically"
            ),
        )
    if found.spec.checkpoints:
        return Rejected.because(SourceNotSupported("warm imports (checkpoints) are not supported by this build"))
    given = [member for _, member in found.spec.source.given()] if found.spec.source else []
    if len(given) != 1:
        return Rejected.because(
            InvalidManifest("exactly one source must be set", where=f"VolumeImportSource {name}, spec.source")
        )
    return _kept_in(name, _of_source(given[0], context.platform))


def _kept_in(name: str, origin: Origin | Rejected) -> Origin | Rejected:
    return replace(origin, kept_in=name) if isinstance(origin, Import) else origin


def _of_upload_source(context: ReconcileContext, name: str) -> Upload | Pending:
    namespace = context.datavolume.metadata.namespace or ""
    prime = context.prime
    recorded = prime is not None and prime.annotations.get(ANN_POPULATOR_KIND) == UPLOAD_SOURCE
    if context.objects.upload_source(namespace, name) is None and not recorded:
        return Pending(
            reason=Reason.NOT_FOUND,
            message=(
                f"VolumeUploadSource {namespace}/{name} does not exist. Try: create it; this continues automatically"
            ),
        )
    return Upload(kept_in=name)


def _of_clone_source(context: ReconcileContext, name: str) -> Clone | Pending | Rejected:
    namespace = context.datavolume.metadata.namespace or ""
    found = context.clones.clone_source(namespace, name) if context.clones is not None else None
    if found is None:
        recorded = requested_source(context.prime.annotations) if context.prime is not None else None
        # A VolumeCloneSource names a source of its own namespace; a user may have altered the record.
        if recorded is not None and recorded[0] == namespace:
            return _of_request(recorded)
        return Pending(
            reason=Reason.NOT_FOUND,
            message=(
                f"VolumeCloneSource {namespace}/{name} does not exist. Try: create it; this continues automatically"
            ),
        )
    source = found.spec.source
    if source.kind not in ("PersistentVolumeClaim", "VolumeSnapshot"):
        return Rejected.because(
            InvalidManifest(
                f"a {source.kind} cannot be cloned", where=f"VolumeCloneSource {name}, spec.source",
                remedy="name a PersistentVolumeClaim or a VolumeSnapshot",
            )
        )  # fmt: skip
    kind: CloneKind = "VolumeSnapshot" if source.kind == "VolumeSnapshot" else "PersistentVolumeClaim"
    return Clone(namespace=namespace, name=source.name, kind=kind)


def _of_request(request: tuple[str, str, bool]) -> Clone:
    namespace, name, snapshot = request
    return Clone(namespace=namespace, name=name, kind="VolumeSnapshot" if snapshot else "PersistentVolumeClaim")


def _of_source(
    source: SourceHttp
    | SourceS3
    | SourceGcs
    | SourceRegistry
    | SourceBlank
    | SourcePvc
    | SourceSnapshot
    | SourceUpload
    | SourceImageio
    | SourceVddk,
    platform: Platform,
) -> Origin | Rejected:
    match source:
        case SourceHttp():
            return Import(kind=SourceKind.HTTP, source=source)
        case SourceS3():
            return Import(kind=SourceKind.S3, source=source)
        case SourceGcs():
            return Import(kind=SourceKind.GCS, source=source)
        case SourceRegistry():
            if source.url is None and not platform.image_streams:
                return Rejected.because(
                    SourceNotSupported(
                        "image streams exist only in OpenShift clusters",
                        where="spec.source.registry.imageStream",
                        remedy="set the image's url",
                    )
                )
            return Import(kind=SourceKind.REGISTRY, source=source)
        case SourceBlank():
            return Import(kind=SourceKind.BLANK, source=source)
        case SourcePvc():
            return Clone(namespace=source.namespace, name=source.name)
        case SourceUpload():
            return Upload()
        case SourceSnapshot():
            if platform.cluster:
                return Clone(namespace=source.namespace, name=source.name, kind="VolumeSnapshot")
            return Rejected.because(
                SourceNotSupported(
                    "there are no volume snapshots outside of a cluster",
                    where="spec.source.snapshot",
                    remedy="clone the volume itself (source.pvc)",
                )
            )
        case SourceImageio() | SourceVddk():
            kind = "imageio" if isinstance(source, SourceImageio) else "vddk"
            return Rejected.because(
                SourceNotSupported(f"this build cannot read from {kind}", where=f"spec.source.{kind}")
            )


# --- DataSources ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UnresolvedDataSource:
    """A DataSource that does not resolve."""

    reason: Literal[
        Reason.NO_SOURCE,
        Reason.NOT_FOUND,
        Reason.SELF_REFERENCE,
        Reason.CROSS_NAMESPACE_REFERENCE,
        Reason.MAX_REFERENCE_DEPTH_REACHED,
    ]
    message: str


def resolve_data_source(data_source: DataSource, objects: Lister) -> SourcePvc | SourceSnapshot | UnresolvedDataSource:
    """Resolve a DataSource to its PVC or snapshot.

    As in KubeVirt's CDI a DataSource may refer to another one in its namespace, which must not refer to a third.
    """
    end = data_source.volume
    if end is not None:
        return end
    reference = data_source.reference
    if reference is None:
        return UnresolvedDataSource(reason=Reason.NO_SOURCE, message="it names no source. Try: set spec.source")
    own = (data_source.metadata.namespace, data_source.metadata.name)
    if (reference.namespace, reference.name) == own:
        return UnresolvedDataSource(reason=Reason.SELF_REFERENCE, message="it refers to itself. Try: name a volume")
    if reference.namespace != own[0]:
        return UnresolvedDataSource(
            reason=Reason.CROSS_NAMESPACE_REFERENCE,
            message=f"it refers to namespace {reference.namespace}. Try: refer to a DataSource of its own namespace",
        )
    target = objects.data_source(reference.namespace, reference.name)
    if target is None:
        return UnresolvedDataSource(
            reason=Reason.NOT_FOUND,
            message=f"DataSource {reference.namespace}/{reference.name} does not exist. Try: create it",
        )
    end = target.volume
    if end is not None:
        return end
    if target.reference is None:
        return UnresolvedDataSource(reason=Reason.NO_SOURCE, message=f"DataSource {reference.name} names no source")
    return UnresolvedDataSource(
        reason=Reason.MAX_REFERENCE_DEPTH_REACHED,
        message="it refers to a reference. Try: refer to the last DataSource of the chain",
    )


# --- clones -----------------------------------------------------------------------------------------------------


def check_clone_source(context: ReconcileContext, clone: Clone) -> PVC | Pending | Rejected:
    """Return the source PVC if it can be cloned now: it exists, is bound and populated; its size does not matter."""
    metadata, objects = context.datavolume.metadata, context.objects
    place = f"{clone.namespace}/{clone.name}"
    if (clone.namespace, clone.name) == (metadata.namespace, metadata.name):
        return Rejected.because(InvalidManifest("a volume cannot be cloned from itself", where="spec.source.pvc"))
    claim = objects.claim(clone.namespace, clone.name)
    if claim is None:
        return source_missing("pvc", clone)
    if claim.deleting:
        return source_missing("pvc", clone, deleting=True)
    if claim.phase != "Bound":
        return Pending(reason=Reason.PENDING, message=f"the source PVC {place} is not bound")
    unready = unpopulated_reason(claim, objects)
    if unready is not None:
        return Pending(
            reason=EventReason.CLONE_SOURCE_IN_USE,
            message=f"the source PVC {place} is not populated: {unready}",
            event=EventReason.CLONE_SOURCE_IN_USE,
        )
    return claim


def check_copied_source(context: ReconcileContext, clone: Clone) -> PVC | Pending | Rejected:
    """Return the source PVC of a clone on one machine if it can be copied now, and is not larger than the target."""
    claim, dv = check_clone_source(context, clone), context.datavolume
    if not isinstance(claim, PVC):
        return claim
    size = requested_size(dv)
    permissive = (dv.metadata.annotations or {}).get(ANN_PERMISSIVE_CLONE) == "true"
    if size is not None and claim.capacity is not None and size < claim.capacity and not permissive:
        return Rejected.because(
            TargetTooSmall(
                f"the source PVC has {claim.capacity} bytes ({human(claim.capacity)}), "
                f"only {size} bytes ({human(size)}) are requested",
                where=f"{clone.namespace}/{clone.name}",
                remedy=f"request at least {human(claim.capacity)}",
            )
        )
    return claim


def source_missing(kind: Literal["pvc", "snapshot"], clone: Clone, *, deleting: bool = False) -> Pending:
    """Return what a clone waits for whose source does not exist, or not much longer."""
    what = "PVC" if kind == "pvc" else "VolumeSnapshot"
    found = "is being deleted" if deleting else "does not exist. Try: create it; the clone starts automatically"
    return Pending(
        reason=EventReason.CLONE_WITHOUT_SOURCE,
        message=f"the source {what} {clone.namespace}/{clone.name} {found}",
        event=EventReason.CLONE_WITHOUT_SOURCE,
        words=WITHOUT_SOURCE.format(kind=kind, source_name=clone.name),
    )


def unpopulated_reason(claim: PVC, objects: Lister) -> str | None:
    """Return why a source PVC is not populated, or None if it is."""
    if claim.controller_kind == "DataVolume":
        owner = objects.data_volume(claim.namespace, claim.controller_name)
        phase = (owner.status.phase if owner and owner.status else None) or "new"
        return None if phase == Phase.SUCCEEDED else f"its DataVolume is {phase}"
    pod = claim.annotations.get(ANN_POD_PHASE)
    return None if pod in (None, "Succeeded") else f"its worker is {pod}"


def requested_size(dv: DataVolume) -> int | None:
    """Return the size in bytes that the manifest requests."""
    claim = dv.spec.claim
    size = claim.size if claim else None
    return size.bytes if size is not None else None


def _own_claim(context: ReconcileContext) -> PVC | None:
    metadata = context.datavolume.metadata
    claim = context.objects.claim(metadata.namespace or "", metadata.name or "")
    return claim if claim is not None and (context.synthetic or claim.controller_uid == metadata.uid) else None
