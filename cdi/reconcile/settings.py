"""Settings of a reconciler: CDIConfig, retry policy and capabilities of the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from cdi.api.job import Proxy
from cdi.api.overhead import NO_OVERHEAD
from cdi.reconcile.actions import ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPodConfig:
    """Settings for worker pods, from the controller's options, CDIConfig and the CDI object."""

    image: str = ""
    """The container image of the worker."""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Names from CDIConfig's imagePullSecrets."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """CDIConfig's podResourceRequirements as an API object (``limits``, ``requests``).

    Omitted values get the defaults of `cdi.reconcile.pods.builder`.
    """
    placement: Mapping[str, Any] = field(default_factory=dict)
    """The CDI object's ``spec.workload`` as an API object: ``nodeSelector``, ``affinity``, ``tolerations``."""
    verbosity: int = 1
    """CDIConfig's logVerbosity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """The resolved values of CDIConfig."""

    preallocation: bool = False
    proxy: Proxy = field(default_factory=Proxy)
    trusted_ca: ObjectRef | None = None
    """The CA certificates of the proxy."""
    insecure_registries: frozenset[str] = frozenset()
    """Registries as ``host`` or ``host:port``."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels added to every created object."""
    scratch_class: str | None = None
    """The storage class of scratch space; None for that of the volume being filled."""
    overhead: Fraction = NO_OVERHEAD
    """Filesystem overhead as a fraction of the disk's size (`cdi.api.overhead`)."""
    overheads: Mapping[str, Fraction] = field(default_factory=dict)
    """Filesystem overhead by storage class."""
    adopts: bool = False
    """Whether a DataVolume adopts a PVC of its name that has no controller, unless its annotation says otherwise."""
    renders_claims: bool = False
    """Whether the webhook completes new PVCs with the label applyStorageProfile."""
    clone_strategy: str | None = None
    """The CDI object's cloneStrategyOverride."""
    pods: WorkerPodConfig = field(default_factory=WorkerPodConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Retry policy for failed attempts, with a jitter of 25 % either way."""

    budget: int | None = 10
    """Maximum number of consecutive transient failures without progress; None for no limit."""
    base: float = 1.0
    """Delay in seconds before the second attempt after a transient failure; it doubles with each further one."""
    longest: float = 120.0
    """Maximum of these delays, in seconds."""
    base_on_change: float = 10.0
    """Delay in seconds before the second attempt after a failure that only a user can resolve; it doubles as well."""
    longest_on_change: float = 60.0
    """Maximum of these delays, in seconds."""
    patience: float = 60.0
    """Polling interval, in seconds, for state whose changes cause no event."""


CLUSTER_RETRIES: Final = Retries(budget=None, longest=240.0, longest_on_change=240.0)
"""Unlimited retries with delays of up to five minutes, as in KubeVirt's CDI: no user is waiting in the foreground."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Capabilities of the environment."""

    local_files: bool = False
    """Whether manifests may name files of this machine (a key ring)."""
    snapshots: bool = False
    image_streams: bool = False
    cluster: bool = False
    """Whether workers are pods and other controllers provision volumes; `ReconcileContext` then holds their objects."""
