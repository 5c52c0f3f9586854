"""Watch caches: which resources are watched and which of their fields are kept.

Only fields that reconcilers use are kept: a thousand volumes are three thousand objects here, so all other fields are
dropped on arrival, and equal strings share memory.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Never

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import FILLED_FOR, JOB, JOURNAL
from cdi.api.errors import InvalidManifest
from cdi.api.kinds import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    CRON_JOBS,
    CSI_DRIVERS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    EVENTS,
    JOBS,
    NODES,
    OBJECT_TRANSFERS,
    PODS,
    SERVICES,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_CLONE_SOURCES,
    VOLUME_IMPORT_SOURCES,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
    VOLUME_UPLOAD_SOURCES,
    VOLUMES,
    Object,
    Resource,
)
from cdi.api.names import (
    APP,
    COMPONENT_UPLOAD_SERVER,
    LABEL_APP,
    LABEL_COMPONENT,
    LABEL_DATA_IMPORT_CRON,
)
from cdi.api.validation import parse
from cdi.controller.clone_index import PendingCloneIndex
from cdi.controller.cron_index import CronIndex
from cdi.controller.indexer import Indexer
from cdi.controller.request import Scope
from cdi.kube.client import Client
from cdi.kube.reflector import Reflector, WatchEvent

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_BIG_ANNOTATIONS = (JOB.key, JOURNAL.key)
"""Annotations of pods that only the worker reads."""
INVALID = "unreadable"
"""Field that replaces an object of our API whose form is invalid: the error and its location (`require_valid`)."""
_DEVICES = "devices.kubevirt.io/"
"""Prefix of the extended resources of KubeVirt's device plugins."""
_COMMON = 24
"""Strings up to this length are interned, as many of them are equal."""
OnChange = Callable[[Resource, WatchEvent], None]


def require_valid(body: Object) -> Object:
    """Return the object.

    Raises:
        InvalidManifest: It does not have the form of its kind.

    """
    wrong = body.get(INVALID)
    if wrong is not None:
        raise InvalidManifest(wrong["what"], where=wrong["where"])
    return body


def claim_of(volume: Object | None) -> tuple[str, str] | None:
    """Return namespace and name of the PVC in a PersistentVolume's claimRef, which need not exist; None without one."""
    ref = ((volume or {}).get("spec") or {}).get("claimRef")
    return (ref.get("namespace") or "", ref.get("name") or "") if ref else None


