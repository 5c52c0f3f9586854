"""Container images: the disk is a file in one of the layers."""

from __future__ import annotations

from contextlib import nullcontext

from cdi.api.errors import DiskNotInImage, FormatUnsupported
from cdi.api.job import Job, RegistrySourceSpec
from cdi.source.base import Source
from cdi.source.registry.open import open_registry
from cdi.transfer.control import Control
from cdi.transfer.disk import DiskTransfer
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

    with open_registry(spec, job.policy.stall_timeout) as image:
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
