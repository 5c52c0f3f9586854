"""Options and results of an examination."""

from __future__ import annotations

from dataclasses import dataclass, field

from cdi.api.digest import Digest
from cdi.api.errors import (
    CdiError,
    DecoderLimit,
    DiskNotInImage,
    FormatUnrecognised,
    FormatUnsupported,
    ImageError,
    NestedTooDeep,
    SourceError,
    SourceNotAnImage,
)
from cdi.image.checks import Check, checks_of
from cdi.image.info import ImageInfo
from cdi.source.base import SourceFacts
from cdi.transfer.expected_digest import ExpectedDigest
from cdi.transfer.result import OutcomeBuilder


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Options of an examination: what may require reading more than the beginning."""

    digest: bool = False
    """Compute the sha256 of all bytes of the source."""
    whole: bool = False
    """Decode the whole content if only that shows the image's size."""
    allocation: bool = False
    """Read the image's tables: whether the file is complete, and how much of a qcow2 image is data."""
    expected: bool = False
    """Read checksum files and signatures next to the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFacts:
    """Facts about a container image."""

    digest: Digest
    """The digest of the manifest or index that the tag names."""
    manifest_digest: Digest
    architecture: str | None
    layers: int
    labels: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Findings:
    """The results up to `refusal`, if there is one."""

    result: OutcomeBuilder
    """``verified_by`` and ``warnings``, as a transfer would collect them."""
    facts: SourceFacts | None = None
    redirected: str | None = None
    """The URL after redirects, without possible secrets."""
    encrypted: bool | None = None
    """Whether the bytes come over TLS; None if no network is involved."""
    container: ContainerFacts | None = None
    layer: int | None = None
    """The number of the layer with the disk; 1 is the lowest."""
    wrappers: tuple[str, ...] = ()
    image: ImageInfo | None = None
    archive: bool = False
    virtual_size: int | None = None
    """Bytes: as the image declares, or counted if the whole content was decoded."""
    data_bytes: int | None = None
    """Bytes of the image that do not read as zeros."""
    many_extents: bool = False
    """Whether the image's map is too large to be kept in memory."""
    expected: ExpectedDigest | None = None
    digest: Digest | None = None
    fetched: int = 0
    checks: list[Check] = field(default_factory=list)
    refusal: CdiError | None = None

    def refuse(self, error: CdiError) -> None:
        """Record the error that an import would raise; only the first one counts."""
        if self.refusal is not None:
            return
        self.refusal = error
        made = checks_of(error)
        if made:
            self.checks += made
        elif isinstance(error, ImageError | SourceError):
            self.checks.append(
                Check(name=_subject(error, reached=self.facts is not None), passed=False, detail=error.what)
            )


def _subject(error: ImageError | SourceError, *, reached: bool) -> str:
    match error:
        case SourceNotAnImage():
            return "content"
        case DiskNotInImage():
            return "disk"
        case FormatUnrecognised() | FormatUnsupported():
            return "format"
        case NestedTooDeep():
            return "wrappers"
        case DecoderLimit():
            return "decoding"
        case SourceError():
            return "transfer" if reached else "source"
        case _:
            return "structure"
