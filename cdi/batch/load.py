"""Loading of a batch from files: lists of images, or manifests of DataVolumes and the objects that they need.

All problems are reported at once, before anything is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from cdi.api.annotation_types import annotations_of
from cdi.api.errors import CdiError, InvalidManifest, UsageError
from cdi.api.json_document import plain
from cdi.api.kinds import kind_named
from cdi.api.model import unknown_fields
from cdi.api.names import ANN_ALLOW_CLAIM_ADOPTION, ANN_IMMEDIATE_BINDING, ANN_PRE_POPULATED
from cdi.api.rules.problems import Problem, truncate
from cdi.api.validation import parse, parse_manifest
from cdi.batch.entries import is_images_file, read_images_file
from cdi.batch.images import Rejected, finish, image_item
from cdi.client.document import Document
from cdi.client.locate import absolute
from cdi.client.manifests import load
from cdi.explain.item import Batch, Item, size_of, with_size
from cdi.store.base import Key, Object

_MAX_PROBLEMS = 50
_MAX_ITEMS = 10_000
_MAX_LIST_DEPTH = 3


def load_batch(
    names: Iterable[str], *, namespace: str = "default", immediate: bool = False, stdin: BinaryIO | None = None
) -> Batch:
    """Read a batch from files, directories and globs (``-`` is standard input).

    Args:
        names: The names.
        namespace: The namespace of volumes without one.
        immediate: Request immediate binding for lists of images, because no consumer exists while the batch waits.
        stdin: The standard input.

    Raises:
        UsageError: A name matches no file.
        InvalidManifest: The files are invalid; the message has all problems.
    """
    documents = load(names, stdin=stdin)
    reading = _Reading(namespace, immediate=immediate, several=len({document.origin for document in documents}) > 1)
    for document in documents:
        reading.take(document)
    reading.compare()
    if reading.problems:
        lines = reading.problems[:_MAX_PROBLEMS]
        if len(reading.problems) > len(lines):
            lines.append(f"and {len(reading.problems) - len(lines)} more")
        where = None if reading.several or not documents else documents[0].origin
        raise InvalidManifest("; ".join(lines), where=where, remedy="correct these fields and run it again")
    if not reading.items:
        raise UsageError("no image to import is given", remedy="give an images.yaml, or manifests of DataVolumes")
    return Batch(
        items=tuple(reading.items), others=tuple(reading.others), directory=_directory(d.origin for d in documents)
    )


def _directory(origins: Iterable[str]) -> Path:
    """Return the deepest directory that contains all files."""
    return Path(os.path.commonpath({_base(one) for one in origins}))


def _base(origin: str) -> Path:
    """Return the directory that relative paths in a file refer to."""
    return absolute(".") if origin == "-" else absolute(origin).parent


class _Reading:
    """The items, objects and problems of the files that were read so far."""

    def __init__(self, namespace: str, *, immediate: bool, several: bool) -> None:
        self._namespace = namespace
        self._immediate = immediate
        self.several = several
        """Whether problems are reported with their file."""
        self.items: list[Item] = []
        self.others: list[Object] = []
        self.problems: list[str] = []
        self._count = 0

    def take(self, document: Document) -> None:
        body, origin = document.body, document.origin
        if is_images_file(body):
            self._images(body, origin)
            return
        for manifest in self._flat(body, origin, 0):
            self._count += 1
            if self._count > _MAX_ITEMS:
                raise InvalidManifest(f"there are more than {_MAX_ITEMS} manifests", where=origin)
            self._manifest(manifest, origin, document.line)

    def _add(self, origin: str, problems: Iterable[Problem]) -> None:
        for problem in dict.fromkeys(problems):
            self.problems.append(f"{origin}: {problem}" if self.several else str(problem))

    # --- lists of images ------------------------------------------------------------------------------------------

    def _images(self, body: Mapping[str, Any], origin: str) -> None:
        problems: list[Problem] = []
        entries = read_images_file(body, problems)
        self._add(origin, problems)
        if len(entries) > _MAX_ITEMS:
            raise InvalidManifest(f"there are more than {_MAX_ITEMS} images", where=origin)
        base = _base(origin)
        for entry in entries:
            try:
                item = image_item(entry, place=origin, base=base, namespace=self._namespace)
                self.items.append(_bound_at_once(item) if self._immediate else item)
            except Rejected as rejected:
                self._add(origin, rejected.problems)

    # --- manifests --------------------------------------------------------------------------------------------------

    def _flat(self, body: Any, origin: str, depth: int) -> Iterator[Any]:
        kind = body.get("kind") if isinstance(body, Mapping) else None
        items = body.get("items") if isinstance(body, Mapping) else None
        if not isinstance(kind, str) or not kind.endswith("List") or not isinstance(items, list):
            yield body
        elif depth >= _MAX_LIST_DEPTH:
            self._add(origin, [Problem(field="items", message="lists are nested too deeply")])
        else:
            for item in items:
                yield from self._flat(item, origin, depth + 1)

    def _manifest(self, body: Any, origin: str, line: int) -> None:
        if not isinstance(body, Mapping) or not isinstance(body.get("kind"), str):
            message = "neither a list of images (images: …) nor a manifest (apiVersion, kind, metadata)"
            self._add(origin, [Problem(field="", message=message)])
            return
        try:
            if body["kind"] == "DataVolume":
                self.items.append(self._data_volume(plain(body), origin, line))
            else:
                self.others.append(self._other(plain(body)))
        except Rejected as rejected:
            self._add(origin, rejected.problems)
        except CdiError as error:
            where, kind = error.where or "", truncate(body["kind"])
            if where in ("", kind):
                where = f"{kind} at line {line}"  # there is no usable name
            self._add(origin, [Problem(field=where, message=error.what)])

    def _data_volume(self, body: Object, origin: str, line: int) -> Item:
        metadata, spec = body.get("metadata"), body.get("spec")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        title = f"DataVolume {truncate(name)}" if isinstance(name, str) else f"DataVolume at line {line}"
        if not isinstance(metadata, Mapping) or not isinstance(spec, Mapping):
            raise Rejected([Problem(field=title, message="metadata and spec are required")])
        body = {key: value for key, value in body.items() if key != "status"}
        own = metadata.get("namespace")
        # Validate the shape first, because the following code relies on it.
        model = parse(with_size(body, "1Gi") if size_of(body) is None else body)
        strange = [field for field in unknown_fields(model) if field.partition(".")[0] != "metadata"]
        if strange:
            raise Rejected([Problem(field=f"{title}: {field}", message="no such field") for field in strange])
        return finish(
            body,
            names=lambda field: f"{title}: {field}" if field else title,
            place=f"{origin}: {title}",
            label=f"{own}/{name}" if own else str(name),
            namespace=own or self._namespace,
            url=None,
            path=None,
        )

    def _other(self, body: Object) -> Object:
        parse_manifest(body)
        metadata = body["metadata"]
        if kind_named(body["kind"]).namespaced and not metadata.get("namespace"):
            body = {**body, "metadata": {**metadata, "namespace": self._namespace}}
        return body

    # --- consistency ------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Record duplicate volumes, volumes that are also given as PVCs, and clones of themselves."""
        first: dict[Key, Item] = {}
        for item in self.items:
            other = first.setdefault(item.key, item)
            if other is not item:
                self.problems.append(f"{item.place}: the name {item.label} is already used by {other.place}")
        for body in self.others:
            key = Key.of_object(body)
            claimed = first.get(Key("datavolumes", key.namespace, key.name))
            if key.plural == "persistentvolumeclaims" and claimed is not None and not adopts(claimed.manifest):
                self.problems.append(f"{claimed.place}: a PersistentVolumeClaim {key.name} is given as well")
        for item in self.items:
            seen, source = {item.claim}, item.source
            while source is not None and source not in seen:
                seen.add(source)
                origin = first.get(Key("datavolumes", source.namespace, source.name))
                source = origin.source if origin is not None else None
            if source is not None and source == item.claim:
                self.problems.append(f"{item.place}: the volume {item.label} is a clone of itself")


def _bound_at_once(item: Item) -> Item:
    metadata = item.manifest["metadata"]
    annotations = {ANN_IMMEDIATE_BINDING: "", **(metadata.get("annotations") or {})}
    return replace(item, manifest={**item.manifest, "metadata": {**metadata, "annotations": annotations}})


def adopts(manifest: Object) -> bool:
    """Return whether a DataVolume adopts an existing PVC."""
    annotations = annotations_of(manifest)
    return annotations.get(ANN_ALLOW_CLAIM_ADOPTION) == "true" or ANN_PRE_POPULATED in annotations
