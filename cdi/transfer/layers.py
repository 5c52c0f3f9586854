"""Container images: the disk is a file in one of the layers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from cdi.api.digest import Digest
from cdi.api.errors import ChecksumMismatch, DiskNotInImage, FormatUnsupported
from cdi.api.job import Job, RegistrySourceSpec
from cdi.source.base import Source
from cdi.source.registry.open import RegistryImage, open_registry
from cdi.transfer.control import Control
from cdi.transfer.disk import DiskTransfer
from cdi.transfer.patience import Patience
from cdi.transfer.peel import NoDisk, in_disk_directory
from cdi.transfer.persist import persist
from cdi.transfer.result import Result


def import_registry(job: Job, spec: RegistrySourceSpec, control: Control, result: Result) -> None:
    """Look through the layers from the top one down, and import the disk of the first that has one.

    Every layer that is read is compared with its digest, the ones without a disk too.
    """
    if job.content_type == "archive":
        raise FormatUnsupported("a container image cannot be imported as an archive", remedy="use contentType kubevirt")

    def attempt(source: Source) -> None:
        DiskTransfer(job, source, control, result, choose=in_disk_directory).run()

    patience = Patience(policy=job.policy, meter=control.meter, cancelled=control.cancelled)
    resolve = partial(open_registry, spec, job.policy.stall_timeout, patience.pause)
    with patience.aside(resolve, RegistryImage.close) as image:
        control.meter.note = ""
        job = _checked(job, image, result)
        result.labels = dict(image.labels)
        for layer in image.layers:
            source = layer.source
            try:
                persist(job, control, result, lambda source=source: nullcontext(source), attempt)  # type: ignore[misc]
            except NoDisk:
                continue
            result.validator = str(image.digest)
            return
        raise DiskNotInImage(f"none of the {len(image.layers)} layers holds a file below /disk", where=image.location)


def _checked(job: Job, image: RegistryImage, result: Result) -> Job:
    """A checksum of a container image is that of what its name stands for; it vouches for the layers' digests."""
    if job.checksum is None:
        return job
    if Digest.parse(job.checksum) != image.digest:
        raise ChecksumMismatch(
            f"the image's digest is {image.digest}, and checksum says {job.checksum}", where=image.location
        )
    result.verified("checksum")
    return replace(job, checksum=None)
