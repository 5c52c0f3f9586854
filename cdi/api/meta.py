"""Common parts of objects: metadata, conditions and references to other objects."""

from __future__ import annotations

from pydantic import Field

from cdi.api.model import FreeForm, Int64, Model, Resource


class OwnerReference(Model):
    """Owner of an object; the object is deleted with its owner."""

    api_version: str
    """The owner's group and version."""
    kind: str
    """The owner's kind."""
    name: str
    """The owner's name."""
    uid: str
    """The owner's uid: another object of the same name is not the owner."""
    controller: bool | None = None
    """This owner manages the object; there is at most one."""
    block_owner_deletion: bool | None = None
    """The owner waits for this object when it is deleted in the foreground."""


class ObjectMeta(Model):
    """Standard metadata of an object."""

    name: str | None = None
    """Unique in its namespace; cannot be changed."""
    generate_name: str | None = None
    """A prefix from which the server makes a name, where none is given."""
    namespace: str | None = None
    """The namespace; absent on cluster-scoped objects."""
    uid: str | None = None
    """Unique over time and space; set by the server."""
    resource_version: str | None = None
    """Changes with every write; set by the server."""
    generation: Int64 | None = None
    """Counts the changes of the spec; set by the server."""
    creation_timestamp: str | None = None
    """RFC 3339; set by the server."""
    deletion_timestamp: str | None = None
    """RFC 3339; the object is deleted when its finalizers have been removed."""
    deletion_grace_period_seconds: Int64 | None = None
    """Seconds; set by the server."""
    labels: dict[str, str] | None = None
    """Short values that objects are selected by."""
    annotations: dict[str, str] | None = None
    """Notes of any kind, by users and programs."""
    finalizers: list[str] | None = None
    """Who must act before the object may go."""
    owner_references: list[OwnerReference] | None = None
    """The objects that this one depends on."""
    managed_fields: list[FreeForm] | None = None
    """Who set which field; kept by the server."""
    self_link: str | None = None
    """Withdrawn from Kubernetes; still found in old exports."""


class KubeObject(Resource):
    """Object with metadata."""

    api_version: str | None = None
    """The group and version of this object's schema."""
    kind: str | None = None
    """The kind of this object."""
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)
    """Standard object metadata."""


class LocalObjectReference(Model):
    """An object of the same namespace."""

    name: str | None = None
    """Its name."""


class TypedLocalObjectReference(Model):
    """An object of any kind in the same namespace."""

    api_group: str | None = None
    """Its API group; absent for the core group."""
    kind: str
    """Its kind."""
    name: str
    """Its name."""


class TypedObjectReference(TypedLocalObjectReference):
    """An object of any kind, perhaps in another namespace."""

    namespace: str | None = None
    """Its namespace; that of the referrer where none is given."""


class LabelSelectorRequirement(Model):
    """One requirement on labels."""

    key: str
    """The label."""
    operator: str
    """In, NotIn, Exists or DoesNotExist."""
    values: list[str] | None = None
    """For In and NotIn."""


class LabelSelector(Model):
    """Objects that meet all requirements."""

    match_labels: dict[str, str] | None = None
    """Labels that have exactly these values."""
    match_expressions: list[LabelSelectorRequirement] | None = None
    """Further requirements."""


class Condition(Model):
    """One aspect of an object's state."""

    type: str
    """Which aspect."""
    status: str
    """True, False or Unknown."""
    last_transition_time: str | None = None
    """RFC 3339; when the status last changed."""
    last_heartbeat_time: str | None = None
    """RFC 3339; when anything of the condition was last written."""
    reason: str | None = None
    """One word for programs: why it is so."""
    message: str | None = None
    """One or two sentences for people: why it is so and what to do."""
