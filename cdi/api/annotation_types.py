"""Types of annotations that hold state: how their values are written, and read with bounds.

Anybody who may write an object may write its annotations. An accessor therefore bounds what it parses and returns None
for a value that it would not have written; its reader treats that as a value that was never written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from cdi.api.copy import Ticket
from cdi.api.decode import DecodeError, compact_json, decode
from cdi.api.errors import CdiError
from cdi.api.json_document import parse_json
from cdi.api.timestamps import parse_timestamp, timestamp

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Record = TypeVar("Record", bound=DataclassInstance)

Annotations = Mapping[str, str]
Entry = dict[str, str]
"""Annotation to be written, by its name."""

MAX_TEXT: Final = 256 << 10
"""Maximum size of a value in bytes: Kubernetes limits the annotations of an object to that together."""
_MAX_NUMBER_DIGITS = 9
_MAX_SIZE_DIGITS = 19


def annotations_of(body: Mapping[str, Any] | None) -> Annotations:
    """Return the annotations of an API object; none if there is no object."""
    annotations: Annotations = ((body or {}).get("metadata") or {}).get("annotations") or {}
    return annotations


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Name and description of one annotation; the base of the accessors."""

    key: str
    on: str
    """Objects that have it."""
    written_by: str
    read_by: str
    content: str
    recovery: str
    """What happens if the value is missing, invalid or older than what it describes."""
    suffix: ClassVar[str] = ""
    """What the documentation says after the key of a group of annotations."""

    @property
    def field_path(self) -> str:
        """Path of the value in a pod, for the downward API."""
        return f"metadata.annotations['{self.key}']"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAnnotation(Annotation):
    """Text that is not interpreted, such as a UID."""

    max_size: int = MAX_TEXT

    def read(self, annotations: Annotations) -> str | None:
        """Return the text; None if it is missing, empty or too long."""
        text = annotations.get(self.key)
        return text if text and len(text) <= self.max_size else None

    def write(self, text: str) -> Entry:
        return {self.key: text}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagAnnotation(Annotation):
    """Mark that an object either has or does not have."""

    def read(self, annotations: Annotations) -> bool:
        return annotations.get(self.key) == "true"

    def write(self) -> Entry:
        return {self.key: "true"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberAnnotation(Annotation):
    """Number that is not negative."""

    def read(self, annotations: Annotations) -> int | None:
        """Return the number; None if it is missing, no decimal number, or longer than nine digits."""
        text = annotations.get(self.key, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_NUMBER_DIGITS else None

    def write(self, number: int) -> Entry:
        return {self.key: str(number)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeAnnotation(Annotation):
    """Moment as in RFC 3339."""

    def read(self, annotations: Annotations) -> datetime | None:
        return parse_timestamp(annotations.get(self.key))

    def write(self, seconds: float) -> Entry:
        """Return the annotation for a moment in seconds since the epoch."""
        return {self.key: timestamp(datetime.fromtimestamp(seconds, UTC))}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceAnnotation(Annotation):
    """Reference ``namespace/name`` to an object."""

    def read(self, annotations: Annotations) -> tuple[str, str] | None:
        """Return namespace and name; None unless both are there."""
        namespace, _, name = annotations.get(self.key, "").partition("/")
        return (namespace, name) if namespace and name and "/" not in name else None

    def write(self, namespace: str, name: str) -> Entry:
        return {self.key: f"{namespace}/{name}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordAnnotation(Annotation):
    """JSON of a dataclass, which the caller names because its methods belong to the reconciler that uses it."""

    max_size: int = MAX_TEXT

    def parse(self, record: type[Record], text: str | None) -> Record | None:
        """Return the value of a text; None if it is missing, too long or not valid for `record`.

        Fields that `record` does not have are ignored, as an earlier or later version may have written them.
        """
        if not text or len(text) > self.max_size:
            return None
        try:
            return decode(record, text, allow_unknown=True)
        except DecodeError:
            return None

    def read(self, record: type[Record], annotations: Annotations) -> Record | None:
        """Return the value, as `parse` does."""
        return self.parse(record, annotations.get(self.key))

    def format(self, value: DataclassInstance) -> str:
        return compact_json(asdict(value))

    def write(self, value: DataclassInstance) -> Entry:
        return {self.key: self.format(value)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectAnnotation(Annotation):
    """JSON object without a schema of its own."""

    max_size: int = MAX_TEXT
    sort_keys: bool = True

    def read(self, annotations: Annotations) -> dict[str, Any] | None:
        """Return the object; None if it is missing, too long or not a JSON object."""
        text = annotations.get(self.key)
        if not text or len(text) > self.max_size:
            return None
        try:
            found = parse_json(text)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def write(self, value: Mapping[str, Any]) -> Entry:
        return {self.key: json.dumps(value, separators=(",", ":"), sort_keys=self.sort_keys)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSizeAnnotation(Annotation):
    """Size of the disk in one volume: ``BYTES of UID``, or ``unknown of UID``."""

    def read(self, annotations: Annotations, uid: str) -> int | None:
        """Return the size in bytes of the disk in the PVC `uid`; 0 if undetectable, None if not recorded."""
        size, _, of = annotations.get(self.key, "").partition(" of ")
        if of != uid:
            return None
        return int(size) if size.isascii() and size.isdigit() and len(size) <= _MAX_SIZE_DIGITS else 0

    def write(self, size: int | None, uid: str) -> Entry:
        """Return the annotation for a size in bytes; None if it cannot be detected."""
        return {self.key: f"{'unknown' if size is None else size} of {uid}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketAnnotations(Annotation):
    """Group of annotations: one `Ticket` for each target of a source pod."""

    suffix: ClassVar[str] = " and the target's id"

    def read(self, annotations: Annotations) -> dict[str, Ticket]:
        """Return the valid tickets by the target's id."""
        found: dict[str, Ticket] = {}
        for name, text in annotations.items():
            if name.startswith(self.key):
                try:
                    found[name.removeprefix(self.key)] = Ticket.from_json(text)
                except CdiError:
                    continue
        return found

    def write(self, target: str, ticket: Ticket | None) -> dict[str, str | None]:
        """Return the annotation for one target; with None, its removal."""
        return {f"{self.key}{target}": None if ticket is None else ticket.to_json()}
