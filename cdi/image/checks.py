"""Named safety checks of an image, and the single error that summarises the failed ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cdi.api.errors import (
    BackingFileRefused,
    CdiError,
    EncryptionRefused,
    ExternalDataRefused,
    FormatUnsupported,
    ImageCorrupt,
    ImageDirty,
    ImageError,
    ImageUnsafe,
)
from cdi.image.sizes import MAX_DISK, format_size

_PRECEDENCE: Final[tuple[type[ImageError], ...]] = (
    BackingFileRefused,
    ExternalDataRefused,
    EncryptionRefused,
    ImageUnsafe,
    ImageCorrupt,
    ImageDirty,
    FormatUnsupported,
)
"""Error class of an image that fails checks of several classes, in order of precedence.

Dangerous comes before damaged, and damaged before merely unsupported.
"""

_SHOWN: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check, as ``cdi inspect`` prints it."""

    name: str
    passed: bool
    detail: str
    """Finding, whether the check passed or not; text from the image is quoted and truncated."""


@dataclass(slots=True)
class Checklist:
    """Checks of one image, in the order in which they were made."""

    where: str
    """Format, e.g. ``qcow2``, which the error names."""
    _checks: list[Check] = field(default_factory=list)
    _refusals: list[type[ImageError]] = field(default_factory=list)

    def check(self, passed: bool, name: str, detail: str, refusal: type[ImageError] = ImageCorrupt) -> bool:
        """Record a check and return `passed`; `refusal` is the error class if it failed."""
        self._checks.append(Check(name=name, passed=passed, detail=detail))
        if not passed:
            self._refusals.append(refusal)
        return passed

    @property
    def failed(self) -> bool:
        return bool(self._refusals)

    def expect_size(self, size: int, limit: int = MAX_DISK) -> bool:
        """Record whether a disk of `size` bytes is accepted."""
        held = size <= limit
        detail = f"{size} bytes ({format_size(size)})" + (
            "" if held else f", more than the limit of {format_size(limit)}"
        )
        return self.check(held, "virtual size", detail, FormatUnsupported)

    def raise_for_failures(self) -> tuple[Check, ...]:
        """Return all checks if they passed; else raise one error, of the gravest class, that lists every failure."""
        if self._refusals:
            gravest = min(self._refusals, key=_PRECEDENCE.index)
            failed = (f"{check.name}: {check.detail}" for check in self._checks if not check.passed)
            error = gravest("; ".join(failed), where=self.where)
            error.checks = tuple(self._checks)
            raise error
        return tuple(self._checks)


def checks_of(error: CdiError) -> tuple[Check, ...]:
    """Return all checks, passed ones included, of the image that `error` rejects; none if it was rejected earlier."""
    made = error.checks if isinstance(error, ImageError) else ()
    return tuple(check for check in made if isinstance(check, Check))


def quoted(text: bytes) -> str:
    """Return text from an image, safe for a message: quoted, control characters escaped, truncated to 80 bytes."""
    quoted = ascii(text[:_SHOWN].decode("utf-8", "replace"))
    return f"{quoted}…" if len(text) > _SHOWN else quoted
