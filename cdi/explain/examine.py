"""Examination of a job's source without writing: facts, wrappers, image, checks, digests.

An error that a transfer would raise is kept as a result, together with everything found before it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cdi.api.digest import Digest
from cdi.api.errors import (
    CdiError,
    ChecksumMismatch,
    DecoderLimit,
    FormatUnsupported,
    ImageError,
    Interrupted,
)
from cdi.api.job import Job, RegistrySourceSpec
from cdi.client.with_progress import OnProgress, run_with_progress
from cdi.explain.findings import Ask, ContainerFacts, Findings
from cdi.image.block_map import MapTooLarge, within
from cdi.image.checks import Check
from cdi.image.formats.vpc import fixed_payload
from cdi.image.inspect import map_builder
from cdi.image.plan import end_mark, is_mapped, length_unknown
from cdi.image.sizes import MAX_DISK, format_size
from cdi.source.base import Source, SourceFacts
from cdi.source.http import HttpSource
from cdi.source.open import open_source
from cdi.transfer.bounds_check import check_source_bounds
from cdi.transfer.control import TransferControl
from cdi.transfer.expected_digest import expectation
from cdi.transfer.hashed_stream import HashedStream
from cdi.transfer.pipeline.mapped_ranged import load_map
from cdi.transfer.reader import ResumingReader
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.retry import RestartRequired
from cdi.transfer.unwrap import (
    DiskNotInLayer,
    NoDiskInLayer,
    UnwrappedImage,
    disk_not_in_archive,
    inspect_ranged,
    unwrap_stream,
)
from cdi.verify.hashing import ResumableHash

if TYPE_CHECKING:
    from cdi.source.registry.open import Layer, RegistryImage
    from cdi.transfer.disk_search import LayerReading

_CONNECTIONS = 4
_TAIL = 512
_READ_ALL = 64 << 20
"""Compressed size in bytes up to which a layer is read to its end.

The visible layers below are read as well if they are no larger together; only then is it certain that the image has no
other disk.
"""


def examine_with_progress(job: Job, ask: Ask, on_progress: OnProgress | None) -> Findings:
    """Examine a job's source in a thread and report the progress; raise only `Interrupted`."""
    control = TransferControl(job)
    return run_with_progress(lambda: examine(job, control, ask), control, on_progress)


def examine(job: Job, control: TransferControl, ask: Ask) -> Findings:
    """Examine a job's source; raise only `Interrupted` (a blank source yields an `InternalError` as result)."""
    found = Findings(result=OutcomeBuilder(job.id))
    try:
        if isinstance(job.source, RegistrySourceSpec):
            _look_at_container(job, job.source, control, ask, found)
        else:
            with control.run_abandonable(lambda: _open_probed(job, control), _close) as source:
                _look(job, source, control, ask, found)
    except Interrupted:
        raise
    except RestartRequired as broken:
        found.refuse(broken.cause)
    except CdiError as error:
        found.refuse(error)
    found.fetched = control.meter.fetched
    return found


def _open_probed(job: Job, control: TransferControl) -> Source:
    source = control.retries.call(lambda: open_source(job.source, job.policy))
    try:
        control.retries.call(source.probe)
    except BaseException:
        source.close()
        raise
    return source


def _close(source: Source) -> None:
    source.close()


# --- container images -------------------------------------------------------------------------------------------


def _look_at_container(job: Job, spec: RegistrySourceSpec, control: TransferControl, ask: Ask, found: Findings) -> None:
    from cdi.source.registry.open import open_registry
    from cdi.transfer.container_disk import signature_verifier, survey_layer
    from cdi.transfer.disk_search import DiskSearch

    if job.content_type == "archive":
        raise FormatUnsupported("a container image cannot be imported as an archive", remedy="use contentType kubevirt")
    verifier = signature_verifier(job.policy) if ask.expected else None
    with open_registry(spec, job.policy.stall_timeout, control.retries.backoff, verifier) as image:
        _describe(image, found)
        if verifier is not None:
            found.result.verified(verifier.verified_by)
        if job.checksum is not None:
            if Digest.parse(job.checksum) != image.digest:
                found.refuse(
                    ChecksumMismatch(
                        f"the image's digest is {image.digest}, but checksum is {job.checksum}", where=image.location
                    )
                )
            elif ask.expected:
                found.result.verified("checksum")
            # The checksum was compared with the manifest, whose digests verify the layers.
            job = replace(job, checksum=None)
        search = DiskSearch(image, partial(survey_layer, job, control, OutcomeBuilder(job.id)))

        def take(layer: Layer, reading: LayerReading) -> None:
            # An earlier read may have started with a file that is not the disk.
            found.image, found.virtual_size, found.wrappers = None, None, ()
            _look(job, layer.source, control, ask, found, reading, to_end=layer.size <= _READ_ALL)
            if found.image is None:
                return
            unread = (0 if reading.ended else layer.size) + (0 if reading.overlay.complete else search.bytes_below)
            if reading.ended and (ask.digest or unread <= _READ_ALL):
                reading.confirm()
                detail = "the only file below /disk"
            else:
                detail = f"the first file below /disk; {format_size(unread)} of layers were not searched for others"
            found.checks.append(Check(name="disk", passed=True, detail=detail))

        found.layer = search.find(take)


