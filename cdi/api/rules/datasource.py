"""Validation of a DataSource, which may have no source until its first image exists."""

from __future__ import annotations

from cdi.api.datasource import DataSource
from cdi.api.rules.problems import Problem, Problems
from cdi.api.rules.sources import check_reference


def check_datasource(datasource: DataSource) -> Problems:
    """Yield the problems of a DataSource."""
    source = datasource.spec.source
    given = {
        name: member
        for name, member in (("pvc", source.pvc), ("snapshot", source.snapshot), ("dataSource", source.data_source))
        if member is not None
    }
    if len(given) > 1:
        yield Problem(
            field="spec.source", message=f"Multiple DataSource sources: {', '.join(given)}; exactly one is allowed"
        )
    for name, member in given.items():
        yield from check_reference(
            member.namespace, member.name, f"spec.source.{name}", f"source {name}", namespace_optional=True
        )
    other, meta = source.data_source, datasource.metadata
    if other is not None and (other.namespace or meta.namespace, other.name) == (meta.namespace, meta.name):
        yield Problem(field="spec.source.dataSource", message="DataSource cannot point to itself")
