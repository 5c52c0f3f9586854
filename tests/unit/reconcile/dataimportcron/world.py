"""An in-memory cluster for the DataImportCron reconciler: its objects, and the controllers that act on them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from cdi.api.annotations import GOLDEN_ORIGIN
from cdi.api.dataimportcron import DataImportCron
from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.errors import BootFailed
from cdi.api.golden import Origin
from cdi.api.names import COMPONENT_PROOF, LABEL_COMPONENT, LABEL_DATA_IMPORT_CRON
from cdi.api.proof import ProofResult
from cdi.api.quantity import Quantity
from cdi.api.storageprofile import StorageProfile
from cdi.api.timestamps import timestamp
from cdi.api.validation import parse
from cdi.reconcile.actions import (
    Action,
    CreateObject,
    DeleteObject,
    Event,
    ObjectEvent,
    ObjectRef,
    PatchObject,
    Plan,
    RequireVersion,
)
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.context import Rejection
from cdi.reconcile.dataimportcron.context import Body, CloneRight, CronContext, ImageStream, LocalTask, settings_of
from cdi.reconcile.dataimportcron.deletion import plan_deletion
from cdi.reconcile.dataimportcron.reconcile import reconcile_cron
from cdi.reconcile.datavolume.rejection import refusal_of
from cdi.reconcile.settings import Platform
from cdi.reconcile.storage.classes import StorageClass, default_class
from cdi.reconcile.storage.profiles import SnapshotClass
from cdi.reconcile.types import PVC, Input

Key = tuple[str, str, str]
"""Plural, namespace and name."""
NAMESPACE = "golden"
INSTALL_NAMESPACE = "cdi"
START = 1_700_000_000.0
DESIRED = "cdi.kubevirt.io/storage.import.sourceDesiredDigest"
URL = "docker://registry.example/fedora:40"
_PLURALS = {
    "DataVolume": "datavolumes",
    "DataSource": "datasources",
    "DataImportCron": "dataimportcrons",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "VolumeSnapshot": "volumesnapshots",
    "Pod": "pods",
    "Job": "jobs",
    "CronJob": "cronjobs",
}


class Killed(Exception):
    """The controller was killed between two writes."""


def digest(letter: str) -> str:
    """Return the digest ``sha256:`` with 64 times the same hex digit, or with a longer hex text repeated."""
    return f"sha256:{(letter * 64)[:64]}"


def cron_body(
    name: str = "fedora-cron",
    *,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    source: Mapping[str, Any] | None = None,
    storage: Mapping[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return a DataImportCron; `spec` overrides fields of its spec."""
    template = {
        "spec": {
            "source": dict(source or {"registry": {"url": URL}}),
            "storage": dict(storage or {"resources": {"requests": {"storage": "5Gi"}}}),
        }
    }
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataImportCron",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}",
            "annotations": dict(annotations or {}),
            "labels": dict(labels or {}),
        },
        "spec": {"template": template, "schedule": "", "managedDataSource": "fedora", **spec},
    }


