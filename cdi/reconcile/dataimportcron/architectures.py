"""Architectures: one DataImportCron that imports several architectures of an image index.

As KubeVirt's SSP operator does, there is a DataImportCron ``<name>-<architecture>`` with a DataSource
``<managedDataSource>-<architecture>`` for each of them. The managed DataSource refers to that of the first one. The
parent itself polls and imports nothing; what happens to each architecture is in the status of its child.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cdi.api.conditions import find_condition
from cdi.api.dataimportcron import DataImportCron
from cdi.api.golden import ARCHITECTURES, CHANNELS, COMMANDS, KNOWN_ARCHITECTURES, PIN, PREFIX, command_label
from cdi.api.json_document import parse_json
from cdi.api.meta import Condition
from cdi.api.names import ANN_POD_RETAIN, GROUP, MAX_LABEL, joined
from cdi.api.phases import ConditionStatus, ConditionType, Reason
from cdi.api.policy import PREFIX as POLICY_PREFIX
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, PatchObject, Plan
from cdi.reconcile.dataimportcron import conditions
from cdi.reconcile.dataimportcron.channels import delete_channels
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.data_source import plan_data_source
from cdi.reconcile.dataimportcron.poll_record import PollRecord
from cdi.reconcile.datavolume.status import ConditionValue, false, true

LABEL_ARCHITECTURE: Final = "template.kubevirt.io/architecture"
LABEL_DATA_SOURCE_NAME: Final = f"{GROUP}/storage.import.datasource-name"
REFRESH_INTERVAL: Final = 60.0
"""Seconds until the state of the children is read again, should a change be missed."""
_CARRIED = (ANN_POD_RETAIN,)


@dataclass(slots=True)
class _Family:
    """The children of a DataImportCron, and what keeps them from existing."""

    children: dict[str, DataImportCron] = field(default_factory=dict)
    """By architecture."""
    actions: list[Action] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def architectures_problem(context: CronContext) -> str:
    """Return why the setting `ARCHITECTURES` is not followed; empty if it is, or is not set."""
    if not context.settings.architectures:
        return ""
    source = context.cron.spec.template.spec.source
    registry = source.registry if source is not None else None
    if registry is None:
        return (
            f"annotation {ARCHITECTURES}: only registry images have architectures. "
            "Remove the annotation, or create a DataImportCron for each image"
        )
    if registry.platform is not None and registry.platform.architecture:
        return (
            f"annotation {ARCHITECTURES}: the template names the architecture "
            f'"{registry.platform.architecture[:40]}" already. Remove one of them'
        )
    return ""


def reconcile_architectures(context: CronContext) -> Plan | None:
    """Return the plan of a DataImportCron with several architectures; None if it imports its image itself."""
    if not context.settings.architectures or architectures_problem(context):
        return None
    family = _Family()
    for architecture in context.settings.architectures:
        _ensure_child(context, architecture, family)
    family.actions += _obsolete_children(context)
    first = context.settings.architectures[0]
    for name in (context.data_source_name, *(channel for channel, _ in context.settings.channels)):
        family.actions += _point(context, name, child_name(name, first))
    known = (context.cron.status.channels if context.cron.status is not None else None) or ()
    family.actions += delete_channels(
        context, [one.name for one in known if one.name not in dict(context.settings.channels)]
    )
    family.problems += _missing(family)
    family.problems += _commands(context)
    status = _status(context, family)
    before = context.cron.status.to_dict() if context.cron.status is not None else None
    return Plan(
        actions=tuple(family.actions),
        status=None if status == before else status,
        requeue_after=REFRESH_INTERVAL,
    )


def delete_children(context: CronContext) -> tuple[Action, ...]:
    """Delete the children of a DataImportCron that imports its image itself; invalid settings delete nothing."""
    if context.settings_problem or context.settings.architectures:
        return ()
    return tuple(_obsolete_children(context))


def child_name(name: str, architecture: str) -> str:
    """Return the name of the DataImportCron, or of the DataSource, for one architecture."""
    return joined(name, architecture, MAX_LABEL)


# --- children ---------------------------------------------------------------------------------------------------


def _ensure_child(context: CronContext, architecture: str, family: _Family) -> None:
    """Create the DataImportCron of an architecture, or bring its labels and settings up to date."""
    name = child_name(context.name, architecture)
    found = context.objects.cron(context.namespace, name)
    body = build_child(context, architecture)
    if found is None:
        family.actions.append(CreateObject(body=body))
        return
    if not _is_child(context, found):
        family.problems.append(
            f'DataImportCron "{name}" for architecture {architecture} exists and does not belong to this one. '
            "Delete it, or rename this one"
        )
        return
    family.children[architecture] = found
    if found.metadata.deletion_timestamp is not None:
        return
    wanted, present = body["metadata"]["annotations"], found.metadata.annotations or {}
    # Commands of the child, and what its controller records, are its own.
    gone = [key for key in present if _is_inherited(key) and key not in wanted]
    annotations = {key: text for key, text in wanted.items() if present.get(key) != text} | dict.fromkeys(gone)
    labels = {
        key: text for key, text in body["metadata"]["labels"].items() if (found.metadata.labels or {}).get(key) != text
    }
    if annotations or labels:
        family.actions.append(
            PatchObject(
                plural="dataimportcrons",
                namespace=context.namespace,
                name=name,
                uid=found.metadata.uid or "",
                annotations=annotations,
                labels=labels,
            )
        )


def build_child(context: CronContext, architecture: str) -> dict[str, Any]:
    """Return the DataImportCron of one architecture."""
    spec = context.cron.spec.to_dict()
    registry = spec["template"]["spec"]["source"]["registry"]
    template = {
        **spec["template"],
        "spec": {
            **spec["template"]["spec"],
            "source": {
                "registry": {
                    **registry,
                    "platform": {**(registry.get("platform") or {}), "architecture": architecture},
                }
            },
        },
    }
    return {
        "apiVersion": context.cron.group_version,
        "kind": context.cron.kind_name(),
        "metadata": {
            "name": child_name(context.name, architecture),
            "namespace": context.namespace,
            "labels": {
                **context.labels,
                LABEL_ARCHITECTURE: architecture,
                LABEL_DATA_SOURCE_NAME: context.data_source_name,
            },
            "annotations": _inherited(context, architecture),
            "ownerReferences": [context.cron_reference],
        },
        "spec": {
            **spec,
            "template": template,
            "managedDataSource": child_name(context.data_source_name, architecture),
        },
    }


def _inherited(context: CronContext, architecture: str) -> dict[str, str]:
    """Return the settings of a child; each of its channels is a DataSource of its own."""
    annotations = {name: text for name, text in context.annotations.items() if _is_inherited(name)}
    if CHANNELS in annotations:
        rules = parse_json(annotations[CHANNELS])
        named = {child_name(channel, architecture): rule for channel, rule in rules.items()}
        annotations[CHANNELS] = json.dumps(named, separators=(",", ":"))
    if PIN in annotations and annotations[PIN].startswith(f"{context.data_source_name}-"):
        # The name of a version of one architecture; a digest is that of the index, and so the same for all.
        own = f"{child_name(context.data_source_name, architecture)}-"
        if not annotations[PIN].startswith(own):
            del annotations[PIN]
    return annotations


def _is_inherited(name: str) -> bool:
    if name in COMMANDS or name == ARCHITECTURES:
        return False
    return name.startswith((PREFIX, POLICY_PREFIX)) or name in _CARRIED


def _is_child(context: CronContext, found: DataImportCron) -> bool:
    return any(owner.uid == context.uid and owner.controller for owner in found.metadata.owner_references or ())


def _obsolete_children(context: CronContext) -> Iterator[DeleteObject]:
    """Yield the deletion of the children whose architecture is not in the settings any more."""
    for architecture in KNOWN_ARCHITECTURES:
        if architecture in context.settings.architectures:
            continue
        name = child_name(context.name, architecture)
        found = context.objects.cron(context.namespace, name)
        if found is not None and _is_child(context, found) and found.metadata.deletion_timestamp is None:
            yield DeleteObject(
                plural="dataimportcrons", namespace=context.namespace, name=name, uid=found.metadata.uid or ""
            )


# --- the managed DataSource -------------------------------------------------------------------------------------


def _point(context: CronContext, name: str, target: str) -> tuple[Action, ...]:
    """Have a DataSource refer to that of the first architecture.

    One that offers a volume keeps it until the other one offers a volume, too.
    """
    found = context.objects.data_source(context.namespace, name)
    offered = context.objects.data_source(context.namespace, target)
    ready = offered is not None and offered.volume is not None
    if found is not None and found.volume is not None and not ready:
        return plan_data_source(context, name, None)
    return plan_data_source(context, name, {"dataSource": {"namespace": context.namespace, "name": target}})


# --- status -----------------------------------------------------------------------------------------------------


def _missing(family: _Family) -> Iterator[str]:
    """Yield a problem for each architecture that the polled index does not have."""
    for architecture, child in family.children.items():
        found = PollRecord.read(child.metadata.annotations or {}).found
        if found is not None and found.architectures and architecture not in found.architectures:
            names = ", ".join(one[:20] for one in found.architectures[:16])
            yield (
                f"annotation {ARCHITECTURES}: the image has no architecture {architecture}, only {names}. "
                "Remove it from the annotation, or publish it"
            )


def _commands(context: CronContext) -> Iterator[str]:
    names = ", ".join(child_name(context.name, one) for one in context.settings.architectures)
    for name in COMMANDS:
        if name in context.annotations:
            label = command_label(name, context.annotations[name])
            yield f"{label}: each architecture has versions of its own. Set it on one of {names}"


def _status(context: CronContext, family: _Family) -> dict[str, Any]:
    old = context.cron.status
    status: dict[str, Any] = dict(old.to_dict()) if old is not None else {}
    children = [family.children.get(one) for one in context.settings.architectures]
    executed = [
        child.status.last_execution_timestamp
        for child in children
        if child is not None and child.status is not None and child.status.last_execution_timestamp
    ]
    if executed:
        status["lastExecutionTimestamp"] = max(executed)
    status.pop("channels", None)
    if context.settings.channels:
        # What they offer is in the status of the children; their names are needed to delete them.
        status["channels"] = [{"name": name} for name, _ in context.settings.channels]
    first = children[0]
    if first is not None and first.status is not None and first.status.source_format:
        status["sourceFormat"] = first.status.source_format
    aspects: Mapping[ConditionType, ConditionValue | None] = {
        ConditionType.PROGRESSING: _progressing(family, context),
        ConditionType.UP_TO_DATE: _up_to_date(family, context),
        ConditionType.POLLED: _polled(family, context),
        ConditionType.GOLDEN_SETTINGS: conditions.settings(
            family.problems,
            Reason.COMMAND_REFUSED if any(name in context.annotations for name in COMMANDS) else Reason.NOT_FOLLOWED,
        ),
    }
    known = (old.conditions if old is not None else None) or ()
    optional = (ConditionType.POLLED, ConditionType.GOLDEN_SETTINGS)
    status["conditions"] = conditions.render(known, aspects, optional, context.now)
    return status


def _progressing(family: _Family, context: CronContext) -> ConditionValue:
    for _, condition in _conditions(family, context, ConditionType.PROGRESSING):
        if condition is not None and condition.status == ConditionStatus.TRUE:
            return true(condition.reason or "", condition.message or "")
    return false(Reason.NO_IMPORT, "No current import")


def _up_to_date(family: _Family, context: CronContext) -> ConditionValue:
    """Return the condition of the first architecture that is not up to date; true if all are."""
    for architecture, condition in _conditions(family, context, ConditionType.UP_TO_DATE):
        if condition is None:
            return false(Reason.NO_DIGEST, f"{architecture}: No source digest")
        if condition.status != ConditionStatus.TRUE:
            return false(condition.reason or "", f"{architecture}: {condition.message or ''}")
    return true(Reason.UP_TO_DATE, "Latest import is up to date")


def _polled(family: _Family, context: CronContext) -> ConditionValue | None:
    for architecture, condition in _conditions(family, context, ConditionType.POLLED):
        if condition is not None and condition.status == ConditionStatus.FALSE:
            return false(condition.reason or "", f"{architecture}: {condition.message or ''}")
    return None


def _conditions(family: _Family, context: CronContext, kind: ConditionType) -> Iterator[tuple[str, Condition | None]]:
    for architecture in context.settings.architectures:
        child = family.children.get(architecture)
        status = child.status if child is not None else None
        yield architecture, find_condition(status.conditions if status is not None else None, kind)
