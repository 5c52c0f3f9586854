"""Validation of the administrator's objects: CDI, CDIConfig and StorageProfile."""

from __future__ import annotations

from cdi.api.claims import VolumeMode
from cdi.api.configuration import (
    CDIConfig,
    ConfigSpec,
    FilesystemOverhead,
    ImportProxy,
    ResourceRequirements,
    TlsSecurityProfile,
)
from cdi.api.errors import InvalidManifest
from cdi.api.installation import CDI, CertConfig, ComponentPatch, PullPolicy, UninstallStrategy
from cdi.api.overhead import parse_overhead
from cdi.api.rules.claims import check_access_modes
from cdi.api.rules.durations import parse_duration
from cdi.api.rules.problems import (
    Cause,
    Problem,
    Problems,
    each,
    has_control_characters,
    object_name,
    one_of,
    optional_name,
    truncate,
)
from cdi.api.rules.urls import HTTP_SCHEMES, check_url
from cdi.api.storageprofile import MAX_CLAIM_PROPERTY_SETS, CloneStrategy, CronSourceFormat, StorageProfile

TLS_PROFILES = ("Old", "Intermediate", "Modern", "Custom")
TLS_VERSIONS = ("VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13")
PATCH_TYPES = ("json", "merge", "strategic")


def check_storage_profile(profile: StorageProfile) -> Problems:
    """Yield the problems of a StorageProfile."""
    spec, field = profile.spec, "spec"
    yield from one_of(spec.clone_strategy, tuple(CloneStrategy), f"{field}.cloneStrategy")
    yield from one_of(
        spec.data_import_cron_source_format, tuple(CronSourceFormat), f"{field}.dataImportCronSourceFormat"
    )
    yield from optional_name(spec.snapshot_class, f"{field}.snapshotClass", "VolumeSnapshotClass")
    sets = spec.claim_property_sets or []
    path = f"{field}.claimPropertySets"
    if len(sets) > MAX_CLAIM_PROPERTY_SETS:
        yield Problem(field=path, message=f"Too many: {len(sets)}: must have at most {MAX_CLAIM_PROPERTY_SETS} items")
    for index, one in enumerate(sets[:MAX_CLAIM_PROPERTY_SETS]):
        if not one.access_modes:
            yield Problem(
                field=f"{path}[{index}].accessModes",
                message="Required value: at least 1 access mode is required",
                cause=Cause.REQUIRED,
            )
        yield from check_access_modes(one.access_modes, f"{path}[{index}].accessModes")
        if not one.volume_mode:
            yield Problem(
                field=f"{path}[{index}].volumeMode", message="Required value: Block or Filesystem", cause=Cause.REQUIRED
            )
        yield from one_of(one.volume_mode, (VolumeMode.BLOCK, VolumeMode.FILESYSTEM), f"{path}[{index}].volumeMode")


def check_config(config: CDIConfig) -> Problems:
    """Yield the problems of a CDIConfig."""
    yield from _config(config.spec, "spec")


def _config(spec: ConfigSpec, field: str) -> Problems:
    if spec.upload_proxy_url_override and has_control_characters(spec.upload_proxy_url_override):
        yield Problem(field=f"{field}.uploadProxyURLOverride", message="it holds control characters")
    yield from _overhead(spec.filesystem_overhead, f"{field}.filesystemOverhead")
    yield from _proxy(spec.import_proxy, f"{field}.importProxy")
    yield from optional_name(spec.scratch_space_storage_class, f"{field}.scratchSpaceStorageClass", "StorageClass")
    yield from _resources(spec.pod_resource_requirements, f"{field}.podResourceRequirements")
    yield from each(spec.insecure_registries, f"{field}.insecureRegistries", _registry_host)
    yield from _tls(spec.tls_security_profile, f"{field}.tlsSecurityProfile")
    for index, secret in enumerate(spec.image_pull_secrets or []):
        yield from object_name(secret.name or "", f"{field}.imagePullSecrets[{index}].name", "Secret")
    if spec.log_verbosity is not None and spec.log_verbosity < 0:
        yield Problem(field=f"{field}.logVerbosity", message="it is less than 0")


