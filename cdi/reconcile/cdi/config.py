"""CDIConfig: its synchronization with the CDI object, resolved settings, and reports of invalid ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from cdi.api.configuration import (
    CONFIG_NAME,
    CDIConfig,
    ConfigSpec,
    FilesystemOverhead,
    ImportProxy,
    ResourceRequirements,
)
from cdi.api.errors import InvalidManifest
from cdi.api.installation import CDI, PullPolicy
from cdi.api.job import Proxy
from cdi.api.names import ANN_CONFIG_AUTHORITY, COMMON_LABELS, LABEL_COMPONENT
from cdi.api.overhead import DEFAULT_OVERHEAD, parse_overhead
from cdi.api.quantity import Quantity
from cdi.api.rules.configuration import check_config, check_installation
from cdi.api.rules.problems import Problem
from cdi.reconcile.actions import Event, ObjectRef
from cdi.reconcile.settings import ResolvedConfig, WorkerPodConfig
from cdi.reconcile.storage.classes import StorageClass, scratch_class

INSTALL_NAMESPACE = "cdi"
"""Default namespace of CDIConfig's references, unless the controller's options name another."""
DEFAULT_RESOURCES: Mapping[str, Mapping[str, str]] = {
    "limits": {"cpu": "750m", "memory": "600M"},
    "requests": {"cpu": "100m", "memory": "60M"},
}
"""Default resource requirements of a worker pod."""
INVALID = "InvalidConfiguration"
"""Reason of events and of the Degraded condition."""
KNOWN_GATES = frozenset({"HonorWaitForFirstConsumer", "DataVolumeClaimAdoption", "WebhookPvcRendering"})
"""Feature gates that have an effect in KubeVirt's CDI; the first and the last are always enabled here."""
CLAIM_ADOPTION_GATE = "DataVolumeClaimAdoption"

NO_EFFECT: Mapping[str, str] = {
    "spec.infra": "set the chart's values infra and replicas to place the control plane",
    "spec.customizeComponents": "set the chart's values to change what is installed",
    "spec.priorityClass": "set the chart's value infra.priorityClassName",
    "spec.config.dataVolumeTTLSeconds": "DataVolumes are not deleted after their completion",
}
"""Fields of the CDI object that are accepted without effect, and why (`docs/reference/support.md`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFacts:
    """Further facts for reconciling CDIConfig."""

    storage_classes: tuple[StorageClass, ...] = ()
    upload_proxy_known: bool = True
    """False until the upload proxy has been looked up; until then its part of the status is not changed."""
    upload_proxy_url: str | None = None
    """Host of an Ingress or Route of the upload proxy, as ``host`` without a scheme."""
    upload_proxy_ca: str | None = None
    """PEM."""
    owner: Mapping[str, Any] | None = None
    """An owner reference to the CDI object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigPlan:
    """The changes to CDIConfig, whose status is not a subresource and is therefore written with the whole object."""

    create: Mapping[str, Any] | None = None
    """The object to create; an existing one is left unchanged until the next reconcile."""
    update: Mapping[str, Any] | None = None
    """The object to replace CDIConfig with.

    It carries the resourceVersion that was read; on a conflict, reconcile again.
    """
    events: tuple[Event, ...] = ()
    """Events of CDIConfig, recorded with the update."""


def active_cdi(installations: Iterable[CDI]) -> CDI | None:
    """Return the CDI object in effect: the oldest that is not being deleted."""
    alive = (one for one in installations if one.metadata.deletion_timestamp is None)
    return min(alive, key=lambda one: (one.metadata.creation_timestamp or "", one.metadata.name or ""), default=None)


def effective_spec(cdi: CDI | None, config: CDIConfig | None) -> ConfigSpec:
    """Return the effective settings: the CDI object's ``spec.config`` if authoritative, else CDIConfig's spec."""
    if cdi is not None and is_authority(cdi):
        return cdi.spec.config or ConfigSpec()
    return config.spec if config is not None else ConfigSpec()


def problems(
    cdi: CDI | None, config: CDIConfig | None, storage_classes: Iterable[StorageClass] = ()
) -> tuple[Problem, ...]:
    """Return the settings that have no valid value, or that name objects that do not exist."""
    found: list[Problem] = []
    from_cdi = cdi is not None and is_authority(cdi)
    if cdi is not None:
        found += check_installation(cdi)
    if config is not None and not from_cdi:
        found += check_config(config)
    spec, path = effective_spec(cdi, config), "spec.config" if from_cdi else "spec"
    known = {one.name for one in storage_classes}
    scratch = spec.scratch_space_storage_class
    if scratch and scratch not in known:
        found.append(
            Problem(field=f"{path}.scratchSpaceStorageClass", message=f"StorageClass {scratch} does not exist")
        )
    found += [
        Problem(field=f"{path}.filesystemOverhead.storageClass[{name}]", message="the StorageClass does not exist")
        for name in sorted((spec.filesystem_overhead.storage_class if spec.filesystem_overhead else None) or {})
        if name not in known
    ]
    found += [
        Problem(field=f"{path}.featureGates", message=f"{gate[:80]} is not known")
        for gate in spec.feature_gates or []
        if gate not in KNOWN_GATES
    ]
    return tuple(found)


