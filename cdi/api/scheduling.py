"""Scheduling constraints: the parts of a pod's spec that the CDI object defines for pods."""

from __future__ import annotations

from cdi.api.meta import LabelSelector
from cdi.api.model import Int32, Int64, Model


class NodeSelectorRequirement(Model):
    """One requirement on a node."""

    key: str
    """The label or field."""
    operator: str
    """In, NotIn, Exists, DoesNotExist, Gt or Lt."""
    values: list[str] | None = None
    """Values that the label is compared with."""


class NodeSelectorTerm(Model):
    """Requirements that a node meets together."""

    match_expressions: list[NodeSelectorRequirement] | None = None
    """On its labels."""
    match_fields: list[NodeSelectorRequirement] | None = None
    """On its fields."""


class NodeSelector(Model):
    """Nodes that meet at least one term."""

    node_selector_terms: list[NodeSelectorTerm]
    """The terms, any of which is enough."""


class PreferredSchedulingTerm(Model):
    """A term that a node should meet."""

    weight: Int32
    """1 to 100."""
    preference: NodeSelectorTerm
    """The term."""


class NodeAffinity(Model):
    """Placement of pods on nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Must be met."""
    preferred_during_scheduling_ignored_during_execution: list[PreferredSchedulingTerm] | None = None
    """Should be met."""


class PodAffinityTerm(Model):
    """Pods that matter for the place of another."""

    label_selector: LabelSelector | None = None
    """Which pods."""
    namespace_selector: LabelSelector | None = None
    """In which namespaces, by their labels."""
    namespaces: list[str] | None = None
    """In which namespaces, by their names."""
    topology_key: str
    """The node label whose value tells what is the same place."""
    match_label_keys: list[str] | None = None
    """Labels whose values are taken from the new pod."""
    mismatch_label_keys: list[str] | None = None
    """Labels whose values must differ from the new pod's."""


class WeightedPodAffinityTerm(Model):
    """A term that a place should meet."""

    weight: Int32
    """1 to 100."""
    pod_affinity_term: PodAffinityTerm
    """The term."""


class PodAffinity(Model):
    """Near, or far from, which other pods a pod runs."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] | None = None
    """Must be met."""
    preferred_during_scheduling_ignored_during_execution: list[WeightedPodAffinityTerm] | None = None
    """Should be met."""


class Affinity(Model):
    """Which places suit a pod."""

    node_affinity: NodeAffinity | None = None
    """By nodes."""
    pod_affinity: PodAffinity | None = None
    """Near other pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Far from other pods."""


class Toleration(Model):
    """A taint that does not keep a pod away."""

    key: str | None = None
    """The taint's key; any where none is given."""
    operator: str | None = None
    """Exists or Equal."""
    value: str | None = None
    """The taint's value, for Equal."""
    effect: str | None = None
    """NoSchedule, PreferNoSchedule or NoExecute; any where none is given."""
    toleration_seconds: Int64 | None = None
    """Seconds that the pod stays in spite of NoExecute."""


class NodePlacement(Model):
    """Placement of pods on nodes: node selector, affinity and tolerations."""

    node_selector: dict[str, str] | None = None
    """Labels that the node must have."""
    affinity: Affinity | None = None
    """Which places suit."""
    tolerations: list[Toleration] | None = None
    """Taints that do not keep the pods away."""
