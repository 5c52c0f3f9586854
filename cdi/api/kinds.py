"""Registry of the kinds of API objects: their names, their paths and what the command line calls them.

Models are imported on first use, because building all of them takes a third of a second.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from cdi.api.errors import InvalidManifest, NotFound
from cdi.api.names import GROUP, UPLOAD_GROUP, VERSION

if TYPE_CHECKING:
    from cdi.api.meta import KubeObject

Object = dict[str, Any]
"""API object as plain JSON, with ``apiVersion``, ``kind`` and ``metadata``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Column in the output of ``kubectl get`` and ``cdi get``."""

    name: str
    type: str
    path: str
    """JSONPath within the object."""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of object, as API discovery lists it.

    Two resources are equal if an API server would serve them alike; the other fields are descriptions.
    """

    group: str
    """API group; empty for the core group."""
    version: str
    plural: str
    kind: str
    """Name in CamelCase, as in a manifest."""
    namespaced: bool = True
    module: str = field(default="", compare=False)
    """Module in `cdi.api` that contains the model; empty for kinds without one."""
    rule: str = field(default="", compare=False)
    """Function in `cdi.api.rules` that yields the problems of an object: ``module.function``; every model has one."""
    frozen: str = field(default="", compare=False)
    """Message about a change of the spec; empty if it may be changed."""
    short_names: tuple[str, ...] = field(default=(), compare=False)
    categories: tuple[str, ...] = field(default=(), compare=False)
    columns: tuple[Column, ...] = field(default=(), compare=False)
    status_subresource: bool = field(default=False, compare=False)
    defined: bool = field(default=False, compare=False)
    """Whether this project defines the kind with a CustomResourceDefinition."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def model(self) -> type[KubeObject]:
        """Model class of the kind's objects."""
        model: type[KubeObject] = getattr(importlib.import_module(f"cdi.api.{self.module}"), self.kind)
        return model

    def path(self, namespace: str | None, name: str | None = None, subresource: str = "") -> str:
        """Return the URL path of one object, or of the collection if `name` is None.

        `namespace` is ignored for cluster-scoped resources; None selects the collection across all namespaces.
        """
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", _segment(namespace)]
        elif self.namespaced and name is not None:
            raise InvalidManifest(f"{self.kind} {name[:80]!r} requires a namespace", where="metadata.namespace")
        parts.append(self.plural)
        if name is not None:
            parts.append(_segment(name))
            if subresource:
                parts.append(subresource)
        return "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _segment(name: str) -> str:
    """Return `name` quoted as a path segment, which hostile names cannot escape."""
    if not name or name in (".", ".."):
        raise InvalidManifest(f"{name!r} is not a valid name", where="metadata.name")
    return quote(name, safe="")


def _core(plural: str, kind: str, **more: Any) -> Resource:
    return Resource(group="", version="v1", plural=plural, kind=kind, **more)


def _named(group: str, plural: str, kind: str, *, namespaced: bool = True) -> Resource:
    return Resource(group=group, version="v1", plural=plural, kind=kind, namespaced=namespaced)


def _ours(plural: str, kind: str, module: str, **more: Any) -> Resource:
    return Resource(group=GROUP, version=VERSION, plural=plural, kind=kind, module=module, defined=True, **more)


_AGE = Column(name="Age", type="date", path=".metadata.creationTimestamp")

PODS = _core("pods", "Pod")
CLAIMS = _core(
    "persistentvolumeclaims",
    "PersistentVolumeClaim",
    module="core",
    rule="core.check_pvc",
    short_names=("pvc",),
    columns=(
        Column(name="Status", type="string", path=".status.phase"),
        Column(name="Capacity", type="string", path=".status.capacity.storage"),
        _AGE,
    ),
)
VOLUMES = _core("persistentvolumes", "PersistentVolume", namespaced=False)
SECRETS = _core("secrets", "Secret", module="core", rule="core.check_secret")
CONFIG_MAPS = _core("configmaps", "ConfigMap", module="core", rule="core.check_config_map", short_names=("cm",))
EVENTS = _core("events", "Event", short_names=("ev",))
NODES = _core("nodes", "Node", namespaced=False)
NAMESPACES = _core("namespaces", "Namespace", namespaced=False)
SERVICES = _core("services", "Service")
SERVICE_ACCOUNTS = _core("serviceaccounts", "ServiceAccount")
QUOTAS = _core("resourcequotas", "ResourceQuota")

