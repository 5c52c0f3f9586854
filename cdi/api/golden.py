"""Settings and commands for golden images in the annotations ``cdi.kubevirt.io/golden.*`` of a DataImportCron.

The fields of a DataImportCron are those of KubeVirt's CDI; additional features are configured by these annotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from cdi.api.names import GROUP

PREFIX: Final = f"{GROUP}/golden."

# --- settings ---------------------------------------------------------------------------------------------------

PROOF: Final = f"{PREFIX}proof"
"""``boot``: a version is offered only after a virtual machine has booted from it; ``none`` (the default)."""
PROOF_TIMEOUT: Final = f"{PREFIX}proofTimeout"
"""Duration, such as ``10m``."""
PROOF_EXPECT: Final = f"{PREFIX}proofExpect"
"""Regular expression; only a matching console line proves the boot."""
PROOF_MEMORY: Final = f"{PREFIX}proofMemory"
"""Memory of the virtual machine, a quantity."""
PROOF_FIRMWARE: Final = f"{PREFIX}proofFirmware"
"""One of auto (the default), bios and uefi."""
CHANNELS: Final = f"{PREFIX}channels"
"""JSON object from the name of a DataSource to its rule (`Channel`)."""
KEEP_FOR: Final = f"{PREFIX}keepFor"
"""Duration; an outdated version is kept at least that long after its import, beyond importsToKeep."""
KEEP_UNUSED_FOR: Final = f"{PREFIX}keepUnusedFor"
"""Duration; an outdated version is kept at least that long after it was last cloned."""
ARCHITECTURES: Final = f"{PREFIX}architectures"
"""Comma-separated OCI architectures, each imported into a DataSource of its own."""
RECORD_KEY: Final = f"{PREFIX}recordKey"
"""Name of the Secret with the private key that signs records of origin."""
PIN: Final = f"{PREFIX}pin"
"""Version (name, or digest or its prefix) that the managed DataSource offers until the annotation is removed."""
HOLD: Final = f"{PREFIX}hold"
"""``true``: polls record the newest digest, but nothing is imported and no DataSource changes."""

# --- commands, removed once they are carried out ----------------------------------------------------------------

ROLLBACK: Final = f"{PREFIX}rollback"
"""Version to return to, or ``previous``; newer ones are withheld."""
PROMOTE: Final = f"{PREFIX}promote"
"""``CHANNEL=VERSION``."""
REVOKE: Final = f"{PREFIX}revoke"
"""``VERSION`` or ``VERSION: reason``."""
DEPRECATE: Final = f"{PREFIX}deprecate"
"""``VERSION from=RFC3339 [endOfLife=RFC3339]``; ``VERSION from=never`` takes it back."""
RETRY: Final = f"{PREFIX}retry"
"""Version that failed, to be imported or proven again."""
RELEASE: Final = f"{PREFIX}release"
"""Withheld version, or ``all``, to be offered again."""
COMMANDS: Final = (ROLLBACK, PROMOTE, REVOKE, DEPRECATE, RETRY, RELEASE)

# --- on other objects -------------------------------------------------------------------------------------------

ORIGIN: Final = f"{PREFIX}origin"
"""On a PVC: JSON of the golden version from which it descends (`Origin`)."""
RECORD: Final = f"{PREFIX}record"
"""On the PVC or VolumeSnapshot of a version: its record of origin, a DSSE envelope or an in-toto statement."""
LAST_CLONED: Final = f"{PREFIX}lastCloned"
"""On the PVC or VolumeSnapshot of a version: RFC 3339, when a clone of it last began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Rule by which a further DataSource chooses a version."""

    after: int | None = None
    """Seconds that a version must have been offered; None for a channel without a rule by age."""
    behind: int | None = None
    """Number of available versions that are newer, such as 1 for the version before the latest."""
    proven: bool = False
    """Only versions whose boot proof succeeded."""
    manual: bool = False
    """Changes by promotion only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Golden version from which a volume descends, recorded at cloning."""

    namespace: str
    """Namespace of the DataImportCron."""
    cron: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSettings:
    """Values of the settings; defaults where an annotation is missing."""

    proof: Literal["none", "boot"] = "none"
    proof_timeout: int | None = None
    """Seconds; None for the default of the accelerator."""
    proof_expect: str | None = None
    proof_memory: int = 1 << 30
    """Bytes."""
    proof_firmware: Literal["auto", "bios", "uefi"] = "auto"
    channels: tuple[tuple[str, Channel], ...] = ()
    """By the name of the DataSource, in the order of the annotation."""
    keep_for: int = 0
    """Seconds."""
    keep_unused_for: int = 0
    """Seconds."""
    architectures: tuple[str, ...] = ()
    record_key: str | None = None
    pin: str | None = None
    hold: bool = False
