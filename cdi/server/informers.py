"""Cluster state for the server: watch caches of few and small objects, and direct reads of others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from cdi.api.configuration import CONFIG_NAME, CDIConfig
from cdi.api.errors import ClusterUnavailable, InvalidManifest, NotFound
from cdi.api.installation import CDI
from cdi.api.kinds import (
    API_SERVICES,
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    DATA_VOLUMES,
    MUTATING_WEBHOOKS,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VALIDATING_WEBHOOKS,
    VOLUME_CLONE_SOURCES,
    VOLUME_SNAPSHOTS,
    Object,
    Resource,
)
from cdi.api.meta import KubeObject
from cdi.api.populators import VolumeCloneSource
from cdi.api.storageprofile import StorageProfile
from cdi.api.validation import parse
from cdi.kube.certificates import Lifetimes
from cdi.kube.client import Client
from cdi.kube.reflector import Reflector, WatchEvent
from cdi.reconcile.cdi.config import active_cdi, adopts_claims, effective_spec, renders_claims, resolve_config
from cdi.reconcile.storage.capabilities import PropertySet
from cdi.reconcile.storage.claim_defaults import storage_defaults
from cdi.reconcile.storage.classes import StorageClass, named_or_default
from cdi.reconcile.types import StorageDefaults
from cdi.server.tls import TlsPolicy
from cdi.server.uploadtoken_api.discovery import API_SERVICE

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """The settings that result from CDI and CDIConfig."""

    cdi: CDI | None
    config: CDIConfig | None
    adopts: bool
    renders: bool
    policy: TlsPolicy
    lifetimes: Lifetimes


class Observed:
    """The state of the cluster, implementing `cdi.server.admission.Cluster` and `cdi.server.mutation.Storage`.

    `on_change` is called after any change that affects certificates, TLS or the webhooks' configurations.
    """

    def __init__(self, client: Client, on_change: Callable[[], None]) -> None:
        self._client = client
        self._told = on_change
        self._settings: _Settings | None = None

        def changed(_: WatchEvent) -> None:
            self._settings = None
            self._told()

        def unheard(_: WatchEvent) -> None:
            pass

        self._classes = Reflector(client, STORAGE_CLASSES, on_change=unheard)
        self._profiles = Reflector(client, STORAGE_PROFILES, on_change=unheard, optional=True)
        self._configs = Reflector(client, CDI_CONFIGS, on_change=changed, optional=True)
        self._installations = Reflector(client, CDIS, on_change=changed, optional=True)
        self._validating = Reflector(client, VALIDATING_WEBHOOKS, on_change=changed, strip=_clients)
        self._mutating = Reflector(client, MUTATING_WEBHOOKS, on_change=changed, strip=_clients)
        self._services = Reflector(
            client, API_SERVICES, fields=f"metadata.name={API_SERVICE}", on_change=changed, strip=_service
        )
        self._reflectors = (
            self._classes, self._profiles, self._configs, self._installations, self._validating, self._mutating,
            self._services,
        )  # fmt: skip

    async def run(self) -> None:
        """Keep the caches up to date until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run())

    @property
    def unsynced(self) -> bool:
        """Return whether a cache has not completed its first list yet."""
        return not all(reflector.cache.synced.is_set() for reflector in self._reflectors)

    def trouble(self) -> str:
        """Return the error that keeps a cache from synchronizing, for logs and probes, or an empty string."""
        failures = (reflector.failure for reflector in self._reflectors if not reflector.cache.synced.is_set())
        return next((failure.message for failure in failures if failure is not None), "")

    async def synced(self, patience: float) -> None:
        """Wait until all caches have synchronized, for at most `patience` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                for reflector in self._reflectors:
                    await reflector.cache.synced.wait()

    # --- direct reads -------------------------------------------------------------------------------------------

    async def claim(self, namespace: str, name: str) -> Object | None:
        """Return a PVC, bypassing any cache: a stale entry would reject a user who has just deleted the PVC."""
        return await self._get(CLAIMS, name, namespace)

    async def data_volume(self, namespace: str, name: str) -> Object | None:
        """Return a DataVolume, bypassing any cache."""
        return await self._get(DATA_VOLUMES, name, namespace)

    async def clone_source(self, namespace: str, name: str) -> VolumeCloneSource | None:
        """Return a VolumeCloneSource, bypassing any cache."""
        body = await self._get(VOLUME_CLONE_SOURCES, name, namespace)
        return next(iter(_parsed([body], VolumeCloneSource)), None)

    async def snapshot(self, namespace: str, name: str) -> Object | None:
        """Return a VolumeSnapshot, bypassing any cache."""
        return await self._get(VOLUME_SNAPSHOTS, name, namespace)

    async def _get(self, resource: Resource, name: str, namespace: str | None = None) -> Object | None:
        try:
            return await self._client.get(resource, namespace, name)
        except NotFound:
            return None

    async def has_data_volumes(self) -> bool:
        answer = await self._client.request("GET", DATA_VOLUMES.path(None), query={"limit": "1"})
        return bool(answer.get("items")) if isinstance(answer, dict) else False

    def webhooks(self, kind: str, name: str) -> Object | None:
        """Return a webhook configuration, reduced to its name and clients."""
        reflector = self._validating if kind == "validating" else self._mutating
        return reflector.cache.get("", name)

    def api_service(self) -> Object | None:
        """Return the APIService of upload tokens, reduced to its name, service and CA bundle."""
        return self._services.cache.get("", API_SERVICE)

    # --- settings -----------------------------------------------------------------------------------------------

    def adopts_claims(self) -> bool:
        return self._current().adopts

    def renders_claims(self) -> bool:
        return self._current().renders

    @property
    def policy(self) -> TlsPolicy:
        return self._current().policy

    @property
    def lifetimes(self) -> Lifetimes:
        """The lifetimes of certificates."""
        return self._current().lifetimes

    def _current(self) -> _Settings:
        if self._settings is None:
            cdi = active_cdi(_parsed(self._installations.cache.values(), CDI))
            config = next(iter(_parsed([self._configs.cache.get("", CONFIG_NAME)], CDIConfig)), None)
            self._settings = _Settings(
                cdi=cdi,
                config=config,
                adopts=adopts_claims(cdi, config),
                renders=renders_claims(cdi, config),
                policy=TlsPolicy.of(effective_spec(cdi, config).tls_security_profile),
                lifetimes=Lifetimes.of(cdi),
            )
        return self._settings

    # --- storage ------------------------------------------------------------------------------------------------

    async def storage_defaults(self, storage_class: str | None, *, archive: bool) -> StorageDefaults:
        if not self._classes.cache.synced.is_set() or not self._profiles.cache.synced.is_set():
            raise ClusterUnavailable("StorageClasses and StorageProfiles have not been listed yet", remedy="try again")
        classes = [StorageClass.read(body) for body in self._classes.cache]
        chosen = named_or_default(storage_class, classes, virtualization=not archive)
        if chosen is None and storage_class:
            # Class and PVC are often created together, and the class may not have reached the cache yet.
            body = await self._get(STORAGE_CLASSES, storage_class)
            chosen = StorageClass.read(body) if body is not None else None
        body = self._profiles.cache.get("", chosen.name) if chosen is not None else None
        if chosen is not None and body is None:
            body = await self._get(STORAGE_PROFILES, chosen.name)
        profile = next(iter(_parsed([body], StorageProfile)), None)
        settings = self._current()
        made = storage_defaults(storage_class, chosen, profile, resolve_config(settings.cdi, settings.config, classes))
        # Fall back on what the controller has learned from volumes of this class.
        learned = (profile.status.claim_property_sets if profile is not None and profile.status else None) or []
        if made.sets or not learned:
            return made
        sets = (PropertySet(access_modes=tuple(one.access_modes), volume_mode=one.volume_mode) for one in learned)
        return replace(made, sets=tuple(sets))


def _clients(body: Object) -> Object:
    """Return a webhook configuration without the fields that are not needed here; they can be large."""
    metadata: Object = body.get("metadata") or {}
    kept: Object = {name: metadata[name] for name in ("name", "uid", "resourceVersion") if name in metadata}
    hooks = [
        {"name": hook.get("name"), "clientConfig": _client(hook.get("clientConfig") or {})}
        for hook in body.get("webhooks") or []
    ]
    return {"metadata": kept, "webhooks": hooks}


def _client(config: Object) -> Object:
    service = config.get("service")
    place = {name: service.get(name) for name in ("namespace", "name", "path")} if service else None
    return {"caBundle": config.get("caBundle"), "url": config.get("url"), "service": place}


def _service(body: Object) -> Object:
    """Return an APIService without its status, which changes frequently."""
    metadata: Object = body.get("metadata") or {}
    kept: Object = {name: metadata[name] for name in ("name", "uid", "resourceVersion") if name in metadata}
    spec = body.get("spec") or {}
    return {"metadata": kept, "spec": {name: spec.get(name) for name in ("service", "caBundle")}}


def _parsed(bodies: Iterable[Object | None], model: type[Any]) -> list[Any]:
    """Return the objects that can be parsed; log any other and treat it as missing."""
    found: list[KubeObject] = []
    for body in bodies:
        if body is None:
            continue
        try:
            found.append(parse(body))
        except InvalidManifest as error:
            LOG.warning("cannot decode a %s: %s", model.__name__, error.message)
    return found
