"""Validation of a DataImportCron.

Order and messages of the problems are those of KubeVirt's CDI, which reports only the first one.
"""

from __future__ import annotations

from cdi.api.dataimportcron import DataImportCron, GarbageCollect
from cdi.api.golden import PREFIX as GOLDEN_PREFIX
from cdi.api.golden import check_golden
from cdi.api.names import MAX_LABEL, is_dns_subdomain
from cdi.api.policy import PREFIX as POLICY_PREFIX
from cdi.api.policy import check_policy, check_signed_source
from cdi.api.rules.datavolume import check_spec
from cdi.api.rules.problems import Problem, Problems, optional_name, truncate
from cdi.api.schedule import Schedule
from cdi.api.sources import SourceKind

POLLED = {SourceKind.REGISTRY, SourceKind.PVC, SourceKind.HTTP, SourceKind.S3, SourceKind.GCS}
"""Sources whose content can be polled for changes."""
TEMPLATE = "Template"
"""Path of the template in problems of its spec, as in KubeVirt's CDI."""


def check_dataimportcron(cron: DataImportCron) -> Problems:
    """Yield the problems of a DataImportCron, including its DataVolume template."""
    spec = cron.spec
    yield from _name_length(cron.metadata.name or "", "metadata.name")
    yield from _template(cron)
    yield from _schedule(spec.schedule)
    if spec.imports_to_keep is not None and spec.imports_to_keep < 0:
        yield Problem(
            field="spec.importsToKeep",
            message="Illegal ImportsToKeep value",
            detail=f"{spec.imports_to_keep} is less than 0",
        )
    if spec.garbage_collect and spec.garbage_collect not in tuple(GarbageCollect):
        yield Problem(
            field="spec.garbageCollect",
            message="Illegal GarbageCollect value",
            detail=f"{truncate(spec.garbage_collect)!r} is neither Outdated nor Never",
        )
    yield from _managed_data_source(spec.managed_data_source)
    # KubeVirt's CDI accepts any retentionPolicy; all but None mean All.
    yield from optional_name(spec.service_account_name, "spec.serviceAccountName", "ServiceAccount")
    yield from check_policy(cron.metadata.annotations)
    yield from check_signed_source(cron.metadata.annotations, spec.template.spec.source)
    yield from check_golden(cron.metadata.annotations, managed=spec.managed_data_source)


def _name_length(name: str, field: str) -> Problems:
    if len(name) > MAX_LABEL:
        yield Problem(field=field, message=f"Name cannot be longer than {MAX_LABEL} characters")


def _template(cron: DataImportCron) -> Problems:
    template = cron.spec.template
    spec, field = template.spec, "spec.template.spec"
    kinds = {kind for kind, _ in spec.source.given()} if spec.source else set()
    if not kinds & POLLED:
        names = ", ".join(sorted(POLLED))
        yield Problem(field=f"{field}.source", message="Missing source", detail=f"one that can be polled: {names}")
    elif spec.source_ref is not None or spec.content_type or spec.checkpoints or spec.final_checkpoint:
        yield Problem(field=field, message="Unsettable fields: SourceRef, ContentType, Checkpoints, FinalCheckpoint")
    else:
        yield from check_spec(spec, TEMPLATE)
    # An API server removes the metadata of the template before it can be seen here.
    for name in template.metadata.annotations or {}:
        if name.startswith((POLICY_PREFIX, GOLDEN_PREFIX)):
            yield Problem(
                field=f"spec.template.metadata.annotations[{truncate(name, 200)}]",
                message="the metadata of the template has no effect; annotate the DataImportCron itself",
            )


def _schedule(schedule: str) -> Problems:
    # With an empty schedule nothing is polled; another program sets the desired digest in an annotation.
    if not schedule:
        return
    try:
        Schedule.parse(schedule)
    except ValueError as error:
        yield Problem(field="spec.schedule", message="Illegal cron schedule", detail=f"{truncate(schedule)!r}: {error}")


def _managed_data_source(name: str) -> Problems:
    field, message = "spec.managedDataSource", "Illegal ManagedDataSource value"
    if not name:
        yield Problem(field=field, message=message, detail="it is empty")
    elif len(name) > MAX_LABEL:
        yield from _name_length(name, field)
    elif not is_dns_subdomain(name):
        yield Problem(field=field, message=message, detail=f"{truncate(name)!r} is not a DNS subdomain")