def _describe(image: RegistryImage, found: Findings) -> None:
    resolved = image.image
    found.container = ContainerFacts(
        digest=image.digest,
        manifest_digest=resolved.manifest_digest,
        architecture=resolved.platform.architecture,
        layers=len(image.layers),
        labels=dict(image.labels),
    )


# --- a single source ----------------------------------------------------------------------------------------------


def _look(
    job: Job,
    source: Source,
    control: TransferControl,
    ask: Ask,
    found: Findings,
    reading: LayerReading | None = None,
    *,
    to_end: bool = False,
) -> None:
    """Examine one source, a layer if there is a `reading`; read and compare all of it if `to_end`."""
    with ResumingReader(source, control) as fetcher:
        facts = found.facts = fetcher.facts
        control.meter.total = facts.length
        if isinstance(source, HttpSource):
            reached = source.redirected or source.endpoint.request().url
            found.encrypted = reached.startswith("https:")
            found.redirected = source.redirected if source.redirected != facts.location else None
        found.checks = [Check(name="source", passed=True, detail=_reached(facts))]
        if ask.expected:
            _expect(job, source, facts, found, control)
        archive = job.content_type == "archive"
        peeled: UnwrappedImage | None = None
        refused = False
        if facts.ranges and facts.length is not None and reading is None:
            try:
                peeled = inspect_ranged(fetcher, facts, archive=archive, disk=job.policy.disk)
            except ImageError as error:
                found.refuse(error)
                refused = True
            if peeled is not None:
                _take(peeled, facts, found)
                if ask.allocation:
                    _measure(fetcher, peeled, found)
        known = peeled is not None or refused
        if not known or ask.digest:
            _read(job, fetcher, control, ask, found, reading, known=known, to_end=to_end)
        _see_end(job, source, fetcher, found, control)


def _see_end(job: Job, source: Source, fetcher: ResumingReader, found: Findings, control: TransferControl) -> None:
    """Record the error of content whose completeness nothing proves, as an import would raise it."""
    facts, image = fetcher.facts, found.image
    if image is None or not fetcher.may_be_cut or end_mark(found.wrappers, image.format) is not None:
        return
    if found.expected is None:
        _expect(job, source, facts, found, control)
    if found.expected is not None and found.expected.promises:
        return
    found.refuse(fetcher.unclean_end or length_unknown(facts.location))


def _reached(facts: SourceFacts) -> str:
    length = "of unknown length" if facts.length is None else f"{facts.length} bytes ({format_size(facts.length)})"
    return f"{length}, {'with' if facts.ranges else 'without'} byte ranges"


def _expect(job: Job, source: Source, facts: SourceFacts, found: Findings, control: TransferControl) -> None:
    """Read the expected digests; an error is recorded and does not stop the examination."""
    try:
        found.expected = control.run_abandonable(lambda: expectation(job, source, facts, found.result, control))
    except Interrupted:
        raise
    except CdiError as error:
        found.refuse(error)


