"""Result of a running transfer, from which its `Outcome` is built."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from cdi.api.job import Failure, Outcome

_WARNINGS = 20


@dataclass(slots=True)
class OutcomeBuilder:
    """Mutable counterpart of `Outcome`, filled in by the parts of a transfer, with two fields more."""

    id: str
    failure: Failure | None = None
    format: str | None = None
    wrappers: tuple[str, ...] = ()
    path: str | None = None
    virtual_size: int | None = None
    disk_size: int | None = None
    digest: str | None = None
    verified_by: list[str] = field(default_factory=list)
    fetched: int = 0
    written: int = 0
    """Bytes written to the target: data, and zeros that had to be written.

    Not counted are holes, ranges that were zeroed by the storage, and preallocated blocks. For QEMU, it is what the
    kernel counted (`cdi.transfer.qemu.convert.ConvertResult`).
    """
    scratch: int = 0
    resumed_at: int = 0
    preallocated: bool = False
    validator: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    target_modified: bool = False
    """Whether the volume was modified."""
    wiped: bool = False
    """Whether the data of this attempt and of earlier ones was removed from the volume."""

    def warn(self, text: str) -> None:
        if text not in self.warnings and len(self.warnings) < _WARNINGS:
            self.warnings.append(text)

    def verified(self, by: str) -> None:
        if by not in self.verified_by:
            self.verified_by.append(by)

    def outcome(self) -> Outcome:
        """Return the result so far; every field of an `Outcome` has its counterpart here, by the same name."""
        named: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(Outcome)}
        return Outcome(**named | {"verified_by": tuple(self.verified_by), "warnings": tuple(self.warnings)})
