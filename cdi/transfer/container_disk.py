"""Import from container images, whose disk is a file in one of the layers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cdi.api.digest import Digest
from cdi.api.errors import ChecksumMismatch, FormatUnsupported, InternalError
from cdi.api.job import Job, Policy, RegistrySourceSpec
from cdi.source.registry.open import Layer, RegistryImage, open_registry
from cdi.transfer.context import SourceContext
from cdi.transfer.control import TransferControl
from cdi.transfer.disk import DiskTransfer
from cdi.transfer.disk_search import DiskSearch, LayerReading
from cdi.transfer.reader import ResumingReader
from cdi.transfer.restarts import ProbedSource, run_with_restarts
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.unwrap import NoDiskInLayer, unwrap_stream

if TYPE_CHECKING:
    from cdi.verify.cosign import CosignVerifier


def import_container_disk(job: Job, spec: RegistrySourceSpec, control: TransferControl, result: OutcomeBuilder) -> None:
    """Import the only file that a container of the image sees below /disk.

    Every layer that is read is verified against its digest, even if it does not contain the disk. A signature that the
    policy requires is verified before any layer is read.
    """
    if job.content_type == "archive":
        raise FormatUnsupported("a container image cannot be imported as an archive", remedy="use contentType kubevirt")
    verifier = signature_verifier(job.policy)
    resolve = partial(open_registry, spec, job.policy.stall_timeout, control.retries.backoff, verifier)
    with control.run_abandonable(resolve, RegistryImage.close) as image, control.cancelling(image.interrupt):
        control.meter.clear_failure()
        if verifier is not None:
            result.verified(verifier.verified_by)
        layers_job = _checked(job, image, result)
        result.labels = dict(image.labels)

        def take(layer: Layer, reading: LayerReading) -> None:
            def attempt(probed: ProbedSource) -> None:
                DiskTransfer(layers_job, probed, control, result, reading).run()

            run_with_restarts(layers_job, control, result, lambda: nullcontext(layer.source), attempt)

        DiskSearch(image, partial(survey_layer, layers_job, control, result)).find(take)
        result.validator = str(image.digest)


def signature_verifier(policy: Policy) -> CosignVerifier | None:
    """Return the verifier of the image's signature; None if the policy requires none.

    Raises:
        VerificationKeyInvalid: A file that the policy names contains no usable public key.
    """
    if not policy.cosign_keys:
        return None
    # The format of signatures is shared with models whose import takes longer than all else here.
    from cdi.verify.cosign import CosignVerifier
    from cdi.verify.public_keys import read_keys

    return CosignVerifier(read_keys(policy.cosign_keys))


def survey_layer(
    job: Job, control: TransferControl, result: OutcomeBuilder, layer: Layer, reading: LayerReading
) -> None:
    """Read a layer to its end for `reading`, which expects no disk in it, and verify the layer's digest.

    Raises what ``reading.content`` raises, and the source's own errors once the retry budget is spent.
    """

    def attempt(probed: ProbedSource) -> None:
        with ResumingReader(probed.source, control) as reader:
            facts, expected = reader.facts, probed.expected
            context = SourceContext(job=job, reader=reader, control=control, result=result, expected=expected)
            control.meter.restart(f"looking for another disk in layer {reading.number}")
            with context.stream() as content:
                try:
                    unwrap_stream(content.pieces, facts, archive=False, layer=reading.content)
                except NoDiskInLayer:
                    # Verify the digest before the result is used: damaged content proves nothing.
                    content.drain()
                    context.verify_digest()
                    raise
            raise InternalError("the disk was selected in a layer that is only listed", where=facts.location)

    control.meter.phase = "verifying"
    try:
        run_with_restarts(job, control, result, lambda: nullcontext(layer.source), attempt)
    finally:
        control.meter.message = ""


def _checked(job: Job, image: RegistryImage, result: OutcomeBuilder) -> Job:
    """Verify the job's checksum against the image's digest, which covers the layers; return the job without it."""
    if job.checksum is None:
        return job
    if Digest.parse(job.checksum) != image.digest:
        raise ChecksumMismatch(
            f"digest mismatch: checksum says {job.checksum}, the image has {image.digest}", where=image.location
        )
    result.verified("checksum")
    return replace(job, checksum=None)
