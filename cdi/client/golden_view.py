"""Golden images as people read them: what a DataImportCron offers, what it wants, and what is in the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import DESIRED_DIGEST, GOLDEN_RECORD, LAST_POLL, NEXT_POLL, read_origin
from cdi.api.conditions import find_condition
from cdi.api.dataimportcron import DataImportCron, GoldenVersion, VersionState
from cdi.api.errors import (
    CdiError,
    ClusterForbidden,
    InternalError,
    KindNotServed,
    NotFound,
    SourceUnavailable,
    by_code,
)
from cdi.api.golden import HOLD, PIN
from cdi.api.json_document import parse_json
from cdi.api.names import (
    cron_import,
)
from cdi.api.phases import ConditionStatus, ConditionType
from cdi.api.validation import parse
from cdi.client.backend import Backend, Reader
from cdi.reconcile.dataimportcron.versions import History, VersionNotFound, is_offerable
from cdi.store.base import Key, Object

SETTINGS_CONDITION = ConditionType.GOLDEN_SETTINGS
"""Condition with the problems of settings and commands; present only if there are any."""
POLLED_CONDITION = ConditionType.POLLED
"""Condition that is False, with reason and message, while the last poll has failed."""
_ENDED = (VersionState.FAILED, VersionState.UNPROVEN, VersionState.REVOKED)
_UNDER_WAY = (VersionState.IMPORTING, VersionState.PROVING)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenImage:
    """A DataImportCron together with the DataSource that it manages."""

    cron: DataImportCron
    offered: str | None
    """Name of the volume or snapshot that the DataSource names; None if it names none or does not exist."""

    @property
    def namespace(self) -> str:
        return self.cron.metadata.namespace or ""

    @property
    def name(self) -> str:
        return self.cron.metadata.name or ""

    @property
    def key(self) -> Key:
        return Key("dataimportcrons", self.namespace, self.name)

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.cron.metadata.annotations or {}

    @property
    def versions(self) -> tuple[GoldenVersion, ...]:
        """All known versions, newest first."""
        return self.history.versions

    @property
    def history(self) -> History:
        return History.of(self.cron)

    @property
    def wanted_digest(self) -> str | None:
        return DESIRED_DIGEST.read(self.annotations)

    @property
    def wanted(self) -> str | None:
        """Name of the version that the last poll found."""
        digest = self.wanted_digest
        return None if digest is None else cron_import(self.cron.spec.managed_data_source, digest)

    @property
    def next_poll(self) -> str | None:
        return (self.annotations.get(NEXT_POLL.key) or None) if self.cron.spec.schedule else None

    @property
    def last_poll(self) -> str | None:
        executed = self.cron.status.last_execution_timestamp if self.cron.status else None
        return self.annotations.get(LAST_POLL.key) or executed

    def version(self, name: str | None) -> GoldenVersion | None:
        """Return the version of this name, or None."""
        return next((one for one in self.versions if one.name == name), None)

    def find(self, text: str) -> GoldenVersion:
        """Return the version with this name or digest, or a unique prefix of either; raise `NotFound`."""
        try:
            return self.history.find(text)
        except VersionNotFound as error:
            raise NotFound(
                str(error),
                where=f"golden image {self.namespace}/{self.name}",
                remedy=f"cdi golden history {self.name} lists its versions",
            ) from error

    def unpinned(self) -> str | None:
        """Return the version that is to be offered while none is pinned."""
        return next((one.name for one in self.versions if is_offerable(one)), None)

    @property
    def state(self) -> str:
        """One word: UpToDate, Pinned, Held, or the state of the version that is wanted."""
        if PIN in self.annotations:
            return "Pinned"
        if self.annotations.get(HOLD) == "true":
            return "Held"
        if self.wanted is None:
            return "Pending"
        version = self.version(self.wanted)
        if version is None:
            return "UpToDate" if self.offered == self.wanted else "Pending"
        if version.state == VersionState.AVAILABLE:
            if version.withheld:
                return "RolledBack"
            return "UpToDate" if self.offered == version.name else "Available"
        return version.state

    def settled(self) -> bool:
        """Return whether the wanted version is offered, or cannot be without a user's action."""
        version = self.version(self.wanted)
        if version is not None and version.state in _UNDER_WAY:
            return False
        if self.wanted is not None and self.state in ("Pinned", "Held"):
            return True
        if version is None:
            return self.wanted is not None and self.offered == self.wanted
        return version.state in _ENDED or bool(version.withheld) or self.offered == version.name

    def obstacles(self) -> Iterator[str]:
        """Yield why the newest version is not offered, and what else needs attention; the most important first."""
        status = self.cron.status
        conditions = (status.conditions if status else None) or []
        settings = find_condition(conditions, SETTINGS_CONDITION)
        if settings is not None and settings.message:
            yield settings.message
        trouble = poll_trouble(self)
        if trouble is not None:
            yield f"the last poll failed: {trouble[2] or trouble[1]}"
        version = self.version(self.wanted)
        if version is not None and version.state in _ENDED:
            yield f"{version.name} {version.state}: {version.message or version.reason or 'no reason is recorded'}"
        elif version is not None and version.withheld:
            yield f"{version.name} is withheld since a rollback; cdi golden release {self.name} offers it again"
        if (pin := self.annotations.get(PIN)) is not None:
            yield f"pinned to {pin}; cdi golden unpin {self.name} ends it"
        if self.annotations.get(HOLD) == "true":
            yield f"on hold; cdi golden unhold {self.name} ends it"
        for condition in conditions:
            if condition.type in (SETTINGS_CONDITION, POLLED_CONDITION) or not condition.message:
                continue
            known = condition.type in (ConditionType.PROGRESSING, ConditionType.UP_TO_DATE)
            if not known and condition.status != ConditionStatus.TRUE:
                yield condition.message  # of a newer controller
        current = find_condition(conditions, ConditionType.UP_TO_DATE)
        if current is None:
            yield "not reconciled yet"
        elif current.status != ConditionStatus.TRUE and not (version is not None and version.state in _ENDED):
            yield current.message or current.reason or ""


