"""Writing of manifests into the store, with the semantics of ``kubectl apply``."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from cdi.api.annotations import APPLIED
from cdi.api.errors import AlreadyExists, Conflict, InvalidManifest, NotFound
from cdi.api.json_document import plain
from cdi.api.kinds import kind_of
from cdi.api.meta import KubeObject
from cdi.api.model import unknown_fields
from cdi.api.validation import MAX_PROBLEMS, describe, parse, parse_manifest, raise_problems, validate_update
from cdi.client.backend import Applied, Reader
from cdi.client.document import Document, Manifest, located
from cdi.store.base import Key, Object, Store

_SERVER_OWNED = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
    "finalizers",
)
_ELSEWHERE = {
    "VolumeImportSource": "use a DataVolume with the same source",
    "VolumeUploadSource": "use a DataVolume with source.upload",
    "VolumeCloneSource": "use a DataVolume with source.pvc",
    "ObjectTransfer": "delete the object and apply it under its new name",
    "UploadTokenRequest": "run cdi upload; no token is needed on this machine",
}
"""Kinds that only a cluster's controllers handle."""
_TRIES = 20
_MAX_LIST_DEPTH = 3


def apply(
    store: Store,
    manifests: Iterable[Manifest],
    *,
    namespace: str | None = None,
    dry_run: bool = False,
    strict: bool = False,
    before_write: Callable[[Key], None] = lambda _: None,
) -> list[Applied]:
    """Validate all manifests, then write them.

    Args:
        store: The store.
        manifests: The manifests.
        namespace: The namespace of manifests without one.
        dry_run: Write nothing, and return what would be done.
        strict: Reject unknown fields, as kubectl does; otherwise they are returned.
        before_write: Called with each key before its object is written.

    Raises:
        InvalidManifest: A manifest is invalid, or would change a DataVolume's spec; the message has all problems.
    """
    checked = check(store, manifests, namespace=namespace, strict=strict)
    applied = []
    for body, unknown in checked:
        if not dry_run:
            before_write(Key.of_object(body))
        action = _try_one(store, body) if dry_run else _apply_one(store, body)
        applied.append(replace(action, unknown=unknown))
    return applied


def check(
    store: Reader,
    manifests: Iterable[Manifest],
    *,
    namespace: str | None = None,
    strict: bool = False,
    in_cluster: bool = False,
) -> list[tuple[Object, tuple[str, ...]]]:
    """Return the objects to write, with the paths of their unknown fields; raise the errors of `apply`.

    Kinds that only a cluster's controllers handle are rejected unless `in_cluster` is set.
    """
    checked: list[tuple[Object, tuple[str, ...]]] = []
    places: list[str] = []
    for place, manifest in _flattened(manifests, "", 0):
        with located(place):
            checked.append(_checked(manifest, namespace, strict=strict, in_cluster=in_cluster))
        places.append(place)
    for (body, _), place in zip(checked, places, strict=True):
        with located(place):
            _check_update(store, body)
    return checked


def updated(store: Reader, body: Object) -> Object:
    """Return the object that applying a checked manifest would store; raise the errors of `apply`."""
    old = _existing(store, body)
    if old is None:
        return _merged({"metadata": {}}, body)
    _check_update(store, body)
    return _merged(old, body)


def keys_of(manifests: Iterable[Manifest], *, namespace: str | None = None) -> list[Key]:
    """Return the keys of manifests, with `namespace` for those without one; raise `InvalidManifest` or `NotFound`."""
    found: list[Key] = []
    for place, manifest in _flattened(manifests, "", 0):
        with located(place):
            body = plain(manifest)
            key = Key.of_object(body)
            named = body["metadata"].get("namespace")
            found.append(key if named else Key.of(key.plural, namespace, key.name))
    return found


