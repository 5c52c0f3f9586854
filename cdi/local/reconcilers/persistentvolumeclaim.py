"""Reconciler of PVCs: provisions directories as their volumes, and deletes them with the PVC."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable

from cdi import atomic_file
from cdi.api.annotation_types import annotations_of
from cdi.api.core import PersistentVolumeClaim
from cdi.api.errors import NotFound
from cdi.api.names import (
    ANN_BOUND_CONDITION,
    ANN_BOUND_CONDITION_MESSAGE,
    ANN_BOUND_CONDITION_REASON,
    GROUP,
)
from cdi.api.phases import Reason
from cdi.api.quantity import Quantity
from cdi.local.home import DISK, Home
from cdi.local.launcher import Launcher
from cdi.local.lister import Observed
from cdi.local.reconcilers.reconciler import Changes, Result
from cdi.reconcile.actions import PatchObject
from cdi.reconcile.merge_patch import apply_patch
from cdi.store.base import Key, Object, Store, update_with_retry

FINALIZER = f"{GROUP}/volume"
"""The finalizer of a PVC with a directory; it is removed once the directory is deleted."""

_RETRY_INTERVAL = 0.1
"""Seconds until the end of a worker that is being stopped is checked again."""


class PersistentVolumeClaimReconciler:
    """Reconciler of PVCs, each of which is bound to a directory."""

    def __init__(self, home: Home, store: Store, observed: Observed, launcher: Launcher) -> None:
        self._home = home
        self._store = store
        self._observed = observed
        self._launcher = launcher

    def requests_for(self, changes: Changes) -> Iterable[Key]:
        return changes.keys("persistentvolumeclaims")

    def reconcile(self, key: Key) -> Result:
        """Bind a new PVC, or delete the volume of a deleted one; raise `TargetError`."""
        claim, body = self._observed.model(key, PersistentVolumeClaim), self._observed.body(key)
        if claim is None or body is None:
            return Result()
        if claim.metadata.deletion_timestamp is not None:
            if FINALIZER in (claim.metadata.finalizers or ()) and not self._release(key, body):
                return Result(requeue_after=_RETRY_INTERVAL)
        elif claim.status is None or claim.status.phase not in ("Bound", "Lost"):
            with contextlib.suppress(NotFound):
                self._bind(key, body, claim)
        return Result()

    def _bind(self, key: Key, body: Object, claim: PersistentVolumeClaim) -> None:
        directory = self._home.volume(key.namespace, key.name)
        metadata = claim.metadata
        ours = FINALIZER in (metadata.finalizers or ())
        # A PVC created by hand may be meant for an existing directory; one created for an import may not.
        made_for_import = any(owner.controller for owner in metadata.owner_references or ())
        if not ours and made_for_import and _holds_something(directory):
            message = f"the directory {directory} already holds files. Try: remove them, or choose another name"
            self._explain(key, body, message)
            return
        uid = body["metadata"]["uid"]

        def own(claimed: Object) -> None:
            finalizers = list(claimed["metadata"].get("finalizers") or [])
            claimed["metadata"]["finalizers"] = [*finalizers, *([] if FINALIZER in finalizers else [FINALIZER])]

        if not ours:
            update_with_retry(self._store, key, own, uid=uid)
        with atomic_file.mapped("the volume's directory", directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status: Object = {"phase": "Bound", "accessModes": claim.spec.access_modes or ["ReadWriteOnce"]}
        size = claim.spec.size.bytes if claim.spec.size is not None else 0
        with contextlib.suppress(FileNotFoundError):
            size = max(size, (directory / DISK).stat().st_size)
        if size:
            status["capacity"] = {"storage": Quantity.of_bytes(size).text}
        fresh = self._store.get(key)
        if fresh["metadata"]["uid"] == uid and "deletionTimestamp" not in fresh["metadata"]:
            self._store.update_status({**fresh, "status": status})

    def _explain(self, key: Key, body: Object, message: str) -> None:
        annotations = annotations_of(body)
        if annotations.get(ANN_BOUND_CONDITION_MESSAGE) == message:
            return
        note = PatchObject(
            plural=key.plural,
            namespace=key.namespace,
            name=key.name,
            uid=body["metadata"]["uid"],
            annotations={
                ANN_BOUND_CONDITION: "false",
                ANN_BOUND_CONDITION_REASON: Reason.ERR_CLAIM_NOT_VALID,
                ANN_BOUND_CONDITION_MESSAGE: message,
            },
        )
        update_with_retry(self._store, key, lambda claimed: apply_patch(claimed, note), uid=note.uid)

    def _release(self, key: Key, body: Object) -> bool:
        """Remove worker, directory and finalizer, in this order; return False if it has to be tried again."""
        uid = body["metadata"]["uid"]
        if not self._launcher.forget(uid):
            return False
        directory = self._home.volume(key.namespace, key.name)
        with atomic_file.mapped("the volume to remove", directory):
            if directory.is_symlink():
                directory.unlink()
            elif directory.exists():
                shutil.rmtree(directory)
        with contextlib.suppress(OSError):
            directory.parent.rmdir()

        def disown(claimed: Object) -> None:
            rest = [name for name in claimed["metadata"].get("finalizers") or [] if name != FINALIZER]
            claimed["metadata"]["finalizers"] = rest

        with contextlib.suppress(NotFound):
            update_with_retry(self._store, key, disown, uid=uid)
        return True


def _holds_something(directory: os.PathLike[str]) -> bool:
    with atomic_file.mapped("the volume's directory", directory):
        try:
            with os.scandir(directory) as entries:
                return next(entries, None) is not None
        except FileNotFoundError:
            return False
