"""Start of one import: query the source if needed, delete an old volume, apply, upload."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import UPLOAD_REQUEST
from cdi.api.errors import AlreadyExists, CdiError, Conflict, Interrupted
from cdi.api.job import Progress
from cdi.api.phases import ConditionType
from cdi.api.policy import CHECKSUM
from cdi.batch.existing import Create, ExistingState, Keep, Replace, Resume, decide, facts_of, pinned_checksum
from cdi.batch.lockfile import Entry
from cdi.client.backend import Backend
from cdi.client.status_view import failure_of, reached, restarts_of
from cdi.explain.item import Item, size_of, with_size
from cdi.explain.prober import Prober, SourceVersion
from cdi.local.backend import LocalBackend
from cdi.reconcile.datavolume.upload import UploadRequest
from cdi.store.base import Key, Object


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Result for a volume that is kept."""

    source_changed: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importing:
    """Result for an import that is running."""

    uid: str
    """The DataVolume's uid."""
    note: str = ""
    """Why the volume was replaced, or that the import was running before."""
    before: int | None = None
    """Restart count of the newest attempt that was begun before an import was joined; None if there was none.

    That attempt used the inputs as they were then, so its failure does not count as a failure of this run.
    """


class Starter:
    """Starter of the imports of one run; called by one thread for each item."""

    def __init__(
        self,
        backend: Backend,
        prober: Prober,
        update: bool,
        pins: Mapping[str, Entry],
        offers: Mapping[Key, SourceVersion | None],
        stopped: threading.Event,
    ) -> None:
        """Use `pins`, which are empty unless the batch is locked, and the source versions known from `offers`."""
        self._backend = backend
        self._prober = prober
        self._update = update
        self._pins = pins
        self._offers = offers
        self._stopped = stopped
        self._applied: set[Key] = set()
        self._progress: dict[Key, Callable[[], Progress]] = {}

    def applied(self, item: Item) -> bool:
        """Return whether the DataVolume was applied, so that the import continues without this process."""
        return item.key in self._applied

    def progress(self, item: Item) -> Progress | None:
        """Return the progress of querying the source, if that takes long."""
        found = self._progress.get(item.key)
        return None if found is None else found()

    def start(self, item: Item) -> Kept | Importing:
        """Start an import, blocking until it is running.

        Raises a `CdiError`; an existing volume is unchanged then, unless it had to be replaced.
        """
        standing = ExistingState.of(self._backend, item)
        facts = facts_of(self._backend, item, standing.claim)
        pin = self._pins.get(item.label) if item.pinnable else None
        offer, note = self._offer(item, standing)
        result = decide(item, standing, facts, offer, pin=pin, update=self._update)
        match result:
            case Keep():
                self._apply(item, self._as_it_is(item, standing))
                return Kept(source_changed=result.source_changed, note=_MOVED if result.source_changed else note)
            case Create():
                return self._begin(item, pin, "")
            case Replace():
                return self._begin(item, pin, result.why, standing)
            case Resume():
                return self._join(item, pin, standing)
            case _:
                assert_never(result)

    def _offer(self, item: Item, standing: ExistingState) -> tuple[SourceVersion | None, str]:
        """Return the source's current version, if there is a volume to compare it with, and a note."""
        if item.key in self._offers:
            return self._offers[item.key], ""
        if standing.phase != "Succeeded" or not item.pinnable:
            return None, ""
        try:
            return self._prober.offer(item), ""
        except Interrupted:
            raise
        except CdiError as error:
            # The volume exists; the error matters only for an update.
            if self._update:
                raise
            return None, f"the source cannot be read: {error.what}"

    def _begin(self, item: Item, pin: Entry | None, note: str, standing: ExistingState | None = None) -> Importing:
        manifest = item.manifest
        if item.unsized:
            size = self._prober.size(item, lambda progress: self._progress.update({item.key: progress}))
            if size is not None:
                manifest = item.sized(size)
        if standing is not None:
            self._check()
            self._backend.delete("dv", item.namespace, item.name)
        self._apply(item, _held_to(item, manifest, pin))
        if item.path is not None:
            self._here.upload(item.namespace, item.name, item.path)
        return self._under_way(item, note)

    def _join(self, item: Item, pin: Entry | None, standing: ExistingState) -> Importing:
        dv = standing.datavolume
        assert dv is not None
        failure = failure_of(dv)
        begun = failure is not None or reached(dv, ConditionType.RUNNING)
        self._apply(item, _held_to(item, self._as_it_is(item, standing), pin))
        if item.path is not None and (failure is not None or not _asked(standing.claim, item)):
            # The upload may be running already, or have ended meanwhile.
            with contextlib.suppress(Conflict, AlreadyExists):
                self._here.upload(item.namespace, item.name, item.path)
        before = restarts_of(dv) if begun else None
        return self._under_way(item, "was in progress", before=before)

    @property
    def _here(self) -> LocalBackend:
        """The backend, which reads files on this machine."""
        assert isinstance(self._backend, LocalBackend)
        return self._backend

    def _under_way(self, item: Item, note: str, before: int | None = None) -> Importing:
        body = self._backend.get("dv", item.namespace, item.name)
        return Importing(uid=body["metadata"]["uid"], note=note, before=before)

    def _as_it_is(self, item: Item, standing: ExistingState) -> Object:
        """Return the manifest, with the existing volume's size if it does not specify one."""
        size = None if standing.datavolume is None else size_of(standing.datavolume)
        return with_size(item.manifest, size) if item.unsized and size is not None else item.manifest

    def _apply(self, item: Item, manifest: Object) -> None:
        self._check()
        self._backend.apply([manifest])
        self._applied.add(item.key)

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Interrupted("the batch was stopped")


_MOVED = "the source now has another image; --update imports it"


def _held_to(item: Item, manifest: Object, pin: Entry | None) -> Object:
    """Return the manifest with the pin of the lock file as its checksum."""
    checksum = None if pin is None else pinned_checksum(item, pin)
    if checksum is None:
        return manifest
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), CHECKSUM: checksum}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _asked(claim: Object | None, item: Item) -> bool:
    """Return whether the upload of the file has been requested already."""
    request = UPLOAD_REQUEST.read(UploadRequest, annotations_of(claim))
    return request is not None and request.path == str(item.path)
