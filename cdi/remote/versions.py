"""Versions of the components in a cluster, as far as the user may read them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from cdi.api.errors import ClusterForbidden, NotFound
from cdi.api.kinds import CDIS, DEPLOYMENTS
from cdi.api.names import APP, GROUP
from cdi.kube.sync import SyncClient

_SELECTORS = ("app.kubernetes.io/name=cdi", f"app={APP}")
"""Selectors of the Deployments that our chart and KubeVirt's operator install."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A Deployment, or the version that an operator reports."""

    name: str
    version: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """The versions of one cluster."""

    server: str
    """The URL of its API server."""
    kubernetes: str
    api_versions: tuple[str, ...] = ()
    """Versions of the API cdi.kubevirt.io; empty if it is not installed."""
    parts: tuple[Part, ...] = ()
    unknown: str = ""
    """The reason why components may be missing."""


def find_versions(calls: SyncClient) -> Versions:
    """Return the versions; raise `ClusterError` if not even the server's own version can be read."""
    told = calls.run(calls.client.request("GET", "/version"))
    served: tuple[str, ...] = ()
    with contextlib.suppress(NotFound):
        group = calls.run(calls.client.request("GET", f"/apis/{GROUP}"))
        served = tuple(str(each.get("version")) for each in group.get("versions") or ())
    parts: dict[tuple[str, str], Part] = {}
    unknown = ""
    try:
        for selector in _SELECTORS:
            for body in calls.run(calls.client.list(DEPLOYMENTS, labels=selector)).items:
                metadata, ready = body["metadata"], (body.get("status") or {}).get("readyReplicas") or 0
                parts[metadata["namespace"], metadata["name"]] = Part(
                    name=f"{metadata['namespace']}/{metadata['name']}",
                    version=(metadata.get("labels") or {}).get("app.kubernetes.io/version") or _image(body),
                    detail=f"{ready} of {(body.get('spec') or {}).get('replicas', 1)} ready",
                )
        if served:
            for body in calls.run(calls.client.list(CDIS)).items:
                status = body.get("status") or {}
                version = status.get("observedVersion") or status.get("operatorVersion")
                if version:
                    name = body["metadata"]["name"]
                    parts["", name] = Part(name=f"cdi/{name}", version=version, detail=str(status.get("phase") or ""))
    except ClusterForbidden as error:
        unknown = error.what
    return Versions(
        server=calls.run(calls.client.server()),
        kubernetes=str(told.get("gitVersion") or "unknown"),
        api_versions=served,
        parts=tuple(parts.values()),
        unknown=unknown,
    )


def _image(deployment: dict[str, object]) -> str:
    """Return the image of the first container."""
    spec = deployment.get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    containers = ((template or {}).get("spec") or {}).get("containers") or [{}]
    return str(containers[0].get("image") or "unknown")