def check_installation(cdi: CDI) -> Problems:
    """Yield the problems of a CDI."""
    spec, field = cdi.spec, "spec"
    yield from one_of(spec.image_pull_policy, tuple(PullPolicy), f"{field}.imagePullPolicy")
    yield from one_of(spec.uninstall_strategy, tuple(UninstallStrategy), f"{field}.uninstallStrategy")
    yield from one_of(spec.clone_strategy_override, tuple(CloneStrategy), f"{field}.cloneStrategyOverride")
    if spec.config is not None:
        yield from _config(spec.config, f"{field}.config")
    if spec.cert_config is not None:
        for name in ("ca", "server", "client"):
            yield from _certificate(getattr(spec.cert_config, name), f"{field}.certConfig.{name}")
    if spec.infra is not None:
        replicas = {
            "deploymentReplicas": spec.infra.deployment_replicas,
            "apiServerReplicas": spec.infra.api_server_replicas,
            "uploadProxyReplicas": spec.infra.upload_proxy_replicas,
        }
        for name, count in replicas.items():
            if count is not None and count < 0:
                yield Problem(field=f"{field}.infra.{name}", message="it is less than 0")
    patches = (spec.customize_components.patches if spec.customize_components else None) or []
    for index, patch in enumerate(patches):
        yield from _patch(patch, f"{field}.customizeComponents.patches[{index}]")
    yield from optional_name(spec.priority_class, f"{field}.priorityClass", "PriorityClass")


def _overhead(overhead: FilesystemOverhead | None, field: str) -> Problems:
    if overhead is None:
        return
    values = {"global": overhead.global_} | {
        f"storageClass[{truncate(name)}]": value for name, value in (overhead.storage_class or {}).items()
    }
    for name, value in values.items():
        if not value:
            continue
        try:
            parse_overhead(value)
        except InvalidManifest as error:
            yield Problem(field=f"{field}.{name}", message=error.what)


def _proxy(proxy: ImportProxy | None, field: str) -> Problems:
    if proxy is None:
        return
    if proxy.http_proxy:
        yield from check_url(proxy.http_proxy, HTTP_SCHEMES, f"{field}.HTTPProxy")
    if proxy.https_proxy:
        yield from check_url(proxy.https_proxy, HTTP_SCHEMES, f"{field}.HTTPSProxy")
    if proxy.no_proxy and has_control_characters(proxy.no_proxy):
        yield Problem(field=f"{field}.noProxy", message="it holds control characters")
    yield from optional_name(proxy.trusted_ca_proxy, f"{field}.trustedCAProxy", "ConfigMap")


def _resources(resources: ResourceRequirements | None, field: str) -> Problems:
    if resources is None:
        return
    limits, requests = resources.limits or {}, resources.requests or {}
    for part, values in (("limits", limits), ("requests", requests)):
        for name, amount in values.items():
            if amount.value < 0:
                yield Problem(field=f"{field}.{part}.{truncate(name)}", message=f"{amount} is less than 0")
    for name in requests.keys() & limits.keys():
        if requests[name] > limits[name]:
            yield Problem(
                field=f"{field}.requests.{truncate(name)}",
                message=f"{requests[name]} is more than the limit of {limits[name]}",
            )


def _tls(profile: TlsSecurityProfile | None, field: str) -> Problems:
    if profile is None:
        return
    yield from one_of(profile.type, TLS_PROFILES, f"{field}.type")
    if profile.type == "Custom" and profile.custom is None:
        yield Problem(
            field=f"{field}.custom", message="Required value: type Custom needs its settings", cause=Cause.REQUIRED
        )
    if profile.custom is not None:
        yield from one_of(profile.custom.min_tls_version, TLS_VERSIONS, f"{field}.custom.minTLSVersion")


def _certificate(config: CertConfig | None, field: str) -> Problems:
    if config is None:
        return
    duration = parse_duration(config.duration) if config.duration else None
    before = parse_duration(config.renew_before) if config.renew_before else None
    if config.duration and not duration:
        yield Problem(
            field=f"{field}.duration", message=f"{truncate(config.duration)!r} is not a duration such as 48h0m0s"
        )
    if config.renew_before and before is None:
        yield Problem(
            field=f"{field}.renewBefore", message=f"{truncate(config.renew_before)!r} is not a duration such as 24h0m0s"
        )
    if duration and before is not None and before >= duration:
        yield Problem(field=f"{field}.renewBefore", message="it is not shorter than the duration")


def _patch(patch: ComponentPatch, field: str) -> Problems:
    for name, value in (("resourceName", patch.resource_name), ("resourceType", patch.resource_type)):
        if not value:
            yield Problem(field=f"{field}.{name}", message="Required value: it is empty", cause=Cause.REQUIRED)
    if patch.type not in PATCH_TYPES:
        yield from one_of(patch.type or '""', PATCH_TYPES, f"{field}.type")


def _registry_host(host: str, field: str) -> Problems:
    if not host or "/" in host or has_control_characters(host) or " " in host:
        yield Problem(field=field, message=f"{truncate(host)!r} is not a registry such as registry.example:5000")
