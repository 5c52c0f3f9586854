"""Conversion of a DataVolume to the `Job` of a worker."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import assert_never

from cdi.api.datavolume import ContentType, DataVolume
from cdi.api.digest import Digest
from cdi.api.errors import InvalidManifest, TargetUnsuitable
from cdi.api.job import (
    BlankSourceSpec,
    BlockTargetSpec,
    DirectoryTargetSpec,
    FileSourceSpec,
    FileTargetSpec,
    GcsSourceSpec,
    HttpSourceSpec,
    Job,
    RegistrySourceSpec,
    S3SourceSpec,
    SourceSpec,
    StreamSourceSpec,
    TargetSpec,
)
from cdi.api.names import ANN_CONTENT_TYPE
from cdi.api.overhead import usable
from cdi.api.policy import CHECKSUM, INSECURE, PolicyAnnotations, parse_policy_annotations
from cdi.api.poll import PollJob
from cdi.api.sources import SourceBlank, SourceGcs, SourceHttp, SourceRegistry, SourceS3
from cdi.reconcile.actions import CloneJob, Mount, Work
from cdi.reconcile.context import InputLister, ReconcileContext
from cdi.reconcile.datavolume.upload import UploadRequest
from cdi.reconcile.pods.inputs import InputMissing, Inputs
from cdi.reconcile.pods.types import VolumeLayout
from cdi.reconcile.settings import Platform, ResolvedConfig
from cdi.reconcile.source import requested_size
from cdi.reconcile.storage.claim_defaults import overhead_of
from cdi.reconcile.types import PVC, Clone, ExternalPopulator, Import, Origin, Pending, Upload

SECTOR = 512
"""Sector size in bytes; a disk's size is a multiple of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """The input of a worker, with the files it needs."""

    work: Work
    mounts: tuple[Mount, ...] = ()
    fingerprint: str = ""


def prepare(
    context: ReconcileContext, claim: PVC, origin: Origin, *, source: PVC | None, upload: UploadRequest | None
) -> WorkerSpec | Pending:
    """Build the work that fills `claim`.

    Args:
        context: The observed state.
        claim: The PVC to fill.
        origin: The resolved source.
        source: The PVC to clone, if the source is one.
        upload: The upload request of a local client.

    Returns:
        The work, or what to wait for if a Secret or ConfigMap is missing or lacks a key.

    Raises:
        InvalidManifest: An annotation of the DataVolume is invalid.

    """
    assert context.layout is not None
    try:
        return _Builder(
            context.datavolume, context.objects, context.config, context.platform, context.layout, claim
        ).build(origin, source, upload)
    except InputMissing as missing:
        return missing.wait


@dataclass(frozen=True, slots=True, kw_only=True)
class PollSpec:
    """The input of a poll, with the files it needs."""

    work: PollJob
    mounts: tuple[Mount, ...] = ()


def prepare_poll(
    identity: str,
    dv: DataVolume,
    source: SourceHttp | SourceS3 | SourceGcs | SourceRegistry,
    objects: InputLister,
    config: ResolvedConfig,
    platform: Platform,
    *,
    inputs: str,
) -> PollSpec | Pending:
    """Build the poll of a DataImportCron's source, with the same settings as the import of it.

    Args:
        identity: UID of the DataImportCron.
        dv: The DataVolume that would be imported, with the policy annotations.
        source: Its source.
        objects: The Secrets and ConfigMaps.
        config: The resolved CDIConfig.
        platform: Capabilities of the environment.
        inputs: Parent directory of the mounts.

    Returns:
        The poll, or what it is waiting for.

    Raises:
        CdiError: The template or its annotations are invalid.

    """
    # A poll writes nothing: only the source's part of the job is built.
    layout = VolumeLayout(disk="", directory="", journal=None, scratch=None, inputs=inputs)
    nothing = PVC(namespace=dv.metadata.namespace or "", name="", uid=identity, phase="Pending")
    try:
        return _Builder(dv, objects, config, platform, layout, nothing).build_poll(source)
    except InputMissing as missing:
        return missing.wait


def with_attempt(prepared: WorkerSpec, number: int) -> WorkerSpec:
    """Return the same work for attempt `number` (from 1).

    The fingerprint stays the same, because the inputs have not changed.
    """
    work = prepared.work
    if number == 1 or not isinstance(work, Job):
        return prepared
    return replace(prepared, work=replace(work, continued=True))


def content_type(dv: DataVolume) -> ContentType:
    return ContentType.ARCHIVE if dv.spec.content_type == ContentType.ARCHIVE else ContentType.KUBEVIRT


