"""What the controller tells Prometheus.

What can be counted from the watch caches is counted when it is asked for, and so never contradicts them; only what
happens and is gone (a reconcile, an attempt's end) is counted as it happens.  Names that begin with ``kubevirt_cdi_``
are those of KubeVirt's CDI, for its alerts and dashboards.  ``docs/reference/metrics.md`` explains all of them.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter as Tally
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from cdi.api.errors import CdiError, InvalidManifest
from cdi.api.phases import Phase
from cdi.api.storageprofile import StorageProfile
from cdi.api.validation import parse
from cdi.kube.resources import (
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
from cdi.reconcile.storageclass import StorageClass, default_class
from cdi.reconcile.storageprofile import SnapshotClass, clones_fast, complete, shared

Values = Callable[[Resource], Iterable[Object]]
"""All objects of a resource that are known."""
SUCCEEDED = "Succeeded"
"""The outcome of an attempt that brought the volume's content; any other is an error's code."""
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAITING = ("", Phase.PENDING)


class Metrics:
    """All of the controller's metrics, in a registry of their own (`serving` serves it)."""

    def __init__(self, values: Values, *, version: str, waiting: Callable[[], int], in_work: Callable[[], int]) -> None:
        """`waiting` and `in_work` are the work queue's: keys that are due and not taken, and keys that are taken."""
        self.registry = CollectorRegistry()
        self._durations = Histogram(
            "cdi_reconcile_duration_seconds",
            "How long the controller looked at one object, the writes that followed included",
            ["kind"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._failures = Counter(
            "cdi_reconcile_failures",
            "Looks at an object that could not be carried out, by the error's code; they are repeated",
            ["kind", "code"],
            registry=self.registry,
        )
        self._imports = Counter(
            "cdi_imports",
            "Attempts to bring a volume's content that have ended, by outcome: Succeeded, or the error's code",
            ["outcome"],
            registry=self.registry,
        )
        self.registry.register(_Observed(values, version=version, waiting=waiting, in_work=in_work))
        ProcessCollector(registry=self.registry)

    @contextlib.contextmanager
    def reconciling(self, kind: str) -> Iterator[None]:
        """Time a reconcile of an object of this kind; one that raises an error is counted as a failure too."""
        began = time.perf_counter()
        try:
            yield
        except CdiError as error:
            self._failures.labels(kind, error.code).inc()
            raise
        finally:
            self._durations.labels(kind).observe(time.perf_counter() - began)

    def ended(self, outcome: str) -> None:
        """An attempt has ended: `SUCCEEDED` or an error's code."""
        self._imports.labels(outcome).inc()


class _Observed(Collector):
    """Gauges out of the caches, computed when they are asked for."""

    def __init__(self, values: Values, *, version: str, waiting: Callable[[], int], in_work: Callable[[], int]) -> None:
        self._values = values
        self._version = version
        self._waiting = waiting
        self._in_work = in_work

    def describe(self) -> Iterable[Metric]:
        """None in advance: at the start the caches are empty."""
        return ()

    def collect(self) -> Iterable[Metric]:
        classes = [StorageClass.read(body) for body in self._values(STORAGE_CLASSES)]
        volumes = list(self._values(DATA_VOLUMES))
        yield _gauge("cdi_build_info", "The controller's version", {"version": self._version}, 1)
        yield _gauge(
            "cdi_queue_depth", "Objects that are due to be looked at and wait for their turn", {}, self._waiting()
        )
        yield _gauge("cdi_reconciles_in_progress", "Objects that are being looked at", {}, self._in_work())
        yield self._ready()
        yield self._profiles(classes)
        lacking = _lacking(volumes, classes)
        text = "Number of DataVolumes pending for default storage class to be configured"
        yield _gauge("kubevirt_cdi_datavolume_pending", text, {}, len(lacking))
        yield self._crons(lacking)
        yield self._phases(volumes)
        yield self._restarts(volumes)
        yield self._pods()

    def _ready(self) -> Metric:
        """1, 0, or -1 where nobody has looked yet or there is no CDI object: the alert is for 0."""
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
        # With one node nothing can be moved to another, so nothing is missed.
        alone = sum(1 for _ in self._values(NODES)) == 1
        for one in classes:
            profile = _profile(profiles.get(one.name))
            if profile is None:
                continue
            many = shared(profile)
            smart = clones_fast(profile, csi_drivers=drivers, snapshot_classes=snapshots)
            degraded = not smart or not (many or alone)
            flags = (complete(profile), one.is_default, one.is_virt_default, many, smart, degraded)
            found.add_metric([one.name, one.provisioner, *map(_flag, flags)], 1)
        return found

    def _crons(self, lacking: Container[tuple[str, str]]) -> Metric:
        found = GaugeMetricFamily(
            "kubevirt_cdi_dataimportcron_outdated",
            "DataImportCron has an outdated import",
            labels=("namespace", "cron_name", "pending"),
        )
        for body in self._values(DATA_IMPORT_CRONS):
            metadata, status = body["metadata"], body.get("status") or {}
            imports = [one.get("DataVolumeName") for one in status.get("currentImports") or []]
            pending = any((metadata["namespace"], name) in lacking for name in imports)
            current = (_condition(body, "UpToDate") or {}).get("status") == "True"
            found.add_metric([metadata["namespace"], metadata["name"], _flag(pending)], 0 if current else 1)
        return found

    def _phases(self, volumes: Iterable[Object]) -> Metric:
        found = GaugeMetricFamily("cdi_datavolumes", "DataVolumes by phase", labels=("phase",))
        tally = Tally((body.get("status") or {}).get("phase") or "New" for body in volumes)
        for phase, count in sorted(tally.items()):
            found.add_metric([phase], count)
        return found

    def _restarts(self, volumes: Iterable[Object]) -> Metric:
        """Only of those that are under way and had to begin again, or there would be a series for every volume."""
        found = GaugeMetricFamily(
            "cdi_datavolume_restarts",
            "How often the worker of an unfinished DataVolume had to be started again; only where it had to",
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


def _lacking(volumes: Iterable[Object], classes: list[StorageClass]) -> set[tuple[str, str]]:
    """Namespace and name of those that wait, name no class, and have no default that could be meant."""
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


def _operation(body: Object) -> str:
    spec = body.get("spec") or {}
    source = spec.get("source") or {}
    if spec.get("sourceRef") or source.keys() & {"pvc", "snapshot"}:
        return "clone"
    return "upload" if "upload" in source else "import"