def _flattened(manifests: Iterable[Any], inside: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield each manifest with its position, and items of a List separately; `inside` is the position of the List."""
    for index, given in enumerate(manifests):
        place, manifest = (given.place, given.body) if isinstance(given, Document) else ("", given)
        if inside:
            place = f"{inside}, items[{index}]"
        items = manifest.get("items") if isinstance(manifest, Mapping) else None
        kind = manifest.get("kind") if isinstance(manifest, Mapping) else None
        if isinstance(kind, str) and kind.endswith("List") and isinstance(items, list):
            if depth >= _MAX_LIST_DEPTH:
                raise InvalidManifest("lists are nested too deeply", where=place or "items")
            yield from _flattened(items, place or "List", depth + 1)
        else:
            yield place, manifest


def _checked(
    manifest: Mapping[str, Any], namespace: str | None, *, strict: bool, in_cluster: bool
) -> tuple[Object, tuple[str, ...]]:
    """Return the valid object to store, with namespace and without server-owned fields, and its unknown fields."""
    model = parse_manifest(manifest)
    kind = model.kind_name()
    unknown = tuple(_unknown(model))
    if unknown and strict:
        raise InvalidManifest(
            "; ".join(f"{path}: unknown field" for path in unknown[:MAX_PROBLEMS]),
            where=describe(model),
            remedy="correct their names; docs/reference/api.md has all fields",
        )
    if kind in _ELSEWHERE and not in_cluster:
        raise InvalidManifest(f"{kind} has an effect only in a cluster", where="kind", remedy=_ELSEWHERE[kind])
    body: Object = json.loads(json.dumps(manifest, default=str))  # noqa: TID251  a deep copy
    metadata = {name: value for name, value in body["metadata"].items() if name not in _SERVER_OWNED}
    if metadata.get("annotations"):
        metadata["annotations"] = {name: text for name, text in metadata["annotations"].items() if name != APPLIED.key}
    body["metadata"] = metadata
    body.pop("status", None)
    if namespace and not metadata.get("namespace"):
        metadata["namespace"] = namespace
    key = Key.of_object(body)
    if key.namespace:
        metadata["namespace"] = key.namespace
    else:
        metadata.pop("namespace", None)
    if kind == "Secret" and body.get("stringData"):
        encoded = {name: base64.b64encode(text.encode()).decode() for name, text in body["stringData"].items()}
        body["data"] = {**(body.get("data") or {}), **encoded}
        del body["stringData"]
    return body, unknown


def _unknown(model: KubeObject) -> Iterator[str]:
    """Yield the unknown fields of kinds that this project defines; it knows only the used part of others."""
    if not kind_of(model.group_version, model.kind_name()).defined:
        return
    for path in unknown_fields(model):
        field, _, rest = path.partition(".")
        if field in ("apiVersion", "kind", "status") or (
            field == "metadata" and rest.partition(".")[0] in _SERVER_OWNED
        ):
            continue
        yield path


def _existing(store: Reader, body: Object) -> Object | None:
    try:
        return store.get(Key.of_object(body))
    except NotFound:
        return None


def _check_update(store: Reader, body: Object) -> None:
    old = _existing(store, body)
    if old is None:
        return
    if "deletionTimestamp" in old["metadata"]:
        raise Conflict(f"{Key.of_object(body)} is being deleted", remedy="wait until it is deleted and apply it again")
    before = parse(old)
    merged = _merged(old, body)
    raise_problems(validate_update(before, parse(merged)), where=str(Key.of_object(body)))


def _try_one(store: Store, body: Object) -> Applied:
    key = Key.of_object(body)
    old = _existing(store, body)
    if old is None:
        return _told(key, "created")
    return _told(key, "unchanged" if _merged(old, body) == old else "configured")


def _apply_one(store: Store, body: Object) -> Applied:
    key = Key.of_object(body)
    for _ in range(_TRIES):
        old = _existing(store, body)
        try:
            if old is None:
                store.create(_merged({"metadata": {}}, body))
                return _told(key, "created")
            _check_update(store, body)
            new = store.update(_merged(old, body))
        except (AlreadyExists, Conflict, NotFound):
            if old is not None and "deletionTimestamp" in old["metadata"]:
                raise
            continue
        same = new["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"]
        return _told(key, "unchanged" if same else "configured")
    raise Conflict(f"{key} is changed by other clients faster than it can be written")


def _told(key: Key, action: Literal["created", "configured", "unchanged"]) -> Applied:
    return Applied(kind=key.kind.kind, namespace=key.namespace, name=key.name, action=action)


def _merged(old: Object, body: Object) -> Object:
    """Return the stored object updated with the manifest.

    Labels and annotations set by others are kept; those of the last manifest that this one lacks are removed.
    """
    before = old["metadata"]
    applied = APPLIED.read(before.get("annotations") or {}) or {}
    metadata: dict[str, Any] = {**before, **body["metadata"]}
    ours: dict[str, list[str]] = {}
    for field in ("labels", "annotations"):
        wanted = body["metadata"].get(field) or {}
        names = applied.get(field)
        gone = {name for name in names if isinstance(name, str)} - set(wanted) if isinstance(names, list) else set()
        kept = {name: text for name, text in (before.get(field) or {}).items() if name not in gone}
        merged = {**kept, **wanted}
        ours[field] = sorted(wanted)
        metadata.pop(field, None)
        if merged:
            metadata[field] = merged
    if any(ours.values()) or applied:
        metadata.setdefault("annotations", {}).update(APPLIED.write(ours))
    if "ownerReferences" in before:
        metadata["ownerReferences"] = before["ownerReferences"]
    new = {**body, "metadata": metadata}
    if "status" in old:
        new["status"] = old["status"]
    return new