def disk_size(dv: DataVolume, capacity: int | None) -> int | None:
    """Return the disk's size in bytes: the requested size, else the PVC's capacity, rounded up to whole sectors."""
    size = requested_size(dv)
    if size is None:
        size = capacity
    return None if size is None else -(-size // SECTOR) * SECTOR


def file_size(claim: PVC, config: ResolvedConfig) -> int | None:
    """Return the size in bytes of the largest disk image that fits the PVC's filesystem after overhead.

    It is computed from the requested size, so a volume that was provisioned larger gets a disk of the same size.
    """
    asked = claim.requested if claim.requested is not None else claim.capacity
    if asked is None:
        return None
    if claim.capacity is not None:
        asked = min(asked, claim.capacity)
    overhead = overhead_of(claim.storage_class, config)
    # `usable` rounds down to whole MiB and gives nothing below one; so small a volume offers what it has.
    return usable(asked, overhead) or int(asked / (1 + overhead)) // SECTOR * SECTOR


class _Builder:
    """Builder of one job."""

    def __init__(
        self,
        dv: DataVolume,
        objects: InputLister,
        config: ResolvedConfig,
        platform: Platform,
        layout: VolumeLayout,
        claim: PVC,
    ) -> None:
        self._dv = dv
        self._claim = claim
        self._layout = layout
        self._config = config
        self._platform = platform
        self._inputs = Inputs(
            objects,
            dv.metadata.namespace or "",
            layout.inputs,
            trusted_ca=config.trusted_ca,
            local_files=platform.local_files,
        )

    def build_poll(self, source: SourceHttp | SourceS3 | SourceGcs | SourceRegistry) -> PollSpec:
        annotations = parse_policy_annotations(self._dv.metadata.annotations)
        spec = self._source(source, annotations)
        # The manifest names the content of a registry, so nothing beside it is read.
        keyring = None if isinstance(source, SourceRegistry) else self._inputs.keyring(annotations)
        policy = annotations.policy(preallocation=False, keyring=keyring)
        if keyring is None:
            policy = replace(policy, signature="ignore")
        return PollSpec(work=PollJob(id=self._claim.uid, source=spec, policy=policy), mounts=tuple(self._inputs.mounts))

    def build(self, origin: Origin, source: PVC | None, upload: UploadRequest | None) -> WorkerSpec:
        policy_annotations = parse_policy_annotations(self._dv.metadata.annotations)
        match origin:
            case Clone():
                assert source is not None
                work: Work = self._clone(source)
            case Import():
                work = self._job(self._source(origin.source, policy_annotations), policy_annotations)
            case Upload():
                work = self._job(self._upload(upload), policy_annotations)
            case ExternalPopulator():
                raise InvalidManifest("another populator fills this volume", where="spec.dataSourceRef")
            case _:
                assert_never(origin)
        text = "\n".join([work.to_json(), *self._inputs.versions])
        return WorkerSpec(
            work=work,
            mounts=tuple(self._inputs.mounts),
            fingerprint=hashlib.sha256(text.encode()).hexdigest()[:32],
        )

    def _job(self, source: SourceSpec, policy_annotations: PolicyAnnotations) -> Job:
        content = content_type(self._dv)
        layout = self._layout
        checksum = _checksum(self._dv, policy_annotations)
        return Job(
            id=self._claim.uid,
            source=source,
            target=self._target(content),
            content_type=content.value,
            size=self._size(),
            checksum=checksum,
            policy=policy_annotations.policy(
                preallocation=self._preallocation(),
                keyring=self._inputs.keyring(policy_annotations),
                cosign_keys=self._inputs.cosign_keys(policy_annotations, source),
            ),
            # An archive import cannot be resumed, and the directory must contain only the archive's files.
            journal=None if self._platform.cluster and content is ContentType.ARCHIVE else layout.journal,
            scratch=layout.scratch,
        )

    def _target(self, content: ContentType) -> TargetSpec:
        if self._claim.volume_mode == "Block" and self._platform.cluster:
            if content is ContentType.ARCHIVE:
                raise TargetUnsuitable("an archive cannot be unpacked onto a block device", where="volumeMode")
            return BlockTargetSpec(path=self._layout.disk)
        if content is ContentType.ARCHIVE:
            return DirectoryTargetSpec(path=self._layout.directory)
        if not self._platform.cluster:
            return FileTargetSpec(path=self._layout.disk)
        return FileTargetSpec(
            path=self._layout.disk,
            volume=self._claim.capacity or self._claim.requested,
            overhead=int(1000 * overhead_of(self._claim.storage_class, self._config)),
        )

    def _size(self) -> int | None:
        if not self._platform.cluster:
            return disk_size(self._dv, self._claim.capacity)
        return None if self._claim.volume_mode == "Block" else file_size(self._claim, self._config)

    def _clone(self, source: PVC) -> CloneJob:
        if source.path is None:
            raise InvalidManifest(
                "the source volume is not stored on this machine", where=f"{source.namespace}/{source.name}"
            )
        archive = source.annotations.get(ANN_CONTENT_TYPE) == ContentType.ARCHIVE
        return CloneJob(
            id=self._claim.uid,
            source=source.path if archive else f"{source.path}/disk.img",
            target=self._layout.directory if archive else self._layout.disk,
            content="archive" if archive else "kubevirt",
            size=None if archive else disk_size(self._dv, self._claim.capacity),
            preallocation=self._preallocation(),
        )

    def _upload(self, upload: UploadRequest | None) -> SourceSpec:
        if upload is None:
            # In a cluster the upload server is started before a client connects.
            return StreamSourceSpec(descriptor=0)
        if upload.path is not None:
            return FileSourceSpec(path=upload.path)
        return StreamSourceSpec(descriptor=0, length=upload.length)

    def _source(
        self,
        source: SourceHttp | SourceS3 | SourceGcs | SourceRegistry | SourceBlank,
        policy_annotations: PolicyAnnotations,
    ) -> SourceSpec:
        insecure = self._is_allowed_insecure(policy_annotations)
        match source:
            case SourceBlank():
                return BlankSourceSpec()
            case SourceHttp():
                return HttpSourceSpec(
                    url=source.url,
                    credentials=self._inputs.login(source.secret_ref),
                    tls=self._inputs.tls(
                        source.cert_config_map, insecure=bool(source.insecure_skip_verify) or insecure
                    ),
                    proxy=self._config.proxy,
                    headers=tuple(source.extra_headers or ()),
                    secret_header_files=tuple(self._inputs.header_files(source.secret_extra_headers or ())),
                )
            case SourceS3():
                return S3SourceSpec(
                    url=source.url,
                    credentials=self._inputs.login(source.secret_ref),
                    tls=self._inputs.tls(source.cert_config_map, insecure=insecure),
                    proxy=self._config.proxy,
                    region=policy_annotations.region,
                    endpoint=policy_annotations.endpoint,
                    addressing=policy_annotations.addressing,
                    anonymous=policy_annotations.anonymous,
                )
            case SourceGcs():
                return GcsSourceSpec(
                    url=source.url,
                    credentials=self._inputs.service_account(source.secret_ref),
                    tls=self._inputs.tls(None, insecure=insecure),
                    proxy=self._config.proxy,
                    endpoint=policy_annotations.endpoint,
                )
            case SourceRegistry():
                assert source.url is not None
                return RegistrySourceSpec(
                    url=source.url,
                    credentials=self._inputs.login(source.secret_ref, docker=True),
                    tls=self._inputs.tls(source.cert_config_map, insecure=self._is_insecure(source.url) or insecure),
                    proxy=self._config.proxy,
                    architecture=source.platform.architecture if source.platform else None,
                )
            case _:
                assert_never(source)

    def _is_allowed_insecure(self, policy_annotations: PolicyAnnotations) -> bool:
        """Return whether TLS verification may be disabled.

        In a cluster only the administrator can allow that, in CDIConfig.
        """
        if policy_annotations.insecure and not self._platform.local_files:
            raise InvalidManifest(
                "certificate verification cannot be disabled in a cluster",
                where=INSECURE,
                remedy="name the registry in CDIConfig's insecureRegistries, or set the source's insecureSkipVerify",
            )
        return policy_annotations.insecure

    def _is_insecure(self, url: str) -> bool:
        host = url.partition("://")[2].partition("/")[0].lower()
        return host in self._config.insecure_registries

    def _preallocation(self) -> bool:
        asked = self._dv.spec.preallocation
        return self._config.preallocation if asked is None else asked


def _checksum(dv: DataVolume, policy_annotations: PolicyAnnotations) -> str | None:
    own = source_checksum(dv)
    if (
        own is None
        or policy_annotations.checksum is None
        or Digest.parse(own) == Digest.parse(policy_annotations.checksum)
    ):
        return own or policy_annotations.checksum
    raise InvalidManifest(
        f"the source's checksum is {own}, but the annotation {CHECKSUM} is {policy_annotations.checksum}",
        where="metadata.annotations",
        remedy="leave one of them out",
    )


def source_checksum(dv: DataVolume) -> str | None:
    """Return the checksum of an HTTP source; other sources have no such field and use the annotation `CHECKSUM`."""
    http = dv.spec.source.http if dv.spec.source else None
    return http.checksum if http is not None else None