DEPLOYMENTS = _named("apps", "deployments", "Deployment")
JOBS = _named("batch", "jobs", "Job")
CRON_JOBS = _named("batch", "cronjobs", "CronJob")
LEASES = _named("coordination.k8s.io", "leases", "Lease")
ENDPOINT_SLICES = _named("discovery.k8s.io", "endpointslices", "EndpointSlice")
INGRESSES = _named("networking.k8s.io", "ingresses", "Ingress")
IMAGE_STREAMS = _named("image.openshift.io", "imagestreams", "ImageStream")
ROUTES = _named("route.openshift.io", "routes", "Route")
PRIORITY_CLASSES = _named("scheduling.k8s.io", "priorityclasses", "PriorityClass", namespaced=False)

STORAGE_CLASSES = _named("storage.k8s.io", "storageclasses", "StorageClass", namespaced=False)
CSI_DRIVERS = _named("storage.k8s.io", "csidrivers", "CSIDriver", namespaced=False)
_SNAPSHOT = "snapshot.storage.k8s.io"
VOLUME_SNAPSHOTS = _named(_SNAPSHOT, "volumesnapshots", "VolumeSnapshot")
VOLUME_SNAPSHOT_CLASSES = _named(_SNAPSHOT, "volumesnapshotclasses", "VolumeSnapshotClass", namespaced=False)
VOLUME_SNAPSHOT_CONTENTS = _named(_SNAPSHOT, "volumesnapshotcontents", "VolumeSnapshotContent", namespaced=False)

