"""Overlay of the objects in one CDI_HOME."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from cdi.api.annotations import ATTEMPTS, UPLOAD_REQUEST
from cdi.api.datavolume import DataVolume
from cdi.api.errors import TargetIo
from cdi.api.kinds import CLAIMS, DATA_VOLUMES
from cdi.client.apply import check, updated
from cdi.client.backend import Objects
from cdi.client.document import Manifest
from cdi.explain.dry_run import Overlay, bound
from cdi.local.home import Home
from cdi.local.launcher import write_mounts
from cdi.local.lister import WATCHED, Observed, Setting
from cdi.private_directory import private_directory
from cdi.reconcile.actions import ObjectRef, StartWorker
from cdi.reconcile.context import ReconcileContext
from cdi.store.base import Change, Key, Object
from cdi.store.file_store import LocalStore, encode

_READ: Final = tuple(plural for plural in WATCHED if plural != "events")


class LocalOverlay(Overlay):
    """The objects of one CDI_HOME as they were at construction, and simulated ones; `ReferenceReader` of both.

    Jobs that a dry run returns find their Secrets and ConfigMaps below `inputs`, a private directory.
    """

    def __init__(self, home: Home, inputs: Path | None = None) -> None:
        super().__init__()
        self.home = home
        self._inputs = inputs
        self._store = LocalStore(home.objects)
        self._observed = Observed(home)
        with self._store.watch(_READ) as watch:
            self._observed.take(watch.poll(0.0))

    @classmethod
    @contextmanager
    def open(cls, home: Home) -> Iterator[Self]:
        """Yield an overlay with a directory for inputs, which is removed at the end."""
        with private_directory() as directory:
            yield cls(home, directory)

    def apply(self, manifests: Iterable[Manifest], *, namespace: str | None = None) -> tuple[Key, ...]:
        """Add manifests as `cdi.client.apply.apply` would, and return the DataVolumes among them.

        `namespace` is that of manifests without one. Raises the errors of `cdi.client.apply.apply`.
        """
        keys = []
        for manifest, _ in check(self, manifests, namespace=namespace):
            key, body = Key.of_object(manifest), updated(self, manifest)
            encode(key, body)
            if self.find(key.plural, key.namespace, key.name) is None:
                self.create(body)
            else:
                self.replace(body)
            keys.append(key)
        return tuple(key for key in keys if key.plural == DATA_VOLUMES.plural)

    def restart(self, key: Key, claim_annotations: Mapping[str, str]) -> None:
        """Reset a DataVolume and its PVC to the state before the first attempt, with a bound PVC.

        Raises:
            NotFound: There is no such DataVolume.
        """
        dv = self.get(key)
        self.replace({name: value for name, value in dv.items() if name != "status"})
        claim = self.find(CLAIMS.plural, key.namespace, key.name)
        if claim is None:
            return
        metadata = claim["metadata"]
        if not any(one.get("uid") == dv["metadata"]["uid"] for one in metadata.get("ownerReferences") or []):
            return
        kept = {
            name: text
            for name, text in (metadata.get("annotations") or {}).items()
            if name not in (ATTEMPTS.key, UPLOAD_REQUEST.key)
        }
        body = {**claim, "metadata": {**metadata, "annotations": {**kept, **claim_annotations}}}
        if (claim.get("status") or {}).get("phase") != "Bound":
            body["status"] = bound(claim["spec"])
        self.replace(body)

    def write_inputs(self, worker: StartWorker) -> None:
        """Write the Secrets and ConfigMaps of a job; raise `NotFound`, and `TargetIo` if there is no space for them."""
        try:
            write_mounts(worker.mounts, self.content)
        except OSError as error:
            raise TargetIo(f"cannot store secrets: {error.strerror}", where=tempfile.gettempdir()) from error

    # --- Overlay ------------------------------------------------------------------------------------------------------

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        return self._observed.body(Key(plural, namespace, name))

    def put(self, body: Object) -> None:
        self._observed.take([Change(type="MODIFIED", key=Key.of_object(body), body=body)])

    def context(self, key: Key) -> ReconcileContext | None:
        dv = self._observed.model(key, DataVolume)
        if dv is None:
            return None
        context = self.source_context(dv)
        if context.layout is None or self._inputs is None:
            return context
        inputs = str(self._inputs / key.namespace / key.name)
        return replace(context, layout=replace(context.layout, inputs=inputs))

    # --- Reader, for manifests ----------------------------------------------------------------------------------------

    def get(self, key: Key) -> Object:
        """Return an object; raise `NotFound`, and the store's error for a damaged one."""
        return self.find(key.plural, key.namespace, key.name) or self._store.get(key)

    def list(self, plural: str, namespace: str | None = None) -> Objects:
        keys = sorted(key for key in self._observed.keys(plural) if namespace in (None, key.namespace))
        return [body for key in keys if (body := self._observed.body(key)) is not None]

    # --- ReferenceReader ----------------------------------------------------------------------------------------------

    def source_context(self, dv: DataVolume) -> ReconcileContext:
        return self._observed.context(dv, None, Setting(), admitted=True)

    def content(self, ref: ObjectRef) -> Mapping[str, bytes]:
        return self._observed.content(ref)
