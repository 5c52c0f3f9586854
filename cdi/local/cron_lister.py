"""What the reconciler of DataImportCrons sees of one machine."""

# ruff: noqa: ARG002  parameters of the protocol that a machine has no objects for
from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeVar

from cdi.api.annotations import read_origin
from cdi.api.core import PersistentVolumeClaim
from cdi.api.dataimportcron import DataImportCron
from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.meta import KubeObject
from cdi.api.names import LABEL_DATA_IMPORT_CRON
from cdi.client.status_view import phase_of
from cdi.local.home import Home
from cdi.local.lister import PLATFORM, Observed
from cdi.local.tasks import Tasks, task_directory
from cdi.program_versions import program_versions
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.dataimportcron.context import Body, CloneRight, CronContext, ImageStream, LocalTask, settings_of
from cdi.reconcile.settings import ResolvedConfig
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.types import PVC, Input
from cdi.store.base import Key

if TYPE_CHECKING:
    from cdi.api.storageprofile import StorageProfile
    from cdi.reconcile.clone.types import Snapshot
    from cdi.reconcile.storage.profiles import SnapshotClass

M = TypeVar("M", bound=KubeObject)


class LocalCronLister:
    """Implementation of `cdi.reconcile.dataimportcron.context.CronLister` from the objects and tasks of one machine."""

    def __init__(self, observed: Observed, tasks: Tasks) -> None:
        self._observed = observed
        self._tasks = tasks

    def cron(self, namespace: str, name: str) -> DataImportCron | None:
        return self._observed.model(Key("dataimportcrons", namespace, name), DataImportCron)

    def data_volume(self, namespace: str, name: str) -> DataVolume | None:
        return self._observed.data_volume(namespace, name)

    def data_volumes_of(self, namespace: str, cron: str) -> tuple[DataVolume, ...]:
        return tuple(self._labelled("datavolumes", namespace, cron, DataVolume))

    def claim(self, namespace: str, name: str) -> PVC | None:
        return self._observed.claim(namespace, name)

    def claims_of(self, namespace: str, cron: str) -> tuple[PVC, ...]:
        found = self._labelled("persistentvolumeclaims", namespace, cron, PersistentVolumeClaim)
        claims = [self._observed.claim(namespace, model.metadata.name or "") for model in found]
        return tuple(claim for claim in claims if claim is not None)

    def data_source(self, namespace: str, name: str) -> DataSource | None:
        return self._observed.data_source(namespace, name)

    def data_sources_of(self, namespace: str, cron: str) -> tuple[DataSource, ...]:
        return tuple(self._labelled("datasources", namespace, cron, DataSource))

    def input(self, ref: ObjectRef) -> Input | None:
        return self._observed.input(ref)

    def descendants_of(self, namespace: str, cron: str) -> tuple[PVC, ...]:
        found = []
        for key in sorted(self._observed.keys("persistentvolumeclaims")):
            origin = read_origin(self._observed.body(key))
            if origin is not None and (origin.namespace, origin.cron) == (namespace, cron):
                claim = self._observed.claim(key.namespace, key.name)
                if claim is not None:
                    found.append(claim)
        return tuple(found)

    def clones_in_progress(self, namespace: str, name: str) -> tuple[str, ...]:
        return tuple(
            f"{key.namespace}/{key.name}"
            for key in sorted(self._observed.keys("datavolumes"))
            if self._clones(key, namespace, name)
        )

    def local_task(self, task: Literal["poll", "proof"], uid: str) -> LocalTask | None:
        return self._tasks.observe(task, uid)

    def _labelled(self, plural: str, namespace: str, cron: str, kind: type[M]) -> Iterator[M]:
        for key in sorted(self._observed.keys(plural)):
            labels = ((self._observed.body(key) or {}).get("metadata") or {}).get("labels") or {}
            if key.namespace == namespace and labels.get(LABEL_DATA_IMPORT_CRON) == cron:
                model = self._observed.model(key, kind)
                if model is not None:
                    yield model

    def _clones(self, key: Key, namespace: str, name: str) -> bool:
        """Return whether a DataVolume is an unfinished clone of this PVC."""
        body = self._observed.body(key)
        if body is None or phase_of(body).final:
            return False
        spec = body.get("spec") or {}
        source = ((spec.get("source") or {}).get("pvc")) or {}
        if source:
            return bool(source.get("name") == name and (source.get("namespace") or key.namespace) == namespace)
        reference = spec.get("sourceRef")
        if not reference:
            return False
        # The source was resolved when the PVC was created; the DataSource may have changed since.
        claim = self._observed.body(Key("persistentvolumeclaims", key.namespace, key.name))
        origin = read_origin(claim)
        if origin is not None:
            return (origin.namespace, origin.version) == (namespace, name)
        data_source = self.data_source(reference.get("namespace") or key.namespace, reference.get("name") or "")
        volume = data_source.volume if data_source is not None else None
        return volume is not None and (volume.namespace, volume.name) == (namespace, name)

    # A machine has no snapshots, storage classes, Jobs or pods, and one user; the reconciler asks for none of these.

    def snapshot(self, namespace: str, name: str) -> Snapshot | None:
        return None

    def snapshots_of(self, namespace: str, cron: str) -> tuple[Snapshot, ...]:
        return ()

    def storage_class(self, name: str) -> StorageClass | None:
        return None

    def default_storage_class(self, *, virtualization: bool) -> StorageClass | None:
        return None

    def storage_profile(self, storage_class: str) -> StorageProfile | None:
        return None

    def snapshot_classes(self) -> tuple[SnapshotClass, ...]:
        return ()

    def may_clone(self, right: CloneRight) -> bool | None:
        """Return True: all objects of a machine belong to one user."""
        return True

    def image_stream(self, namespace: str, name: str) -> ImageStream | None:
        return ImageStream(failure="an ImageStream exists only in OpenShift. Try: set source.registry.url")

    def cron_jobs_of(self, namespace: str, cron: str) -> tuple[Body, ...]:
        return ()

    def jobs_of(self, namespace: str, cron: str) -> tuple[Body, ...]:
        return ()

    def job_pods(self, job: str) -> tuple[Body, ...]:
        return ()

    def pod(self, namespace: str, name: str) -> Body | None:
        return None

    def running_polls(self) -> Mapping[str, int]:
        return {}

    def waiting_polls(self, now: float) -> Mapping[str, int]:
        return {}

    def running_proofs(self) -> Mapping[str, int]:
        return {}

    def waiting_proofs(self, now: float) -> Mapping[str, int]:
        return {}

    def offers_device(self, resource: str) -> bool:
        return False


def cron_context(
    home: Home, cron: DataImportCron, lister: LocalCronLister, config: ResolvedConfig, now: float
) -> CronContext:
    """Return the input for reconciling a DataImportCron of this machine."""
    settings, problem = settings_of(cron.metadata.annotations)
    return CronContext(
        now=now,
        cron=cron,
        objects=lister,
        settings=settings,
        settings_problem=problem,
        config=config,
        platform=PLATFORM,
        poll_inputs=str(task_directory(home, "poll", cron.metadata.uid or "").inputs),
        versions=program_versions(),
        zone=datetime.now().astimezone().tzinfo or UTC,
    )
