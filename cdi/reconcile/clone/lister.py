"""Observed facts that are specific to clones."""

from __future__ import annotations

from typing import Protocol

from cdi.api.populators import VolumeCloneSource
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.clone.types import CloneAuthorization, PrepPod, SizeDetectionPod, Snapshot, SourcePod
from cdi.reconcile.storage.classes import StorageClass


class CloneLister(Protocol):
    """Read-only lookups of facts for clones, without I/O."""

    def snapshot(self, namespace: str, name: str) -> Snapshot | None: ...

    def clone_source(self, namespace: str, name: str) -> VolumeCloneSource | None: ...

    def unmounted_since(self, namespace: str, claim: str) -> float | None:
        """Return since when no pod can have written to a PVC (seconds since the epoch); None if one may be."""

    def snapshot_class(self, storage_class: str | None, driver: str) -> str | None:
        """Return the VolumeSnapshotClass for volumes of this class (whose profile may name one) and driver."""

    def classes(self, driver: str) -> tuple[StorageClass, ...]:
        """Return the StorageClasses with this provisioner, in any order."""

    def strategy(self, storage_class: str | None) -> CloneStrategy | None:
        """Return the clone strategy of the class's StorageProfile; None if it has none."""

    def source_pod(self, namespace: str, name: str) -> SourcePod | None: ...

    def active_copies(self, source: str) -> int:
        """Return the number of host-assisted clones in progress for the source with this UID."""

    def size_detection_pod(self, namespace: str, name: str) -> SizeDetectionPod | None: ...

    def prep_pod(self, namespace: str, name: str) -> PrepPod | None: ...

    def verify_token(self, token: str, moment: float) -> CloneAuthorization | None:
        """Verify a token.

        Args:
            token: The signed text.
            moment: The time at which it must have been valid, in seconds since the epoch.

        Returns:
            What it permits; None if it is forged or was not valid at `moment`.

        Raises:
            ClusterUnavailable: It cannot be verified now.

        """

    def sign_long_lived_token(self, grant: CloneAuthorization) -> str:
        """Return a long-lived token for `grant`; equal grants give equal tokens.

        Raises:
            ClusterUnavailable: It cannot be signed now.

        """
