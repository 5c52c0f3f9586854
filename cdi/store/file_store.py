"""Object store in a directory, ``<root>/<plural>/<namespace>/<name>.json``, shared by any number of processes.

Every write holds one lock (``flock(2)``), flushes a new file and renames it into place, and uses the next value of a
counter as its resourceVersion. Readers take no lock, because the rename is atomic: they read either the old or the new
file. Watchers poll the counter: while it does not change, no object has changed.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cdi import atomic_file
from cdi.api.errors import (
    AlreadyExists,
    Conflict,
    InternalError,
    InvalidManifest,
    NotFound,
)
from cdi.api.kinds import SECRETS, kind_named
from cdi.api.timestamps import timestamp
from cdi.store import files
from cdi.store.ballast import Ballast
from cdi.store.base import SERVER_OWNED, Change, Key, Object, has_status, plain

CLUSTER = "_cluster"
"""Directory of cluster-scoped objects; it is not a valid namespace name."""
OBJECT_LIMIT = 1 << 20
"""Maximum size of one object in bytes, similar to etcd's limit."""
POLL = 0.1
"""Seconds between reads of the counter."""
_FILE_NAME = 200
_COUNTER_DIGITS = 20


class LocalStore:
    """Implementation of `cdi.store.base.Store` in a directory.

    The first write creates the directory with mode 0700. Space is reserved for replacing objects (`cdi.store.ballast`),
    so that errors can be recorded and objects deleted even if the file system is full.
    """

    def __init__(self, root: Path, *, now: Callable[[], datetime] | None = None) -> None:
        self._root = root
        self._now = now or _utc_now
        self._ballast = Ballast(root / ".ballast")

    def get(self, key: Key) -> Object:
        body = files.read(self._path(key))
        if body is None:
            raise NotFound(f"there is no {key}")
        return body

    def list(self, plural: str, namespace: str | None = None) -> list[Object]:
        kind = kind_named(plural)
        found: list[tuple[Key, Object]] = []
        for path, _ in self._scan(kind.plural, namespace if kind.namespaced else None):
            body = files.read(path)
            if body is not None:
                found.append((Key.of_object(body), body))
        return [body for _, body in sorted(found, key=lambda pair: pair[0])]

    def create(self, body: Object) -> Object:
        key = Key.of_object(body)
        body = plain(body)
        if has_status(key):
            body.pop("status", None)
        with self._locked():
            path = self._path(key)
            if files.exists(path):
                raise AlreadyExists(f"{key} already exists")
            metadata = body["metadata"]
            for field in SERVER_OWNED:
                metadata.pop(field, None)
            if key.namespace:
                metadata["namespace"] = key.namespace
            metadata["uid"] = str(uuid.uuid4())
            metadata["creationTimestamp"] = timestamp(self._now())
            metadata["generation"] = 1
            body.setdefault("apiVersion", key.kind.api_version)
            body["kind"] = key.kind.kind
            return self._write(key, body, new=True)

    def update(self, body: Object) -> Object:
        key = Key.of_object(body)
        body = plain(body)
        with self._locked():
            old = self._current(key, body)
            metadata, before = body["metadata"], old["metadata"]
            for field in SERVER_OWNED:
                metadata.pop(field, None)
                if field in before:
                    metadata[field] = before[field]
            if "deletionTimestamp" in before:
                added = set(metadata.get("finalizers") or ()) - set(before.get("finalizers") or ())
                if added:
                    raise InvalidManifest(
                        f"{key} is being deleted and accepts no new finalizers", where="metadata.finalizers"
                    )
            if has_status(key):
                body.pop("status", None)
                if "status" in old:
                    body["status"] = old["status"]
            body["apiVersion"], body["kind"] = old["apiVersion"], old["kind"]
            if body == old:
                return old
            if _content(body) != _content(old):
                metadata["generation"] = int(before.get("generation", 1)) + 1
            if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
                self._remove(key)
                return body
            return self._write(key, body)

    def update_status(self, body: Object) -> Object:
        key = Key.of_object(body)
        status = plain(body).get("status")
        with self._locked():
            old = self._current(key, body)
            new = {k: v for k, v in old.items() if k != "status"}
            if status is not None:
                new["status"] = status
            return old if new == old else self._write(key, copy.deepcopy(new))

    def delete(self, key: Key, *, uid: str | None = None) -> Object | None:
        with self._locked():
            body = self.get(key)
            metadata = body["metadata"]
            if uid is not None and metadata.get("uid") != uid:
                raise Conflict(f"{key} was replaced by another object of that name")
            if metadata.get("finalizers"):
                if "deletionTimestamp" in metadata:
                    return body
                metadata["deletionTimestamp"] = timestamp(self._now())
                metadata["deletionGracePeriodSeconds"] = 0
                return self._write(key, body)
            self._remove(key)
            return None

    def watch(self, plurals: Collection[str]) -> LocalWatch:
        return LocalWatch(self, [kind_named(plural).plural for plural in plurals])

    def version(self) -> int:
        """Return the resourceVersion of the newest write.

        A caller that has read all objects at this version has seen every change.
        """
        with files.mapped(self._root):
            try:
                text = (self._root / ".version").read_bytes()
            except FileNotFoundError:
                return 0
        return int(text) if text.strip().isdigit() else 0

    # --- internal ---------------------------------------------------------------------------------------------

    def _path(self, key: Key) -> Path:
        """Return the path of an object; a name too long for a file system is truncated and given a hash."""
        checked = Key.of(key.plural, key.namespace, key.name)
        name = checked.name
        if len(name) > _FILE_NAME:
            name = f"{name[:_FILE_NAME]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        return self._root / checked.plural / (checked.namespace or CLUSTER) / f"{name}.json"

    def _scan(self, plural: str, namespace: str | None) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the path and status of every object's file, except for files that vanish during the scan."""
        top = self._root / plural
        spaces = [namespace] if namespace is not None else files.names(top)
        for space in spaces:
            for name in files.names(top / space):
                if name.endswith(".json") and not name.startswith("."):
                    path = top / space / name
                    with contextlib.suppress(FileNotFoundError):
                        yield path, path.stat()

    def _current(self, key: Key, body: Object) -> Object:
        old = self.get(key)
        claimed, now = body.get("metadata", {}), old["metadata"]
        if claimed.get("uid") not in (None, "", now["uid"]):
            raise Conflict(f"{key} was replaced by another object of that name")
        if claimed.get("resourceVersion") not in (None, "", now["resourceVersion"]):
            raise Conflict(f"{key} changed in the meantime")
        return old

    def _write(self, key: Key, body: Object, *, new: bool = False) -> Object:
        """Write an object while the lock is held; replacing one may use the reserved space."""
        path = self._path(key)
        with files.mapped(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._ballast.restore()
            while True:
                try:
                    return self._put(key, path, body)
                except OSError as error:
                    if new or not atomic_file.is_full(error) or not self._ballast.release():
                        raise

    def _put(self, key: Key, path: Path, body: Object) -> Object:
        """Assign the next version, write and flush the file, and rename it into place."""
        body["metadata"]["resourceVersion"] = str(self._next_version())
        atomic_file.write(path, encode(key, body), mode=0o600 if key.kind == SECRETS else 0o640)
        return body

    def _remove(self, key: Key) -> None:
        path = self._path(key)
        with files.mapped(path):
            self._next_version()
            path.unlink(missing_ok=True)
            atomic_file.sync(path.parent)

    def _next_version(self) -> int:
        """Increment the counter, before the write that uses its value, so that no version is used twice."""
        descriptor = os.open(self._root / ".version", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            text = os.pread(descriptor, _COUNTER_DIGITS, 0)
            number = (int(text) if text.strip().isdigit() else self._highest()) + 1
            os.pwrite(descriptor, b"%0*d" % (_COUNTER_DIGITS, number), 0)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        return number

    def _highest(self) -> int:
        """Return the highest version of all objects, to restore a counter that is missing or damaged."""
        versions = [0]
        for plural in files.names(self._root):
            for path, _ in self._scan(plural, None):
                body = files.read(path)
                if body is not None:
                    versions.append(int(body["metadata"].get("resourceVersion", 0)))
        return max(versions)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the exclusive lock, also against other threads, because each use opens the lock file separately."""
        with files.mapped(self._root):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with files.mapped(self._root):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _still(self) -> Iterator[bool]:
        """Block writers without writing anything.

        Yields False, without a lock, if no writer has created the lock file yet.
        """
        with files.mapped(self._root):
            try:
                descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                descriptor = None
        if descriptor is None:
            yield False
            return
        try:
            with files.mapped(self._root):
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield True
        finally:
            os.close(descriptor)

    @property
    def _lock(self) -> Path:
        return self._root / ".lock"


class LocalWatch:
    """Watch that compares the directory with its last known state whenever the counter has changed."""

    def __init__(self, store: LocalStore, plurals: list[str]) -> None:
        self._store = store
        self._plurals = plurals
        self._version: int | None = None
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self._bodies: dict[Path, Object] = {}

    def poll(self, timeout: float) -> list[Change]:
        deadline = time.monotonic() + timeout
        while True:
            version = self._store.version()
            if version != self._version:
                changes = self._compare()
                # A writer increments the counter before it replaces the file, so a scan without the lock may miss a
                # write that is already counted. Only a scan under the lock is recorded as complete.
                if changes:
                    return changes
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            time.sleep(min(POLL, left))

    def close(self) -> None:
        self._bodies.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _compare(self) -> list[Change]:
        changes: list[Change] = []
        present: set[Path] = set()
        with self._store._still() as still:  # noqa: SLF001  the watch is the store's other half
            # Record the version only if no write was possible during the scan.
            self._version = self._store.version() if still else None
            for plural in self._plurals:
                for path, stat in self._store._scan(plural, None):  # noqa: SLF001  as above
                    present.add(path)
                    mark = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                    if self._seen.get(path) == mark:
                        continue
                    try:
                        body = files.read(path)
                    except InternalError:
                        # One damaged file must not block the watch of all other objects; reading it raises the error.
                        continue
                    if body is None:
                        continue
                    old = self._bodies.get(path)
                    self._seen[path], self._bodies[path] = mark, body
                    self._append(changes, old, body)
        for path in [path for path in self._seen if path not in present]:
            del self._seen[path]
            body = self._bodies.pop(path)
            changes.append(Change(type="DELETED", key=Key.of_object(body), body=body))
        return changes

    @staticmethod
    def _append(changes: list[Change], old: Object | None, body: Object) -> None:
        key = Key.of_object(body)
        if old is None:
            changes.append(Change(type="ADDED", key=key, body=copy.deepcopy(body)))
            return
        if old["metadata"]["uid"] != body["metadata"]["uid"]:
            changes.append(Change(type="DELETED", key=key, body=old))
            changes.append(Change(type="ADDED", key=key, body=copy.deepcopy(body)))
        elif old["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            changes.append(Change(type="MODIFIED", key=key, body=copy.deepcopy(body)))


def encode(key: Key, body: Object) -> bytes:
    """Return the content of an object's file; raise `InvalidManifest` for an object that is too large."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if len(text) > OBJECT_LIMIT:
        raise InvalidManifest(f"{key} has {len(text)} bytes, more than {OBJECT_LIMIT}")
    return text


def _content(body: Object) -> dict[str, Any]:
    return {k: v for k, v in body.items() if k not in ("metadata", "status")}


def _utc_now() -> datetime:
    return datetime.now(UTC)