class InformerSet:
    """Watch caches of all resources, in the namespaces that the scope includes."""

    def __init__(self, client: Client, scope: Scope, *, install_namespace: str = "cdi", on_change: OnChange) -> None:
        self._reflectors: dict[Resource, dict[str | None, Reflector]] = {}
        self.waiting = PendingCloneIndex()
        self._volumes: Indexer[tuple[str, str], str] = Indexer()
        """Names of PersistentVolumes by the PVC in their claimRef."""
        self.crons = CronIndex()
        everywhere: tuple[str | None, ...] = (None,)
        spaces = scope.namespaces or everywhere
        plain = dict.fromkeys(spaces)
        # Polls run in the installation's namespace.
        with_polls = dict.fromkeys([*spaces, *([install_namespace] if scope.namespaces else [])])

        def follow(resource: Resource, namespaces: Any = everywhere, **options: Any) -> None:
            def changed(change: WatchEvent) -> None:
                self.waiting.changed(resource, change)
                self.crons.changed(resource, change)
                if resource == VOLUMES:
                    self._volumes.update(change.object["metadata"]["name"], claim_of(change.new))
                on_change(resource, change)

            self._reflectors[resource] = {
                namespace: Reflector(client, resource, namespace=namespace, on_change=changed, **options)
                for namespace in namespaces
            }

        # Pods are listed before PVCs: a cached PVC is then at least as recent as its pod, so that what was recorded in
        # it after the pod had ended is known together with that end.
        follow(PODS, with_polls, labels=f"{LABEL_APP}={APP}", strip=_transform_pod)
        follow(CLAIMS, plain, strip=_strip_managed_fields)
        follow(VOLUMES, strip=_transform_volume)
        follow(DATA_VOLUMES, plain, strip=_transform_own_kind)
        follow(VOLUME_IMPORT_SOURCES, plain, strip=_transform_own_kind)
        follow(VOLUME_UPLOAD_SOURCES, plain, strip=_transform_own_kind)
        follow(VOLUME_CLONE_SOURCES, plain, strip=_transform_own_kind)
        follow(SERVICES, plain, labels=f"{LABEL_COMPONENT}={COMPONENT_UPLOAD_SERVER}", strip=_transform_owned)
        follow(VOLUME_SNAPSHOTS, plain, strip=_strip_managed_fields, optional=True)
        follow(VOLUME_SNAPSHOT_CONTENTS, strip=_transform_content, optional=True)
        follow(DATA_SOURCES, plain, strip=_transform_own_kind)
        follow(DATA_IMPORT_CRONS, plain, strip=_transform_own_kind)
        polls = {"labels": LABEL_DATA_IMPORT_CRON, "strip": _strip_managed_fields}
        follow(CRON_JOBS, (install_namespace,), **polls)
        follow(JOBS, (install_namespace,), **polls)
        follow(OBJECT_TRANSFERS, strip=_transform_own_kind)
        follow(EVENTS, plain, fields="involvedObject.kind=PersistentVolumeClaim,type=Warning", strip=_transform_event)
        follow(NODES, strip=_transform_node)
        follow(STORAGE_CLASSES, strip=_strip_managed_fields)
        follow(CSI_DRIVERS, strip=_version_only, metadata_only=True)
        follow(STORAGE_PROFILES, strip=_transform_own_kind)
        follow(CDI_CONFIGS, strip=_transform_own_kind)
        follow(CDIS, strip=_transform_own_kind)
        follow(VOLUME_SNAPSHOT_CLASSES, strip=_strip_managed_fields, optional=True)

    @property
    def resources(self) -> frozenset[Resource]:
        """Resources that are watched."""
        return frozenset(self._reflectors)

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Return an object, which must not be modified; `namespace` is empty for cluster-scoped resources."""
        reflector = self._of(resource, namespace)
        return reflector.cache.get(namespace, name) if reflector is not None else None

    def values(self, resource: Resource) -> Iterator[Object]:
        """Yield all objects of a resource, in any order."""
        for reflector in self._reflectors[resource].values():
            yield from reflector.cache.values()

    def volumes_for(self, namespace: str, claim: str) -> Iterator[Object]:
        """Yield the PersistentVolumes whose claimRef names this PVC."""
        for name in self._volumes.by_index((namespace, claim)):
            body = self.get(VOLUMES, "", name)
            if body is not None:
                yield body

    def record_write(self, resource: Resource, body: Object) -> None:
        """Record the object that a write of ours returned (`Reflector.record_write`), if its resource is watched."""
        reflector = self._of(resource, body["metadata"].get("namespace") or "")
        if reflector is not None:
            reflector.record_write(body)

    def record_deletion(self, resource: Resource, metadata: Mapping[str, Any]) -> None:
        """Record that a request did not find this object (`Reflector.record_deletion`), if its resource is watched."""
        namespace = metadata.get("namespace") or ""
        reflector = self._of(resource, namespace)
        if reflector is not None:
            reflector.record_deletion(namespace, metadata["name"], metadata["uid"])

    def unsynced(self) -> str:
        """Return what has not been listed yet, as text; empty once everything has been."""
        waiting = [
            f"{resource}{f' in {namespace}' if namespace else ''}: "
            f"{reflector.failure.message if reflector.failure is not None else 'not listed yet'}"
            for resource, reflectors in self._reflectors.items()
            for namespace, reflector in reflectors.items()
            if not reflector.cache.synced.is_set()
        ]
        return "; ".join(waiting)

    async def wait_for_cache_sync(self) -> None:
        """Wait until the initial lists are complete."""
        for reflectors in self._reflectors.values():
            for reflector in reflectors.values():
                await reflector.cache.synced.wait()

    async def run(self) -> Never:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflectors in self._reflectors.values():
                for reflector in reflectors.values():
                    group.create_task(reflector.run())
        raise AssertionError("no reflector ends")

    def _of(self, resource: Resource, namespace: str) -> Reflector | None:
        known = self._reflectors.get(resource, {})
        return known.get(namespace if resource.namespaced and None not in known else None)


# --- transformations of cached objects --------------------------------------------------------------------------


def _strip_managed_fields(body: Object) -> Object:
    metadata = body["metadata"]
    annotations = metadata.get("annotations")
    if annotations and _LAST_APPLIED in annotations:
        del annotations[_LAST_APPLIED]
    return _compact(body)


def _transform_own_kind(body: Object) -> Object:
    """Transform an object of our API like `_strip_managed_fields`, and make sure that it can be parsed.

    An object that was stored under older rules may have any form, and must not break code that iterates over all
    objects.

    An invalid status is removed, so that it is written again. An invalid spec is emptied, and `require_valid` reports
    the error, unless the object is being deleted, when its spec is no longer needed.
    """
    kept = _strip_managed_fields(body)
    wrong = _validation_error(kept)
    if wrong is None:
        return kept
    without = {name: item for name, item in kept.items() if name != "status"}
    wrong = _validation_error(without)
    if wrong is None:
        return without
    empty = {**kept, "spec": {}}
    if _validation_error(empty) is not None:
        empty = {**without, "spec": {}}
    if "deletionTimestamp" in kept["metadata"] and _validation_error(empty) is None:
        return empty
    return {**empty, INVALID: {"what": wrong.what, "where": wrong.where}}


def _validation_error(body: Object) -> InvalidManifest | None:
    try:
        parse(body)
    except InvalidManifest as error:
        return error
    return None


def _transform_pod(body: Object) -> Object:
    annotations = body["metadata"].get("annotations") or {}
    for name in _BIG_ANNOTATIONS:
        annotations.pop(name, None)
    return _compact(body)


def _transform_volume(body: Object) -> Object:
    spec = body.get("spec") or {}
    kept = {
        name: spec[name]
        for name in (
            "accessModes",
            "capacity",
            "claimRef",
            "persistentVolumeReclaimPolicy",
            "storageClassName",
            "volumeMode",
        )
        if name in spec
    }
    status = {"phase": (body.get("status") or {}).get("phase")}
    identity = _identity(body)
    filled_for = FILLED_FOR.read(annotations_of(body))
    if filled_for:
        identity["metadata"]["annotations"] = FILLED_FOR.write(filled_for)
    return _compact({**identity, "spec": kept, "status": status})


def _transform_content(body: Object) -> Object:
    spec = body.get("spec") or {}
    kept = {name: spec[name] for name in ("driver", "sourceVolumeMode", "volumeSnapshotRef") if name in spec}
    return _compact({**_identity(body), "spec": kept})


def _transform_node(body: Object) -> Object:
    conditions = (body.get("status") or {}).get("conditions") or []
    ready = [{"type": "Ready", "status": one.get("status")} for one in conditions if one.get("type") == "Ready"]
    status: dict[str, Any] = {"conditions": ready}
    # Kubelets report often; only the devices that virtual machines need are of interest.
    devices = {
        name: amount
        for name, amount in ((body.get("status") or {}).get("allocatable") or {}).items()
        if name.startswith(_DEVICES)
    }
    if devices:
        status["allocatable"] = devices
    return _compact({**_identity(body), "status": status})


def _transform_event(body: Object) -> Object:
    involved_object = body.get("involvedObject") or {}
    kept = {
        "involvedObject": {name: involved_object.get(name) for name in ("namespace", "name", "uid")},
        "reason": body.get("reason"),
        "message": str(body.get("message") or "")[:1024],
        "when": body.get("lastTimestamp") or body.get("eventTime") or body["metadata"].get("creationTimestamp") or "",
    }
    return _compact({**_identity(body), **kept})


def _transform_owned(body: Object) -> Object:
    owners = body["metadata"].get("ownerReferences")
    kept = _identity(body)
    if owners:
        kept["metadata"]["ownerReferences"] = owners
    return _compact(kept)


def _version_only(body: Object) -> Object:
    return _compact(_identity(body))


def _identity(body: Object) -> dict[str, Any]:
    metadata = body["metadata"]
    names = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")
    return {
        "apiVersion": body.get("apiVersion", ""),
        "kind": body.get("kind", ""),
        "metadata": {name: metadata[name] for name in names if name in metadata},
    }


def _compact(body: Object) -> Object:
    """Return an equal object in which strings that many objects share are interned."""
    return {sys.intern(name): _shared(item) for name, item in body.items()}


def _shared(value: Any) -> Any:
    if isinstance(value, str):
        return sys.intern(value) if len(value) <= _COMMON else value
    if isinstance(value, Mapping):
        return {sys.intern(name): _shared(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shared(item) for item in value]
    return value