# --- effective settings -------------------------------------------------------------------------------------------


def resolve_config(
    cdi: CDI | None,
    config: CDIConfig | None,
    storage_classes: Iterable[StorageClass] = (),
    *,
    namespace: str = INSTALL_NAMESPACE,
    pods: WorkerPodConfig | None = None,
) -> ResolvedConfig:
    """Return the effective settings; invalid values (`problems`) are treated as unset.

    Args:
        cdi: The CDI object.
        config: The CDIConfig.
        storage_classes: All classes of the cluster.
        namespace: Namespace of the objects that CDIConfig names.
        pods: Settings for worker pods from the controller's options, which CDI and CDIConfig override.

    """
    spec = effective_spec(cdi, config)
    proxy = spec.import_proxy or ImportProxy()
    authority = proxy.trusted_ca_proxy
    overhead = spec.filesystem_overhead or FilesystemOverhead()
    fraction = _fraction(overhead.global_)
    pods = pods or WorkerPodConfig()
    workload = cdi.spec.workload if cdi is not None else None
    pull = cdi.spec.image_pull_policy if cdi is not None else None
    secrets = tuple(secret.name for secret in spec.image_pull_secrets or [] if secret.name)
    return ResolvedConfig(
        preallocation=bool(spec.preallocation),
        proxy=Proxy(http=proxy.http_proxy or None, https=proxy.https_proxy or None, no_proxy=proxy.no_proxy or None),
        trusted_ca=ObjectRef(kind="ConfigMap", namespace=namespace, name=authority) if authority else None,
        insecure_registries=frozenset(host.lower() for host in spec.insecure_registries or ()),
        scratch_class=scratch_class(spec.scratch_space_storage_class, storage_classes),
        overhead=DEFAULT_OVERHEAD if fraction is None else fraction,
        overheads=dict(_overheads(overhead)),
        adopts=CLAIM_ADOPTION_GATE in (spec.feature_gates or []),
        renders_claims=renders_claims(cdi, config),
        clone_strategy=cdi.spec.clone_strategy_override if cdi is not None else None,
        pods=WorkerPodConfig(
            image=pods.image,
            pull_policy=pull if pull in set(PullPolicy) and pull is not None else pods.pull_policy,
            pull_secrets=secrets or pods.pull_secrets,
            resources=_resources(spec.pod_resource_requirements, pods.resources),
            placement=workload.to_dict() if workload is not None else pods.placement,
            verbosity=pods.verbosity if spec.log_verbosity is None else max(0, spec.log_verbosity),
        ),
    )


def ignored_fields(cdi: CDI) -> tuple[str, ...]:
    """Return the fields that are set in a CDI object without effect."""
    body = cdi.to_dict()
    return tuple(field for field in NO_EFFECT if _is_set(body, field.split(".")))


def renders_claims(cdi: CDI | None, config: CDIConfig | None) -> bool:
    """Return whether PVCs with the label applyStorageProfile get defaults when they are created."""
    return effective_spec(cdi, config).webhook_pvc_rendering != "Disabled"


def adopts_claims(cdi: CDI | None, config: CDIConfig | None) -> bool:
    """Return whether a DataVolume adopts an existing PVC of its name by default."""
    return CLAIM_ADOPTION_GATE in (effective_spec(cdi, config).feature_gates or [])


# --- CDIConfig ----------------------------------------------------------------------------------------------------


def reconcile_config(cdi: CDI | None, config: CDIConfig | None, facts: ConfigFacts) -> ConfigPlan:
    """Reconcile CDIConfig ``config``: create it, copy the CDI object's spec, and report the effective settings."""
    labels = {**COMMON_LABELS, LABEL_COMPONENT: ""}
    if config is None:
        metadata: dict[str, Any] = {"name": CONFIG_NAME, "labels": labels}
        if facts.owner is not None:
            metadata["ownerReferences"] = [dict(facts.owner)]
        spec = effective_spec(cdi, None)
        return ConfigPlan(create=_config_body(metadata, spec, _config_status(spec, facts)))
    if config.metadata.deletion_timestamp is not None:
        return ConfigPlan()
    spec = effective_spec(cdi, config)
    metadata = config.metadata.to_dict()
    metadata["labels"] = {**(config.metadata.labels or {}), **labels}
    wanted = _config_body(metadata, spec, _config_status(spec, _with_known(facts, config)))
    if wanted == config.to_dict():
        return ConfigPlan()
    return ConfigPlan(update=wanted, events=invalid_event(problems(cdi, config, facts.storage_classes)))


