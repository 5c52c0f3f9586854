"""Resources of the Kubernetes API that are used here, and their paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cdi.api import kinds
from cdi.api.errors import InvalidManifest, NotFound

Object = dict[str, Any]
"""API object as plain JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One resource, as API discovery lists it."""

    group: str
    """API group; empty for the core group."""
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

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


def _core(plural: str, kind: str, *, namespaced: bool = True) -> Resource:
    return Resource(group="", version="v1", plural=plural, kind=kind, namespaced=namespaced)


def _named(group: str, plural: str, kind: str, *, namespaced: bool = True) -> Resource:
    return Resource(group=group, version="v1", plural=plural, kind=kind, namespaced=namespaced)


def _ours(kind: str) -> Resource:
    known = kinds.kind_named(kind)
    assert known is not None
    return Resource(
        group=known.group, version=known.version, plural=known.plural, kind=known.name, namespaced=known.namespaced
    )


PODS = _core("pods", "Pod")
CLAIMS = _core("persistentvolumeclaims", "PersistentVolumeClaim")
VOLUMES = _core("persistentvolumes", "PersistentVolume", namespaced=False)
SECRETS = _core("secrets", "Secret")
CONFIG_MAPS = _core("configmaps", "ConfigMap")
EVENTS = _core("events", "Event")
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

DATA_VOLUMES = _ours("DataVolume")
DATA_SOURCES = _ours("DataSource")
DATA_IMPORT_CRONS = _ours("DataImportCron")
STORAGE_PROFILES = _ours("StorageProfile")
CDIS = _ours("CDI")
CDI_CONFIGS = _ours("CDIConfig")
VOLUME_IMPORT_SOURCES = _ours("VolumeImportSource")
VOLUME_UPLOAD_SOURCES = _ours("VolumeUploadSource")
VOLUME_CLONE_SOURCES = _ours("VolumeCloneSource")
OBJECT_TRANSFERS = _ours("ObjectTransfer")
UPLOAD_TOKEN_REQUESTS = _ours("UploadTokenRequest")

RESOURCES: tuple[Resource, ...] = tuple(each for each in dict(globals()).values() if isinstance(each, Resource))
"""All resources above."""

_BY_KIND = {(each.api_version, each.kind): each for each in RESOURCES}
_BY_PLURAL = {each.plural: each for each in RESOURCES}


def resource_of(api_version: str, kind: str) -> Resource:
    """Return the resource of a manifest, or raise `InvalidManifest` if it is not in `RESOURCES`."""
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
