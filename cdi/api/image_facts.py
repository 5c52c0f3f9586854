"""Facts about an image that a worker reports, and that are recorded in annotations of the PVC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from cdi.api.names import ANN_IMAGE_VALIDATOR, GROUP

PREFIX: Final = f"{GROUP}/image."
DISK_SIZE: Final = f"{PREFIX}diskSize"
VOLUME_SIZE: Final = f"{PREFIX}volumeSize"
_MAX_VALUE = 1024
"""Maximum number of characters stored of a value that comes from a server or an image."""
_MAX_DIGITS = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """Facts about an image; sizes are bytes."""

    format: str | None = None
    """Format of the innermost image: raw, qcow2, vmdk, vdi, vpc, vhdx, archive, blank."""
    wrappers: tuple[str, ...] = ()
    """Compression and archive layers, outermost first: gz, xz, zst, tar."""
    digest: str | None = None
    """Digest ``algorithm:hex`` of the source's bytes, if one was computed."""
    virtual_size: int | None = None
    disk_size: int | None = None
    """Size of the disk on the volume, when that was filled."""
    verified_by: tuple[str, ...] = ()
    """Completed checks: length, checksum, SHA256SUMS, registry digest, signature …"""
    validator: str | None = None
    """Validator of the source, such as its ETag; of a resumable upload, its name."""
    path: str | None = None
    """Pipeline that processed the image (`cdi.image.plan`)."""

    @classmethod
    def read(cls, annotations: Mapping[str, str]) -> Self:
        """Return the facts that a PVC's annotations record; one that is missing or invalid is unknown."""

        def text(name: str) -> str | None:
            return annotations.get(f"{PREFIX}{name}") or None

        def size(name: str) -> int | None:
            digits = text(name) or ""
            return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS else None

        return cls(
            format=text("format"),
            wrappers=_items(text("wrappers"), ","),
            digest=text("digest"),
            virtual_size=size("virtualSize"),
            disk_size=size("diskSize"),
            verified_by=_items(text("verifiedBy"), ", "),
            validator=text("validator"),
            path=text("path"),
        )

    def to_annotations(self, requested: int | None) -> dict[str, str]:
        """Return the annotations, with the size that the PVC requests if the size of the disk is known."""
        values = {
            f"{PREFIX}format": self.format,
            f"{PREFIX}wrappers": ",".join(self.wrappers),
            f"{PREFIX}digest": self.digest,
            f"{PREFIX}virtualSize": self.virtual_size,
            DISK_SIZE: self.disk_size,
            VOLUME_SIZE: None if self.disk_size is None else requested,
            f"{PREFIX}verifiedBy": ", ".join(self.verified_by),
            ANN_IMAGE_VALIDATOR: self.validator,
            f"{PREFIX}path": self.path,
        }
        return {name: str(value)[:_MAX_VALUE] for name, value in values.items() if value not in (None, "")}


def _items(text: str | None, separator: str) -> tuple[str, ...]:
    return tuple(item for item in (text or "").split(separator) if item)
