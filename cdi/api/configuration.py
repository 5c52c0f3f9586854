"""CDIConfig: configuration of the controllers and workers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cdi.api.meta import KubeObject, LocalObjectReference
from cdi.api.model import Amount, Int32, Model

CONFIG_NAME = "config"
"""Name of the cluster's only CDIConfig."""

Percent = Annotated[str, Field(json_schema_extra={"pattern": r"^(0(?:\.\d{1,3})?|1)$"})]


class FilesystemOverhead(Model):
    """How much of a volume the file system keeps for itself."""

    global_: Percent | None = None
    """The fraction for every storage class, such as 0.06."""
    storage_class: dict[str, Percent] | None = None
    """Fractions for single storage classes."""


class ImportProxy(Model):
    """The proxy that importers use."""

    http_proxy: str | None = None
    """For http://, as http://user:password@host:port."""
    https_proxy: str | None = None
    """For https://, as http://user:password@host:port."""
    no_proxy: str | None = None
    """Hosts, domains and networks that are reached directly, separated by commas."""
    trusted_ca_proxy: str | None = None
    """A ConfigMap with certificates that are trusted beside the system's."""


class ResourceClaim(Model):
    """A device that a pod claims."""

    name: str
    """The claim's name in the pod."""
    request: str | None = None
    """Which request of the claim."""


class ResourceRequirements(Model):
    """Processor and memory of a pod."""

    limits: dict[str, Amount] | None = None
    """At most this much."""
    requests: dict[str, Amount] | None = None
    """At least this much."""
    claims: list[ResourceClaim] | None = None
    """Devices."""


class EmptyProfile(Model):
    """A predefined profile; it has no settings."""


class CustomTlsProfile(Model):
    """A profile of the administrator's own."""

    ciphers: list[str] | None = None
    """Cipher suites by their OpenSSL names."""
    min_tls_version: str | None = None
    """VersionTLS10, VersionTLS11, VersionTLS12 or VersionTLS13."""


class TlsSecurityProfile(Model):
    """Which TLS versions and ciphers the servers offer."""

    type: str | None = None
    """Old, Intermediate, Modern or Custom."""
    old: EmptyProfile | None = None
    """Settings of Old; none."""
    intermediate: EmptyProfile | None = None
    """Settings of Intermediate; none."""
    modern: EmptyProfile | None = None
    """Settings of Modern; none."""
    custom: CustomTlsProfile | None = None
    """Settings of Custom."""


class ConfigSpec(Model):
    """How the controllers and workers behave."""

    upload_proxy_url_override: str | None = None
    """The URL that clients upload to, instead of the one that was found."""
    import_proxy: ImportProxy | None = None
    """The proxy that importers use."""
    scratch_space_storage_class: str | None = None
    """The storage class of scratch space."""
    pod_resource_requirements: ResourceRequirements | None = None
    """Processor and memory of worker pods."""
    feature_gates: list[str] | None = None
    """Features to turn on."""
    filesystem_overhead: FilesystemOverhead | None = None
    """How much of a volume the file system keeps for itself; 0.06 where nothing is said."""
    preallocation: bool | None = None
    """Whether volumes are preallocated where a DataVolume does not say."""
    insecure_registries: list[str] | None = None
    """Registries, as host or host:port, that are used without checking TLS."""
    data_volume_ttl_seconds: Int32 | None = None
    """Withdrawn: DataVolumes are not deleted after their completion."""
    tls_security_profile: TlsSecurityProfile | None = None
    """Which TLS versions and ciphers the servers offer."""
    image_pull_secrets: list[LocalObjectReference] | None = None
    """Secrets for pulling the worker's container image."""
    log_verbosity: Int32 | None = None
    """How much is logged; 0 is least."""
    webhook_pvc_rendering: str | None = None
    """Whether claims with the label applyStorageProfile are completed when they are created."""


class ConfigStatus(Model):
    """Observed state: the settings in force."""

    upload_proxy_url: str | None = None
    """The calculated upload proxy URL: spec.uploadProxyURLOverride, or the host of an Ingress to the proxy."""
    upload_proxy_ca: str | None = None
    """The certificate authority of the upload proxy, PEM."""
    import_proxy: ImportProxy | None = None
    """The proxy that importers use."""
    scratch_space_storage_class: str | None = None
    """The storage class of scratch space."""
    default_pod_resource_requirements: ResourceRequirements | None = None
    """Processor and memory of worker pods."""
    filesystem_overhead: FilesystemOverhead | None = None
    """How much of a volume the file system keeps for itself."""
    preallocation: bool | None = None
    """Whether volumes are preallocated where a DataVolume does not say."""
    image_pull_secrets: list[LocalObjectReference] | None = None
    """Secrets for pulling the worker's container image."""


class CDIConfig(KubeObject):
    """How the controllers and workers behave; there is one, named config, kept in step with the CDI object."""

    spec: ConfigSpec
    """Settings of the administrator."""
    status: ConfigStatus | None = None
    """CDIConfigStatus provides the most recently observed status of the CDI Config; written by the controller."""
