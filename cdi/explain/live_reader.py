"""Uncached view of a cluster for one-off commands: the controller's reconcilers on objects read one by one."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from typing import Final, Self

from cdi.api.datavolume import DataVolume
from cdi.api.errors import ClusterForbidden, InternalError, KindNotServed, NotFound
from cdi.api.kinds import CLAIMS, CONFIG_MAPS, PODS, SECRETS, VOLUMES, Object, Resource
from cdi.controller.informers import claim_of
from cdi.controller.lister import ClusterLister
from cdi.controller.pod_usage import users_of
from cdi.kube.sync import SyncClient
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.cdi.config import INSTALL_NAMESPACE
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.settings import Platform, WorkerPodConfig
from cdi.reconcile.types import Input

SIMULATED: Final = "explained"
"""Prefix of the resourceVersion of simulated objects."""
_NEEDED = (SECRETS, CONFIG_MAPS)
"""Resources without which an error cannot be found: a forbidden read of them is an error itself."""


class LiveReader:
    """Objects that are read once, on first use; implements `Cache` and `InputSource`.

    Kinds that may not be read (recorded in `hidden`) or that the API server does not serve count as empty. Methods
    raise any other `ClusterError`.
    """

    def __init__(self, blocking: SyncClient) -> None:
        self.hidden: dict[Resource, str] = {}
        self._blocking = blocking
        self._found: dict[tuple[Resource, str, str], Object | None] = {}
        self._listed: dict[Resource, list[Object]] = {}
        self._pods: dict[str, list[Object]] = {}

    # --- Caches -------------------------------------------------------------------------------------------------

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        key = (resource, namespace, name)
        if key not in self._found:
            self._found[key] = self._ask(resource, namespace, name)
        return self._found[key]

    def values(self, resource: Resource) -> list[Object]:
        if resource not in self._listed:
            self._listed[resource] = self._list(resource)
        return self._listed[resource]

    def volumes_for(self, namespace: str, claim: str) -> list[Object]:
        """Return the PersistentVolumes whose claimRef names this PVC."""
        return [body for body in self.values(VOLUMES) if claim_of(body) == (namespace, claim)]

    def pods(self, namespace: str) -> list[Object]:
        """Return the pods of a namespace."""
        if namespace not in self._pods:
            self._pods[namespace] = self._list(PODS, namespace)
        return self._pods[namespace]

    def exists(self, resource: Resource, namespace: str, name: str) -> bool:
        """Return whether an object exists in the cluster and is not only simulated."""
        found = self.get(resource, namespace, name)
        return found is not None and not str(found["metadata"].get("resourceVersion")).startswith(SIMULATED)

    def overlay(self) -> Self:
        """Return a copy to which simulated objects can be added without changing this one."""
        other = type(self)(self._blocking)
        other.hidden = self.hidden
        other._found, other._listed = dict(self._found), self._listed  # noqa: SLF001  same class
        other._pods = self._pods  # noqa: SLF001  same class
        return other

    def set(self, resource: Resource, body: Object) -> None:
        """Add a simulated object, or replace a real one."""
        metadata = body["metadata"]
        self._found[resource, metadata.get("namespace") or "", metadata["name"]] = body

    def _ask(self, resource: Resource, namespace: str, name: str) -> Object | None:
        try:
            return self._blocking.run(self._blocking.client.get(resource, namespace or None, name))
        except NotFound:
            return None
        except ClusterForbidden as error:
            if resource in _NEEDED:
                raise
            self.hidden[resource] = error.what
            return None

    def _list(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        try:
            return self._blocking.run(self._blocking.client.list(resource, namespace)).items
        except KindNotServed:
            return []
        except ClusterForbidden as error:
            self.hidden[resource] = error.what
            return []

    # --- Secrets and ConfigMaps -----------------------------------------------------------------------------------

    def input(self, ref: ObjectRef) -> Input | None:
        """Return the keys and the version of a Secret or ConfigMap; None if it does not exist.

        Raises:
            ClusterForbidden: It may not be read.

        """
        body = self._input(ref)
        if body is None:
            return None
        metadata = body["metadata"]
        keys = {*(body.get("data") or {}), *(body.get("binaryData") or {})}
        return Input(version=f"{metadata['uid']}/{metadata['resourceVersion']}", keys=frozenset(keys))

    def content(self, ref: ObjectRef) -> Mapping[str, bytes]:
        """Return the values of a Secret or ConfigMap.

        Raises:
            NotFound: It does not exist.
            ClusterForbidden: It may not be read.

        """
        body = self._input(ref)
        if body is None:
            raise NotFound(f"{ref} does not exist")
        text = body.get("data") or {}
        binary = text if ref.kind == "Secret" else body.get("binaryData") or {}
        try:
            values = {name: base64.b64decode(value) for name, value in binary.items()}
        except binascii.Error as error:
            raise InternalError(f"{ref} holds a value that is not base64") from error
        return values if ref.kind == "Secret" else {**{name: value.encode() for name, value in text.items()}, **values}

    def _input(self, ref: ObjectRef) -> Object | None:
        return self.get(SECRETS if ref.kind == "Secret" else CONFIG_MAPS, ref.namespace, ref.name)

    # --- views for reconcilers ------------------------------------------------------------------------------------

    def observed(self) -> ClusterLister:
        """Return these objects in the form that reconcilers use."""
        return ClusterLister(
            self,
            _NoProgress(),
            _Inputs(self),
            _Users(self),
            pods=WorkerPodConfig(),
            install_namespace=INSTALL_NAMESPACE,
        )

    def context(self, dv: DataVolume) -> ReconcileContext:
        """Return the input of a reconciler for `dv` when its job is run on this machine."""
        observed = self.observed()
        return ReconcileContext(
            now=time.time(),
            datavolume=dv,
            objects=observed,
            worker=None,
            layout=None,
            config=observed.config(),
            platform=Platform(),
        )


class _Inputs:
    def __init__(self, lookups: LiveReader) -> None:
        self._lookups = lookups

    def get(self, ref: ObjectRef) -> Input | None:
        return self._lookups.input(ref)


class _Users:
    def __init__(self, lookups: LiveReader) -> None:
        self._lookups = lookups

    def pods_using(self, namespace: str, claim: str) -> tuple[str, ...]:
        """Return the pods that use a PVC; a simulated PVC has none, the source of a clone may have some."""
        return users_of(self._lookups.pods(namespace), claim) if self._lookups.exists(CLAIMS, namespace, claim) else ()


class _NoProgress:
    def of(self, uid: str) -> None:
        """Return None: no worker is asked."""

    def last_rejected_upload(self, uid: str) -> None:
        """Return None: no worker is asked."""
