"""Kinds of objects with their names in the API and on the command line.

Models are imported on first use, because building all of them takes a third of a second.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdi.api.errors import InvalidManifest
from cdi.api.names import GROUP, UPLOAD_GROUP, VERSION

if TYPE_CHECKING:
    from cdi.api.meta import KubeObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Column in the output of ``kubectl get`` and ``cdi get``."""

    name: str
    type: str
    path: str
    """JSONPath within the object."""
    description: str = ""


_AGE = Column(name="Age", type="date", path=".metadata.creationTimestamp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Kind of objects in the API."""

    name: str
    plural: str
    module: str
    """Module in `cdi.api` that contains the model."""
    group: str = GROUP
    version: str = VERSION
    short_names: tuple[str, ...] = ()
    namespaced: bool = True
    categories: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    status_subresource: bool = False
    defined: bool = True
    """Whether this project defines the kind with a CustomResourceDefinition."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.name.lower()

    @property
    def model(self) -> type[KubeObject]:
        """Model class of the kind's objects."""
        model: type[KubeObject] = getattr(importlib.import_module(f"cdi.api.{self.module}"), self.name)
        return model


KINDS: tuple[Kind, ...] = (
    Kind(
        name="DataVolume",
        plural="datavolumes",
        module="datavolume",
        short_names=("dv", "dvs"),
        categories=("all",),
        status_subresource=True,
        columns=(
            Column(name="Phase", type="string", path=".status.phase", description="Phase of the import"),
            Column(
                name="Progress", type="string", path=".status.progress", description="Per cent of the transfer, or N/A"
            ),
            Column(
                name="Restarts",
                type="integer",
                path=".status.restartCount",
                description="Number of worker restarts",
            ),
            _AGE,
        ),
    ),
    Kind(name="DataSource", plural="datasources", module="datasource", short_names=("das",), categories=("all",)),
    Kind(
        name="DataImportCron",
        plural="dataimportcrons",
        module="dataimportcron",
        short_names=("dic", "dics"),
        categories=("all",),
        columns=(
            Column(name="Format", type="string", path=".status.sourceFormat", description="How imports are kept"),
            Column(
                name="Current",
                type="string",
                path=".status.lastImportedPVC.name",
                description="Newest import that has succeeded",
            ),
            Column(
                name="Wanted",
                type="string",
                path=".status.currentImports[0].DataVolumeName",
                description="Newest import that is wanted",
            ),
            Column(
                name="UpToDate",
                type="string",
                path='.status.conditions[?(@.type=="UpToDate")].status',
                description="Whether the newest import is current",
            ),
            Column(
                name="Reason",
                type="string",
                path='.status.conditions[?(@.type=="UpToDate")].reason',
                description="Why it is current, or what it waits for",
            ),
            Column(
                name="Next Poll",
                type="string",
                path=r".metadata.annotations.cdi\.kubevirt\.io/storage\.import\.nextCronTime",
                description="When the source is polled next",
            ),
            _AGE,
        ),
    ),
    Kind(
        name="StorageProfile",
        plural="storageprofiles",
        module="storageprofile",
        namespaced=False,
        status_subresource=True,
    ),
    Kind(name="VolumeImportSource", plural="volumeimportsources", module="populators"),
    Kind(name="VolumeUploadSource", plural="volumeuploadsources", module="populators"),
    Kind(name="VolumeCloneSource", plural="volumeclonesources", module="populators"),
    Kind(
        name="CDI",
        plural="cdis",
        module="installation",
        short_names=("cdi", "cdis"),
        namespaced=False,
        columns=(_AGE, Column(name="Phase", type="string", path=".status.phase")),
    ),
    Kind(name="CDIConfig", plural="cdiconfigs", module="configuration", namespaced=False),
    Kind(
        name="ObjectTransfer",
        plural="objecttransfers",
        module="transfer",
        short_names=("ot", "ots"),
        namespaced=False,
        categories=("all",),
        status_subresource=True,
        columns=(
            _AGE,
            Column(name="Phase", type="string", path=".status.phase", description="Phase of the transfer"),
        ),
    ),
    Kind(
        name="UploadTokenRequest",
        plural="uploadtokenrequests",
        module="upload",
        group=UPLOAD_GROUP,
        short_names=("utr", "utrs"),
        defined=False,
    ),
    Kind(
        name="PersistentVolumeClaim",
        plural="persistentvolumeclaims",
        module="core",
        group="",
        version="v1",
        short_names=("pvc",),
        columns=(
            Column(name="Status", type="string", path=".status.phase"),
            Column(name="Capacity", type="string", path=".status.capacity.storage"),
            _AGE,
        ),
        defined=False,
    ),
    Kind(name="Secret", plural="secrets", module="core", group="", version="v1", defined=False),
    Kind(
        name="ConfigMap", plural="configmaps", module="core", group="", version="v1", short_names=("cm",), defined=False
    ),
)

_BY_NAME = {kind.name: kind for kind in KINDS}
_BY_WORD = {word: kind for kind in reversed(KINDS) for word in (kind.plural, kind.singular, *kind.short_names)}


def kind_of(api_version: str, name: str) -> Kind:
    """Return the kind of a manifest; raise `InvalidManifest` if it is not in `KINDS`."""
    kind = _BY_NAME.get(name)
    if kind is None:
        raise InvalidManifest(f"kind {name[:80]!r} is not known: it is one of {', '.join(_BY_NAME)}", where="kind")
    if api_version != kind.api_version:
        raise InvalidManifest(
            f"apiVersion of a {name} is {kind.api_version}, not {api_version[:80]!r}", where="apiVersion"
        )
    return kind


def kind_named(word: str) -> Kind | None:
    """Return the kind for a name on the command line (``dv``, ``datavolumes``, ``DataVolume``), None if unknown."""
    group_less = word.lower().partition(".")[0]
    return _BY_WORD.get(group_less)
