"""Read-only view of clones in the watch caches (implements `cdi.reconcile.clone.lister.CloneLister`)."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import CLONE_PLAN, CLONE_SOURCE_UID, OWNER_UID, TICKETS
from cdi.api.errors import ClusterUnavailable, InvalidManifest, TokenInvalid
from cdi.api.json_document import parse_json
from cdi.api.kinds import (
    CLAIMS,
    PODS,
    VOLUME_CLONE_SOURCES,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
    Object,
)
from cdi.api.names import LABEL_COMPONENT
from cdi.api.phases import TERMINAL_PHASES, Reason
from cdi.api.populators import VolumeCloneSource
from cdi.api.printable import printable
from cdi.api.quantity import Quantity
from cdi.api.storageprofile import CloneStrategy
from cdi.api.timestamps import epoch_seconds
from cdi.controller.lister import Cache, ClusterLister, data_ref
from cdi.kube.jwt import Operation, ResourceKind, SigningKey, TokenClaims
from cdi.reconcile.clone.gc import is_copying
from cdi.reconcile.clone.types import CloneAuthorization, PrepPod, SizeDetectionPod, Snapshot, SourceKind, SourcePod
from cdi.reconcile.datavolume.status_table import RUNS
from cdi.reconcile.pods.roles import SIZE_DETECTION
from cdi.reconcile.pods.status import pending_reason, termination_outcome
from cdi.reconcile.pods.types import PodBlocker
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.storage.profiles import SnapshotClass
from cdi.reconcile.types import PVC

LONG_LIVED_TOKEN_SECONDS: Final = 10 * 365 * 24 * 3600
"""Lifetime in seconds of the token on a PVC: longer than any clone takes."""
_TOKENS: Final = 1024
SUBJECTS: Final[Mapping[SourceKind, ResourceKind]] = {
    "PersistentVolumeClaim": ResourceKind(group="", version="v1", resource="persistentvolumeclaims"),
    "VolumeSnapshot": ResourceKind(group="snapshot.storage.k8s.io", version="v1", resource="volumesnapshots"),
}


class PodUsage(Protocol):
    """Source of the times since which no pod has used a PVC (`cdi.controller.pod_usage.PodUsageTracker`)."""

    def unmounted_since(self, namespace: str, claim: str) -> float | None: ...


class NoPodUsage:
    """Placeholder used without a watch on pods: any existing snapshot may be older than the last write."""

    def unmounted_since(self, namespace: str, claim: str) -> float | None:  # noqa: ARG002  signature of the protocol
        return None


class InformerCloneLister:
    """Implementation of `CloneLister` on the watch caches."""

    def __init__(
        self, watches: Cache, observed: ClusterLister, calm: PodUsage, *, now: Callable[[], float] = time.time
    ) -> None:
        self.key: SigningKey | None = None
        """Signing key of tokens; None until it has been read."""
        self._watches = watches
        self._observed = observed
        self._calm = calm
        self._now = now
        self._signed: OrderedDict[CloneAuthorization, tuple[SigningKey, str]] = OrderedDict()

    def snapshot(self, namespace: str, name: str) -> Snapshot | None:
        body = self._watches.get(VOLUME_SNAPSHOTS, namespace, name)
        return None if body is None else self._snapshot(body)

    def clone_source(self, namespace: str, name: str) -> VolumeCloneSource | None:
        return self._observed.model(VOLUME_CLONE_SOURCES, namespace, name, VolumeCloneSource)

    def unmounted_since(self, namespace: str, claim: str) -> float | None:
        return self._calm.unmounted_since(namespace, claim)

    def snapshot_class(self, storage_class: str | None, driver: str) -> str | None:
        """Return a VolumeSnapshotClass of this driver.

        It is the one that the StorageProfile names, else the default class, else the first by name.
        """
        profile = self._observed.storage_profile(storage_class) if storage_class else None
        named = profile.spec.snapshot_class if profile is not None else None
        classes = (SnapshotClass.read(body) for body in self._watches.values(VOLUME_SNAPSHOT_CLASSES))
        fitting = sorted((one for one in classes if one.driver == driver), key=lambda one: (not one.default, one.name))
        return next((one.name for one in fitting if one.name == named), fitting[0].name if fitting else None)

    def classes(self, driver: str) -> tuple[StorageClass, ...]:
        return tuple(one for one in self._observed.storage_classes() if one.provisioner == driver)

    def strategy(self, storage_class: str | None) -> CloneStrategy | None:
        profile = self._observed.storage_profile(storage_class) if storage_class else None
        said = profile.spec.clone_strategy if profile is not None else None
        if said is None and profile is not None and profile.status is not None:
            said = profile.status.clone_strategy
        if said is not None and said in set(CloneStrategy):
            return CloneStrategy(said)
        found = self._observed.storage_class(storage_class) if storage_class else None
        return found.clone_strategy if found is not None else None

    def prep_pod(self, namespace: str, name: str) -> PrepPod | None:
        body = self._watches.get(PODS, namespace, name)
        if body is None:
            return None
        hold = pending_reason(body)
        return PrepPod(
            uid=body["metadata"]["uid"],
            phase=(body.get("status") or {}).get("phase") or "Pending",
            message=hold.message if hold is not None else "",
            deleting="deletionTimestamp" in body["metadata"],
        )

    def size_detection_pod(self, namespace: str, name: str) -> SizeDetectionPod | None:
        body = self._watches.get(PODS, namespace, name)
        if body is None:
            return None
        metadata = body["metadata"]
        annotations = metadata.get("annotations") or {}
        source = CLONE_SOURCE_UID.read(annotations) or ""
        end, hold = termination_outcome(body, source), pending_reason(body)
        return SizeDetectionPod(
            uid=metadata["uid"],
            target=OWNER_UID.read(annotations) or "",
            source=source,
            outcome=end[0] if end is not None else None,
            ended=end[1] if end is not None else 0.0,
            message=hold.message if hold is not None else "",
            deleting="deletionTimestamp" in metadata,
        )

    def source_pod(self, namespace: str, name: str) -> SourcePod | None:
        body = self._watches.get(PODS, namespace, name)
        if body is None:
            return None
        metadata, status = body["metadata"], body.get("status") or {}
        annotations = metadata.get("annotations") or {}
        hold = pending_reason(body)
        ended = status.get("phase") in TERMINAL_PHASES
        states = [one.get("state") or {} for one in status.get("containerStatuses") or ()]
        last: Mapping[str, Any] = next((one["terminated"] for one in states if one.get("terminated")), {})
        return SourcePod(
            uid=metadata["uid"],
            source=CLONE_SOURCE_UID.read(annotations) or "",
            tickets=TICKETS.read(annotations),
            running=status.get("phase") == "Running",
            ended=(epoch_seconds(last.get("finishedAt") or metadata.get("creationTimestamp")) or 0.0)
            if ended
            else None,
            reason=_reason(status.get("phase"), hold),
            message=_termination_message(last) if ended else hold.message if hold is not None else "",
            deleting="deletionTimestamp" in metadata,
        )

    def active_copies(self, source: str) -> int:
        return sum(is_copying(target, source) for target in self.targets())

    def verify_token(self, token: str, moment: float) -> CloneAuthorization | None:
        try:
            claims = self._signer().verify(token, Operation.CLONE, moment)
        except TokenInvalid:
            return None
        kind = next((kind for kind, subject in SUBJECTS.items() if subject == claims.resource), None)
        if kind is None:
            return None
        return CloneAuthorization(
            kind=kind,
            namespace=claims.namespace,
            name=claims.name,
            target_namespace=claims.params.get("targetNamespace", ""),
            target_name=claims.params.get("targetName", ""),
            target_uid=claims.params.get("targetUID", ""),
        )

    def sign_long_lived_token(self, grant: CloneAuthorization) -> str:
        key = self._signer()
        known = self._signed.get(grant)
        if known is None or known[0] is not key:
            known = (key, key.sign(claims_of(grant), self._now(), LONG_LIVED_TOKEN_SECONDS))
            self._signed[grant] = known
        self._signed.move_to_end(grant)
        while len(self._signed) > _TOKENS:
            self._signed.popitem(last=False)
        return known[1]

    def _signer(self) -> SigningKey:
        if self.key is None:
            raise ClusterUnavailable(
                "the token signing key is not available yet", remedy="the clone starts automatically once it is"
            )
        return self.key

    def targets(self) -> Iterable[PVC]:
        """Yield every PVC that is the target of a clone or is created from a snapshot."""
        for body in self._watches.values(CLAIMS):
            cloned = CLONE_PLAN.key in annotations_of(body)
            if not cloned and not snapshot_source(body):
                continue
            found = self._observed.claim(body["metadata"]["namespace"], body["metadata"]["name"])
            if found is not None:
                yield found

    def _snapshot(self, body: Object) -> Snapshot:
        metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
        content = self._watches.get(VOLUME_SNAPSHOT_CONTENTS, "", status.get("boundVolumeSnapshotContentName") or "-")
        held = (content or {}).get("spec") or {}
        source = (spec.get("source") or {}).get("persistentVolumeClaimName") or ""
        claim = self._observed.claim(metadata["namespace"], source) if source else None
        return Snapshot(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            ready=bool(status.get("readyToUse")) and content is not None,
            taken=bool(status.get("creationTime")),
            begun=epoch_seconds(metadata.get("creationTimestamp")) or 0.0,
            size=_size(status.get("restoreSize")),
            driver=held.get("driver") or "",
            volume_mode=held.get("sourceVolumeMode") or "",
            storage_class=(claim.storage_class if claim is not None else None) or "",
            snapshot_class=spec.get("volumeSnapshotClassName") or "",
            source=source,
            error=str((status.get("error") or {}).get("message") or "")[:512],
            annotations=metadata.get("annotations") or {},
            labels=metadata.get("labels") or {},
            deleting="deletionTimestamp" in metadata,
        )


def _reason(phase: str | None, hold: PodBlocker | None) -> str:
    if phase in TERMINAL_PHASES:
        return Reason.COMPLETED if phase == "Succeeded" else Reason.ERROR
    return hold.reason if hold is not None else RUNS


def _termination_message(terminated: Mapping[str, Any]) -> str:
    """Return the message from a source pod's termination message, printable and shortened.

    The content of another tenant's volume may have influenced that text.
    """
    try:
        failure = parse_json(str(terminated.get("message") or "")[:8192])["outcome"]["failure"]
        text = str(failure["message"]) if failure else ""
    except (ValueError, LookupError, TypeError):
        return ""
    return printable(text, 512)


def claims_of(grant: CloneAuthorization) -> TokenClaims:
    """Return the token claims that permit this clone."""
    params = {"targetNamespace": grant.target_namespace, "targetName": grant.target_name}
    if grant.target_uid:
        params["targetUID"] = grant.target_uid
    return TokenClaims(
        operation=Operation.CLONE,
        namespace=grant.namespace,
        name=grant.name,
        resource=SUBJECTS[grant.kind],
        params=params,
    )


def _size(text: Any) -> int | None:
    try:
        return None if text is None else Quantity.parse(str(text)).bytes
    except InvalidManifest:
        return None


def is_size_detection_pod(pod: Object) -> bool:
    """Return whether a pod is a size-detection pod."""
    return (pod["metadata"].get("labels") or {}).get(LABEL_COMPONENT) == SIZE_DETECTION.component


def snapshot_source(claim: Object) -> str:
    """Return the name of the VolumeSnapshot from which the storage provisions a PVC; empty if there is none."""
    ref = data_ref(claim.get("spec") or {})
    return ref.name if ref is not None and ref.kind == VOLUME_SNAPSHOTS.kind else ""
