"""Objects in memory, as a lister of the DataImportCron reconciler and the modules that it is composed of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cdi.api.annotations import GOLDEN_ORIGIN
from cdi.api.dataimportcron import DataImportCron
from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.golden import Origin, parse_golden_settings
from cdi.api.names import LABEL_DATA_IMPORT_CRON
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.versions import History
from cdi.reconcile.settings import Platform
from cdi.reconcile.types import PVC

NOW = 1_800_000_000.0
DAY = 86_400
NAMESPACE, CRON, MANAGED = "images", "fedora-cron", "fedora"
OURS = {LABEL_DATA_IMPORT_CRON: CRON}
URL = {"registry": {"url": "docker://registry/fedora:latest"}}


def digest(number: int) -> str:
    return f"sha256:{number:02x}{'0' * 61}a"


def name(number: int) -> str:
    return f"{MANAGED}-{number:02x}0000000000"


def imported(*numbers: int, now: float = NOW - 100 * DAY, apart: float = DAY) -> History:
    """Return a history in which these versions were imported and offered in this order, one each day."""
    history = History(data_source=MANAGED)
    for step, number in enumerate(numbers):
        moment = now + apart * step
        history = history.found(digest(number), moment).succeeded(name(number), moment + 10, proof=False)
        history = history.offering(name(number), moment + 20)
    return history


class StoredObjects:
    """The objects of one namespace."""

    def __init__(
        self,
        claims: Iterable[PVC] = (),
        snapshots: Iterable[Snapshot] = (),
        data_volumes: Iterable[DataVolume] = (),
        data_sources: Iterable[DataSource] = (),
        crons: Iterable[DataImportCron] = (),
        clones: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.claims = {(one.namespace, one.name): one for one in claims}
        self.snapshots = {(one.namespace, one.name): one for one in snapshots}
        self.data_volumes = {(one.metadata.namespace, one.metadata.name): one for one in data_volumes}
        self.data_sources = {(one.metadata.namespace, one.metadata.name): one for one in data_sources}
        self.crons = {(one.metadata.namespace, one.metadata.name): one for one in crons}
        self.clones = dict(clones or {})

    def cron(self, namespace: str, name: str) -> DataImportCron | None:
        return self.crons.get((namespace, name))

    def claim(self, namespace: str, name: str) -> PVC | None:
        return self.claims.get((namespace, name))

    def claims_of(self, namespace: str, cron: str) -> tuple[PVC, ...]:
        return tuple(
            one
            for (where, _), one in sorted(self.claims.items())
            if where == namespace and one.labels.get(LABEL_DATA_IMPORT_CRON) == cron
        )

    def snapshot(self, namespace: str, name: str) -> Snapshot | None:
        return self.snapshots.get((namespace, name))

    def snapshots_of(self, namespace: str, cron: str) -> tuple[Snapshot, ...]:
        return tuple(
            one
            for (where, _), one in sorted(self.snapshots.items())
            if where == namespace and one.labels.get(LABEL_DATA_IMPORT_CRON) == cron
        )

    def data_volume(self, namespace: str, name: str) -> DataVolume | None:
        return self.data_volumes.get((namespace, name))

    def data_volumes_of(self, namespace: str, cron: str) -> tuple[DataVolume, ...]:
        return tuple(
            one
            for (where, _), one in sorted(self.data_volumes.items())
            if where == namespace and (one.metadata.labels or {}).get(LABEL_DATA_IMPORT_CRON) == cron
        )

    def data_source(self, namespace: str, name: str) -> DataSource | None:
        return self.data_sources.get((namespace, name))

    def data_sources_of(self, namespace: str, cron: str) -> tuple[DataSource, ...]:
        return tuple(
            one
            for (where, _), one in sorted(self.data_sources.items())
            if where == namespace and (one.metadata.labels or {}).get(LABEL_DATA_IMPORT_CRON) == cron
        )

    def descendants_of(self, namespace: str, cron: str) -> tuple[PVC, ...]:
        return tuple(one for _, one in sorted(self.claims.items()) if GOLDEN_ORIGIN.key in one.annotations)

    def clones_in_progress(self, namespace: str, name: str) -> tuple[str, ...]:
        return self.clones.get(f"{namespace}/{name}", ())


def data_import_cron(
    annotations: Mapping[str, str] | None = None, status: Mapping[str, Any] | None = None, **spec: Any
) -> DataImportCron:
    """Return a DataImportCron; `spec` overrides fields, and ``source`` is that of its template."""
    source = spec.pop("source", URL)
    body = {
        "metadata": {"name": CRON, "namespace": NAMESPACE, "uid": "cron-uid", "annotations": dict(annotations or {})},
        "spec": {
            "template": {"spec": {"source": source}},
            "schedule": "",
            "managedDataSource": MANAGED,
            **spec,
        },
    }
    if status is not None:
        body["status"] = dict(status)
    return DataImportCron.model_validate(body)


def data_source(name: str, version: str | None = None, *, kind: str = "pvc", ours: bool = True) -> DataSource:
    source = {kind: {"namespace": NAMESPACE, "name": version}} if version else {}
    return DataSource.model_validate(
        {
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": f"ds-{name}",
                "labels": dict(OURS) if ours else {},
            },
            "spec": {"source": source},
        }
    )


def volume(name: str, *, namespace: str = NAMESPACE, labels: Mapping[str, str] = OURS, **annotations: str) -> PVC:
    """Return a PVC of a version; `annotations` are golden annotations without their prefix."""
    own = {f"cdi.kubevirt.io/golden.{key}": text for key, text in annotations.items()}
    return PVC(namespace=namespace, name=name, uid=f"uid-{name}", phase="Bound", labels=dict(labels), annotations=own)


def clone_of(version: str, name: str, namespace: str = "vms") -> PVC:
    origin = Origin(namespace=NAMESPACE, cron=CRON, version=version, digest="sha256:00")
    return volume(name, namespace=namespace, labels={}, origin=origin.to_json())


def context(
    objects: StoredObjects | None = None,
    annotations: Mapping[str, str] | None = None,
    *,
    now: float = NOW,
    cluster: bool = True,
    problem: str = "",
    **cron: Any,
) -> CronContext:
    """Return the input of a reconcile; golden annotations are given without their prefix."""
    own = {f"cdi.kubevirt.io/golden.{key}": text for key, text in (annotations or {}).items()}
    return CronContext(
        now=now,
        cron=data_import_cron(own, **cron),
        objects=objects or StoredObjects(),
        settings=parse_golden_settings(own),
        settings_problem=problem,
        platform=Platform(cluster=cluster),
    )
