"""Matching of the entries of an image index to a machine's platform.

Follows the platform object of the OCI image specification and Go's names of architectures.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from cdi.api.errors import PlatformNotFound
from cdi.api.importer_messages import no_image_for_platform

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
# For an architecture without a variant, prefer the baseline, then the smallest other variant, which runs on most
# machines.
_BASELINE = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The platform of an image; unstated parts are empty."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Parse ``[linux/]architecture[/variant]``, for None that of this machine; raise `PlatformNotFound`."""
        system, _, rest = (text or "").strip().lower().rpartition("linux/")
        name, _, variant = (rest or os.uname().machine.lower()).partition("/")
        if system or not name or len(rest) > 64:
            raise PlatformNotFound(f"{(text or '')[:80]!r} is not an architecture of Linux images")
        name, _, usual = _ALIASES.get(name, name).partition("/")
        return cls(architecture=name, os="linux", variant=variant or usual)

    @classmethod
    def from_manifest(cls, architecture: str, system: str, variant: str) -> Self:
        """Normalise the values of an index or a config, including other tools' names of architectures."""
        name, _, usual = _ALIASES.get(architecture.lower(), architecture.lower()).partition("/")
        return cls(architecture=name, os=system.lower(), variant=variant.lower() or usual)

    @property
    def known(self) -> bool:
        return bool(self.architecture)

    def matches(self, wanted: Platform) -> bool:
        """Return whether a disk for this platform runs on the wanted one."""
        if self.architecture != wanted.architecture or self.os not in ("", "linux"):
            return False
        return not wanted.variant or wanted.variant == self._variant_or_baseline()

    def _variant_or_baseline(self) -> str:
        return self.variant or _BASELINE.get(self.architecture, "")

    def preference(self) -> tuple[int, str]:
        """Return a sort key for matching platforms, best first."""
        return (0 if self._variant_or_baseline() == _BASELINE.get(self.architecture, "") else 1, self.variant)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part) or "unknown"


ANY_PLATFORM = Platform()
"""The platform of content that does not state one."""


def not_found(wanted: Platform, offered: Iterable[Platform], where: str) -> PlatformNotFound:
    """Return the error that lists the available platforms."""
    names = sorted({str(platform) for platform in offered if platform.known and platform.architecture != "unknown"})
    listed = ", ".join(name[:60] for name in names[:20]) or "none with a platform"
    error = PlatformNotFound(f"the image has no {wanted}; it has {listed}", where=where)
    return error.with_upstream(no_image_for_platform(wanted.architecture, wanted.variant, wanted.os))
