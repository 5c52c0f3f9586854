"""History of a golden image: its versions, and which of them is offered.

The history is the field ``status.versions`` of a DataImportCron, newest first: a version moves to the front when the
source offers its digest again. Operations return a new history and never fail: one that does not apply to the state
of the version (an import that ends after the version was revoked) leaves the history unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from cdi.api.dataimportcron import DataImportCron, GoldenVersion, ProofStatus, VersionState
from cdi.api.golden import GoldenSettings
from cdi.api.names import cron_import, joined
from cdi.reconcile.dataimportcron.version_records import (
    bounded,
    has_prefix,
    partial_digest,
    quoted_names,
    rfc_3339,
    unavailable_clause,
    without_none,
)

MAX_MESSAGE: Final = 1024
"""Characters of the message of a version."""
_MIN_PREFIX = 4

BAD: Final = frozenset({VersionState.FAILED, VersionState.UNPROVEN, VersionState.REVOKED})
"""States in which a version is never imported or offered."""
_PENDING = frozenset({VersionState.IMPORTING, VersionState.PROVING})


class VersionNotFound(Exception):
    """A command or setting that names no version, or more than one; the text has cause and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the managed DataSource is to offer."""

    version: GoldenVersion | None
    """None if no version can be offered."""
    problem: str = ""
    """Why this is not what was requested, or why there is none: cause and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Versions of one golden image."""

    data_source: str
    """Name of the managed DataSource, with which the names of the versions begin."""
    versions: tuple[GoldenVersion, ...] = ()
    """Newest first."""

    # --- reading ------------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, cron: DataImportCron) -> Self:
        """Return the history in the status; that of another controller consists of its current import."""
        empty = cls(data_source=cron.spec.managed_data_source)
        status = cron.status
        if status is None:
            return empty
        if status.versions is not None:
            return replace(empty, versions=tuple(status.versions))
        imported = status.last_imported_pvc.name if status.last_imported_pvc is not None else None
        return replace(
            empty,
            versions=tuple(
                GoldenVersion(
                    name=current.data_volume_name,
                    digest=current.digest,
                    state=VersionState.AVAILABLE if current.data_volume_name == imported else VersionState.IMPORTING,
                    imported=status.last_import_timestamp if current.data_volume_name == imported else None,
                )
                for current in (status.current_imports or [])[:1]
            ),
        )

    def to_status(self) -> list[dict[str, Any]]:
        """Return the value of ``status.versions``."""
        return [without_none(version.to_dict()) for version in self.versions]

    def get(self, reference: str) -> GoldenVersion | None:
        """Return the version with this name or digest."""
        return next((one for one in self.versions if reference in (one.name, one.digest)), None)

    def find(self, reference: str) -> GoldenVersion:
        """Return the version that a user names: by name, by digest, or by a unique prefix of either.

        Raises:
            VersionNotFound: There is none or more than one.

        """
        exact = self.get(reference)
        if exact is not None:
            return exact
        if len(reference.partition(":")[2] or reference) < _MIN_PREFIX:
            raise VersionNotFound(
                f'"{reference[:80]}" is too short to identify a version. '
                f"Name it by at least {_MIN_PREFIX} characters of its digest; {self.candidates()}"
            )
        matches = [one for one in self.versions if has_prefix(one, reference)]
        match matches:
            case [only]:
                return only
            case []:
                raise VersionNotFound(f'there is no version "{reference[:80]}"; {self.candidates()}')
            case _:
                raise VersionNotFound(
                    f'"{reference[:80]}" names {len(matches)} versions; use one of {quoted_names(matches)}'
                )

    def previous(self, current: GoldenVersion | None) -> GoldenVersion:
        """Return the newest version that can be offered and is older than `current`.

        Raises:
            VersionNotFound: There is none.

        """
        index = self.versions.index(current) if current is not None else -1
        for version in self.versions[index + 1 :]:
            if is_offerable(version):
                return version
        raise VersionNotFound(f"there is no previous version that can be offered; {self.candidates()}")

    def candidates(self) -> str:
        """Return a clause that names the versions that exist, for messages."""
        present = [one for one in self.versions if one.removed is None]
        return f"the versions are {quoted_names(present)}" if present else "no version has been imported yet"

    def last_offered(self) -> GoldenVersion | None:
        """Return the version to which the managed DataSource changed last."""
        offered = [one for one in self.versions if one.offered]
        return max(offered, key=lambda one: one.offered or "", default=None)

    def offered(self, settings: GoldenSettings, current: str | None = None) -> Offer:
        """Return the version to offer.

        It is the newest that is available and not withheld. A pinned version takes precedence; under ``hold``, or
        while the pinned version is not available, the current one stays as long as it can be offered.

        Args:
            settings: The settings in force.
            current: Name of the version that the managed DataSource offers now; None if unknown.

        """
        newest = next((one for one in self.versions if is_offerable(one)), None)
        now = (self.get(current) if current else None) or self.last_offered()
        kept = now if now is not None and is_offerable(now) else newest
        if settings.pin is not None:
            try:
                pinned = self.find(settings.pin)
            except VersionNotFound as error:
                return Offer(version=kept, problem=f"the pinned version cannot be offered: {error}")
            if pinned.state == VersionState.AVAILABLE:
                return Offer(version=pinned)
            return Offer(
                version=kept,
                problem=f'the pinned version "{pinned.name}" cannot be offered: {unavailable_clause(pinned)}. '
                f"Pin another version, or remove the annotation; {self.candidates()}",
            )
        chosen = kept if settings.hold else newest
        return Offer(version=chosen, problem="" if chosen is not None else self._nothing())

    def _nothing(self) -> str:
        withheld = [one for one in self.versions if one.state == VersionState.AVAILABLE]
        if withheld:
            return f"every available version is withheld since a rollback. Release one of {quoted_names(withheld)}"
        bad = next((one for one in self.versions if one.state in BAD), None)
        if bad is not None and not any(one.state in _PENDING for one in self.versions):
            return f'no version can be offered; the newest, "{bad.name}", cannot: {unavailable_clause(bad)}'
        return ""

    def may_import(self, digest: str) -> bool:
        """Return whether this digest may be imported: it has not failed, and was not revoked."""
        known = self._with_digest(digest)
        return known is None or known.state not in BAD

    # --- the course of a version --------------------------------------------------------------------------------

    def found(self, digest: str, now: float, *, source: str | None = None, architecture: str | None = None) -> Self:
        """Return the history with the version of a digest that is to be imported, as the newest.

        A known version becomes the newest; it is imported again only if its volume was removed.

        Args:
            digest: What the source offers.
            now: Seconds since the epoch.
            source: Resolved reference, without credentials.
            architecture: OCI architecture, if known.

        """
        known = self._with_digest(digest)
        if known is None:
            fresh = GoldenVersion(
                name=self._free_name(digest),
                digest=digest,
                state=VersionState.IMPORTING,
                found=rfc_3339(now),
                source=source,
                architecture=architecture,
            )
            return replace(self, versions=bounded((fresh, *self.versions), BAD))
        changes: dict[str, Any] = {"digest": digest}
        if known.state == VersionState.REMOVED:
            changes |= {**_IMPORT_AGAIN, "found": rfc_3339(now)}
        if source is not None and known.state not in BAD:
            changes["source"] = source
        others = tuple(one for one in self.versions if one is not known)
        return replace(self, versions=(known.model_copy(update=changes), *others))

    def adopted(self, names: Iterable[str], now: float) -> Self:
        """Return the history with volumes of the DataImportCron that it lacks, as the oldest available versions.

        Another controller records the newest import only. The rest of a digest is unknown until a poll finds it.

        Args:
            names: Names of complete volumes, newest first.
            now: Seconds since the epoch.

        """
        prefix = f"{self.data_source}-"
        missing = [name for name in names if name.startswith(prefix) and self.get(name) is None]
        records = (
            GoldenVersion(
                name=name,
                digest=partial_digest(name.removeprefix(prefix)),
                state=VersionState.AVAILABLE,
                found=rfc_3339(now),
            )
            for name in missing
        )
        return replace(self, versions=bounded((*self.versions, *records), BAD))

    def importing(self, name: str) -> Self:
        """Return the history with a version that is imported again, because its volume is gone."""
        return self._change(name, lambda old: None if old.state in BAD else _IMPORT_AGAIN)

    def succeeded(self, name: str, now: float, *, proof: bool, verified_by: Iterable[str] = ()) -> Self:
        """Return the history with a completed import.

        Args:
            name: The version.
            now: Seconds since the epoch.
            proof: Whether a boot proof has to succeed before it is available.
            verified_by: Completed checks of the import.

        """
        state = VersionState.PROVING if proof else VersionState.AVAILABLE

        def change(old: GoldenVersion) -> dict[str, Any] | None:
            if old.state != VersionState.IMPORTING:
                return None
            checks = list(verified_by) or None
            return {"state": state, "imported": rfc_3339(now), "verified_by": checks, "reason": None, "message": None}

        return self._change(name, change)

    def failed(self, name: str, reason: str, message: str) -> Self:
        """Return the history with an import or verification that failed."""
        return self._change(
            name, lambda old: _failure(old, VersionState.IMPORTING, VersionState.FAILED, reason, message)
        )

    def proven(self, name: str, proof: ProofStatus) -> Self:
        """Return the history with a version that booted."""
        changes = {"state": VersionState.AVAILABLE, "proof": proof, "reason": None, "message": None}
        return self._change(name, lambda old: changes if old.state == VersionState.PROVING else None)

    def unproven(self, name: str, proof: ProofStatus, reason: str, message: str) -> Self:
        """Return the history with a version that did not boot."""

        def change(old: GoldenVersion) -> dict[str, Any] | None:
            changes = _failure(old, VersionState.PROVING, VersionState.UNPROVEN, reason, message)
            return {**changes, "proof": proof} if changes is not None else None

        return self._change(name, change)

    def proof_not_required(self, name: str) -> Self:
        """Return the history with a version that is available although it was not proven: proofs were switched off."""

        def change(old: GoldenVersion) -> dict[str, Any] | None:
            return {"state": VersionState.AVAILABLE, "proof": None} if old.state == VersionState.PROVING else None

        return self._change(name, change)

    def offering(self, name: str, now: float) -> Self:
        """Return the history with the version to which the managed DataSource has just changed."""
        last = self.last_offered()
        if last is not None and last.name == name:
            return self
        moment = rfc_3339(now)
        # Timestamps have whole seconds, and the clock may have been set back: the others must be earlier.
        late = sorted(
            (one for one in self.versions if (one.offered or "") >= moment), key=lambda one: one.offered or ""
        )
        earlier = {one.name: rfc_3339(now - distance) for distance, one in enumerate(reversed(late), 1)}
        changed = earlier | {name: moment}
        return replace(
            self,
            versions=tuple(
                one.model_copy(update={"offered": changed[one.name]}) if one.name in changed else one
                for one in self.versions
            ),
        )

    def removed(self, name: str, reason: str, message: str, now: float) -> Self:
        """Return the history with a version whose volume no longer exists."""

        def change(old: GoldenVersion) -> dict[str, Any] | None:
            if old.removed is not None:
                return None
            if old.state in BAD:
                return {"removed": rfc_3339(now)}
            changes = {"state": VersionState.REMOVED, "reason": reason, "message": message[:MAX_MESSAGE]}
            return {**changes, "removed": rfc_3339(now)}

        return self._change(name, change)

    def without_volumes(self, present: Collection[str], now: float) -> Self:
        """Return the history after volumes of imported versions were deleted by others.

        Args:
            present: Names of all DataVolumes, PVCs and VolumeSnapshots of the versions.
            now: Seconds since the epoch.

        """
        history = self
        for version in self.versions:
            if version.name in present or version.removed is not None or version.state == VersionState.IMPORTING:
                continue
            history = history.removed(version.name, "VolumeDeleted", "Its volume was deleted", now)
        return history

    # --- commands -----------------------------------------------------------------------------------------------

    def rolled_back(self, name: str) -> Self:
        """Return the history in which `name` is not withheld and everything newer is."""
        names = [one.name for one in self.versions]
        if name not in names:
            return self
        newer = frozenset(names[: names.index(name)])
        changed = tuple(
            one.model_copy(update={"withheld": True if one.name in newer else None})
            if one.name == name or (one.name in newer and one.state not in BAD)
            else one
            for one in self.versions
        )
        return replace(self, versions=changed)

    def release(self, name: str) -> Self:
        return self._change(name, lambda old: {"withheld": None} if old.withheld else None)

    def revoke(self, name: str, message: str) -> Self:
        """Return the history with a version that is never imported or offered again."""
        changes = {"state": VersionState.REVOKED, "reason": "Revoked", "message": message[:MAX_MESSAGE]}
        return self._change(name, lambda old: None if old.state == VersionState.REVOKED else changes)

    def deprecate(self, name: str, since: str | None, end_of_life: str | None) -> Self:
        """Return the history with the dates (RFC 3339) of a version; None removes one."""
        return self._change(name, lambda _: {"deprecated": since, "end_of_life": end_of_life})

    def retried(self, name: str) -> Self:
        """Return the history with a failed version that is imported or proven again."""

        def change(old: GoldenVersion) -> Mapping[str, Any] | None:
            if old.state == VersionState.UNPROVEN and old.removed is None:
                # The old result stays: the pod that it is from, if kept, is recognized by the time of its end.
                return {"state": VersionState.PROVING, "reason": None, "message": None}
            return _IMPORT_AGAIN if old.state in (VersionState.FAILED, VersionState.UNPROVEN) else None

        return self._change(name, change)

    # --- parts --------------------------------------------------------------------------------------------------

    def _change(self, name: str, change: Callable[[GoldenVersion], Mapping[str, Any] | None]) -> Self:
        old = self.get(name)
        update = change(old) if old is not None else None
        if not update:
            return self
        return replace(
            self,
            versions=tuple(one.model_copy(update=dict(update)) if one is old else one for one in self.versions),
        )

    def _with_digest(self, digest: str) -> GoldenVersion | None:
        exact = next((one for one in self.versions if one.digest == digest), None)
        if exact is not None:
            return exact
        named = self.get(cron_import(self.data_source, digest))
        # Of an adopted version only the part of the digest is known that is in its name.
        return named if named is not None and digest.startswith(named.digest) else None

    def _free_name(self, digest: str) -> str:
        """Return the name of a new version; a digest that shares the name of another gets its whole digest."""
        name = cron_import(self.data_source, digest)
        return name if self.get(name) is None else joined(self.data_source, digest.rpartition(":")[2])


_IMPORT_AGAIN: Final[Mapping[str, Any]] = {
    "state": VersionState.IMPORTING,
    "imported": None,
    "removed": None,
    "verified_by": None,
    "proof": None,
    "reason": None,
    "message": None,
}


def is_offerable(version: GoldenVersion) -> bool:
    """Return whether a version is available and not withheld."""
    return version.state == VersionState.AVAILABLE and not version.withheld


def _failure(
    old: GoldenVersion, before: VersionState, after: VersionState, reason: str, message: str
) -> dict[str, Any] | None:
    if old.state != before:
        return None
    return {"state": after, "reason": reason, "message": message[:MAX_MESSAGE]}
