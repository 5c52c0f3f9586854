"""Prometheus metrics of the controller.

What can be counted in the watch caches is counted at each scrape, and so never contradicts them; only events (a
reconcile, the end of an attempt) are counted as they happen. Names that begin with ``kubevirt_cdi_`` are those of
KubeVirt's CDI, for its alerts and dashboards. ``docs/reference/metrics.md`` explains all of them.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import STORAGE_CLASS
from cdi.api.errors import CdiError, InvalidManifest
from cdi.api.kinds import (
    CDIS,
    CSI_DRIVERS,
    DATA_IMPORT_CRONS,
    DATA_VOLUMES,
    NODES,
    PODS,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOT_CLASSES,
    Object,
    Resource,
)
from cdi.api.phases import Phase
from cdi.api.storageprofile import StorageProfile
from cdi.api.timestamps import parse_timestamp
from cdi.api.validation import parse
from cdi.controller.result import TerminalError
from cdi.reconcile.storage.classes import StorageClass, default_class
from cdi.reconcile.storage.profiles import SnapshotClass, is_complete, supports_rwx, supports_smart_clone

Values = Callable[[Resource], Iterable[Object]]
"""Function that returns all known objects of a resource."""
SUCCEEDED = "Succeeded"
"""Outcome of an attempt that filled the volume; any other outcome is an error code."""
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAITING = ("", Phase.PENDING)


class Metrics:
    """All of the controller's metrics, in a registry of their own (served by `serving`)."""

    def __init__(self, values: Values, *, version: str, waiting: Callable[[], int], in_work: Callable[[], int]) -> None:
        """Register the metrics.

        Args:
            values: Called for all known objects of a resource.
            version: Version of the controller.
            waiting: Called for the number of keys that are due and not taken.
            in_work: Called for the number of keys that are taken.

        """
        self.registry = CollectorRegistry()
        self._durations = Histogram(
            "cdi_reconcile_duration_seconds",
            "Time to reconcile one object in seconds, including the writes",
            ["kind"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._reconciles = Counter(
            "cdi_reconciles",
            "Reconciles, by kind of request and by what led to them first: a resource that changed, or another trigger",
            ["kind", "trigger"],
            registry=self.registry,
        )
        self._failures = Counter(
            "cdi_reconcile_failures",
            "Failed reconciles, by error code; each is retried",
            ["kind", "code"],
            registry=self.registry,
        )
        self._imports = Counter(
            "cdi_imports",
            "Finished attempts to populate a volume, by outcome: Succeeded, or the error's code",
            ["outcome"],
            registry=self.registry,
        )
        self.registry.register(_Observed(values, version=version, waiting=waiting, in_work=in_work))
        ProcessCollector(registry=self.registry)

    @contextlib.contextmanager
    def observe_reconcile(self, kind: str, *, trigger: str) -> Iterator[None]:
        """Count and time a reconcile of an object of this kind, and count its failure if it raises an error."""
        self._reconciles.labels(kind, trigger).inc()
        began = time.perf_counter()
        try:
            yield
        except (CdiError, TerminalError) as error:
            self._failures.labels(kind, error.code).inc()
            raise
        finally:
            self._durations.labels(kind).observe(time.perf_counter() - began)

    def count_attempt(self, outcome: str) -> None:
        """Count an attempt that has ended with `outcome`: `SUCCEEDED` or an error code."""
        self._imports.labels(outcome).inc()


class _Observed(Collector):
    """Gauges that are computed from the caches at each scrape."""

    def __init__(self, values: Values, *, version: str, waiting: Callable[[], int], in_work: Callable[[], int]) -> None:
        self._values = values
        self._version = version
        self._waiting = waiting
        self._in_work = in_work

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the caches are empty when the collector is registered."""
        return ()

    def collect(self) -> Iterable[Metric]:
        classes = [StorageClass.read(body) for body in self._values(STORAGE_CLASSES)]
        volumes = list(self._values(DATA_VOLUMES))
        yield _gauge("cdi_build_info", "Version of the controller", {"version": self._version}, 1)
        yield _gauge("cdi_queue_depth", "Objects in the work queue that are due", {}, self._waiting())
        yield _gauge("cdi_reconciles_in_progress", "Objects that are being reconciled", {}, self._in_work())
        yield self._ready()
        yield self._profiles(classes)
        lacking = _pending_without_class(volumes, classes)
        text = "Number of DataVolumes pending for default storage class to be configured"
        yield _gauge("kubevirt_cdi_datavolume_pending", text, {}, len(lacking))
        yield self._crons()
        yield from self._golden_dates()
        yield self._phases(volumes)
        yield self._restarts(volumes)
        yield self._pods()

    def _ready(self) -> Metric:
        """Return 1 or 0, or -1 if there is no CDI object or its state is unknown; the alert is on 0."""
        oldest = min(
            (body for body in self._values(CDIS) if not body["metadata"].get("deletionTimestamp")),
            key=lambda body: body["metadata"].get("creationTimestamp") or "",
            default=None,
        )
        available = _condition(oldest, "Available") if oldest is not None else None
        value = -1 if available is None else int(available.get("status") == "True")
        return _gauge("kubevirt_cdi_cr_ready", "CDI install ready", {}, value)

    def _profiles(self, classes: Iterable[StorageClass]) -> Metric:
        labels = ("storageclass", "provisioner", "complete", "default", "virtdefault", "rwx", "smartclone", "degraded")
        found = GaugeMetricFamily(
            "kubevirt_cdi_storageprofile_info",
            "StorageProfiles: whether they are complete, defaults, shared among nodes, cloned by the storage itself, "
            "or less than virtual machines want",
            labels=labels,
        )
        profiles = {body["metadata"]["name"]: body for body in self._values(STORAGE_PROFILES)}
        drivers = frozenset(body["metadata"]["name"] for body in self._values(CSI_DRIVERS))
        snapshots = [SnapshotClass.read(body) for body in self._values(VOLUME_SNAPSHOT_CLASSES)]
        # A cluster with one node has no live migration, so the lack of shared volumes is no limitation.
        alone = sum(1 for _ in self._values(NODES)) == 1
        for one in classes:
            profile = _profile(profiles.get(one.name))
            if profile is None:
                continue
            many = supports_rwx(profile)
            smart = supports_smart_clone(profile, csi_drivers=drivers, snapshot_classes=snapshots)
            degraded = not smart or not (many or alone)
            flags = (is_complete(profile), one.is_default, one.is_virt_default, many, smart, degraded)
            found.add_metric([one.name, one.provisioner, *map(_flag, flags)], 1)
        return found

    def _crons(self) -> Metric:
        """Return one series for each DataImportCron: 1 unless its condition UpToDate is True."""
        found = GaugeMetricFamily(
            "kubevirt_cdi_dataimportcron_outdated",
            "DataImportCron has an outdated import",
            labels=("namespace", "cron_name", "pending"),
        )
        for body in self._values(DATA_IMPORT_CRONS):
            metadata = body["metadata"]
            current = (_condition(body, "UpToDate") or {}).get("status") == "True"
            pending = not current and _lacks_class(body)
            found.add_metric([metadata["namespace"], metadata["name"], _flag(pending)], 0 if current else 1)
        return found

    def _golden_dates(self) -> Iterable[Metric]:
        """Return the dates of versions of golden images whose volume exists."""
        labels = ("namespace", "cron_name", "version")
        deprecated = GaugeMetricFamily(
            "cdi_golden_image_deprecation_timestamp_seconds",
            "Deprecation of a version of a golden image, in seconds since the epoch",
            labels=labels,
        )
        ends = GaugeMetricFamily(
            "cdi_golden_image_end_of_life_timestamp_seconds",
            "End of life of a version of a golden image, in seconds since the epoch",
            labels=labels,
        )
        for body in self._values(DATA_IMPORT_CRONS):
            metadata = body["metadata"]
            for version in (body.get("status") or {}).get("versions") or []:
                for gauge, field in ((deprecated, "deprecated"), (ends, "endOfLife")):
                    moment = parse_timestamp(version.get(field))
                    if moment is not None and not version.get("removed"):
                        named = [metadata["namespace"], metadata["name"], version.get("name") or ""]
                        gauge.add_metric(named, moment.timestamp())
        return deprecated, ends

    def _phases(self, volumes: Iterable[Object]) -> Metric:
        found = GaugeMetricFamily("cdi_datavolumes", "DataVolumes by phase", labels=("phase",))
        tally = Tally((body.get("status") or {}).get("phase") or "New" for body in volumes)
        for phase, count in sorted(tally.items()):
            found.add_metric([phase], count)
        return found

    def _restarts(self, volumes: Iterable[Object]) -> Metric:
        """Return the restarts of unfinished DataVolumes.

        DataVolumes without a restart are left out, so that not every volume has a time series.
        """
        found = GaugeMetricFamily(
            "cdi_datavolume_restarts",
            "Worker restarts of an unfinished DataVolume; only DataVolumes with restarts have a value",
            labels=("namespace", "name", "operation"),
        )
        for body in volumes:
            status = body.get("status") or {}
            restarts = status.get("restartCount") or 0
            if restarts and status.get("phase") != Phase.SUCCEEDED:
                metadata = body["metadata"]
                found.add_metric([metadata["namespace"], metadata["name"], _operation(body)], restarts)
        return found

    def _pods(self) -> Metric:
        found = GaugeMetricFamily("cdi_worker_pods", "Worker pods by phase", labels=("phase",))
        tally = Tally((body.get("status") or {}).get("phase") or "Pending" for body in self._values(PODS))
        for phase, count in sorted(tally.items()):
            found.add_metric([phase], count)
        return found


def _gauge(name: str, text: str, labels: Mapping[str, str], value: float) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=tuple(labels))
    gauge.add_metric(list(labels.values()), value)
    return gauge


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _condition(body: Object, kind: str) -> Mapping[str, Any] | None:
    conditions = (body.get("status") or {}).get("conditions") or []
    return next((one for one in conditions if one.get("type") == kind), None)


def _profile(body: Object | None) -> StorageProfile | None:
    if body is None:
        return None
    try:
        model = parse(body)
    except InvalidManifest:
        return None
    return model if isinstance(model, StorageProfile) else None


def _pending_without_class(volumes: Iterable[Object], classes: list[StorageClass]) -> set[tuple[str, str]]:
    """Return namespace and name of pending DataVolumes that have neither a storage class nor a default class."""
    defaults = {form: default_class(classes, virtualization=form != "archive") for form in ("kubevirt", "archive")}
    found = set()
    for body in volumes:
        spec, status = body.get("spec") or {}, body.get("status") or {}
        claim = spec.get("pvc") or spec.get("storage") or {}
        unnamed = claim.get("storageClassName") is None
        if (
            unnamed
            and (status.get("phase") or "") in _WAITING
            and defaults.get(spec.get("contentType", "kubevirt")) is None
        ):
            found.add((body["metadata"]["namespace"], body["metadata"]["name"]))
    return found


def _lacks_class(cron: Object) -> bool:
    """Return whether a DataImportCron names no storage class and has not found a default class yet."""
    if STORAGE_CLASS.key in annotations_of(cron):
        return False
    template = ((cron.get("spec") or {}).get("template") or {}).get("spec") or {}
    return not (template.get("storage") or template.get("pvc") or {}).get("storageClassName")


def _operation(body: Object) -> str:
    spec = body.get("spec") or {}
    source = spec.get("source") or {}
    if spec.get("sourceRef") or source.keys() & {"pvc", "snapshot"}:
        return "clone"
    return "upload" if "upload" in source else "import"
