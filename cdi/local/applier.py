"""Plan application to the store and the processes of one CDI_HOME.

Every action is idempotent and may be interrupted at any point, as in a cluster (`cdi.controller.applier`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, assert_never

from cdi.api.errors import AlreadyExists, Conflict, InternalError, NotFound, SigningKeyInvalid
from cdi.local.environment import Environments, of_process
from cdi.local.event_recorder import EventRecorder
from cdi.local.launcher import Launcher, ReadInput
from cdi.local.tasks import Tasks
from cdi.logs import VERBOSITY
from cdi.reconcile.actions import (
    Action,
    CreateObject,
    DeleteObject,
    DeleteUnboundClaim,
    EnsureCertificate,
    Event,
    ExpandClaim,
    MirrorObject,
    PatchObject,
    Plan,
    RebindVolume,
    RequireVersion,
    SetFinalizer,
    SetReclaimPolicy,
    SignRecord,
    StartTask,
    StartWorker,
    StopTask,
    StopWorker,
)
from cdi.reconcile.dataimportcron.origin import RECORD_FAILED
from cdi.reconcile.merge_patch import apply_patch
from cdi.store.base import Key, Object, Store, has_status, update_with_retry


class PlanApplier:
    """Applier of plans."""

    def __init__(
        self,
        store: Store,
        launcher: Launcher,
        read_input: ReadInput,
        environments: Environments,
        tasks: Tasks,
        verbosity: Callable[[], int] = lambda: 1,
    ) -> None:
        """Create an applier; `verbosity` returns CDIConfig's logVerbosity, which workers are started with."""
        self._store = store
        self._verbosity = verbosity
        self._recorder = EventRecorder(store)
        self._launcher = launcher
        self._tasks = tasks
        self._read_input = read_input
        self._environments = environments

    def apply(self, plan: Plan, involved_object: Object, now: float, *, stdin: int | None = None) -> None:
        """Apply a plan: its actions, then its events, and last its status, which describes the completed actions.

        A conflict about the status is not an error: the concurrent change causes another reconcile.

        Args:
            plan: The plan to apply.
            involved_object: The object to which the plan's events and status belong.
            now: Current time in seconds since the epoch.
            stdin: Standard input of the worker that the plan starts; None means empty.

        Raises:
            CdiError: The store, the launcher or a task failed; the rest of the plan is not applied.
        """
        for action in plan.actions:
            try:
                self._apply_action(action, involved_object, stdin, now)
            except NotFound:
                # An action's object was deleted: the rest of the plan is void, and the deletion causes a new reconcile.
                return
        for event in plan.events:
            self._recorder.record(involved_object, event, now)
        with contextlib.suppress(Conflict, NotFound):
            if plan.annotations:
                self._write_annotations(plan, involved_object)
            elif plan.status is not None:
                self._write_status(plan.status, involved_object)

    def _write_status(self, status: Mapping[str, Any], body: Object) -> None:
        metadata = body["metadata"]
        identity = ("name", "namespace", "uid", "resourceVersion")
        self._store.update_status(
            {
                "apiVersion": body["apiVersion"],
                "kind": body["kind"],
                "metadata": {field: metadata[field] for field in identity if field in metadata},
                "status": dict(status),
            }
        )

    def _write_annotations(self, plan: Plan, body: Object) -> None:
        """Write annotations and status by one request, so that a command is never removed without its result."""
        key = Key.of_object(body)
        if has_status(key):
            raise InternalError(f"the status of a {key.kind.kind} is written separately from its annotations")
        new = {**body, "metadata": {**body["metadata"]}}
        apply_patch(
            new,
            PatchObject(
                plural=key.plural, namespace=key.namespace, name=key.name, uid="", annotations=plan.annotations
            ),
        )
        if plan.status is not None:
            new["status"] = dict(plan.status)
        self._store.update(new)

    def _apply_action(self, action: Action, origin: Object, stdin: int | None, now: float) -> None:
        match action:
            case CreateObject():
                if action.body["kind"] == "DataVolume" and origin["kind"] == "DataImportCron":
                    # Before its creation: from then on, a worker may be started.
                    self._environments.inherit(Key.of_object(origin), Key.of_object(action.body))
                with contextlib.suppress(AlreadyExists):
                    self._store.create(dict(action.body))
            case DeleteObject():
                key = Key.of(action.plural, action.namespace, action.name)
                with contextlib.suppress(NotFound, Conflict):
                    self._store.delete(key, uid=action.uid or None)
            case StartTask():
                environment = self._environments.of(Key.of_object(origin))
                self._tasks.start(action, self._read_input, environment=environment)
            case StopTask():
                self._tasks.stop(action.task, action.uid)
            case PatchObject():
                key = Key.of(action.plural, action.namespace, action.name)
                update_with_retry(self._store, key, lambda body: apply_patch(body, action), uid=action.uid)
            case StartWorker():
                environment = {
                    **of_process(os.environ, self._environments.of(Key.of_object(origin))),
                    VERBOSITY: str(self._verbosity()),
                }
                self._launcher.start(action, self._read_input, stdin=stdin, environment=environment)
            case StopWorker():
                self._launcher.stop(action.claim)
            case SignRecord():
                self._sign(action, origin, now)
            case (
                MirrorObject()
                | RebindVolume()
                | SetReclaimPolicy()
                | SetFinalizer()
                | RequireVersion()
                | DeleteUnboundClaim()
                | ExpandClaim()
                | EnsureCertificate()
            ):
                raise InternalError(f"{type(action).__name__} is supported only in clusters")
            case _:
                assert_never(action)

    def _sign(self, action: SignRecord, origin: Object, now: float) -> None:
        """Write the signed record; if the key is unusable, write the unsigned one, so that there is a record.

        It is signed once the key is usable, since an unsigned record is signed at every reconcile until it is.
        """
        from cdi.verify.dsse import key_entry, sign

        where = str(action.key)
        record = action.statement
        try:
            values = self._read_input(action.key)
            envelope = sign(action.statement.encode("ascii"), values[key_entry(values)], where=where)
            record = envelope.to_json().decode("ascii")
        except (NotFound, SigningKeyInvalid) as error:
            message = f"The record of {action.name} is not signed: {error.message}"
            self._recorder.record(origin, Event(type="Warning", reason=RECORD_FAILED, message=message), now)
        key = Key.of(action.plural, action.namespace, action.name)
        write = PatchObject(
            plural=action.plural,
            namespace=action.namespace,
            name=action.name,
            uid=action.uid,
            annotations={action.annotation: record},
        )
        update_with_retry(self._store, key, lambda body: apply_patch(body, write), uid=action.uid)
