"""State of a transfer in ``status.data``, written before any object is changed; later reconciles continue from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from cdi.api.names import GROUP

FINALIZER: Final = f"{GROUP}/objectTransfer"
"""Finalizer of a transfer, which stays until the transfer is complete or rolled back."""


def lock_finalizer(uid: str) -> str:
    """Return the finalizer that the transfer with this UID sets on the source's PVC.

    It keeps the PVC until its volume is rebound, and locks out other transfers.
    """
    return f"{FINALIZER}-{uid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecord:
    """The objects that are moved."""

    claim: str
    """UID of the source PVC."""
    volume: str
    """The PersistentVolume's name."""
    volume_uid: str
    reclaim: str
    """Its original reclaim policy, to be restored."""
    data_volume: str = ""
    """UID of the source DataVolume; empty if only a PVC is moved."""
    given_up: bool = False
    """Whether the source is being deleted, so that the transfer cannot be rolled back."""
    body: str = ""
    """The target DataVolume as JSON, stored because the source is deleted before it is created."""

    @classmethod
    def read(cls, data: Mapping[str, str] | None) -> Self | None:
        """Parse ``status.data``; return None if required values are missing, as when another program wrote it."""
        found = data or {}
        if not all(found.get(name) for name in ("claimUID", "pvName", "pvUID", "pvReclaim")):
            return None
        return cls(
            claim=found["claimUID"],
            volume=found["pvName"],
            volume_uid=found["pvUID"],
            reclaim=found["pvReclaim"],
            data_volume=found.get("dataVolumeUID", ""),
            given_up="sourceGivenUp" in found,
            body=found.get("dataVolume", ""),
        )

    def write(self) -> dict[str, str]:
        """Return ``status.data``; the volume's name and policy have the same keys as in KubeVirt's CDI."""
        data = {
            "claimUID": self.claim,
            "pvName": self.volume,
            "pvUID": self.volume_uid,
            "pvReclaim": self.reclaim,
            "dataVolumeUID": self.data_volume,
            "sourceGivenUp": "true" if self.given_up else "",
            "dataVolume": self.body,
        }
        return {name: text for name, text in data.items() if text}
