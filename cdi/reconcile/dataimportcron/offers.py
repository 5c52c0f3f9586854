"""Versions that the DataSources of a DataImportCron offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cdi.api.dataimportcron import ChannelStatus, GoldenVersion
from cdi.reconcile.actions import Action, Event
from cdi.reconcile.dataimportcron.channels import ChannelPlan, plan_channels
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.data_source import is_managed, offered_version, plan_data_source
from cdi.reconcile.dataimportcron.formats import Source, source_of
from cdi.reconcile.dataimportcron.objects import VersionObjects, objects_of
from cdi.reconcile.dataimportcron.storage_class import Storage
from cdi.reconcile.dataimportcron.versions import BAD, History, is_offerable

VERSION_OFFERED: Final = "VersionOffered"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferPlan:
    """Changes of the DataSources."""

    history: History
    """The history in which the version of the managed DataSource is recorded as offered."""
    version: GoldenVersion | None
    """The version that the managed DataSource is to offer, whether it is ready or not."""
    channels: ChannelPlan
    actions: tuple[Action, ...]
    events: tuple[Event, ...]
    problems: tuple[str, ...]


class OfferPlanner:
    """Planner of the changes of the managed DataSource and of those of the channels."""

    def __init__(
        self, context: CronContext, storage: Storage, current: VersionObjects | None, unsigned: frozenset[str]
    ) -> None:
        """Create a planner.

        Args:
            context: The DataImportCron.
            storage: The storage of new versions.
            current: The objects of the version with the desired digest, if its import has succeeded.
            unsigned: Names of the versions whose records are being signed, which are not ready for that reason.

        """
        self._context = context
        self._storage = storage
        self._current = current
        self._unsigned = unsigned

    def plan(self, history: History, before: Sequence[ChannelStatus]) -> OfferPlan:
        """Return the plan; `before` is the status of the channels."""
        context, name = self._context, self._context.data_source_name
        before_offered = offered_version(context, name)
        offer = history.offered(context.settings, before_offered)
        objects, actions = self._plan_data_source(history, name, offer.version)
        events: tuple[Event, ...] = ()
        if objects is not None and self._follows(name):
            history = history.offering(objects.name, context.now)
            if before_offered != objects.name:
                text = f'DataSource "{name}" offers version "{objects.name}"'
                events = (Event(type="Normal", reason=VERSION_OFFERED, message=text),)
        channels = plan_channels(context, history, offer.version, before)
        for channel in channels.channels:
            version = history.get(channel.version) if channel.version else None
            actions += self._plan_data_source(history, channel.name, version)[1]
        return OfferPlan(
            history=history,
            version=offer.version,
            channels=channels,
            actions=(*actions, *channels.actions),
            events=(*events, *channels.events),
            problems=(*((offer.problem,) if offer.problem else ()), *channels.problems),
        )

    def _plan_data_source(
        self, history: History, name: str, version: GoldenVersion | None
    ) -> tuple[VersionObjects | None, tuple[Action, ...]]:
        """Return the version that a DataSource offers, if it is ready, and the actions for it.

        A DataSource keeps what it has while the version is not ready, unless that must not be offered any more.
        """
        context = self._context
        objects = objects_of(context, version.name) if version is not None else None
        source: Source | None = None
        if objects is not None and objects.name not in self._unsigned:
            is_current = self._current is not None and self._current.name == objects.name
            source = source_of(context, objects, self._storage, current=is_current)
        if source is None:
            objects = None
            offered = offered_version(context, name)
            known = history.get(offered) if offered else None
            if known is not None and known.state in BAD:
                objects, source = self._fallback(history)
        return objects, plan_data_source(context, name, source, objects)

    def _fallback(self, history: History) -> tuple[VersionObjects | None, Source]:
        """Return the newest version that is ready, in place of one that must not be offered any more."""
        for version in history.versions:
            if is_offerable(version):
                objects = objects_of(self._context, version.name)
                source = source_of(self._context, objects, self._storage, current=False)
                if source is not None:
                    return objects, source
        return None, {}

    def _follows(self, name: str) -> bool:
        found = self._context.objects.data_source(self._context.namespace, name)
        return found is None or is_managed(self._context, found)
