"""Uncached view of a cluster for one-off commands: the controller's reconcilers on objects read one by one."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from typing import Protocol

from cdi.api.datavolume import DataVolume
from cdi.api.errors import ClusterForbidden, InternalError, KindNotServed, NotFound
from cdi.api.kinds import (
    CONFIG_MAPS,
    PODS,
    QUOTAS,
    SECRETS,
    SELF_SUBJECT_ACCESS_REVIEWS,
    VOLUMES,
    Object,
    Resource,
)
from cdi.controller.informers import claim_of
from cdi.controller.lister import Cache, ClusterLister, PodUsageSource
from cdi.controller.pod_usage import users_of
from cdi.kube.sync import SyncClient
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.cdi.config import INSTALL_NAMESPACE
from cdi.reconcile.clone.authorization import has_permission
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.settings import Platform, WorkerPodConfig
from cdi.reconcile.types import Clone, Input

_NEEDED = (SECRETS, CONFIG_MAPS)
"""Resources without which an error cannot be found: a forbidden read of them is an error itself."""


class Objects(Cache, PodUsageSource, Protocol):
    """The objects of a cluster and the users of its volumes."""


class LiveReader:
    """Objects that are read once, on first use; implements `Cache`, `PodUsageSource` and `ReferenceReader`.

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

    def pods_using(self, namespace: str, claim: str) -> tuple[str, ...]:
        """Return the pods that use a PVC."""
        if namespace not in self._pods:
            self._pods[namespace] = self._list(PODS, namespace)
        return users_of(self._pods[namespace], claim)

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

    def lister(self, objects: Objects | None = None) -> ClusterLister:
        """Return these objects, or those of an overlay of them, in the form that reconcilers use."""
        objects = objects or self
        return ClusterLister(
            objects,
            _NoProgress(),
            _Inputs(self),
            objects,
            pods=WorkerPodConfig(),
            install_namespace=INSTALL_NAMESPACE,
        )

    def source_context(self, dv: DataVolume) -> ReconcileContext:
        """Return the input of a reconciler for `dv` when its job is run on this machine."""
        lister = self.lister()
        return ReconcileContext(
            now=time.time(),
            datavolume=dv,
            objects=lister,
            worker=None,
            layout=None,
            config=lister.config(),
            platform=Platform(),
        )

    def can_clone(self, source: Clone) -> bool:
        """Return whether the current user may clone from another namespace.

        The API server is asked what the webhook would ask about the user.

        Raises:
            ClusterError: The API server cannot be asked.

        """
        ways = has_permission(source.kind, source.namespace, source.name)
        return any(all(self._is_allowed(right) for right in way) for way in ways)

    def _is_allowed(self, right: Mapping[str, str]) -> bool:
        body = {
            "apiVersion": SELF_SUBJECT_ACCESS_REVIEWS.api_version,
            "kind": SELF_SUBJECT_ACCESS_REVIEWS.kind,
            "spec": {"resourceAttributes": dict(right)},
        }
        answer = self._blocking.run(self._blocking.client.create(SELF_SUBJECT_ACCESS_REVIEWS, body))
        return (answer.get("status") or {}).get("allowed") is True

    def quotas(self, namespace: str) -> list[Object]:
        """Return the quotas of a namespace.

        Raises:
            ClusterForbidden: They may not be read.

        """
        return self._blocking.run(self._blocking.client.list(QUOTAS, namespace)).items


class _Inputs:
    def __init__(self, lookups: LiveReader) -> None:
        self._lookups = lookups

    def get(self, ref: ObjectRef) -> Input | None:
        return self._lookups.input(ref)


class _NoProgress:
    def of(self, uid: str) -> None:
        """Return None: no worker is asked."""

    def last_rejected_upload(self, uid: str) -> None:
        """Return None: no worker is asked."""