_ADMISSION = "admissionregistration.k8s.io"
VALIDATING_WEBHOOKS = _named(
    _ADMISSION, "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", namespaced=False
)
MUTATING_WEBHOOKS = _named(
    _ADMISSION, "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", namespaced=False
)
CRDS = _named("apiextensions.k8s.io", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
API_SERVICES = _named("apiregistration.k8s.io", "apiservices", "APIService", namespaced=False)
CLUSTER_ROLES = _named("rbac.authorization.k8s.io", "clusterroles", "ClusterRole", namespaced=False)

_AUTHORIZATION = "authorization.k8s.io"
SUBJECT_ACCESS_REVIEWS = _named(_AUTHORIZATION, "subjectaccessreviews", "SubjectAccessReview", namespaced=False)
SELF_SUBJECT_ACCESS_REVIEWS = _named(
    _AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)
TOKEN_REVIEWS = _named("authentication.k8s.io", "tokenreviews", "TokenReview", namespaced=False)

DATA_VOLUMES = _ours(
    "datavolumes",
    "DataVolume",
    "datavolume",
    rule="datavolume.check_datavolume",
    frozen="Cannot update DataVolume Spec",
    short_names=("dv", "dvs"),
    categories=("all",),
    status_subresource=True,
    columns=(
        Column(name="Phase", type="string", path=".status.phase", description="Phase of the import"),
        Column(name="Progress", type="string", path=".status.progress", description="Per cent of the transfer, or N/A"),
        Column(
            name="Restarts",
            type="integer",
            path=".status.restartCount",
            description="Number of worker restarts",
        ),
        _AGE,
    ),
)
DATA_SOURCES = _ours(
    "datasources",
    "DataSource",
    "datasource",
    rule="datasource.check_datasource",
    short_names=("das",),
    categories=("all",),
)
DATA_IMPORT_CRONS = _ours(
    "dataimportcrons",
    "DataImportCron",
    "dataimportcron",
    rule="dataimportcron.check_dataimportcron",
    frozen="Cannot update DataImportCron Spec",
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
)
STORAGE_PROFILES = _ours(
    "storageprofiles",
    "StorageProfile",
    "storageprofile",
    rule="configuration.check_storage_profile",
    namespaced=False,
    status_subresource=True,
)
VOLUME_IMPORT_SOURCES = _ours(
    "volumeimportsources",
    "VolumeImportSource",
    "populators",
    rule="populators.check_import_source",
    frozen="Cannot update VolumeImportSource Spec",
)
VOLUME_UPLOAD_SOURCES = _ours(
    "volumeuploadsources",
    "VolumeUploadSource",
    "populators",
    rule="populators.check_upload_source",
    frozen="Cannot update VolumeUploadSource Spec",
)
VOLUME_CLONE_SOURCES = _ours(
    "volumeclonesources",
    "VolumeCloneSource",
    "populators",
    rule="populators.check_clone_source",
    frozen="Cannot update VolumeCloneSource Spec",
)
CDIS = _ours(
    "cdis",
    "CDI",
    "installation",
    rule="configuration.check_installation",
    short_names=("cdi", "cdis"),
    namespaced=False,
    columns=(_AGE, Column(name="Phase", type="string", path=".status.phase")),
)
CDI_CONFIGS = _ours("cdiconfigs", "CDIConfig", "configuration", rule="configuration.check_config", namespaced=False)
OBJECT_TRANSFERS = _ours(
    "objecttransfers",
    "ObjectTransfer",
    "transfer",
    rule="transfer.check_transfer",
    frozen="ObjectTransfer spec is immutable",
    short_names=("ot", "ots"),
    namespaced=False,
    categories=("all",),
    status_subresource=True,
    columns=(
        _AGE,
        Column(name="Phase", type="string", path=".status.phase", description="Phase of the transfer"),
    ),
)
UPLOAD_TOKEN_REQUESTS = Resource(
    group=UPLOAD_GROUP,
    version=VERSION,
    plural="uploadtokenrequests",
    kind="UploadTokenRequest",
    module="upload",
    rule="upload.check_upload_token_request",
    short_names=("utr", "utrs"),
)

RESOURCES: tuple[Resource, ...] = tuple(each for each in dict(globals()).values() if isinstance(each, Resource))
"""All resources above."""
KINDS: tuple[Resource, ...] = tuple(
    sorted((each for each in RESOURCES if each.module), key=lambda each: not each.group)
)
"""Resources with a model: those of this project, then those of Kubernetes."""
STORED: tuple[Resource, ...] = (*KINDS, EVENTS)
"""Resources that a store holds and the command line names."""

_BY_KIND = {(each.api_version, each.kind): each for each in RESOURCES}
_BY_PLURAL = {each.plural: each for each in RESOURCES}
_MODELLED = {each.kind: each for each in KINDS}
_BY_WORD = {word: each for each in STORED for word in (each.plural, each.singular, *each.short_names)}


def resource_of(api_version: str, kind: str) -> Resource:
    """Return the resource of an object, or raise `InvalidManifest` if it is not in `RESOURCES`."""
    found = _BY_KIND.get((api_version, kind))
    if found is None:
        raise InvalidManifest(f"unknown kind {kind[:80]!r} in {api_version[:80]!r}", where="kind")
    return found


def resource_named(plural: str) -> Resource:
    """Return the resource with this plural name, or raise `NotFound` if it is not in `RESOURCES`."""
    found = _BY_PLURAL.get(plural)
    if found is None:
        raise NotFound(f"unknown resource {plural[:80]!r}", remedy="")
    return found


def kind_of(api_version: str, name: str) -> Resource:
    """Return the resource of a manifest; raise `InvalidManifest` if it is not in `KINDS`."""
    found = _MODELLED.get(name)
    if found is None:
        raise InvalidManifest(f"kind {name[:80]!r} is not known: it is one of {', '.join(_MODELLED)}", where="kind")
    if api_version != found.api_version:
        raise InvalidManifest(
            f"apiVersion of a {name} is {found.api_version}, not {api_version[:80]!r}", where="apiVersion"
        )
    return found


def kind_named(word: str) -> Resource:
    """Return the resource for a plural, singular or short name, in any case.

    As with kubectl, the name may be followed by the group, or by version and group: ``datavolumes.cdi.kubevirt.io``,
    ``datavolumes.v1beta1.cdi.kubevirt.io``.

    Raises:
        NotFound: No resource of `STORED` has this name.
    """
    name, dot, qualifier = word.strip().lower().partition(".")
    found = _BY_WORD.get(name)
    if found is None or (dot and qualifier not in (found.group, f"{found.version}.{found.group}")):
        known = ", ".join(each.plural for each in STORED)
        raise NotFound(f"unknown kind {word[:60]!r}", remedy=f"one of {known}")
    return found
