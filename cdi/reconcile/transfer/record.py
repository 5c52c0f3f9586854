"""What is written into a transfer's ``status.data`` before anything is touched: whoever comes later goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from cdi.api.names import GROUP

FINALIZER: Final = f"{GROUP}/objectTransfer"
"""Of a transfer: it stays until what it has begun is at an end, or undone."""
ANN_TRANSFER: Final = f"{GROUP}/objectTransferUID"
"""Of the claim and DataVolume that a transfer made: its uid."""


def lock(uid: str) -> str:
    """The finalizer of the transfer with this uid on the source's claim.

    The claim stays until its volume was handed over, and other transfers leave it alone.
    """
    return f"{FINALIZER}-{uid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecord:
    """What is moved."""

    claim: str
    """The source claim's uid."""
    volume: str
    """The PersistentVolume's name."""
    volume_uid: str
    reclaim: str
    """What becomes of it when its claim goes, as it was and shall be again."""
    data_volume: str = ""
    """The uid of the source DataVolume; empty where a claim alone is moved."""
    given_up: bool = False
    """The source is being deleted, and it is too late to go back."""
    body: str = ""
    """The DataVolume that is made in its place, JSON: there is no source any more to make it of by then."""

    @classmethod
    def read(cls, data: Mapping[str, str] | None) -> Self | None:
        """None where it does not say what is needed: it was written by somebody else."""
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
        """For ``status.data``; the volume's name and policy have the names that KubeVirt's CDI gives them."""
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
