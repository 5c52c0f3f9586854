"""DataSource: a stable name for the newest golden image."""

from __future__ import annotations

from cdi.api.meta import Condition, KubeObject
from cdi.api.model import Model
from cdi.api.sources import SourcePvc, SourceSnapshot


class DataSourceReference(Model):
    """Another DataSource."""

    namespace: str
    """Its namespace."""
    name: str
    """Its name."""


class DataSourceSource(Model):
    """Volume that the DataSource refers to; at most one member is set."""

    pvc: SourcePvc | None = None
    """A volume."""
    snapshot: SourceSnapshot | None = None
    """A snapshot."""
    data_source: DataSourceReference | None = None
    """Another DataSource of the same namespace; chains are short."""


class DataSourceSpec(Model):
    """Desired state: the volume that the DataSource refers to."""

    source: DataSourceSource
    """The volume, snapshot or other DataSource."""


class DataSourceStatus(Model):
    """Observed state: the resolved volume and the conditions."""

    source: DataSourceSource | None = None
    """The volume or snapshot at the end of the chain."""
    conditions: list[Condition] | None = None
    """Ready, with the reason."""


class DataSource(KubeObject):
    """A stable name for a golden image; DataVolumes refer to it with sourceRef."""

    spec: DataSourceSpec
    """Desired state: the volume that the DataSource refers to."""
    status: DataSourceStatus | None = None
    """Observed state; written by the controller."""

    @property
    def volume(self) -> SourcePvc | SourceSnapshot | None:
        """Volume or snapshot that it refers to directly, with its own namespace in place of an empty one."""
        source = self.spec.source
        found = source.pvc if source.pvc is not None else source.snapshot
        return (
            found.model_copy(update={"namespace": found.namespace or self.metadata.namespace or ""}) if found else None
        )

    @property
    def reference(self) -> DataSourceReference | None:
        """DataSource that it refers to, with its own namespace in place of an empty one."""
        found = self.spec.source.data_source
        return (
            found.model_copy(update={"namespace": found.namespace or self.metadata.namespace or ""}) if found else None
        )
