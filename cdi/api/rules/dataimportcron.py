"""Validation of a DataImportCron."""

from __future__ import annotations

from cdi.api.dataimportcron import DataImportCron, GarbageCollect, RetentionPolicy
from cdi.api.policy import check_policy
from cdi.api.rules.datavolume import check_spec
from cdi.api.rules.problems import Problem, Problems, object_name, one_of, optional_name, truncate
from cdi.api.rules.schedule import schedule_problem
from cdi.api.sources import SourceKind

POLLED = {SourceKind.REGISTRY, SourceKind.PVC, SourceKind.HTTP, SourceKind.S3, SourceKind.GCS}
"""Sources whose content can be polled for changes."""


def check_dataimportcron(cron: DataImportCron) -> Problems:
    """Yield the problems of a DataImportCron, including its DataVolume template."""
    spec, field = cron.spec, "spec"
    yield from check_policy(spec.template.metadata.annotations, f"{field}.template.metadata.annotations")
    template = spec.template.spec
    path = f"{field}.template.spec"
    kinds = {kind for kind, _ in template.source.given()} if template.source else set()
    if not kinds & POLLED:
        names = ", ".join(sorted(POLLED))
        yield Problem(
            field=f"{path}.source", message=f"Missing registry source, or another that can be polled: {names}"
        )
    else:
        yield from check_spec(template, path)
    if template.source_ref is not None or template.content_type or template.checkpoints or template.final_checkpoint:
        yield Problem(field=path, message="Unsettable fields: SourceRef, ContentType, Checkpoints, FinalCheckpoint")
    # With an empty schedule nothing is polled; another program sets the desired digest in an annotation.
    problem = schedule_problem(spec.schedule) if spec.schedule else None
    if problem:
        yield Problem(
            field=f"{field}.schedule", message=f"Illegal cron schedule {truncate(spec.schedule)!r}: {problem}"
        )
    if spec.garbage_collect and spec.garbage_collect not in tuple(GarbageCollect):
        yield Problem(
            field=f"{field}.garbageCollect",
            message=f"Illegal GarbageCollect value {truncate(spec.garbage_collect)!r}: Outdated or Never",
        )
    yield from one_of(spec.retention_policy, tuple(RetentionPolicy), f"{field}.retentionPolicy")
    if spec.imports_to_keep is not None and spec.imports_to_keep < 0:
        yield Problem(field=f"{field}.importsToKeep", message="it is less than 0")
    if not spec.managed_data_source:
        yield Problem(field=f"{field}.managedDataSource", message="Illegal ManagedDataSource value: it is empty")
    else:
        yield from object_name(spec.managed_data_source, f"{field}.managedDataSource", "DataSource")
    yield from optional_name(spec.service_account_name, f"{field}.serviceAccountName", "ServiceAccount")
