"""Contract between controller and proof worker: one `ProofJob` in, one `ProofResult` out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, Self

from cdi.api.decode import DecodeError, Range, decode
from cdi.api.errors import InvalidManifest
from cdi.api.job import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofJob:
    """A disk from which a virtual machine is to be booted, without writing to it."""

    id: str
    """UID of the PVC."""
    disk: str
    """Path of a disk image or block device."""
    memory: Annotated[int, Range(at_least=1 << 26)] = 1 << 30
    """Memory of the virtual machine in bytes."""
    timeout: Annotated[float, Range(above=0, at_most=86_400)] | None = None
    """Seconds; None for the default of the accelerator."""
    firmware: Literal["auto", "bios", "uefi"] = "auto"
    expect: str | None = None
    """Regular expression; only a matching console line proves the boot."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON; raise `InvalidManifest` that names every invalid field."""
        try:
            return decode(cls, text)
        except DecodeError as error:
            raise InvalidManifest(f"not a proof job: {error}") from error

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofResult:
    """Result of a boot proof; `failure` is set if the proof could not be made at all."""

    id: str
    booted: bool = False
    message: str = ""
    """Evidence of the boot, or why it failed."""
    accelerator: str = ""
    seconds: float = 0.0
    console: str = ""
    """End of the console output."""
    failure: Failure | None = None

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON; raise `ValueError` if it is invalid."""
        return decode(cls, text)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))
