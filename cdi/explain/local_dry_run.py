"""Simulation of DataVolumes: the reconcilers run over a copy of the objects, up to the worker they would start.

The preview therefore uses the same references, secrets, policy and errors as the import. CDI_HOME is not changed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError, InternalError, NotFound, TargetIo
from cdi.api.status_detail import status_detail
from cdi.client.apply import apply
from cdi.client.document import Manifest
from cdi.client.status_view import error_of, failure_of
from cdi.local.home import Home
from cdi.local.launcher import write_mounts
from cdi.local.lister import WATCHED, Observed, Setting
from cdi.private_directory import private_directory
from cdi.reconcile.actions import CreateObject, StartWorker, Work
from cdi.reconcile.datavolume import upload_request as uploads
from cdi.reconcile.datavolume.attempts import ANNOTATION
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.datavolume.result import operation_of
from cdi.reconcile.datavolume.upload_request import UploadRequest
from cdi.reconcile.types import PVC, Operation
from cdi.store.base import Key, Object, update_with_retry
from cdi.store.file_store import LocalStore

_COPIED: Final = tuple(plural for plural in WATCHED if plural != "events")
_STEPS: Final = 8
"""Largest number of reconciles; more than any DataVolume needs from creation to its worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The state that a DataVolume would reach without intervention."""

    key: Key
    operation: Operation
    claim: PVC | None
    """The PVC as it is or would be."""
    work: Work | None = None
    """The job of its worker; the job's inputs exist until the `DryRunResult` is closed."""
    failure: CdiError | None = None
    """The error it would end with before any worker is started."""
    waits: str = ""
    """The message about what it would wait for."""
    reason: str = ""
    """The reason for waiting, as in its Ready condition."""


class DryRunResult:
    """Simulation of one CDI_HOME in its current state with `manifests` applied to a copy; a context manager.

    `namespace` is that of manifests without one. Raises the errors of `cdi.client.apply.apply`.
    """

    def __init__(self, home: Home, manifests: Iterable[Manifest] = (), *, namespace: str | None = None) -> None:
        self._home = home
        self._directory = contextlib.ExitStack()
        root = self._directory.enter_context(private_directory())
        self._inputs = root / "inputs"
        try:
            with home.mapped("the objects"):
                _copy(home.objects, root / "objects")
            self._store = LocalStore(root / "objects")
            applied = apply(self._store, manifests, namespace=namespace)
        except BaseException:
            self.close()
            raise
        self.datavolumes = [Key.of(one.kind, one.namespace, one.name) for one in applied if one.kind == "DataVolume"]
        """The DataVolumes among the manifests, in their order."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._directory.close()

    def course(self, key: Key, *, upload: Path | None = None) -> Course:
        """Simulate a DataVolume from its creation; `upload` is the file that it gets if it waits for an upload.

        Raises `NotFound`.
        """
        dv = self._store.get(key)
        self._store.update_status({name: value for name, value in dv.items() if name != "status"})
        observed = Observed(self._home)
        status: Object = {}
        with self._store.watch(_COPIED) as watch:
            for _ in range(_STEPS):
                self._prepare_claim(key, dv["metadata"]["uid"], upload)
                observed.take(watch.poll(0))
                model = observed.model(key, DataVolume)
                assert model is not None
                context = observed.context(model, None, Setting(), admitted=True)
                if context.layout is not None:
                    inputs = self._inputs / key.namespace / key.name
                    context = replace(context, layout=replace(context.layout, inputs=str(inputs)))
                plan = reconcile(context)
                status = dict(plan.status) if plan.status is not None else status
                claim = observed.claim(key.namespace, key.name)
                made = False
                for action in plan.actions:
                    if isinstance(action, StartWorker):
                        return self._prepared(key, model, claim, action, observed)
                    if isinstance(action, CreateObject):
                        self._store.create(dict(action.body))
                        made = True
                if not made:
                    return _standing(key, model, claim, {**dv, "status": status})
        raise InternalError(f"the dry run of {key} does not terminate")

    def _prepare_claim(self, key: Key, owner: str, upload: Path | None) -> None:
        """Bind the DataVolume's own PVC and remove traces of earlier attempts."""
        claim_key = Key.of("pvc", key.namespace, key.name)
        try:
            body = self._store.get(claim_key)
        except NotFound:
            return
        if not any(one.get("uid") == owner for one in body["metadata"].get("ownerReferences") or []):
            return

        def renew(claim: Object) -> None:
            notes = {
                name: text
                for name, text in (claim["metadata"].get("annotations") or {}).items()
                if name not in (ANNOTATION, uploads.ANNOTATION)
            }
            if upload is not None:
                notes[uploads.ANNOTATION] = UploadRequest(id="explained", path=str(upload)).write()
            claim["metadata"]["annotations"] = notes

        body = update_with_retry(self._store, claim_key, renew)
        if (body.get("status") or {}).get("phase") != "Bound":
            requests = ((body["spec"].get("resources") or {}).get("requests")) or {}
            capacity = {"capacity": {"storage": requests["storage"]}} if "storage" in requests else {}
            self._store.update_status({**body, "status": {"phase": "Bound", **capacity}})

    def _prepared(self, key: Key, dv: DataVolume, claim: PVC | None, action: StartWorker, observed: Observed) -> Course:
        try:
            write_mounts(action.mounts, observed.content)
        except OSError as error:
            raise TargetIo(f"cannot store secrets: {error.strerror}", where=tempfile.gettempdir()) from error
        return Course(key=key, operation=operation_of(dv), claim=claim, work=action.work)


def _standing(key: Key, dv: DataVolume, claim: PVC | None, body: Object) -> Course:
    failure = failure_of(body)
    reason, message = status_detail(body) if failure is None else ("", "")
    return Course(
        key=key,
        operation=operation_of(dv),
        claim=claim,
        failure=None if failure is None else error_of(failure),
        waits=message or reason,
        reason=reason,
    )


def _copy(objects: Path, to: Path) -> None:
    """Copy the relevant objects; each copy is consistent, because objects are replaced, never written in place."""
    for plural in _COPIED:
        source = objects / plural
        for path in source.rglob("*.json") if source.is_dir() else ():
            target = to / path.relative_to(objects)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path, target)
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(objects / ".version", to / ".version")