def read(store: Reader, body: Object) -> GoldenImage:
    """Return the golden image of a DataImportCron as stored; raise `InvalidManifest` if it is malformed."""
    cron = parse(body)
    assert isinstance(cron, DataImportCron)
    return GoldenImage(cron=cron, offered=_offered(store, cron))


def get(backend: Backend, namespace: str, name: str) -> GoldenImage:
    """Return the golden image of this name.

    Raises:
        NotFound: There is no such DataImportCron.
    """
    try:
        body = backend.get("dataimportcron", namespace, name)
    except KindNotServed:
        raise
    except NotFound as error:
        raise NotFound(
            f"golden image {namespace}/{name} does not exist", remedy="cdi golden list -A lists all"
        ) from error
    return read(backend.store, body)


def _offered(store: Reader, cron: DataImportCron) -> str | None:
    try:
        body = store.get(Key.of("datasource", cron.metadata.namespace, cron.spec.managed_data_source))
    except NotFound:
        return None
    return offered_name(body)


def poll_trouble(image: GoldenImage) -> tuple[str | None, str, str] | None:
    """Return time, reason and message of the failure of the last poll; None if it has not failed."""
    conditions = (image.cron.status.conditions if image.cron.status else None) or []
    condition = find_condition(conditions, POLLED_CONDITION)
    if condition is None or condition.status == ConditionStatus.TRUE:
        return None
    changed = condition.last_heartbeat_time or condition.last_transition_time
    return changed, condition.reason or "", condition.message or ""


def poll_failure(image: GoldenImage) -> CdiError | None:
    """Return the error of the last poll, None if it has not failed."""
    trouble = poll_trouble(image)
    if trouble is None:
        return None
    _, reason, message = trouble
    kind = by_code(reason)
    return (kind if kind is not InternalError else SourceUnavailable)(message, remedy="")


def offered_name(source: Object) -> str | None:
    """Return the name of the volume or snapshot that a DataSource names directly."""
    member = (source.get("spec") or {}).get("source") or {}
    for kind in ("pvc", "snapshot"):
        named = (member.get(kind) or {}).get("name")
        if named:
            return str(named)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Descendant:
    """A volume that was cloned from a version."""

    namespace: str
    name: str
    version: str


def descendants(backend: Backend, image: GoldenImage) -> tuple[Descendant, ...]:
    """Return the volumes that descend from an image's versions, in all namespaces that the user may list."""
    try:
        claims = backend.list("persistentvolumeclaim", None)
    except ClusterForbidden:
        claims = backend.list("persistentvolumeclaim", image.namespace)
    return tuple(_descendants(claims, image))


def _descendants(claims: Iterable[Object], image: GoldenImage) -> Iterator[Descendant]:
    for claim in claims:
        metadata = claim["metadata"]
        origin, namespace = read_origin(claim), metadata.get("namespace") or ""
        if origin is None or (origin.namespace, origin.cron) != (image.namespace, image.name):
            continue
        if (namespace, metadata["name"]) != (image.namespace, origin.version):  # the version itself
            yield Descendant(namespace=namespace, name=metadata["name"], version=origin.version)


def record_of(backend: Backend, image: GoldenImage, version: GoldenVersion) -> Any:
    """Return the record of origin of a version as plain JSON; None if there is none, and text that is not JSON."""
    body = backend.version_object(image.namespace, version.name)
    text = GOLDEN_RECORD.read(annotations_of(body))
    if text is None:
        return None
    try:
        return parse_json(text)
    except ValueError:
        return text