def _with_known(facts: ConfigFacts, config: CDIConfig) -> ConfigFacts:
    old = config.status
    if facts.upload_proxy_known or old is None:
        return facts
    return replace(facts, upload_proxy_url=old.upload_proxy_url, upload_proxy_ca=old.upload_proxy_ca)


def _config_body(metadata: Mapping[str, Any], spec: ConfigSpec, status: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": CDIConfig.group_version,
        "kind": CDIConfig.kind_name(),
        "metadata": dict(metadata),
        "spec": spec.to_dict(),
        "status": dict(status),
    }


def _config_status(spec: ConfigSpec, facts: ConfigFacts) -> dict[str, Any]:
    overhead = spec.filesystem_overhead or FilesystemOverhead()
    usual = overhead.global_ if _fraction(overhead.global_) is not None else "0.06"
    own = {name: (overhead.storage_class or {})[name] for name, _ in _overheads(overhead)}
    status: dict[str, Any] = {
        "defaultPodResourceRequirements": _resources(spec.pod_resource_requirements, {}),
        "filesystemOverhead": {
            "global": usual,
            "storageClass": {one.name: own.get(one.name, usual) for one in sorted(facts.storage_classes, key=_name)},
        },
        "importProxy": spec.import_proxy.to_dict()
        if spec.import_proxy is not None
        # Clients read the members without checking that the proxy is set.
        else {"HTTPProxy": "", "HTTPSProxy": "", "noProxy": "", "trustedCAProxy": ""},
        "preallocation": bool(spec.preallocation),
        "scratchSpaceStorageClass": scratch_class(spec.scratch_space_storage_class, facts.storage_classes) or "",
    }
    if spec.image_pull_secrets is not None:
        status["imagePullSecrets"] = [secret.to_dict() for secret in spec.image_pull_secrets]
    url = spec.upload_proxy_url_override or facts.upload_proxy_url
    if url:
        status["uploadProxyURL"] = url
    if facts.upload_proxy_ca:
        status["uploadProxyCA"] = facts.upload_proxy_ca
    return status


def invalid_event(found: tuple[Problem, ...]) -> tuple[Event, ...]:
    if not found:
        return ()
    return (Event(type="Warning", reason=INVALID, message=describe_problems(found)),)


# --- values -------------------------------------------------------------------------------------------------------


def is_authority(cdi: CDI) -> bool:
    # An administrator's spec.config is authoritative even before the annotation has been added.
    return ANN_CONFIG_AUTHORITY in (cdi.metadata.annotations or {}) or cdi.spec.config is not None


def _name(one: StorageClass) -> str:
    return one.name


def _fraction(text: str | None) -> Fraction | None:
    if not text:
        return None
    try:
        return parse_overhead(text)
    except InvalidManifest:
        return None


def _overheads(overhead: FilesystemOverhead) -> list[tuple[str, Fraction]]:
    read = ((name, _fraction(text)) for name, text in (overhead.storage_class or {}).items())
    return [(name, fraction) for name, fraction in read if fraction is not None]


def _resources(asked: ResourceRequirements | None, otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """Return limits and requests for CPU and memory, and resource claims, as an API object.

    Values come from `asked`, else from `otherwise`, else from the defaults. A request never exceeds its limit, because
    the API server would reject that.
    """
    given = asked.to_dict() if asked is not None else {}
    merged: dict[str, Any] = {
        part: {**DEFAULT_RESOURCES[part], **(otherwise.get(part) or {}), **(given.get(part) or {})}
        for part in ("limits", "requests")
    }
    limits, requests = merged["limits"], merged["requests"]
    for name in requests.keys() & limits.keys():
        if Quantity.parse(requests[name]) > Quantity.parse(limits[name]):
            # Only one of them can have been set explicitly; the other is a default and is adjusted.
            if name in (given.get("requests") or {}):
                limits[name] = requests[name]
            else:
                requests[name] = limits[name]
    claims = given.get("claims") or otherwise.get("claims")
    return {**merged, "claims": claims} if claims else merged


def _is_set(body: Any, path: list[str]) -> bool:
    for name in path:
        body = body.get(name) if isinstance(body, dict) else None
    return body not in (None, {}, [], "")


def describe_problems(found: tuple[Problem, ...]) -> str:
    return "Not followed: " + "; ".join(str(problem) for problem in found) + "."
