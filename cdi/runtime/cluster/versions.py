"""What runs in a cluster, as far as one may look."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from cdi.api.errors import ClusterForbidden, NotFound
from cdi.api.names import APP, GROUP
from cdi.kube.resources import CDIS, DEPLOYMENTS
from cdi.runtime.cluster.calls import Calls

_SELECTORS = ("app.kubernetes.io/name=cdi", f"app={APP}")
"""Of what our chart installs, and of what KubeVirt's operator does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A Deployment, or what an operator says of its own."""

    name: str
    version: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Of one cluster."""

    server: str
    """Its API server's URL."""
    kubernetes: str
    api_versions: tuple[str, ...] = ()
    """Of cdi.kubevirt.io; empty where its definitions are not installed."""
    parts: tuple[Part, ...] = ()
    unknown: str = ""
    """Why there may be parts that are not told of."""


def find_versions(calls: Calls) -> Versions:
    """Raises `ClusterError` where not even the server's own version is told."""
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
    """The first container's."""
    spec = deployment.get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    containers = ((template or {}).get("spec") or {}).get("containers") or [{}]
    return str(containers[0].get("image") or "unknown")
