"""Deletion of what a deleted DataImportCron leaves: poll Jobs, proof pods, and by its retention policy its images."""

from __future__ import annotations

from collections.abc import Iterable

from cdi.api.meta import ObjectMeta
from cdi.api.names import LABEL_DATA_IMPORT_CRON_CLEANUP, proof_pod
from cdi.reconcile.actions import Action, DeleteObject, Plan
from cdi.reconcile.dataimportcron.context import Body, CronLister
from cdi.reconcile.dataimportcron.objects import delete_volume


def plan_deletion(objects: CronLister, namespace: str, name: str, *, cluster: bool = True) -> Plan:
    """Delete the objects of a DataImportCron that is being deleted or does not exist any more.

    There is no finalizer: what is missed now is found by its labels when the controller starts again. DataSources,
    DataVolumes, PVCs and VolumeSnapshots are deleted if they carry the label ``dataImportCron.cleanup``.

    Args:
        objects: The observed objects.
        namespace: Namespace of the DataImportCron.
        name: Its name.
        cluster: Whether there are Jobs and VolumeSnapshots.

    """
    actions: list[Action] = []
    if cluster:
        actions += _bodies("cronjobs", objects.cron_jobs_of(namespace, name))
        actions += _bodies("jobs", objects.jobs_of(namespace, name))
        actions += _proof_pods(objects, namespace, name)
    actions += _models("datasources", (one.metadata for one in objects.data_sources_of(namespace, name)))
    data_volumes = objects.data_volumes_of(namespace, name)
    actions += _models("datavolumes", (one.metadata for one in data_volumes))
    actions += [
        delete_volume(one)
        for one in objects.claims_of(namespace, name)
        if one.labels.get(LABEL_DATA_IMPORT_CRON_CLEANUP) == "true" and not one.deleting
    ]
    if cluster:
        actions += [
            delete_volume(one)
            for one in objects.snapshots_of(namespace, name)
            if one.labels.get(LABEL_DATA_IMPORT_CRON_CLEANUP) == "true" and not one.deleting
        ]
    return Plan(actions=tuple(actions))


def _proof_pods(objects: CronLister, namespace: str, name: str) -> list[Action]:
    """Return the deletion of the proof pods, whose results nothing reads any more.

    A PVC that is being deleted exists as long as its pod does, and the pod's owner is that PVC: neither would ever be
    garbage-collected.
    """
    pods = (objects.pod(one.namespace, proof_pod(one.uid, one.name)) for one in objects.claims_of(namespace, name))
    return _bodies("pods", (pod for pod in pods if pod is not None))


def _bodies(plural: str, bodies: Iterable[Body]) -> list[Action]:
    return [
        DeleteObject(
            plural=plural,
            namespace=body["metadata"]["namespace"],
            name=body["metadata"]["name"],
            uid=body["metadata"]["uid"],
        )
        for body in bodies
        if "deletionTimestamp" not in body["metadata"]
    ]


def _models(plural: str, found: Iterable[ObjectMeta]) -> list[Action]:
    return [
        DeleteObject(plural=plural, namespace=one.namespace or "", name=one.name or "", uid=one.uid or "")
        for one in found
        if (one.labels or {}).get(LABEL_DATA_IMPORT_CRON_CLEANUP) == "true" and one.deletion_timestamp is None
    ]
