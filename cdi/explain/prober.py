"""Queries of an item's source, with the same job that would import it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, assert_never

from cdi.api.datavolume import DataVolume
from cdi.api.digest import Digest
from cdi.api.errors import FormatUnsupported, Interrupted
from cdi.api.job import BlankSourceSpec, Job, Progress, RegistrySourceSpec
from cdi.client.status_view import error_of
from cdi.explain.dry_run import missing
from cdi.explain.examine import examine
from cdi.explain.findings import Ask, Findings
from cdi.explain.item import Item
from cdi.local.launcher import write_mounts
from cdi.private_directory import private_directory
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.upload import UploadRequest
from cdi.reconcile.pods.job import WorkerSpec, prepare
from cdi.reconcile.pods.types import VolumeLayout
from cdi.reconcile.source import resolve_source
from cdi.reconcile.types import PVC, Clone, ExternalPopulator, Import, Pending, Rejected, Upload
from cdi.source.base import SourceFacts
from cdi.source.open import open_source
from cdi.transfer.control import TransferControl

_RETRIES = 3
_STALL = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceVersion:
    """The version of the content that a source has."""

    validator: str | None
    """The validator of the content; for a container image, the digest that the reference resolves to."""
    length: int | None = None
    """Bytes; None if unknown, and for container images."""
    digests: tuple[Digest, ...] = ()


class ReferenceReader(Protocol):
    """Reader of the objects that a DataVolume refers to; methods may be called by any thread."""

    def source_context(self, dv: DataVolume) -> ReconcileContext:
        """Return the context of a DataVolume without its PVC."""
        ...

    def content(self, ref: ObjectRef) -> Mapping[str, bytes]:
        """Return the values of a Secret or ConfigMap; raise `NotFound`."""
        ...


class Prober:
    """Client that queries sources; methods may be called by any thread."""

    def __init__(self, reader: ReferenceReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._controls: list[TransferControl] = []
        self._cancelled = False

    def cancel(self) -> None:
        """Make all running queries end with `Interrupted`."""
        with self._lock:
            self._cancelled = True
            controls = list(self._controls)
        for control in controls:
            control.cancel()

    def check(self, item: Item) -> None:
        """Raise `NotFound` if a Secret or ConfigMap of the source is missing, and the error of an invalid source."""
        self._prepared(item, "/nowhere")

    def offer(self, item: Item) -> SourceVersion | None:
        """Return the source's version, or None if nothing is fetched; raise the errors of opening the source."""
        with self.job(item) as job:
            if job is None or isinstance(job.source, BlankSourceSpec):
                return None
            with self._control(job) as control:
                if isinstance(job.source, RegistrySourceSpec):
                    from cdi.source.registry.open import open_registry

                    with open_registry(job.source, job.policy.stall_timeout, control.retries.backoff) as image:
                        return SourceVersion(validator=str(image.digest))
                facts = control.run_abandonable(lambda: self._facts(job, control))
                return SourceVersion(validator=facts.validator, length=facts.length, digests=facts.digests)

    def size(self, item: Item, watch: Callable[[Callable[[], Progress]], None]) -> int | None:
        """Return the virtual size of the image in bytes, or None if nothing is fetched.

        All of it is read if nothing else shows the size; `watch` is given a function that returns the progress. Raises
        the errors of the import.
        """
        with self.job(item) as job:
            if job is None or isinstance(job.source, BlankSourceSpec):
                return None
            with self._control(job) as control:
                watch(control.progress)
                found = self._examined(job, control, Ask(whole=True))
        if found.virtual_size is None:
            raise FormatUnsupported(
                "the image does not contain the size of its disk", where=item.url, remedy="give a size"
            )
        return found.virtual_size

    def digest(self, item: Item) -> Digest | None:
        """Return the sha256 of the source's content; raise the errors of `size`."""
        with self.job(item) as job:
            if job is None:
                return None
            with self._control(job) as control:
                return self._examined(job, control, Ask(digest=True)).digest

    @staticmethod
    def _facts(job: Job, control: TransferControl) -> SourceFacts:
        with control.retries.call(lambda: open_source(job.source, job.policy)) as source:
            return control.retries.call(source.probe)

    @staticmethod
    def _examined(job: Job, control: TransferControl, ask: Ask) -> Findings:
        found = examine(job, control, ask)
        if found.refusal is not None:
            raise found.refusal
        return found

    @contextmanager
    def _control(self, job: Job) -> Iterator[TransferControl]:
        control = TransferControl(job)
        with self._lock:
            if self._cancelled:
                raise Interrupted("the batch was stopped")
            self._controls.append(control)
        try:
            yield control
        finally:
            with self._lock:
                self._controls.remove(control)

    # --- the job --------------------------------------------------------------------------------------------------

    @contextmanager
    def job(self, item: Item) -> Iterator[Job | None]:
        """Yield the job that would import the item, with its secrets as files; None if no job does (clones)."""
        with private_directory() as directory:
            prepared = self._prepared(item, str(directory))
            if prepared is None:
                yield None
                return
            write_mounts(prepared.mounts, self._reader.content)
            job = prepared.work
            assert isinstance(job, Job)
            retries, stall = min(job.policy.retries, _RETRIES), min(job.policy.stall_timeout, _STALL)
            yield replace(job, policy=replace(job.policy, retries=retries, stall_timeout=stall))

    def _prepared(self, item: Item, directory: str) -> WorkerSpec | None:
        dv = item.model()
        context = replace(
            self._reader.source_context(dv),
            layout=VolumeLayout(
                disk=f"{directory}/disk.img",
                directory=f"{directory}/volume",
                journal=f"{directory}/journal",
                scratch=directory,
                inputs=f"{directory}/inputs",
            ),
        )
        origin = resolve_source(context)
        match origin:
            case Pending():
                raise missing(origin.message)
            case Rejected():
                raise error_of(origin.failure)
            case Clone() | ExternalPopulator():
                return None
            case Import() | Upload():
                pass
            case _:
                assert_never(origin)
        claim = PVC(namespace=item.namespace, name=item.name, uid="probe", phase="Bound")
        upload = UploadRequest(id="probe", path=str(item.path)) if item.path is not None else None
        prepared = prepare(context, claim, origin, source=None, upload=upload)
        if isinstance(prepared, Pending):
            raise missing(prepared.message)
        return prepared
