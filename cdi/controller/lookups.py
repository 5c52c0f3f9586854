"""A cluster looked at object by object, for whoever asks once and goes: with the controller's eyes, not its caches."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from typing import Final, Self

from cdi.api.datavolume import DataVolume
from cdi.api.errors import ClusterForbidden, InternalError, KindNotServed, NotFound
from cdi.controller.observe import Observed
from cdi.controller.users import users_of
from cdi.controller.watches import claim_of
from cdi.kube.blocking import Blocking
from cdi.kube.resources import CLAIMS, CONFIG_MAPS, PODS, SECRETS, VOLUMES, Object, Resource
from cdi.reconcile.actions import InputRef
from cdi.reconcile.configuration import INSTALL_NAMESPACE
from cdi.reconcile.world import Input, Platform, Pods, World

IMAGINED: Final = "explained"
"""How the resourceVersion of what was put here begins."""
_NEEDED = (SECRETS, CONFIG_MAPS)
"""What is wrong without them is not found out by looking past them."""


class Lookups:
    """Every object is asked for once; implements `Caches` and `KnownInputs`.

    Kinds that may not be looked at, or that the server does not have, count as having no objects; `hidden` names the
    former.  Methods raise other `ClusterError`s.
    """

    def __init__(self, blocking: Blocking) -> None:
        self.hidden: dict[Resource, str] = {}
        self._blocking = blocking
        self._found: dict[tuple[Resource, str, str], Object | None] = {}
        self._listed: dict[Resource, list[Object]] = {}
        self._pods: dict[str, list[Object]] = {}

    # --- as caches ----------------------------------------------------------------------------------------------

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
        """The PersistentVolumes whose claimRef names this claim."""
        return [body for body in self.values(VOLUMES) if claim_of(body) == (namespace, claim)]

    def pods(self, namespace: str) -> list[Object]:
        """Those of one namespace."""
        if namespace not in self._pods:
            self._pods[namespace] = self._list(PODS, namespace)
        return self._pods[namespace]

    def is_there(self, resource: Resource, namespace: str, name: str) -> bool:
        """In the cluster, and not in thought alone."""
        found = self.get(resource, namespace, name)
        return found is not None and not str(found["metadata"].get("resourceVersion")).startswith(IMAGINED)

    def branch(self) -> Self:
        """The same, for whoever puts into it what is nowhere else."""
        other = type(self)(self._blocking)
        other.hidden = self.hidden
        other._found, other._listed = dict(self._found), self._listed  # noqa: SLF001  its own kind
        other._pods = self._pods  # noqa: SLF001  its own kind
        return other

    def put(self, resource: Resource, body: Object) -> None:
        """What is to count as there from now on."""
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

    def input(self, ref: InputRef) -> Input | None:
        """Which keys it has.  Raises `ClusterForbidden`."""
        body = self._input(ref)
        if body is None:
            return None
        metadata = body["metadata"]
        keys = {*(body.get("data") or {}), *(body.get("binaryData") or {})}
        return Input(version=f"{metadata['uid']}/{metadata['resourceVersion']}", keys=frozenset(keys))

    def content(self, ref: InputRef) -> Mapping[str, bytes]:
        """Its values; raises `NotFound`, `ClusterForbidden`."""
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

    def _input(self, ref: InputRef) -> Object | None:
        return self.get(SECRETS if ref.kind == "Secret" else CONFIG_MAPS, ref.namespace, ref.name)

    # --- the whole ------------------------------------------------------------------------------------------------

    def observed(self) -> Observed:
        """These objects as reconcilers ask for them."""
        return Observed(
            self, _NoProgress(), _Inputs(self), _Users(self), pods=Pods(), install_namespace=INSTALL_NAMESPACE
        )

    def world(self, dv: DataVolume) -> World:
        """For a job of `dv` that is run on this machine."""
        observed = self.observed()
        return World(
            now=time.time(),
            datavolume=dv,
            objects=observed,
            worker=None,
            layout=None,
            config=observed.config(),
            platform=Platform(),
        )


class _Inputs:
    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups

    def get(self, ref: InputRef) -> Input | None:
        return self._lookups.input(ref)


class _Users:
    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups

    def of(self, namespace: str, claim: str) -> tuple[str, ...]:
        """What does not exist yet has none; what is cloned may have some."""
        return (
            users_of(self._lookups.pods(namespace), claim) if self._lookups.is_there(CLAIMS, namespace, claim) else ()
        )


class _NoProgress:
    def of(self, uid: str) -> None:
        """Nobody asked a worker."""

    def refused(self, uid: str) -> None:
        """Nor this."""