@dataclass
class World:
    """A cluster with one reconciled DataImportCron, and the clock."""

    body: dict[str, Any]
    outcomes: dict[str, str] = field(default_factory=dict)
    """Phase in which the DataVolume of this name ends; Succeeded by default, and empty to leave it alone."""
    now: float = START
    cluster: bool = True
    objects: dict[Key, dict[str, Any]] = field(default_factory=dict)
    storage_classes: list[StorageClass] = field(default_factory=list)
    profiles: dict[str, StorageProfile] = field(default_factory=dict)
    classes_of_snapshots: list[SnapshotClass] = field(default_factory=list)
    allowed: bool | None = True
    """Answer to every SubjectAccessReview."""
    asked: list[CloneRight] = field(default_factory=list)
    clones: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Unfinished clones by the name of their source."""
    refuse: dict[str, Exception] = field(default_factory=dict)
    """Errors of the API server by the kind of the object to create."""
    inputs: dict[ObjectRef, Input] = field(default_factory=dict)
    image_streams: dict[str, ImageStream] = field(default_factory=dict)
    guests: dict[str, ProofResult | None] = field(default_factory=dict)
    """Result of the boot proof of the version of this name, None while the pod runs; it boots by default."""
    local_tasks: dict[tuple[str, str], LocalTask] = field(default_factory=dict)
    devices: frozenset[str] = frozenset()
    snapshots_ready: bool = True
    """Whether the storage completes snapshots at once."""
    events: list[Event] = field(default_factory=list)
    object_events: list[ObjectEvent] = field(default_factory=list)
    offers: list[str] = field(default_factory=list)
    """Names that the managed DataSource referred to, in order."""
    writes: int = 0
    """Number of successful writes."""
    kill_at: int | None = None
    """Number of writes after which `Killed` is raised."""
    _uids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.put(self.body)

    # --- objects --------------------------------------------------------------------------------------------------

    def put(self, body: dict[str, Any]) -> dict[str, Any]:
        """Store an object, as a user or another controller does."""
        metadata = body["metadata"]
        metadata.setdefault("namespace", NAMESPACE)
        metadata.setdefault("uid", f"uid-{next(self._uids)}")
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        self.objects[_PLURALS[body["kind"]], metadata["namespace"], metadata["name"]] = body
        return body

    def get(self, plural: str, name: str, namespace: str = NAMESPACE) -> dict[str, Any] | None:
        return self.objects.get((plural, namespace, name))

    def names(self, plural: str) -> list[str]:
        return sorted(name for kind, _, name in self.objects if kind == plural)

    def remove(self, plural: str, name: str, namespace: str = NAMESPACE) -> None:
        """Delete an object and what it owns."""
        gone = self.objects.pop((plural, namespace, name), None)
        if gone is not None:
            for key, body in list(self.objects.items()):
                owners = body["metadata"].get("ownerReferences") or ()
                if any(owner["uid"] == gone["metadata"]["uid"] for owner in owners):
                    self.remove(key[0], key[2], key[1])

    @property
    def cron_now(self) -> dict[str, Any]:
        body = self.get("dataimportcrons", self.body["metadata"]["name"])
        assert body is not None
        return body

    @property
    def status(self) -> dict[str, Any]:
        return self.cron_now.get("status") or {}

    def annotate(self, **texts: str) -> None:
        """Set annotations of the DataImportCron without their prefix, with ``_`` for a dot; see `desire` as well."""
        annotations = self.cron_now["metadata"].setdefault("annotations", {})
        annotations |= {f"cdi.kubevirt.io/{name.replace('_', '.')}": text for name, text in texts.items()}

    def desire(self, wanted: str) -> None:
        """Set the desired digest, as a poll does."""
        self.cron_now["metadata"].setdefault("annotations", {})[DESIRED] = wanted

    def condition(self, kind: str) -> tuple[str, str, str] | None:
        """Return status, reason and message of a condition."""
        found = next((one for one in self.status.get("conditions") or () if one["type"] == kind), None)
        return (found["status"], found.get("reason", ""), found.get("message", "")) if found else None

    def version(self, wanted: str) -> dict[str, Any]:
        """Return the record of a digest."""
        return next(one for one in self.status["versions"] if one.get("Digest", one.get("digest")) == wanted)

    @property
    def offered(self) -> str | None:
        """What the managed DataSource refers to, as ``pvc/name`` or ``snapshot/name``."""
        found = self.get("datasources", self.body["spec"]["managedDataSource"])
        source = (found or {}).get("spec", {}).get("source") or {}
        return next((f"{form}/{place['name']}" for form, place in source.items()), None)

    def use_class(self, name: str = "fast", *, format: str = "pvc", default: bool = True, **annotations: str) -> None:  # noqa: A002  the field's name
        """Add or change a storage class, and make it the only default class."""
        if default:
            self.storage_classes = [one for one in self.storage_classes if not one.is_default]
        self.storage_classes = [one for one in self.storage_classes if one.name != name]
        marks = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
        self.storage_classes.append(StorageClass(name=name, provisioner="csi.example", annotations=marks))
        profile = parse(
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "StorageProfile",
                "metadata": {"name": name, "annotations": annotations},
                "spec": {},
                "status": {"dataImportCronSourceFormat": format},
            }
        )
        assert isinstance(profile, StorageProfile)
        self.profiles[name] = profile

    # --- reconciling ----------------------------------------------------------------------------------------------

    def context(self, refusal: Rejection | None = None) -> CronContext:
        body = self.cron_now
        cron = parse(copy.deepcopy(body))
        assert isinstance(cron, DataImportCron)
        settings, problem = settings_of(body["metadata"].get("annotations"))
        return CronContext(
            now=self.now,
            cron=cron,
            objects=self,
            settings=settings,
            settings_problem=problem,
            platform=Platform(cluster=self.cluster, snapshots=self.cluster, image_streams=bool(self.image_streams)),
            install_namespace=INSTALL_NAMESPACE,
            refusal=refusal,
        )

    def plan(self) -> Plan:
        return reconcile_cron(self.context())

    def reconcile(self) -> Plan:
        """Reconcile once and apply the plan."""
        plan = self.plan()
        refusal = self.apply(plan)
        if refusal is not None:
            plan = reconcile_cron(self.context(refusal))
            self.apply(plan)
        return plan

    def settle(self, limit: int = 60) -> Plan:
        """Let the reconciler and the other controllers act until nothing changes any more."""
        for _ in range(limit):
            before = copy.deepcopy(self.objects)
            plan = self.reconcile()
            self.step()
            if plan.requeue_after is not None and plan.requeue_after <= 5:
                self.now += plan.requeue_after
            elif before == self.objects:
                return plan
        raise AssertionError(f"no fixed point after {limit} reconciles; the last plan is {plan}")

    def delete_cron(self) -> None:
        """Delete the DataImportCron, and let the reconciler clean up."""
        name = self.body["metadata"]["name"]
        self.remove("dataimportcrons", name)
        self.apply(plan_deletion(self, NAMESPACE, name, cluster=self.cluster))

    def apply(self, plan: Plan) -> Rejection | None:
        for action in plan.actions:
            if isinstance(action, CreateObject) and action.body["kind"] in self.refuse:
                return refusal_of(action, self.refuse[action.body["kind"]])  # type: ignore[arg-type]
            self._apply(action)
        self.events += plan.events
        self.object_events += plan.object_events
        if plan.status is not None or plan.annotations:
            body = copy.deepcopy(self.cron_now)
            annotations = body["metadata"].setdefault("annotations", {})
            _merge(annotations, plan.annotations)
            if plan.status is not None:
                body["status"] = copy.deepcopy(dict(plan.status))
            self.objects["dataimportcrons", NAMESPACE, body["metadata"]["name"]] = body
            self._written()
        return None

    def _written(self) -> None:
        self.writes += 1
        now = self.offered
        if now is not None and now != (self.offers[-1] if self.offers else None):
            self.offers.append(now)
        if self.kill_at is not None and self.writes >= self.kill_at:
            self.kill_at = None
            raise Killed

    def _apply(self, action: Action) -> None:
        match action:
            case CreateObject():
                body = copy.deepcopy(dict(action.body))
                key = _PLURALS[body["kind"]], body["metadata"].get("namespace", ""), body["metadata"]["name"]
                if key in self.objects:
                    return
                self.put(body)
            case PatchObject():
                found = self.objects.get((action.plural, action.namespace, action.name))
                if found is None or found["metadata"]["uid"] != action.uid:
                    return
                found = copy.deepcopy(found)
                _merge(found["metadata"].setdefault("annotations", {}), action.annotations)
                found["metadata"].setdefault("labels", {}).update(action.labels)
                _merge(found.setdefault("spec", {}), action.spec)
                self.objects[action.plural, action.namespace, action.name] = found
            case DeleteObject():
                found = self.objects.get((action.plural, action.namespace, action.name))
                if found is None or found["metadata"]["uid"] != action.uid:
                    return
                self.remove(action.plural, action.name, action.namespace)
            case RequireVersion():
                return  # what is reconciled here is the newest
            case _:
                raise AssertionError(f"unexpected {action}")
        self._written()

    # --- other controllers ----------------------------------------------------------------------------------------

    def step(self) -> None:
        """Let the other controllers act once."""
        for (plural, namespace, name), body in list(self.objects.items()):
            if plural == "datavolumes":
                self._import(namespace, name, body)
            elif plural == "volumesnapshots" and self.snapshots_ready and not body.get("status"):
                body["status"] = {"readyToUse": True, "restoreSize": "5Gi"}
            elif plural == "pods" and body["metadata"]["labels"].get(LABEL_COMPONENT) == COMPONENT_PROOF:
                self._boot(body)

    def _boot(self, body: dict[str, Any]) -> None:
        owner = body["metadata"]["ownerReferences"][0]
        booted = ProofResult(id=owner["uid"], booted=True, message="a login prompt", accelerator="tcg", seconds=60)
        result = self.guests.get(owner["name"], booted)
        if result is None or body.get("status"):
            return
        terminated = {
            "exitCode": 0 if result.booted else BootFailed.exit_status,
            "finishedAt": timestamp(datetime.fromtimestamp(self.now, UTC)),
            "message": replace(result, id=owner["uid"]).to_json(),
        }
        container = {"name": "importer", "state": {"terminated": terminated}}
        body["status"] = {"phase": "Succeeded" if result.booted else "Failed", "containerStatuses": [container]}

    def _import(self, namespace: str, name: str, body: dict[str, Any]) -> None:
        status = body.setdefault("status", {})
        outcome = self.outcomes.get(name, "Succeeded")
        if not outcome or status.get("phase") in ("Succeeded", "Failed"):
            return
        if ("persistentvolumeclaims", namespace, name) not in self.objects:
            default = default_class(self.storage_classes)
            storage = body["spec"].get("storage") or body["spec"].get("pvc") or {}
            named = storage.get("storageClassName") or (default.name if default is not None else None)
            self.put(
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": {
                        "name": name,
                        "namespace": namespace,
                        "labels": dict(body["metadata"].get("labels") or {}),
                        "annotations": {},
                        "ownerReferences": [{"uid": body["metadata"]["uid"], "kind": "DataVolume"}],
                    },
                    "spec": {"storageClassName": named, "resources": {"requests": {"storage": "6Gi"}}},
                    "status": {"phase": "Bound"},
                }
            )
            status["phase"] = "ImportInProgress"
            return
        status["phase"] = outcome
        if outcome == "Failed":
            status["detail"] = {"reason": "ChecksumMismatch", "message": "the checksum differs"}

    # --- CronLister -----------------------------------------------------------------------------------------------

    def _of(self, plural: str, namespace: str, cron: str) -> list[str]:
        return sorted(
            name
            for (kind, space, name), body in self.objects.items()
            if (kind, space) == (plural, namespace)
            and (body["metadata"].get("labels") or {}).get(LABEL_DATA_IMPORT_CRON) == cron
        )

    def cron(self, namespace: str, name: str) -> DataImportCron | None:
        body = self.get("dataimportcrons", name, namespace)
        found = parse(copy.deepcopy(body)) if body is not None else None
        assert found is None or isinstance(found, DataImportCron)
        return found

    def data_volume(self, namespace: str, name: str) -> DataVolume | None:
        body = self.get("datavolumes", name, namespace)
        found = parse(copy.deepcopy(body)) if body is not None else None
        assert found is None or isinstance(found, DataVolume)
        return found

    def data_volumes_of(self, namespace: str, cron: str) -> tuple[DataVolume, ...]:
        found = (self.data_volume(namespace, name) for name in self._of("datavolumes", namespace, cron))
        return tuple(one for one in found if one is not None)

    def claim(self, namespace: str, name: str) -> PVC | None:
        body = self.get("persistentvolumeclaims", name, namespace)
        if body is None:
            return None
        metadata, spec = body["metadata"], body.get("spec") or {}
        requested = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
        return PVC(
            namespace=namespace,
            name=name,
            uid=metadata["uid"],
            phase=(body.get("status") or {}).get("phase", "Pending"),
            annotations=metadata.get("annotations") or {},
            labels=metadata.get("labels") or {},
            storage_class=spec.get("storageClassName"),
            volume_mode=spec.get("volumeMode", "Filesystem"),
            requested=Quantity.parse(requested).bytes if requested else None,
            deleting="deletionTimestamp" in metadata,
            path=f"/volumes/{name}" if not self.cluster else None,
        )

    def claims_of(self, namespace: str, cron: str) -> tuple[PVC, ...]:
        found = (self.claim(namespace, name) for name in self._of("persistentvolumeclaims", namespace, cron))
        return tuple(one for one in found if one is not None)

    def descendants_of(self, namespace: str, cron: str) -> tuple[PVC, ...]:
        found = []
        for (plural, space, name), body in self.objects.items():
            text = (
                (body["metadata"].get("annotations") or {}).get(GOLDEN_ORIGIN.key) if plural == "persistentvolumeclaims" else None
            )
            origin = Origin.from_json(text) if text else None
            claim = self.claim(space, name)
            if origin is not None and claim is not None and (origin.namespace, origin.cron) == (namespace, cron):
                found.append(claim)
        return tuple(found)

    def data_source(self, namespace: str, name: str) -> DataSource | None:
        body = self.get("datasources", name, namespace)
        found = parse(copy.deepcopy(body)) if body is not None else None
        assert found is None or isinstance(found, DataSource)
        return found

    def data_sources_of(self, namespace: str, cron: str) -> tuple[DataSource, ...]:
        found = (self.data_source(namespace, name) for name in self._of("datasources", namespace, cron))
        return tuple(one for one in found if one is not None)

    def input(self, ref: ObjectRef) -> Input | None:
        return self.inputs.get(ref)

    def clones_in_progress(self, namespace: str, name: str) -> tuple[str, ...]:
        return self.clones.get(name, ()) if namespace == NAMESPACE else ()

    def local_task(self, task: str, uid: str) -> LocalTask | None:
        return self.local_tasks.get((task, uid))

    def snapshot(self, namespace: str, name: str) -> Snapshot | None:
        body = self.get("volumesnapshots", name, namespace)
        if body is None:
            return None
        metadata, status = body["metadata"], body.get("status") or {}
        return Snapshot(
            namespace=namespace,
            name=name,
            uid=metadata["uid"],
            ready=bool(status.get("readyToUse")),
            size=Quantity.parse(status["restoreSize"]).bytes if status.get("restoreSize") else None,
            annotations=metadata.get("annotations") or {},
            labels=metadata.get("labels") or {},
            snapshot_class=(body.get("spec") or {}).get("volumeSnapshotClassName", ""),
            deleting="deletionTimestamp" in metadata,
        )

    def snapshots_of(self, namespace: str, cron: str) -> tuple[Snapshot, ...]:
        found = (self.snapshot(namespace, name) for name in self._of("volumesnapshots", namespace, cron))
        return tuple(one for one in found if one is not None)

    def storage_class(self, name: str) -> StorageClass | None:
        return next((one for one in self.storage_classes if one.name == name), None)

    def default_storage_class(self, *, virtualization: bool) -> StorageClass | None:
        return default_class(self.storage_classes, virtualization=virtualization)

    def storage_profile(self, storage_class: str) -> StorageProfile | None:
        return self.profiles.get(storage_class)

    def snapshot_classes(self) -> tuple[SnapshotClass, ...]:
        return tuple(self.classes_of_snapshots)

    def may_clone(self, right: CloneRight) -> bool | None:
        self.asked.append(right)
        return self.allowed

    def image_stream(self, namespace: str, name: str) -> ImageStream | None:
        return self.image_streams.get(name) if namespace == NAMESPACE else None

    def cron_jobs_of(self, namespace: str, cron: str) -> tuple[Body, ...]:
        return self._installed("cronjobs", namespace, cron)

    def jobs_of(self, namespace: str, cron: str) -> tuple[Body, ...]:
        return self._installed("jobs", namespace, cron)

    def _installed(self, plural: str, namespace: str, cron: str) -> tuple[Body, ...]:
        names = self._of(plural, INSTALL_NAMESPACE, cron)
        found = [self.objects[plural, INSTALL_NAMESPACE, name] for name in names]
        return tuple(
            one for one in found if one["metadata"]["labels"].get("cdi.kubevirt.io/dataImportCronNs") == namespace
        )

    def job_pods(self, job: str) -> tuple[Body, ...]:
        return tuple(
            body
            for (plural, namespace, _), body in sorted(self.objects.items())
            if (plural, namespace) == ("pods", INSTALL_NAMESPACE)
            and (body["metadata"].get("labels") or {}).get("batch.kubernetes.io/job-name") == job
        )

    def pod(self, namespace: str, name: str) -> Body | None:
        return self.get("pods", name, namespace)

    def running_polls(self) -> dict[str, int]:
        return {NAMESPACE: sum(1 for kind, _, _ in self.objects if kind == "jobs")}

    def waiting_polls(self, now: float) -> dict[str, int]:
        return {}

    def running_proofs(self) -> dict[str, int]:
        return {}

    def waiting_proofs(self, now: float) -> dict[str, int]:
        return {}

    def offers_device(self, resource: str) -> bool:
        return resource in self.devices


def _merge(into: dict[str, Any], patch: Mapping[str, Any]) -> None:
    """Apply a merge patch (RFC 7396) in place."""
    for name, value in patch.items():
        if value is None:
            into.pop(name, None)
        elif isinstance(value, Mapping):
            inner = into.get(name)
            into[name] = dict(inner) if isinstance(inner, Mapping) else {}
            _merge(into[name], value)
        else:
            into[name] = value
