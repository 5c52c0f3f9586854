"""What a transfer finds out on its way, until it is an `Outcome`."""

from __future__ import annotations

from dataclasses import dataclass, field

from cdi.api.job import Failure, Outcome

_WARNINGS = 20


@dataclass(slots=True)
class Result:
    """Filled in by the parts of a transfer; the fields are those of `Outcome`, and one more."""

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
    """Bytes that were given to the target: data, and zeros where they had to be written out.  Neither holes nor ranges
    that storage was only asked to make zero, nor what preallocation reserved.  Of QEMU's part, what the kernel counted
    for it (`cdi.transfer.qemu.convert.ConvertResult`)."""
    scratch: int = 0
    resumed_at: int = 0
    preallocated: bool = False
    validator: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    begun: bool = False
    """The volume is no longer as it was."""
    wiped: bool = False
    """Nothing is left on it of what this attempt or an earlier one wrote."""

    def warn(self, text: str) -> None:
        if text not in self.warnings and len(self.warnings) < _WARNINGS:
            self.warnings.append(text)

    def verified(self, by: str) -> None:
        if by not in self.verified_by:
            self.verified_by.append(by)

    def outcome(self) -> Outcome:
        return Outcome(
            id=self.id,
            failure=self.failure,
            format=self.format,
            wrappers=self.wrappers,
            path=self.path,
            virtual_size=self.virtual_size,
            disk_size=self.disk_size,
            digest=self.digest,
            verified_by=tuple(self.verified_by),
            fetched=self.fetched,
            written=self.written,
            scratch=self.scratch,
            resumed_at=self.resumed_at,
            preallocated=self.preallocated,
            validator=self.validator,
            labels=self.labels,
            warnings=tuple(self.warnings),
            seconds=self.seconds,
        )