def _read(
    job: Job,
    fetcher: ResumingReader,
    control: TransferControl,
    ask: Ask,
    found: Findings,
    reading: LayerReading | None,
    *,
    known: bool,
    to_end: bool,
) -> None:
    """Read from the start until the image is identified, or to the end."""
    facts = fetcher.facts
    far = to_end or ask.digest or ask.whole
    promised = None if reading is None else next((digest.algorithm for digest in facts.digests), None)
    algorithm = "sha256" if ask.digest else promised
    digest = None if algorithm is None else ResumableHash(algorithm)
    intake = HashedStream(fetcher, digest, control.meter, job.policy.connections or (_CONNECTIONS if far else 1))
    pieces = intake.pieces
    control.meter.phase = "transferring"
    no_disk: NoDiskInLayer | None = None
    try:
        if not known:
            try:
                layer = None if reading is None else reading.content
                peeled = unwrap_stream(
                    pieces, facts, archive=job.content_type == "archive", layer=layer, disk=job.policy.disk
                )
                _take(peeled, facts, found)
                if far and peeled.stream is not None:
                    _decode(peeled, found, to_end=to_end or ask.digest)
            except ImageError as error:
                found.refuse(error)
            except NoDiskInLayer as error:
                # This holds only for authentic content, so the digest is checked first.
                no_disk = error
            except DiskNotInLayer:
                found.refuse(disk_not_in_archive(facts.location))
        if ask.digest or to_end or no_disk is not None:
            for _ in pieces:
                pass
            if digest is not None:
                _compare(digest.digest(), facts, found, ask)
    finally:
        intake.close()
        control.meter.phase = "done"
    if no_disk is not None:
        raise no_disk


def _compare(computed: Digest, facts: SourceFacts, found: Findings, ask: Ask) -> None:
    """Record the error of content that differs from what its source promises."""
    if ask.digest:
        found.digest = computed
    for promised in facts.digests:
        if promised.algorithm == computed.algorithm and promised != computed:
            found.refuse(
                ChecksumMismatch(
                    f"the content's digest is {computed}, not the announced {promised}", where=facts.location
                )
            )


def _take(peeled: UnwrappedImage, facts: SourceFacts, found: Findings) -> None:
    image = peeled.image
    found.wrappers, found.image, found.archive = peeled.wrappers, image, image is None
    wrapped = f" in {' in '.join(reversed(peeled.wrappers))}" if peeled.wrappers else ""
    if image is None:
        found.checks.append(Check(name="format", passed=True, detail=f"a tar archive{wrapped.removeprefix(' in tar')}"))
        return
    name = image.format if image.variant is None else f"{image.format} ({image.variant})"
    found.checks.append(Check(name="format", passed=True, detail=f"{name}{wrapped}"))
    found.checks += image.checks
    found.virtual_size = image.virtual_size
    if image.virtual_size is None and image.format == "raw" and not peeled.wrappers:
        found.virtual_size = facts.length


def _decode(peeled: UnwrappedImage, found: Findings, *, to_end: bool) -> None:
    """Decode to the end if that shows the length of raw content, or if `to_end` requires that all can be decoded."""
    assert peeled.stream is not None
    if peeled.image is None:
        return
    counted = peeled.image.format == "raw" and found.virtual_size is None
    if not counted and not to_end:
        return
    size, tail = 0, b""
    for piece in peeled.stream:
        size += len(piece)
        if counted:
            tail = (tail + bytes(piece[-_TAIL:]))[-_TAIL:]
        if size > MAX_DISK:
            raise DecoderLimit(f"the content decodes to more than {format_size(MAX_DISK)}")
    if counted:
        payload = fixed_payload(tail, size)
        found.virtual_size = size if payload is None else payload


def _measure(fetcher: ResumingReader, peeled: UnwrappedImage, found: Findings) -> None:
    """Read the image's tables: how much of it is data, if known, and whether the file is complete."""
    image, length = peeled.image, fetcher.facts.length
    if image is None or length is None:
        return
    try:
        check = _measured(fetcher, peeled, length, found) or check_source_bounds(
            fetcher, image, _CONNECTIONS, peeled.head
        )
        if check is not None:
            found.checks.append(check)
    except ImageError as error:
        found.refuse(error)


def _measured(fetcher: ResumingReader, peeled: UnwrappedImage, length: int, found: Findings) -> Check | None:
    """Measure an image that is read without QEMU; no map is built of what is past the file's end."""
    if peeled.image is None or not is_mapped(peeled.image):
        return None
    try:
        table = load_map(fetcher, map_builder(peeled.image, peeled.head, length), _CONNECTIONS, peeled.head)
    except MapTooLarge:
        found.many_extents = True
        return None
    found.data_bytes = table.data_bytes()
    return within(length)
