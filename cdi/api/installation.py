"""CDI: the installation itself."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from cdi.api.configuration import ConfigSpec
from cdi.api.meta import Condition, KubeObject
from cdi.api.model import Int32, Model
from cdi.api.scheduling import NodePlacement
from cdi.api.storageprofile import CloneStrategy


class UninstallStrategy(enum.StrEnum):
    """Behavior when the CDI object is deleted while DataVolumes exist."""

    REMOVE_WORKLOADS = "RemoveWorkloads"
    BLOCK_IF_WORKLOADS_EXIST = "BlockUninstallIfWorkloadsExist"


class PullPolicy(enum.StrEnum):
    """Pull policy of container images."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class CertConfig(Model):
    """How long a certificate lives."""

    duration: str | None = None
    """Its lifetime, such as 48h0m0s."""
    renew_before: str | None = None
    """How long before its end it is replaced."""


class CertificateSettings(Model):
    """How long certificates live."""

    ca: CertConfig | None = None
    """Of the authorities; old ones stay trusted while they are valid."""
    server: CertConfig | None = None
    """Of the servers."""
    client: CertConfig | None = None
    """Of the clients."""


class InfraPlacement(NodePlacement):
    """Placement and number of replicas of the control plane."""

    deployment_replicas: Int32 | None = None
    """Copies of the controller."""
    api_server_replicas: Int32 | None = None
    """Copies of the API server."""
    upload_proxy_replicas: Int32 | None = None
    """Copies of the upload proxy."""


class ComponentPatch(Model):
    """A change to one of the objects that are installed."""

    resource_name: Annotated[str, Field(json_schema_extra={"minLength": 1})]
    """The object's name."""
    resource_type: Annotated[str, Field(json_schema_extra={"minLength": 1})]
    """The object's kind."""
    patch: str
    """The patch itself, as JSON."""
    type: str
    """json, merge or strategic."""


PatchList = Annotated[list[ComponentPatch], Field(json_schema_extra={"x-kubernetes-list-type": "atomic"})]


class ComponentFlags(Model):
    """Command-line flags of the components."""

    api: dict[str, str] | None = None
    """Of the API server."""
    controller: dict[str, str] | None = None
    """Of the controller."""
    upload_proxy: dict[str, str] | None = None
    """Of the upload proxy."""


class CustomizeComponents(Model):
    """Changes to what is installed."""

    patches: PatchList | None = None
    """Changes to single objects."""
    flags: ComponentFlags | None = None
    """Command-line flags."""


class CDISpec(Model):
    """Desired state of the installation."""

    image_pull_policy: Annotated[str, Field(json_schema_extra={"enum": [str(one) for one in PullPolicy]})] | None = None
    """Always, IfNotPresent or Never."""
    uninstall_strategy: (
        Annotated[str, Field(json_schema_extra={"enum": [str(one) for one in UninstallStrategy]})] | None
    ) = None
    """RemoveWorkloads or BlockUninstallIfWorkloadsExist."""
    infra: InfraPlacement | None = None
    """Placement of the control plane."""
    workload: NodePlacement | None = None
    """Placement of worker pods."""
    customize_components: CustomizeComponents | None = None
    """Changes to what is installed."""
    clone_strategy_override: (
        Annotated[str, Field(json_schema_extra={"enum": [str(one) for one in CloneStrategy]})] | None
    ) = None
    """copy, snapshot or csi-clone: goes before every storage profile."""
    config: ConfigSpec | None = None
    """Settings that are copied to CDIConfig."""
    cert_config: CertificateSettings | None = None
    """How long certificates live."""
    priority_class: str | None = None
    """The priority class of the control plane."""


class CDIStatus(Model):
    """Observed state of the installation."""

    phase: str | None = None
    """Deploying, Deployed, Deleting, Deleted, Upgrading or Error."""
    conditions: list[Condition] | None = None
    """Available, Progressing and Degraded."""
    operator_version: str | None = None
    """The version of the operator."""
    target_version: str | None = None
    """The desired version of the resource: that of the release which is being installed."""
    observed_version: str | None = None
    """The observed version of the resource: that of the control plane once all of it runs."""


class CDI(KubeObject):
    """The installation of CDI in a cluster."""

    spec: CDISpec
    """Desired state of the installation."""
    status: CDIStatus | None = None
    """CDIStatus defines the status of the installation; written by the controller."""
