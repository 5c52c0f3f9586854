"""Deprecation: what clones need to know about a version, as annotations of its objects.

A clone reads them from its source (`cdi.reconcile.datavolume.lineage`) and needs no look at the DataImportCron.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cdi.api.annotations import GOLDEN_DEPRECATED, GOLDEN_END_OF_LIFE, GOLDEN_ORIGIN, GOLDEN_REVOKED
from cdi.api.dataimportcron import GoldenVersion, VersionState
from cdi.api.golden import origin_of
from cdi.reconcile.actions import Action, DeleteObject, PatchObject
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.objects import objects_of, patch_volume
from cdi.reconcile.dataimportcron.versions import History


def version_annotations(context: CronContext, version: GoldenVersion) -> dict[str, str | None]:
    """Return the annotations of a version's objects; None where one must not exist."""
    origin = origin_of(version, namespace=context.namespace, cron=context.name)
    return {
        **GOLDEN_ORIGIN.write(origin),
        GOLDEN_DEPRECATED.key: version.deprecated,
        GOLDEN_END_OF_LIFE.key: version.end_of_life,
        GOLDEN_REVOKED.key: (version.message or "Revoked") if version.state == VersionState.REVOKED else None,
    }


def plan_annotations(context: CronContext, history: History, planned: Iterable[Action] = ()) -> tuple[Action, ...]:
    """Return the patches that bring the annotations of all existing objects of the versions up to date.

    Args:
        context: The DataImportCron.
        history: Its versions.
        planned: Earlier actions of the plan; what they delete is not patched, which would end the plan.

    """
    deleted = {(one.plural, one.name) for one in planned if isinstance(one, DeleteObject)}
    actions: list[PatchObject] = []
    for version in history.versions:
        if version.removed is not None:
            continue
        wanted = version_annotations(context, version)
        objects = objects_of(context, version.name)
        dv, claim, snapshot = objects.data_volume, objects.claim, objects.snapshot
        if dv is not None and dv.metadata.deletion_timestamp is None:
            # Nothing is cloned from a DataVolume; it shows users what became of the version.
            shown = {name: text for name, text in wanted.items() if name != GOLDEN_ORIGIN.key}
            changed = _changed(shown, dv.metadata.annotations or {})
            actions += [PatchObject.of_data_volume(dv, annotations=changed)] if changed else []
        for volume in (claim, snapshot):
            if volume is not None and not volume.deleting:
                actions += patch_volume(volume, annotations=_changed(wanted, volume.annotations))
    return tuple(one for one in actions if (one.plural, one.name) not in deleted)


def _changed(wanted: Mapping[str, str | None], present: Mapping[str, str]) -> dict[str, str | None]:
    return {name: text for name, text in wanted.items() if present.get(name) != text}
