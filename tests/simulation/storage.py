"""Storage of the simulated cluster: provisioner, binder, snapshotter and the protection of volumes in use."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cdi.api.kinds import (
    CLAIMS,
    STORAGE_CLASSES,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
    VOLUMES,
    Object,
)
from cdi.api.names import GROUP
from tests.simulation.api_server import PROTECTION
from tests.simulation.cluster import Cluster, Disk, Step, bytes_of, size_of

SELECTED_NODE = "volume.kubernetes.io/selected-node"


class Storage:
    """CSI driver with its sidecars, and the volume controllers of Kubernetes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._server = cluster.server
        self._serial = 0

    def steps(self) -> Iterator[Step]:
        for claim in self._server.all(CLAIMS):
            yield from self._claim_steps(claim)
        for volume in self._server.all(VOLUMES):
            yield from self._volume_steps(volume)
        for snapshot in self._server.all(VOLUME_SNAPSHOTS):
            yield from self._snapshot_steps(snapshot)
        for content in self._server.all(VOLUME_SNAPSHOT_CONTENTS):
            ref = content["spec"]["volumeSnapshotRef"]
            snapshot = self._server.find(VOLUME_SNAPSHOTS, ref["namespace"], ref["name"])
            if snapshot is None or snapshot["metadata"]["uid"] != ref["uid"]:
                yield Step("delete snapshot content", partial(self._drop, VOLUME_SNAPSHOT_CONTENTS, content))

    # --- PVCs -----------------------------------------------------------------------------------------------------

    def _claim_steps(self, claim: Object) -> Iterator[Step]:
        metadata, spec, phase = claim["metadata"], claim["spec"], claim["status"].get("phase")
        if "deletionTimestamp" in metadata and PROTECTION[CLAIMS] in (metadata.get("finalizers") or ()):
            using = self._cluster.pods_using(metadata["namespace"], metadata["name"])
            if not any(pod["spec"].get("nodeName") for pod in using):
                yield Step("unprotect PVC", partial(self._unprotect, CLAIMS, claim))
        if phase == "Bound":
            volume = self._server.find(VOLUMES, "", spec.get("volumeName") or "")
            if volume is None or (volume["spec"].get("claimRef") or {}).get("uid") != metadata["uid"]:
                yield Step("PVC is lost", partial(self._cluster.change, CLAIMS, claim, status={"phase": "Lost"}))
            elif size_of(claim) > bytes_of(volume["spec"]["capacity"]["storage"]):
                yield Step("expand PVC", partial(self._expand, claim, volume))
        if phase != "Pending" or "deletionTimestamp" in metadata:
            return
        volume = next((one for one in self._server.all(VOLUMES) if self._is_for(one, claim)), None)
        if volume is not None:
            if volume["spec"]["claimRef"].get("uid") is None:
                ref = {**volume["spec"]["claimRef"], "uid": metadata["uid"]}
                yield Step("reserve PV", partial(self._cluster.change, VOLUMES, volume, spec={"claimRef": ref}))
            elif volume["status"].get("phase") != "Bound":
                yield Step("bind PV", partial(self._cluster.change, VOLUMES, volume, status={"phase": "Bound"}))
            else:
                yield Step("bind PVC", partial(self._bind, claim, volume))
        elif self._may_provision(claim) and self._cluster.due(f"provision {metadata['uid']}", 0.05, 3.0):
            yield Step("provision", partial(self._provision, claim))

    def _is_for(self, volume: Object, claim: Object) -> bool:
        ref, metadata = volume["spec"].get("claimRef") or {}, claim["metadata"]
        if (ref.get("namespace"), ref.get("name")) != (metadata["namespace"], metadata["name"]):
            return False
        return ref.get("uid") in (None, metadata["uid"]) and "deletionTimestamp" not in volume["metadata"]

    def _may_provision(self, claim: Object) -> bool:
        spec = claim["spec"]
        storage_class = self._server.find(STORAGE_CLASSES, "", spec.get("storageClassName") or "")
        if storage_class is None or spec.get("volumeName"):
            return False
        if self._server.find(VOLUMES, "", volume_name(claim)) is not None:
            return False  # it was bound to another PVC in the meantime
        if (spec.get("dataSourceRef") or {}).get("apiGroup") == GROUP:
            return False  # a populator fills it
        if storage_class.get("volumeBindingMode") == "WaitForFirstConsumer":
            annotations = claim["metadata"].get("annotations") or {}
            if SELECTED_NODE not in annotations:
                return False
        return self._origin(claim) is not None

    def _origin(self, claim: Object) -> Disk | None:
        """Return the content of a new volume; None while its data source is not ready."""
        source = claim["spec"].get("dataSource")
        if not source:
            return Disk()
        namespace = claim["metadata"]["namespace"]
        if source["kind"] == "VolumeSnapshot":
            snapshot = self._server.find(VOLUME_SNAPSHOTS, namespace, source["name"])
            if snapshot is None or not (snapshot.get("status") or {}).get("readyToUse"):
                return None
            return self._cluster.snapshots[snapshot["metadata"]["uid"]]
        return self._cluster.disk_of(self._cluster.claim(namespace, source["name"]))

    def _provision(self, claim: Object) -> None:
        origin = self._origin(claim)
        assert origin is not None
        self._serial += 1
        metadata, spec = claim["metadata"], claim["spec"]
        ref = {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": metadata["namespace"],
            "name": metadata["name"], "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
        }  # fmt: skip
        storage_class = self._server.find(STORAGE_CLASSES, "", spec["storageClassName"])
        assert storage_class is not None
        volume = self._server.perform(
            "create",
            VOLUMES,
            {
                "metadata": {"name": volume_name(claim)},
                "spec": {
                    "accessModes": list(spec.get("accessModes") or ()),
                    "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                    "claimRef": ref,
                    "csi": {"driver": storage_class["provisioner"], "volumeHandle": f"v-{self._serial}"},
                    "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy") or "Delete",
                    "storageClassName": spec["storageClassName"],
                    "volumeMode": spec["volumeMode"],
                },
                "status": {"phase": "Pending"},
            },
            client="provisioner",
        )
        self._cluster.disks[volume["metadata"]["uid"]] = Disk(
            content=origin.content, complete=origin.complete, fills=1 if origin.complete else 0
        )

    def _bind(self, claim: Object, volume: Object) -> None:
        status = {
            "phase": "Bound",
            "accessModes": claim["spec"].get("accessModes"),
            "capacity": volume["spec"]["capacity"],
        }
        annotations = {"pv.kubernetes.io/bind-completed": "yes"}
        self._cluster.change(
            CLAIMS, claim, metadata={"annotations": annotations}, spec={"volumeName": volume["metadata"]["name"]},
            status=status,
        )  # fmt: skip

    def _expand(self, claim: Object, volume: Object) -> None:
        capacity = {"storage": claim["spec"]["resources"]["requests"]["storage"]}
        self._cluster.change(VOLUMES, volume, spec={"capacity": capacity})
        self._cluster.change(CLAIMS, claim, status={"capacity": capacity})

    def _unprotect(self, resource, body: Object) -> None:
        kept = [one for one in body["metadata"]["finalizers"] if one != PROTECTION[resource]]
        self._cluster.change(resource, body, metadata={"finalizers": kept or None})

    # --- PersistentVolumes ----------------------------------------------------------------------------------------

    def _volume_steps(self, volume: Object) -> Iterator[Step]:
        metadata, ref = volume["metadata"], volume["spec"].get("claimRef") or {}
        claim = self._cluster.claim(ref.get("namespace") or "", ref.get("name") or "") if ref else None
        if "deletionTimestamp" in metadata:
            if PROTECTION[VOLUMES] in (metadata.get("finalizers") or ()):
                yield Step("unprotect PV", partial(self._unprotect, VOLUMES, volume))
            return
        orphaned = ref.get("uid") and (claim is None or claim["metadata"]["uid"] != ref["uid"])
        if orphaned and volume["status"].get("phase") != "Released":
            yield Step("release PV", partial(self._cluster.change, VOLUMES, volume, status={"phase": "Released"}))
        elif orphaned and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
            yield Step("reclaim PV", partial(self._drop, VOLUMES, volume))

    def _drop(self, resource, body: Object) -> None:
        self._server.remove(
            resource, body["metadata"].get("namespace") or "", body["metadata"]["name"], client="storage"
        )

    # --- snapshots ------------------------------------------------------------------------------------------------

    def _snapshot_steps(self, snapshot: Object) -> Iterator[Step]:
        metadata, status = snapshot["metadata"], snapshot.get("status") or {}
        if "boundVolumeSnapshotContentName" not in status:
            source = snapshot["spec"]["source"].get("persistentVolumeClaimName") or ""
            claim = self._cluster.claim(metadata["namespace"], source)
            if self._cluster.disk_of(claim) is not None and self._cluster.due(f"cut {metadata['uid']}", 0.05, 2.0):
                yield Step("cut snapshot", partial(self._cut, snapshot, claim))
        elif not status.get("readyToUse") and self._cluster.due(f"upload {metadata['uid']}", 0.05, 4.0):
            claim_size = status["restoreSize"]
            done = {"readyToUse": True, "restoreSize": claim_size}
            yield Step("snapshot is ready", partial(self._cluster.change, VOLUME_SNAPSHOTS, snapshot, status=done))

    def _cut(self, snapshot: Object, claim: Object) -> None:
        metadata = snapshot["metadata"]
        disk, volume = self._cluster.disk_of(claim), self._cluster.volume_of(claim)
        assert disk is not None
        assert volume is not None
        self._cluster.snapshots[metadata["uid"]] = Disk(
            content=disk.content, complete=disk.complete and not disk.writers, fills=disk.fills
        )
        name = f"snapcontent-{metadata['uid']}"
        ref = {"namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}
        self._server.perform(
            "create",
            VOLUME_SNAPSHOT_CONTENTS,
            {
                "metadata": {"name": name},
                "spec": {
                    "driver": volume["spec"]["csi"]["driver"],
                    "deletionPolicy": "Delete",
                    "volumeSnapshotRef": ref,
                    "sourceVolumeMode": claim["spec"]["volumeMode"],
                },
            },
            client="snapshotter",
        )
        status = {
            "boundVolumeSnapshotContentName": name,
            "creationTime": self._cluster.stamp(),
            "readyToUse": False,
            "restoreSize": volume["spec"]["capacity"]["storage"],
        }
        self._cluster.change(VOLUME_SNAPSHOTS, snapshot, status=status)


def volume_name(claim: Object) -> str:
    """Return the name of the volume that the provisioner makes for a PVC, which is made only once."""
    return f"pvc-{claim['metadata']['uid']}"
