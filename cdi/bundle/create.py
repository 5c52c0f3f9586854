"""Creation of a bundle: for each golden image the registry's own image, or one made from the volume or the source."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from cdi.api.digest import Digest
from cdi.api.errors import (
    AlreadyExists,
    ChecksumMismatch,
    FormatUnsupported,
    NotFound,
    SourceNotFound,
    UsageError,
    VersionGone,
)
from cdi.api.job import RegistrySourceSpec
from cdi.api.origin import ENVELOPE_TYPE, PAYLOAD_TYPE, parse_record
from cdi.bundle.contents import (
    GOLDEN,
    GOLDEN_TYPE,
    MAX_IMAGES,
    RECORD,
    STATEMENT,
    GoldenDocument,
    bundle_statement,
)
from cdi.bundle.disk_image import build_disk_image
from cdi.bundle.layout import REF_NAME, JsonDescriptor, LayoutWriter, OnBytes, pack
from cdi.bundle.original import copy_original
from cdi.bundle.selection import Selection
from cdi.client.locate import locate
from cdi.client.request import Access, Request, source_spec
from cdi.local.home import Home
from cdi.local.import_to_path import import_to_path
from cdi.source.registry.manifest import INDEX_TYPES
from cdi.source.registry.platform import Platform
from cdi.verify.dsse import sign

Origin = Literal["auto", "source", "volume"]
_PARTIAL: Final = ".partial"
FindAccess = Callable[[Selection], tuple[Access, Mapping[str, bytes] | None]]
"""Callable that returns the options of access to the source of a golden image, and the values of its Secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a bundle is created."""

    origin: Origin = "auto"
    """source: fetch the pinned version again; volume: convert the volume of this machine; auto: source for registries,
    the volume for everything else where there is one."""
    key: bytes | None = None
    """Private key in PEM that signs a statement about each image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A golden image that was written."""

    name: str
    digest: str
    original: bool
    signatures: int


class BundleCreator:
    """Creation of one bundle at `output`: a directory, or a tar if the name ends in ``.tar``."""

    def __init__(self, home: Home, output: Path, options: Options, find_access: FindAccess) -> None:
        self._home = home
        self._output = output
        self._options = options
        self._find_access = find_access
        self._packed = output.suffix == ".tar"

    def create(
        self,
        selections: Sequence[Selection],
        volume_path: Callable[[Selection], Path] | None,
        on_image: Callable[[str], OnBytes] = lambda _: lambda _: None,
    ) -> list[Written]:
        """Write the bundle, continuing an interrupted one.

        Args:
            selections: The golden images, with distinct names.
            volume_path: Returns the path of a volume's disk; None if volumes cannot be read here.
            on_image: Called with the name of each image before it is written; returns the progress callback.

        Raises:
            VersionGone: The source no longer serves a version.
            CdiError: The errors of the sources and of the target.
        """
        self._check(selections)
        root = self._output.with_name(self._output.name + _PARTIAL) if self._packed else self._output
        writer = LayoutWriter(root)
        entries: list[JsonDescriptor] = []
        written = []
        try:
            for selection in sorted(selections, key=lambda one: one.name):
                added, done = self._add(writer, selection, volume_path, on_image(selection.name))
                # The same image may be bundled under two names, and its signatures are listed once.
                entries += [entry for entry in added if entry not in entries]
                written.append(done)
            writer.finish(entries)
        finally:
            # It contains credentials. Blobs stay, so that the next attempt continues.
            shutil.rmtree(writer.work, ignore_errors=True)
        if self._packed:
            pack(root, self._output)
        return written

    def _check(self, selections: Sequence[Selection]) -> None:
        if not selections:
            raise UsageError("no golden image is given", remedy="cdi bundle create -o FILE.tar NAME…")
        names = [selection.name for selection in selections]
        if len(set(names)) < len(names) or len(names) > MAX_IMAGES:
            raise UsageError(f"a bundle holds at most {MAX_IMAGES} golden images, each name once")
        if self._packed and self._output.is_dir():
            raise AlreadyExists("a directory has this name", where=str(self._output), remedy="choose another name")

    def _add(
        self,
        writer: LayoutWriter,
        selection: Selection,
        volume_path: Callable[[Selection], Path] | None,
        on_bytes: OnBytes,
    ) -> tuple[list[JsonDescriptor], Written]:
        extra: list[JsonDescriptor] = []
        version = selection.version
        from_source = self._options.origin == "source" or (
            self._options.origin == "auto" and (selection.is_registry or volume_path is None)
        )
        original = from_source and selection.is_registry
        if original:
            spec = self._registry(selection)
            if not version.digest:
                raise UsageError(
                    "the digest of the image was not recorded", where=selection.name, remedy="use --from volume"
                )
            copied = copy_original(writer, spec, Digest.parse(version.digest), on_bytes)
            image, extra = copied.image, copied.signatures
            if image["mediaType"] in INDEX_TYPES:
                # Only this platform of the index was copied.
                architecture = spec.architecture or Platform.parse(None).architecture
                version = version.model_copy(update={"architecture": architecture})
        elif from_source:
            image = self._fetch(writer, selection, on_bytes)
        else:
            if volume_path is None:
                raise UsageError(
                    "the volumes of a cluster cannot be read from here",
                    where=selection.name,
                    remedy="use --from source, which fetches the pinned version again",
                )
            image = self._convert(writer, selection, volume_path(selection), on_bytes)
        if not version.digest:
            version = version.model_copy(update={"digest": image["digest"]})
        document = GoldenDocument(
            name=selection.name,
            version=version,
            original=original,
            size=selection.image.virtual_size,
            labels=selection.labels,
            cron=selection.cron,
        )
        entries = [self._named(image, selection.name), *self._documents(writer, selection, document, image), *extra]
        done = Written(name=selection.name, digest=image["digest"], original=original, signatures=len(extra))
        return entries, done

    def _documents(
        self, writer: LayoutWriter, selection: Selection, document: GoldenDocument, image: JsonDescriptor
    ) -> list[JsonDescriptor]:
        found = [self._named(writer.artifact(GOLDEN_TYPE, image, document.to_json()), document.name + GOLDEN)]
        if selection.record is not None:
            kind = ENVELOPE_TYPE if parse_record(selection.record).signatures else PAYLOAD_TYPE
            record = writer.artifact(kind, image, selection.record.encode())
            found.append(self._named(record, document.name + RECORD))
        if self._options.key is not None:
            statement = bundle_statement(document, image)
            envelope = sign(statement, self._options.key, where="--sign-key").to_json()
            found.append(self._named(writer.artifact(ENVELOPE_TYPE, image, envelope), document.name + STATEMENT))
        return found

    def _named(self, descriptor: JsonDescriptor, name: str) -> JsonDescriptor:
        return {**descriptor, "annotations": {REF_NAME: name}}

    def _registry(self, selection: Selection) -> RegistrySourceSpec:
        url = selection.url or str(selection.source["registry"].get("url") or "")
        if not url.startswith("docker:"):
            raise UsageError(
                "the image did not come from a registry by its URL",
                where=f"{selection.namespace}/{selection.volume}",
                remedy="use --from volume",
            )
        access, secret = self._find_access(selection)
        architecture = access.architecture or selection.version.architecture
        request = Request(place=locate(url), access=replace(access, architecture=architecture))
        directory = Path(tempfile.mkdtemp(prefix="cdi-bundle-", dir=self._scratch()))
        spec = source_spec(request, directory, secret)
        assert isinstance(spec, RegistrySourceSpec), "the URL says so"
        return spec

    def _scratch(self) -> Path:
        # Inside the layout's own directory, which is private to this command and removed at its end.
        root = self._output.with_name(self._output.name + _PARTIAL) if self._packed else self._output
        return root / ".work"

    def _fetch(self, writer: LayoutWriter, selection: Selection, on_bytes: OnBytes) -> JsonDescriptor:
        """Fetch the version from a source that is no registry, and convert it.

        Raises:
            VersionGone: The source serves something else now, or nothing.
            UsageError: No digest or validator of the version was recorded, so that it cannot be recognised.
        """
        place = selection.place
        where = f"{selection.namespace}/{selection.volume}"
        if place is None or (selection.image.digest is None and selection.image.validator is None):
            raise UsageError(
                "the import recorded neither digest nor validator of its source, which cannot be fetched again",
                where=where,
                remedy="set cdi.kubevirt.io/policy.recordDigest on the DataImportCron, and import the next version",
            )
        access, secret = self._find_access(selection)
        request = Request(place=place, access=access, checksum=selection.image.digest)
        disk = writer.work / "disk.raw"
        try:
            outcome = import_to_path(self._home, request, disk, replace=True, secret=secret)
        except (ChecksumMismatch, SourceNotFound) as error:
            raise VersionGone(
                f"the source no longer serves version {selection.version.digest}: {error.what}",
                where=request.place.location,
            ) from error
        if selection.image.digest is None and outcome.validator != selection.image.validator:
            raise VersionGone(
                f"the source no longer serves version {selection.version.digest}: its validator was"
                f" {selection.image.validator}, and is {outcome.validator}",
                where=request.place.location,
            )
        try:
            return self._convert(writer, selection, disk, on_bytes)
        finally:
            disk.unlink(missing_ok=True)

    def _convert(self, writer: LayoutWriter, selection: Selection, disk: Path, on_bytes: OnBytes) -> JsonDescriptor:
        if disk.is_dir():
            raise FormatUnsupported(
                "the volume contains an unpacked archive, not a disk",
                where=f"{selection.namespace}/{selection.volume}",
                remedy="bundle golden images with disks only",
            )
        if not disk.exists():
            raise NotFound(f"volume {selection.namespace}/{selection.volume} has no disk")
        # Machines of other architectures use an image by its own name, or by an index.
        architecture = selection.version.architecture or Platform.parse(None).architecture
        return build_disk_image(writer, disk, architecture=architecture, labels=selection.labels, on_bytes=on_bytes)
