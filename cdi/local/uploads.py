"""Uploads from clients on this machine."""

from __future__ import annotations

import contextlib
import stat
import time
import uuid
from dataclasses import replace
from pathlib import Path

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import UPLOAD_REQUEST
from cdi.api.datavolume import DataVolume
from cdi.api.errors import AlreadyExists, Conflict, NotFound, UsageError, WaitTimeout
from cdi.api.phases import Phase
from cdi.api.validation import parse
from cdi.client.status_view import failure_of, phase_of, raise_failure, summary
from cdi.local.applier import PlanApplier
from cdi.local.environment import Environments
from cdi.local.home import Home
from cdi.local.launcher import Launcher
from cdi.local.lister import WATCHED, Observed, Setting
from cdi.local.supervisor import ensure_supervisor
from cdi.local.tasks import Tasks
from cdi.reconcile.actions import StartWorker
from cdi.reconcile.datavolume.attempts import ANNOTATION, AttemptHistory
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.datavolume.upload import UploadRequest
from cdi.store.base import Key, Object, update_with_retry
from cdi.store.file_store import LocalStore

_POLL_INTERVAL = 0.1
_READY = 60.0


class LocalUploads:
    """Uploads of one CDI_HOME; keys are those of DataVolumes with ``source.upload``."""

    def __init__(self, home: Home, store: LocalStore, launcher: Launcher) -> None:
        self._home = home
        self._store = store
        self._launcher = launcher

    def file(self, key: Key, path: Path) -> None:
        """Let the supervisor start a worker that reads a file.

        Raises:
            NotFound: There is no such DataVolume.
            AlreadyExists: It has its image already.
            Conflict: Another upload is running.
            UsageError: The file is unusable, or the DataVolume accepts no upload.
        """
        path = path.expanduser().absolute()
        try:
            mode = path.stat().st_mode
            with open(path, "rb"):
                pass
        except OSError as error:
            raise UsageError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageError(
                "only a file or block device can be uploaded by name", where=str(path), remedy="use a pipe: -"
            )
        before = self._request(key, UploadRequest(id=uuid.uuid4().hex, path=str(path)))
        self._supervised(key, before)

    def stream(self, key: Key, descriptor: int, length: int | None) -> None:
        """Start the worker from here, with `descriptor` as its standard input; raise the errors of `file`."""
        request = UploadRequest(id=uuid.uuid4().hex, length=length)
        before = self._request(key, request)
        observed = Observed(self._home)
        environments, tasks = Environments(self._home), Tasks(self._home)
        applier = PlanApplier(
            self._store,
            self._launcher,
            observed.content,
            environments,
            tasks,
            lambda: observed.config().pods.verbosity,
        )
        setting = Setting()
        deadline = time.monotonic() + _READY
        with self._store.watch(WATCHED) as watch:
            while time.monotonic() < deadline:
                observed.take(watch.poll(_POLL_INTERVAL))
                dv, body = observed.model(key, DataVolume), observed.body(key)
                claim = observed.claim(key.namespace, key.name)
                if dv is None or body is None or claim is None:
                    raise NotFound(f"there is no {key}")
                if AttemptHistory.read(claim.annotations.get(ANNOTATION)).done:
                    # The previous upload had succeeded, which was not recorded yet.
                    raise _has_image(key)
                worker = self._launcher.observe(claim.uid)
                if worker is not None and worker.upload == request.id:
                    self._record_start(key, claim.uid, replace(request, attempt=worker.attempt))
                    self._supervised(key, before)
                    return
                plan = reconcile(observed.context(dv, worker, setting, admitted=True))
                applier.apply(plan, body, setting.now(), stdin=descriptor)
                seen = UPLOAD_REQUEST.read(UploadRequest, claim.annotations)
                begins = any(isinstance(action, StartWorker) for action in plan.actions)
                if not begins and seen is not None and seen.id == request.id:
                    # The stored status may still be that of an earlier upload; the plan is about this one.
                    status = body.get("status") if plan.status is None else dict(plan.status)
                    raise_failure({**body, "status": status}, patient=False)
        raise WaitTimeout(f"{key} did not become ready for an upload")

    def _record_start(self, key: Key, claim_uid: str, started: UploadRequest) -> None:
        """Record that the worker of a stream has been started.

        A running supervisor may have handled the request before there was a worker, and would not look again.
        """

        def record(body: Object) -> None:
            current = UPLOAD_REQUEST.read(UploadRequest, annotations_of(body))
            if current is not None and current.id == started.id:
                body["metadata"]["annotations"].update(UPLOAD_REQUEST.write(started))

        with contextlib.suppress(NotFound, Conflict):
            update_with_retry(self._store, Key.of("pvc", key.namespace, key.name), record, uid=claim_uid)

    def _supervised(self, key: Key, before: Object) -> None:
        """Ensure that a supervisor is running, and wait until the failure of an earlier upload is no longer shown."""
        deadline = time.monotonic() + _READY
        ensure_supervisor(self._home)
        if failure_of(before) is None:
            return
        while self._store.get(key)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]:
            if time.monotonic() >= deadline:
                raise WaitTimeout(f"{key} is {summary(before)}")
            time.sleep(_POLL_INTERVAL)
            ensure_supervisor(self._home)

    def _request(self, key: Key, request: UploadRequest) -> Object:
        """Record the request on the PVC; return the DataVolume as it was before."""
        dv = parse(self._store.get(key))
        if not isinstance(dv, DataVolume) or dv.spec.source is None or dv.spec.source.upload is None:
            raise UsageError(f"{key} is not an upload target", where="spec.source", remedy="give it source.upload: {}")
        if phase_of(self._store.get(key)) is not Phase.FAILED:
            self._wait(key)
        claim_key = Key.of("pvc", key.namespace, key.name)
        claim = self._store.get(claim_key)
        uid = claim["metadata"]["uid"]

        def ask(body: Object) -> None:
            annotations = dict(annotations_of(body))
            if AttemptHistory.read(annotations.get(ANNOTATION)).done:
                raise _has_image(key)
            if self._launcher.alive(uid):
                raise Conflict(f"an upload to {key} is in progress", remedy="wait until it ends")
            annotations.update(UPLOAD_REQUEST.write(request))
            body["metadata"]["annotations"] = annotations

        before = self._store.get(key)
        update_with_retry(self._store, claim_key, ask, uid=uid)
        return before

    def _wait(self, key: Key) -> None:
        """Wait until the DataVolume accepts an upload; if it has its image already, the caller reports the error."""
        ends = {Phase.UPLOAD_READY, Phase.UPLOAD_SCHEDULED, Phase.SUCCEEDED}
        deadline = time.monotonic() + _READY
        while phase_of(body := self._store.get(key)) not in ends:
            raise_failure(body, patient=True)
            if time.monotonic() >= deadline:
                raise WaitTimeout(f"{key} is {summary(body)}")
            ensure_supervisor(self._home)
            time.sleep(_POLL_INTERVAL)


def _has_image(key: Key) -> AlreadyExists:
    return AlreadyExists(f"{key} already has its image")
