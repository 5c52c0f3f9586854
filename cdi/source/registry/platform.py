"""Which entry of an image index fits a machine.

Follows the OCI image specification's platform object and the names that Go gives to architectures.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from cdi.api.errors import PlatformNotFound

_ALIASES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm/v7",
    "armel": "arm/v6",
    "armv8l": "arm64",
    "armv7l": "arm/v7",
    "armv7": "arm/v7",
    "armv6l": "arm/v6",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "x86": "386",
    "loongarch64": "loong64",
    "ppc64el": "ppc64le",
}
# A wanted architecture without a variant takes the baseline first, and of the others the smallest: it runs on most.
_BASELINE = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What an image is for.  Empty where it does not say."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    @classmethod
    def wanted(cls, text: str | None) -> Self:
        """From ``[linux/]architecture[/variant]``, that of this machine for None; raises `PlatformNotFound`."""
        system, _, rest = (text or "").strip().lower().rpartition("linux/")
        name, _, variant = (rest or os.uname().machine.lower()).partition("/")
        if system or not name or len(rest) > 64:
            raise PlatformNotFound(f"{(text or '')[:80]!r} is not an architecture of Linux images")
        name, _, usual = _ALIASES.get(name, name).partition("/")
        return cls(architecture=name, os="linux", variant=variant or usual)

    @classmethod
    def offered(cls, architecture: str, system: str, variant: str) -> Self:
        """As an index or a config has it, with other tools' names for architectures understood."""
        name, _, usual = _ALIASES.get(architecture.lower(), architecture.lower()).partition("/")
        return cls(architecture=name, os=system.lower(), variant=variant.lower() or usual)

    @property
    def known(self) -> bool:
        return bool(self.architecture)

    def fits(self, wanted: Platform) -> bool:
        """Whether a disk made for this platform serves the wanted one."""
        if self.architecture != wanted.architecture or self.os not in ("", "linux"):
            return False
        return not wanted.variant or wanted.variant == self._variant_or_baseline()

    def _variant_or_baseline(self) -> str:
        return self.variant or _BASELINE.get(self.architecture, "")

    def preference(self) -> tuple[int, str]:
        """Sorts fitting platforms, best first."""
        return (0 if self._variant_or_baseline() == _BASELINE.get(self.architecture, "") else 1, self.variant)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part) or "unknown"


ANY_PLATFORM = Platform()
"""Of content that does not say what it is for."""


def not_found(wanted: Platform, offered: Iterable[Platform], where: str) -> PlatformNotFound:
    """The error that lists what there is."""
    names = sorted({str(platform) for platform in offered if platform.known and platform.architecture != "unknown"})
    listed = ", ".join(name[:60] for name in names[:20]) or "none that is named"
    return PlatformNotFound(f"the image has no {wanted}; it has {listed}", where=where)
