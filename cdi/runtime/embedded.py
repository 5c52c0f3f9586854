"""The embedded mode as one object: manifests in, volumes out, on one machine.

Commands write what they want into the store and a supervisor in the background does it
(`cdi.runtime.supervisor`), so a command that is killed loses nothing, and any number may run at a time.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cdi.api.datavolume import DataVolume
from cdi.api.errors import (
    AlreadyExists,
    CdiError,
    Conflict,
    InvalidManifest,
    NotFound,
    Retry,
    UsageError,
    WaitTimeout,
    by_code,
)
from cdi.api.job import Failure, Limits, Outcome, Progress
from cdi.api.phases import ConditionType, Phase
from cdi.api.validation import parse
from cdi.reconcile import upload as uploads
from cdi.reconcile.actions import PatchObject, StartWorker
from cdi.reconcile.datavolume import reconcile
from cdi.reconcile.ledger import ANNOTATION, Ledger
from cdi.reconcile.policy import BANDWIDTH, CONNECTIONS
from cdi.reconcile.status import condition_of
from cdi.reconcile.upload import UploadRequest
from cdi.runtime import durable, events
from cdi.runtime.apply import Applied, apply
from cdi.runtime.executor import Executor, patch
from cdi.runtime.home import Home
from cdi.runtime.launcher import Launcher
from cdi.runtime.observe import WATCHED, Observed, Setting
from cdi.runtime.supervisor import ensure_supervisor
from cdi.store.base import Key, Object, amend
from cdi.store.kinds import kind_of
from cdi.store.local import LocalStore

_LOOK = 0.1
_REVIVE = 1.0
_READY = 60.0
_DELETED = 120.0

Objects = list[Object]
OnUpdate = Callable[[Object, Progress | None], None]


class Embedded:
    """Over one CDI_HOME; any number at a time, from any process.

    Kinds are given by any of their names (``dv``, ``DataVolume``, ``pvc`` …), namespaces are ``default`` where None.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.home = Home.find(home)
        self.home.make()
        self._store = LocalStore(self.home.objects)
        self._launcher = Launcher(self.home)

    # --- objects --------------------------------------------------------------------------------------------------

    def apply(self, manifests: Iterable[Mapping[str, Any]]) -> list[Applied]:
        """Check all, then write all.  Raises `InvalidManifest`."""
        applied = apply(self._store, manifests)
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
        """Until the phase is `until`, or a condition of that name is True, or, for ``deleted``, it is gone.

        `on_update` is called with the object and its worker's progress, at first and whenever either changes.
        Returns the object as it was last seen.  Raises the failure of a DataVolume that ends as Failed;
        `WaitTimeout` after `timeout` seconds; `NotFound`.  Where `patient` is False, also a failure that only a
        person can end (`Retry.ON_CHANGE`).
        """
        key = Key.of(kind, namespace, name)
        deadline = None if timeout is None else time.monotonic() + timeout
        revive = time.monotonic()
        seen: tuple[str, Progress | None] | None = None
        body = self._store.get(key)
        while True:
            if time.monotonic() >= revive:
                ensure_supervisor(self.home)
                revive = time.monotonic() + _REVIVE
            progress = self._progress_of(body)
            now = (body["metadata"]["resourceVersion"], progress)
            if now != seen:
                seen = now
                if on_update is not None:
                    on_update(body, progress)
                if _reached(body, until):
                    return body
                self._raise_failure(body, until, patient=patient)
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout(f"{key} is {_standing(body)}")
            time.sleep(_LOOK)
            try:
                body = self._store.get(key)
            except NotFound:
                if until.lower() == "deleted":
                    return body
                raise

    def progress(self, namespace: str | None, name: str) -> Progress | None:
        """Of the newest worker; None where there is none.  Raises `NotFound`."""
        return self._progress_of(self.get("dv", namespace, name))

    def outcome(self, namespace: str | None, name: str) -> Outcome | None:
        """Of the newest worker once it has ended.  Raises `NotFound`."""
        self.get("dv", namespace, name)
        uid = self._claim_uid(namespace, name)
        worker = self._launcher.observe(uid) if uid else None
        return worker.outcome if worker is not None else None

    def failure(self, namespace: str | None, name: str) -> Failure | None:
        """What a DataVolume has failed of, or waits after; None while all is well.  Raises `NotFound`."""
        return self._failure_of(self.get("dv", namespace, name))

    def log(self, namespace: str | None, name: str, *, follow: bool = False) -> Iterator[str]:
        """Lines of the workers' log; with `follow`, until the DataVolume is done.  Raises `NotFound`."""
        body = self.get("dv", namespace, name)
        position, rest, path = 0, b"", None
        while True:
            with contextlib.suppress(NotFound):
                body = self.get("dv", namespace, name)
            ended = not follow or _phase(body).final
            uid = self._claim_uid(namespace, name)
            if uid is not None:
                path = self.home.worker(uid).log
            if path is not None:
                with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
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
        if (bandwidth is not None and bandwidth < 0) or (connections is not None and not 0 <= connections <= 64):
            raise InvalidManifest("limits are not negative, and connections at most 64")
        key = Key.of("dv", namespace, name)
        wanted = {BANDWIDTH: bandwidth, CONNECTIONS: connections}
        annotations = {field: str(value) for field, value in wanted.items() if value is not None}
        action = PatchObject(plural=key.plural, namespace=key.namespace, name=key.name, uid="", annotations=annotations)
        body = amend(self._store, key, lambda dv: patch(dv, action))
        ensure_supervisor(self.home)
        uid = self._claim_uid(namespace, name)
        now = body["metadata"].get("annotations") or {}
        limits = Limits(bandwidth=_number(now.get(BANDWIDTH)), connections=_number(now.get(CONNECTIONS)))
        return uid is not None and self._launcher.limit(uid, limits)

    # --- volumes --------------------------------------------------------------------------------------------------

    def volume_path(self, namespace: str | None, name: str) -> Path:
        """The disk of a volume, or its directory where it holds an archive.  Raises `NotFound`."""
        self.get("pvc", namespace, name)
        key = Key.of("pvc", namespace, name)
        disk = self.home.disk(key.namespace, key.name)
        if disk.is_file():
            return disk
        directory = self.home.volume(key.namespace, key.name)
        if not directory.is_dir():
            raise NotFound(f"volume {key.namespace}/{key.name} is not there yet", remedy="wait for its DataVolume")
        return directory

    def upload(self, namespace: str | None, name: str, path: Path) -> None:
        """Give a file to a DataVolume with ``source.upload``; `wait` tells when it is a volume.

        Raises `NotFound`, `AlreadyExists` (it has its image), `Conflict` (an upload is under way), `UsageError`.
        """
        path = path.expanduser().absolute()
        try:
            mode = path.stat().st_mode
            with open(path, "rb"):
                pass
        except OSError as error:
            raise UsageError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageError("only a file or block device is uploaded by name", where=str(path), remedy="use a pipe: -")
        self._request_upload(namespace, name, UploadRequest(id=uuid.uuid4().hex, path=str(path)))
        ensure_supervisor(self.home)

    def upload_stream(self, namespace: str | None, name: str, descriptor: int, length: int | None = None) -> None:
        """Give an open descriptor to a DataVolume with ``source.upload``: its worker reads it, from where it stands.

        Returns when the worker has it; `wait` tells when it is a volume.  Raises as `upload` does.
        """
        request = UploadRequest(id=uuid.uuid4().hex, length=length)
        self._request_upload(namespace, name, request)
        observed = Observed(self.home)
        executor = Executor(self._store, self._launcher, observed.content)
        setting = Setting()
        key = Key.of("dv", namespace, name)
        deadline = time.monotonic() + _READY
        with self._store.watch(WATCHED) as watch:
            while time.monotonic() < deadline:
                observed.take(watch.poll(_LOOK))
                dv, body = observed.model(key, DataVolume), observed.body(key)
                claim = observed.claim(key.namespace, key.name)
                if dv is None or body is None or claim is None:
                    raise NotFound(f"there is no {key}")
                worker = self._launcher.observe(claim.uid)
                if worker is not None and worker.upload == request.id:
                    ensure_supervisor(self.home)
                    return
                plan = reconcile(observed.world(dv, worker, setting, admitted=True))
                executor.carry_out(plan, body, setting.now(), stdin=descriptor)
                if not any(isinstance(action, StartWorker) for action in plan.actions):
                    self._raise_failure(self._store.get(key), Phase.SUCCEEDED, patient=False)
        raise WaitTimeout(f"{key} did not become ready for an upload")

    # --- inside ---------------------------------------------------------------------------------------------------

    def _request_upload(self, namespace: str | None, name: str, request: UploadRequest) -> None:
        key = Key.of("dv", namespace, name)
        dv = parse(self._store.get(key))
        if not isinstance(dv, DataVolume) or dv.spec.source is None or dv.spec.source.upload is None:
            raise UsageError(f"{key} does not take an upload", where="spec.source", remedy="give it source.upload: {}")
        if _phase(self._store.get(key)) is not Phase.FAILED:
            self._wait_for_upload(key)
        claim_key = Key.of("pvc", key.namespace, key.name)
        claim = self._store.get(claim_key)
        uid = claim["metadata"]["uid"]

        def ask(body: Object) -> None:
            annotations = dict(body["metadata"].get("annotations") or {})
            if Ledger.read(annotations.get(ANNOTATION)).done:
                raise AlreadyExists(f"{key} has its image already")
            if self._launcher.alive(uid):
                raise Conflict(f"an upload to {key} is under way", remedy="wait until it ends")
            annotations[uploads.ANNOTATION] = request.write()
            body["metadata"]["annotations"] = annotations

        amend(self._store, claim_key, ask, uid=uid)

    def _wait_for_upload(self, key: Key) -> None:
        """Until it takes one; one that has its image already is for the caller to refuse."""
        ends = {Phase.UPLOAD_READY, Phase.UPLOAD_SCHEDULED, Phase.SUCCEEDED}
        deadline = time.monotonic() + _READY
        while _phase(body := self._store.get(key)) not in ends:
            self._raise_failure(body, Phase.UPLOAD_READY, patient=True)
            if time.monotonic() >= deadline:
                raise WaitTimeout(f"{key} is {_standing(body)}")
            ensure_supervisor(self.home)
            time.sleep(_LOOK)

    def _claim_uid(self, namespace: str | None, name: str) -> str | None:
        try:
            claim = self.get("pvc", namespace, name)
        except NotFound:
            return None
        return str(claim["metadata"]["uid"])

    def _progress_of(self, body: Object) -> Progress | None:
        if body["kind"] != "DataVolume":
            return None
        metadata = body["metadata"]
        uid = self._claim_uid(metadata["namespace"], metadata["name"])
        if uid is None:
            return None
        text = durable.read(self.home.worker(uid).progress)
        if text is None:
            return None
        try:
            return Progress.from_json(text)
        except ValueError:
            return None

    def _failure_of(self, body: Object) -> Failure | None:
        dv = parse(body)
        assert isinstance(dv, DataVolume)
        ready, running = condition_of(dv, ConditionType.READY), condition_of(dv, ConditionType.RUNNING)
        phase = dv.status.phase if dv.status is not None else None
        if ready is None or running is None or phase == Phase.SUCCEEDED:
            return None
        if phase != Phase.FAILED and running.reason not in ("Error", "ChecksumError"):
            return None
        kind = by_code(ready.reason or "")
        return Failure(
            code=ready.reason or kind.__name__,
            message=ready.message or "",
            retry=Retry.NEVER if phase == Phase.FAILED else kind.retry,
            exit_status=kind.exit_status,
        )

    def _raise_failure(self, body: Object, until: str, *, patient: bool) -> None:
        if body["kind"] != "DataVolume" or until in (Phase.FAILED, "deleted", "Deleted"):
            return
        failure = self._failure_of(body)
        if failure is None:
            return
        if failure.retry is Retry.NEVER or (failure.retry is Retry.ON_CHANGE and not patient):
            raise error_of(failure)

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


def error_of(failure: Failure) -> CdiError:
    """The error that a failure was, to be raised again: same code, message and exit status."""
    return by_code(failure.code)(failure.message, remedy="")


def _phase(body: Object) -> Phase:
    text = (body.get("status") or {}).get("phase") or ""
    return Phase(text) if text in set(Phase) else Phase.UNKNOWN


def _reached(body: Object, until: str) -> bool:
    status = body.get("status") or {}
    if (status.get("phase") or "") == until:
        return True
    return any(c.get("type") == until and c.get("status") == "True" for c in status.get("conditions") or [])


def _standing(body: Object) -> str:
    """Phase and the one reason, for a message."""
    status = body.get("status") or {}
    why = ""
    for condition in status.get("conditions") or []:
        if condition.get("type") == "Ready":
            why = condition.get("message") or condition.get("reason") or ""
    phase = status.get("phase") or "not looked at yet"
    return f"{phase}: {why}" if why else str(phase)


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0
