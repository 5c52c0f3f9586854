"""The embedded mode as one object: manifests in, volumes out, on one machine.

Commands write what they want into the store and a supervisor in the background does it
(`cdi.runtime.supervisor`), so a command that is killed loses nothing, and any number may run at a time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Self

from cdi import durable
from cdi.api.errors import (
    NotFound,
    WaitTimeout,
)
from cdi.api.job import Failure, Limits, Outcome, Progress
from cdi.api.phases import Phase
from cdi.api.policy import BANDWIDTH, CONNECTIONS, read_knobs
from cdi.reconcile.actions import PatchObject
from cdi.runtime import events
from cdi.runtime.apply import apply
from cdi.runtime.backend import Applied, OnUpdate, Section
from cdi.runtime.document import Manifest
from cdi.runtime.environment import Environments
from cdi.runtime.executor import patch
from cdi.runtime.home import Home
from cdi.runtime.launcher import Launcher
from cdi.runtime.supervisor import ensure_supervisor
from cdi.runtime.uploads import Uploads
from cdi.runtime.view import failure_of, phase_of
from cdi.runtime.waiting import wait
from cdi.store.base import Key, Object, Watch, amend
from cdi.store.kinds import kind_of
from cdi.store.local import LocalStore

_LOOK = 0.1
_REVIVE = 1.0
_READY = 60.0
_DELETED = 120.0

Objects = list[Object]


class Embedded:
    """Over one CDI_HOME; any number at a time, from any process.

    Kinds are given by any of their names (``dv``, ``DataVolume``, ``pvc`` …), namespaces are ``default`` where None.
    """

    def __init__(self, home: Path | None = None) -> None:
        """Raises a `TargetError` where CDI_HOME cannot be one.  It is made by the first call that writes."""
        self.home = Home.find(home)
        self.home.check()
        self._store = LocalStore(self.home.objects)
        self._launcher = Launcher(self.home)
        self._uploads = Uploads(self.home, self._store, self._launcher)

    @property
    def store(self) -> LocalStore:
        """The objects themselves."""
        return self._store

    def close(self) -> None:
        """There is nothing that is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- objects --------------------------------------------------------------------------------------------------

    def apply(
        self,
        manifests: Iterable[Manifest],
        *,
        namespace: str | None = None,
        dry_run: bool = False,
        strict: bool = False,
    ) -> list[Applied]:
        """Check all, then write all, unless it is a `dry_run`.  `namespace` is for manifests that name none.

        The workers of a DataVolume get the environment of the process that applied it last, as far as they have use
        for it (`cdi.runtime.environment`).  Raises `InvalidManifest`, where it is `strict` also for fields that are
        not known.
        """
        if dry_run:
            return apply(self._store, manifests, namespace=namespace, dry_run=True, strict=strict)
        self.home.make()
        with Environments(self.home).kept() as keep:
            applied = apply(self._store, manifests, namespace=namespace, strict=strict, before_write=keep)
        ensure_supervisor(self.home)
        return applied

    def get(self, kind: str, namespace: str | None, name: str) -> Object:
        """Raises `NotFound`."""
        return self._store.get(Key.of(kind, namespace, name))

    def list(self, kind: str, namespace: str | None = None) -> Objects:
        """Of all namespaces where None."""
        return self._store.list(kind_of(kind).plural, namespace)

    def delete(
        self, kind: str, namespace: str | None, name: str, *, cascade: bool = True, timeout: float = _DELETED
    ) -> None:
        """Delete an object and what it owns, and wait until that is gone: a DataVolume's worker, claim and volume.

        With `cascade` False the claim of a DataVolume stays, volume and all.  Raises `NotFound`, `WaitTimeout`.
        """
        key = Key.of(kind, namespace, name)
        body = self._store.get(key)
        uid = body["metadata"]["uid"]
        claim = self._owned_claim(key, uid)
        if claim is not None and not cascade:
            self._orphan(claim, uid)
            claim = None
        self._store.delete(key, uid=uid)
        waited = [(key, uid)] + ([(Key.of_object(claim), claim["metadata"]["uid"])] if claim is not None else [])
        if claim is None and key.plural != "persistentvolumeclaims":
            return
        ensure_supervisor(self.home)
        deadline = time.monotonic() + timeout
        revive = time.monotonic() + _REVIVE
        while any(self._lives(one, its) for one, its in waited):
            if time.monotonic() >= deadline:
                raise WaitTimeout(f"{key} is still being deleted", remedy="cdi get pvc shows what is left")
            if time.monotonic() >= revive:
                ensure_supervisor(self.home)
                revive = time.monotonic() + _REVIVE
            time.sleep(_LOOK / 2)

    def events(self, namespace: str | None, name: str, kind: str = "dv") -> Objects:
        """Oldest first.  Raises `NotFound`."""
        return events.of(self._store, self.get(kind, namespace, name))

    def changes(self, plurals: Collection[str], namespace: str | None) -> Watch:  # noqa: ARG002 (one directory)
        """See `Backend.changes`."""
        return self._store.watch(plurals)

    # --- a DataVolume's course --------------------------------------------------------------------------------------

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
        """See `cdi.runtime.waiting.wait`."""
        return wait(self, kind, namespace, name, until, timeout, on_update, patient=patient)

    @contextlib.contextmanager
    def courses(self, keys: Collection[Key]) -> Iterator[_Courses]:  # noqa: ARG002 (the protocol's; any may be looked at)
        """Kept alive meanwhile: a supervisor that was killed is started again."""
        yield _Courses(self)

    def progress(self, namespace: str | None, name: str) -> Progress | None:
        """Of the newest worker; None where there is none.  Raises `NotFound`."""
        return self.progress_of(self.get("dv", namespace, name))

    def outcome(self, namespace: str | None, name: str) -> Outcome | None:
        """Of the newest worker once it has ended.  Raises `NotFound`."""
        self.get("dv", namespace, name)
        uid = self._claim_uid(namespace, name)
        return self._launcher.outcome(uid) if uid else None

    def failure(self, namespace: str | None, name: str) -> Failure | None:
        """What a DataVolume has failed of, or waits after; None while all is well.  Raises `NotFound`."""
        return failure_of(self.get("dv", namespace, name))

    def about(self, body: Object) -> Iterator[Section]:
        """Where the volume is, and what its worker does."""
        metadata = body["metadata"]
        try:
            path = str(self.volume_path(metadata["namespace"], metadata["name"]))
        except NotFound:
            path = "not there yet"
        yield "Volume", [("", path)]

    def log(self, namespace: str | None, name: str, *, follow: bool = False) -> Iterator[str]:
        """Lines of the workers' log; with `follow`, until the DataVolume is done.  Raises `NotFound`."""
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
            time.sleep(_LOOK)

    def limit(
        self, namespace: str | None, name: str, *, bandwidth: int | None = None, connections: int | None = None
    ) -> bool:
        """Set limits for this and later attempts: bytes per second and ranges at a time, 0 lifts them, None keeps them.

        True where a worker runs and was told.  Raises `NotFound`, `InvalidManifest`.
        """
        given = {BANDWIDTH: bandwidth, CONNECTIONS: connections}
        annotations = {field: str(value) for field, value in given.items() if value is not None}
        read_knobs(annotations)
        key = Key.of("dv", namespace, name)
        action = PatchObject(plural=key.plural, namespace=key.namespace, name=key.name, uid="", annotations=annotations)
        body = amend(self._store, key, lambda dv: patch(dv, action))
        ensure_supervisor(self.home)
        uid = self._claim_uid(namespace, name)
        now = body["metadata"].get("annotations") or {}
        # What is not given now may have been written by hand, as a quantity.
        knobs = read_knobs({field: now[field] for field in given if field in now})
        limits = Limits(bandwidth=knobs.bandwidth, connections=knobs.connections)
        return uid is not None and self._launcher.limit(uid, limits)

    # --- volumes --------------------------------------------------------------------------------------------------

    def volume_path(self, namespace: str | None, name: str) -> Path:
        """The disk of a volume, or its directory where it holds an archive.  Raises `NotFound`."""
        key = Key.of("pvc", namespace, name)
        try:
            self._store.get(key)
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
        raise NotFound(f"volume {key.namespace}/{key.name} is not there yet", remedy="wait for its DataVolume")

    def upload(self, namespace: str | None, name: str, path: Path) -> None:
        """Give a file to a DataVolume with ``source.upload``; `wait` tells when it is a volume.

        Raises `NotFound`, `AlreadyExists` (it has its image), `Conflict` (an upload is under way), `UsageError`.
        """
        self._uploads.file(Key.of("dv", namespace, name), path)

    def upload_stream(self, namespace: str | None, name: str, descriptor: int, length: int | None = None) -> None:
        """Give an open descriptor to a DataVolume with ``source.upload``: its worker reads it, from where it stands.

        Returns when the worker has it; `wait` tells when it is a volume.  Raises as `upload` does.
        """
        self._uploads.stream(Key.of("dv", namespace, name), descriptor, length)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _claim_uid(self, namespace: str | None, name: str) -> str | None:
        try:
            claim = self.get("pvc", namespace, name)
        except NotFound:
            return None
        return str(claim["metadata"]["uid"])

    def progress_of(self, body: Object) -> Progress | None:
        """Of a DataVolume's newest worker; None where there is none."""
        if body["kind"] != "DataVolume":
            return None
        metadata = body["metadata"]
        uid = self._claim_uid(metadata["namespace"], metadata["name"])
        if uid is None:
            return None
        with self.home.mapped("the workers' files"):
            text = durable.read(self.home.worker(uid).progress)
        if text is None:
            return None
        try:
            return Progress.from_json(text)
        except ValueError:
            return None

    def _owned_claim(self, key: Key, uid: str) -> Object | None:
        if key.plural != "datavolumes":
            return None
        try:
            claim = self._store.get(Key.of("pvc", key.namespace, key.name))
        except NotFound:
            return None
        owners = claim["metadata"].get("ownerReferences") or []
        return claim if any(owner.get("uid") == uid for owner in owners) else None

    def _orphan(self, claim: Object, uid: str) -> None:
        def disown(body: Object) -> None:
            owners = body["metadata"].get("ownerReferences") or []
            body["metadata"]["ownerReferences"] = [owner for owner in owners if owner.get("uid") != uid]

        amend(self._store, Key.of_object(claim), disown, uid=claim["metadata"]["uid"])

    def _lives(self, key: Key, uid: str) -> bool:
        try:
            return bool(self._store.get(key)["metadata"]["uid"] == uid)
        except NotFound:
            return False


class _Courses:
    """Looked at a few times a second: the workers write their progress into files."""

    def __init__(self, embedded: Embedded) -> None:
        self._embedded = embedded
        self._revive = 0.0
        self._looked = True
        """Somebody waits for something: a supervisor has to be there."""

    def look(self, key: Key) -> tuple[Object, Progress | None]:
        body = self._embedded.store.get(key)
        self._looked = True
        if not phase_of(body).final:
            # What is complete needs nobody who works on it, and can be looked at where nothing can be written.
            self._keep_alive()
        return body, self._embedded.progress_of(body)

    def pause(self, seconds: float) -> None:
        self._keep_alive()
        time.sleep(max(0.0, min(_LOOK, seconds)))

    def _keep_alive(self) -> None:
        if self._looked and time.monotonic() >= self._revive:
            self._looked = False
            ensure_supervisor(self._embedded.home)
            self._revive = time.monotonic() + _REVIVE
