"""Named safety checks: what was looked at, what was found, and the one refusal that follows from all of them."""

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
from cdi.image.sizes import MAX_DISK, human

_PRECEDENCE: Final[tuple[type[ImageError], ...]] = (
    BackingFileRefused,
    ExternalDataRefused,
    EncryptionRefused,
    ImageUnsafe,
    ImageCorrupt,
    ImageDirty,
    FormatUnsupported,
)
"""Which class a refusal takes where checks of several classes failed: what is dangerous before what is broken,
and either before what is merely unknown."""

_SHOWN: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at, as ``cdi inspect`` prints it."""

    name: str
    passed: bool
    detail: str
    """What was found, whether it passed or not; text out of the image is quoted and cut."""


@dataclass(slots=True)
class Checklist:
    """The checks of one image, in the order they were made."""

    where: str
    """The format, e.g. ``qcow2``; a refusal names it."""
    _checks: list[Check] = field(default_factory=list)
    _refusals: list[type[ImageError]] = field(default_factory=list)

    def expect(self, passed: bool, name: str, detail: str, refusal: type[ImageError] = ImageCorrupt) -> bool:
        """Note a check; `refusal` is the error it becomes where it did not pass.  Returns `passed`."""
        self._checks.append(Check(name=name, passed=passed, detail=detail))
        if not passed:
            self._refusals.append(refusal)
        return passed

    @property
    def failed(self) -> bool:
        return bool(self._refusals)

    def expect_size(self, size: int, limit: int = MAX_DISK) -> bool:
        """Note whether a disk of `size` bytes is accepted."""
        held = size <= limit
        detail = f"{size} bytes ({human(size)})" + ("" if held else f", more than {human(limit)}")
        return self.expect(held, "virtual size", detail, FormatUnsupported)

    def settle(self) -> tuple[Check, ...]:
        """All checks, where all passed; else exactly one error, of the gravest class, that lists every failure."""
        if self._refusals:
            gravest = min(self._refusals, key=_PRECEDENCE.index)
            failed = (f"{check.name}: {check.detail}" for check in self._checks if not check.passed)
            error = gravest("; ".join(failed), where=self.where)
            error.checks = tuple(self._checks)
            raise error
        return tuple(self._checks)


def checks_of(error: CdiError) -> tuple[Check, ...]:
    """All checks of the image that `error` refuses, passed ones too; none where it was refused before any was made."""
    made = error.checks if isinstance(error, ImageError) else ()
    return tuple(check for check in made if isinstance(check, Check))


def shown(text: bytes) -> str:
    """Text out of an image, fit for a message: quoted, control characters escaped, cut to 80 bytes."""
    quoted = ascii(text[:_SHOWN].decode("utf-8", "replace"))
    return f"{quoted}…" if len(text) > _SHOWN else quoted
