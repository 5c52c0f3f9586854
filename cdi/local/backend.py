"""The embedded backend: turns manifests into volumes on one machine.

Commands write objects to the store, and a supervisor process in the background reconciles them
(`cdi.local.supervisor`). A command that is killed therefore loses nothing, and any number may run at a time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from cdi import atomic_file
from cdi.api.annotation_types import annotations_of
from cdi.api.errors import (
    Conflict,
    NotFound,
    WaitTimeout,
)
from cdi.api.job import Outcome, Progress
from cdi.api.phases import Phase
from cdi.api.policy import limit_annotations, limits_of
from cdi.client.apply import apply
from cdi.client.backend import Applied, Backend, Objects, OnUpdate, Section
from cdi.client.document import Manifest
from cdi.client.status_view import phase_of
from cdi.client.wait import wait
from cdi.local.environment import Environments
from cdi.local.event_recorder import EventRecorder
from cdi.local.home import Home
from cdi.local.launcher import Launcher
from cdi.local.supervisor import ensure_supervisor
from cdi.local.uploads import LocalUploads
from cdi.reconcile.actions import PatchObject
from cdi.reconcile.merge_patch import apply_patch
from cdi.store.base import Key, Object, Watch, update_with_retry
from cdi.store.file_store import LocalStore

_POLL_INTERVAL = 0.1
_REVIVE = 1.0
_DELETED = 120.0


class LocalBackend(Backend):
    """The backend of one CDI_HOME; any number may be used at a time, from any process.

    Kinds are given by any of their names (``dv``, ``DataVolume``, ``pvc`` …); the namespace None means ``default``.
    """

    def __init__(self, home: Path | None = None) -> None:
        """Raise a `TargetError` if CDI_HOME is unusable; the first call that writes creates it."""
        self.home = Home.find(home)
        self.home.check()
        self.store = LocalStore(self.home.objects)
        self._launcher = Launcher(self.home)
        self._uploads = LocalUploads(self.home, self.store, self._launcher)

    def start_supervisor(self) -> bool:
        """Start the supervisor unless one is running, and return whether it was started.

        Raises:
            TargetError: CDI_HOME cannot be written.
        """
        return ensure_supervisor(self.home)

    def close(self) -> None:
        """Do nothing: no resources are held."""

    # --- objects --------------------------------------------------------------------------------------------------

    def apply(
        self,
        manifests: Iterable[Manifest],
        *,
        namespace: str | None = None,
        dry_run: bool = False,
        strict: bool = False,
    ) -> list[Applied]:
        """See `Backend.apply`.

        The workers of a DataVolume get the relevant part of the environment of the process that applied it last
        (`cdi.local.environment`).
        """
        if dry_run:
            return apply(self.store, manifests, namespace=namespace, dry_run=True, strict=strict)
        self.home.make()
        with Environments(self.home).kept() as keep:
            applied = apply(self.store, manifests, namespace=namespace, strict=strict, before_write=keep)
        ensure_supervisor(self.home)
        return applied

    def delete(
        self, kind: str, namespace: str | None, name: str, *, cascade: bool = True, timeout: float = _DELETED
    ) -> None:
        """See `Backend.delete`."""
        key = Key.of(kind, namespace, name)
        body = self.store.get(key)
        uid = body["metadata"]["uid"]
        claim = self.owned_claim(key, uid)
        if claim is not None and not cascade:
            self._orphan(claim, uid)
            claim = None
        self.store.delete(key, uid=uid)
        waited = [(key, uid)] + ([(Key.of_object(claim), claim["metadata"]["uid"])] if claim is not None else [])
        if key.plural == "dataimportcrons":
            # Its versions are deleted too if its retention policy says so.
            ensure_supervisor(self.home)
        if claim is None and key.plural != "persistentvolumeclaims":
            return
        ensure_supervisor(self.home)
        deadline = time.monotonic() + timeout
        revive = time.monotonic() + _REVIVE
        while any(self._lives(one, its) for one, its in waited):
            if time.monotonic() >= deadline:
                raise WaitTimeout(f"{key} is still being deleted", remedy="cdi get pvc shows the remaining objects")
            if time.monotonic() >= revive:
                ensure_supervisor(self.home)
                revive = time.monotonic() + _REVIVE
            time.sleep(_POLL_INTERVAL / 2)

    def annotate(
        self,
        kind: str,
        namespace: str | None,
        name: str,
        annotations: Mapping[str, str | None],
        *,
        uid: str,
        version: str | None = None,
    ) -> Object:
        """See `Backend.annotate`."""
        key = Key.of(kind, namespace, name)
        action = PatchObject(
            plural=key.plural, namespace=key.namespace, name=key.name, uid=uid, annotations=annotations
        )

        def change(body: Object) -> None:
            if version is not None and body["metadata"]["resourceVersion"] != version:
                raise Conflict(f"{key} was changed concurrently")
            apply_patch(body, action)

        body = update_with_retry(self.store, key, change, uid=uid)
        ensure_supervisor(self.home)
        return body

    def version_object(self, namespace: str, name: str) -> Object | None:
        """See `Backend.version_object`; there are no VolumeSnapshots on one machine."""
        try:
            return self.store.get(Key.of("pvc", namespace, name))
        except NotFound:
            return None

    def events(self, namespace: str | None, name: str, kind: str = "dv") -> Objects:
        """See `Backend.events`."""
        return EventRecorder(self.store).events_of(self.get(kind, namespace, name))

    def changes(self, plurals: Collection[str], namespace: str | None) -> Watch:  # noqa: ARG002 (all in one directory)
        """See `Backend.changes`."""
        return self.store.watch(plurals)

    # --- progress of a DataVolume -------------------------------------------------------------------------------------

    def wait(
        self,
        kind: str,
        namespace: str | None,
        name: str,
        until: str = Phase.SUCCEEDED,
        timeout: float | None = None,
        on_update: OnUpdate | None = None,
        *,
        patient: bool = True,
    ) -> Object:
        """See `cdi.client.wait.wait`."""
        return wait(self, kind, namespace, name, until, timeout, on_update, patient=patient)

    @contextlib.contextmanager
    def courses(self, keys: Collection[Key]) -> Iterator[ProgressWatch]:  # noqa: ARG002 (protocol; any object may be read)
        """Observe DataVolumes; meanwhile, a supervisor that was killed is started again."""
        yield ProgressWatch(self)

    def outcome(self, namespace: str | None, name: str) -> Outcome | None:
        """Return the newest worker's outcome once it has ended; raise `NotFound`."""
        self.get("dv", namespace, name)
        uid = self._claim_uid(namespace, name)
        return self._launcher.outcome(uid) if uid else None

    def about(self, body: Object) -> Iterator[Section]:
        """Yield the section that shows where the volume is."""
        metadata = body["metadata"]
        try:
            path = str(self.volume_path(metadata["namespace"], metadata["name"]))
        except NotFound:
            path = "not created yet"
        yield "Volume", [("", path)]

    def log(self, namespace: str | None, name: str, *, follow: bool = False) -> Iterator[str]:
        """See `Backend.log`."""
        body = self.get("dv", namespace, name)
        position, rest, path = 0, b"", None
        while True:
            with contextlib.suppress(NotFound):
                body = self.get("dv", namespace, name)
            ended = not follow or phase_of(body).final
            uid = self._claim_uid(namespace, name)
            if uid is not None:
                path = self.home.worker(uid).log
            if path is not None:
                with self.home.mapped("the log"), contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                    if os.fstat(file.fileno()).st_size < position:
                        position = 0
                    file.seek(position)
                    rest += file.read()
                    position = file.tell()
            *lines, rest = rest.split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
            if ended:
                if rest:
                    yield rest.decode(errors="replace")
                return
            time.sleep(_POLL_INTERVAL)

    def limit(
        self, namespace: str | None, name: str, *, bandwidth: int | None = None, connections: int | None = None
    ) -> bool:
        """See `Backend.limit`."""
        annotations = limit_annotations(bandwidth=bandwidth, connections=connections)
        key = Key.of("dv", namespace, name)
        action = PatchObject(plural=key.plural, namespace=key.namespace, name=key.name, uid="", annotations=annotations)
        body = update_with_retry(self.store, key, lambda dv: apply_patch(dv, action))
        ensure_supervisor(self.home)
        uid = self._claim_uid(namespace, name)
        return uid is not None and self._launcher.limit(uid, limits_of(annotations_of(body)))

    # --- volumes --------------------------------------------------------------------------------------------------

    def volume_path(self, namespace: str | None, name: str) -> Path:
        """Return the path of a volume's disk, or its directory if it holds an archive; raise `NotFound`."""
        key = Key.of("pvc", namespace, name)
        try:
            self.store.get(key)
        except NotFound as error:
            raise NotFound(
                f"volume {key.namespace}/{key.name} does not exist", remedy="cdi get pvc lists the volumes"
            ) from error
        disk, directory = self.home.disk(key.namespace, key.name), self.home.volume(key.namespace, key.name)
        with self.home.mapped("the volumes"):
            if disk.is_file():
                return disk
            if directory.is_dir():
                return directory
        raise NotFound(f"volume {key.namespace}/{key.name} does not exist yet", remedy="wait for its DataVolume")

    def upload(self, namespace: str | None, name: str, path: Path) -> None:
        """Upload a file into a DataVolume with ``source.upload``; call `wait` for its completion.

        Raises:
            NotFound: There is no such DataVolume.
            AlreadyExists: It has its image already.
            Conflict: Another upload is running.
            UsageError: The file is unusable, or the DataVolume accepts no upload.
        """
        self._uploads.file(Key.of("dv", namespace, name), path)

    def upload_stream(self, namespace: str | None, name: str, descriptor: int, length: int | None = None) -> None:
        """Upload from an open descriptor, at its current offset, into a DataVolume with ``source.upload``.

        Returns once the worker has the descriptor; call `wait` for completion. Raises the errors of `upload`.
        """
        self._uploads.stream(Key.of("dv", namespace, name), descriptor, length)

    # --- internals ----------------------------------------------------------------------------------------------

    def _claim_uid(self, namespace: str | None, name: str) -> str | None:
        try:
            claim = self.get("pvc", namespace, name)
        except NotFound:
            return None
        return str(claim["metadata"]["uid"])

    def progress_of(self, body: Object) -> Progress | None:
        """See `Backend.progress_of`."""
        if body["kind"] != "DataVolume":
            return None
        metadata = body["metadata"]
        uid = self._claim_uid(metadata["namespace"], metadata["name"])
        if uid is None:
            return None
        with self.home.mapped("the workers' files"):
            text = atomic_file.read(self.home.worker(uid).progress)
        if text is None:
            return None
        try:
            return Progress.from_json(text)
        except ValueError:
            return None

    def _orphan(self, claim: Object, uid: str) -> None:
        def disown(body: Object) -> None:
            owners = body["metadata"].get("ownerReferences") or []
            body["metadata"]["ownerReferences"] = [owner for owner in owners if owner.get("uid") != uid]

        update_with_retry(self.store, Key.of_object(claim), disown, uid=claim["metadata"]["uid"])

    def _lives(self, key: Key, uid: str) -> bool:
        try:
            return bool(self.store.get(key)["metadata"]["uid"] == uid)
        except NotFound:
            return False


class ProgressWatch:
    """Observation of DataVolumes by polling the files in which workers report their progress."""

    def __init__(self, embedded: LocalBackend) -> None:
        self._embedded = embedded
        self._revive = 0.0
        self._looked = True
        """Whether a caller waits for progress, which requires a supervisor."""

    def look(self, key: Key) -> tuple[Object, Progress | None]:
        body = self._embedded.store.get(key)
        self._looked = True
        if not phase_of(body).final:
            # A finished DataVolume needs no supervisor, and can be shown where nothing can be written.
            self._keep_alive()
        return body, self._embedded.progress_of(body)

    def pause(self, seconds: float) -> None:
        self._keep_alive()
        time.sleep(max(0.0, min(_POLL_INTERVAL, seconds)))

    def _keep_alive(self) -> None:
        if self._looked and time.monotonic() >= self._revive:
            self._looked = False
            ensure_supervisor(self._embedded.home)
            self._revive = time.monotonic() + _REVIVE
