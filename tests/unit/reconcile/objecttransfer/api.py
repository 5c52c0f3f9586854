"""An in-memory API server with what a controller's writes need: versions, uids, finalizers, merge patches.

Its coroutines do no I/O and never suspend.
"""

from __future__ import annotations

import copy
import json

from cdi.api.errors import AlreadyExists, Conflict, InvalidManifest, NotFound
from cdi.api.kinds import CLAIMS, EVENTS, NAMESPACES, VOLUMES
from cdi.kube.client import Listing

PROTECTION = {CLAIMS: "kubernetes.io/pvc-protection", VOLUMES: "kubernetes.io/pv-protection"}
TIME = "2026-01-01T00:00:00Z"


class Crash(BaseException):
    """The controller was killed after a write took effect and before it received the response."""


class Api:
    """All objects, and a log of their changes."""

    def __init__(self):
        self.objects = {}
        self.log = []
        """Events as watches deliver them: (resource, type, body); the version is the body's."""
        self.version = 0
        self.uids = 0
        self.fuse = None
        """Number of writes until the controller is killed; None means never."""
        self.refuse = {}
        """Errors for creation, by kind."""
        self.written = []
        """Writes of the controller: (verb, resource, name)."""
        self.told = []
        """Events recorded, as (kind, type, reason)."""
        self.look = lambda: None
        """A callback after each change."""

    # --- for Kubernetes and users -----------------------------------------------------------------------------------

    def find(self, resource, namespace, name):
        return self.objects.get((resource, namespace or "", name))

    def all(self, resource):
        return [
            body for (kind, _, _), body in sorted(self.objects.items(), key=lambda one: one[0][1:]) if kind == resource
        ]

    def add(self, resource, body):
        """Create an object as a client other than the controller."""
        metadata = body["metadata"]
        self.uids += 1
        metadata.setdefault("uid", f"uid-{self.uids}-{metadata['name']}")
        metadata["creationTimestamp"] = TIME
        if resource in PROTECTION:
            metadata["finalizers"] = [PROTECTION[resource], *metadata.get("finalizers", ())]
        if resource == CLAIMS:
            body.setdefault("status", {"phase": "Pending"})
        self._store(resource, {"apiVersion": resource.api_version, "kind": resource.kind, **body}, "ADDED")
        return self.find(resource, metadata.get("namespace"), metadata["name"])

    def change(self, resource, namespace, name, alter):
        """Alter an object in place as a client other than the controller."""
        body = copy.deepcopy(self.find(resource, namespace, name))
        alter(body)
        self._store(resource, body, "MODIFIED")

    def remove(self, resource, namespace, name):
        """Delete an object, which is removed once it has no finalizers."""
        body = copy.deepcopy(self.find(resource, namespace, name))
        if body is None:
            return None
        if body["metadata"].get("finalizers"):
            if "deletionTimestamp" not in body["metadata"]:
                body["metadata"]["deletionTimestamp"] = TIME
                self._store(resource, body, "MODIFIED")
            return body
        self._gone(resource, body)
        return None

    def _store(self, resource, body, kind):
        metadata = body["metadata"]
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self._gone(resource, body)
            return
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        self.objects[resource, metadata.get("namespace", ""), metadata["name"]] = body
        self.log.append((resource, kind, copy.deepcopy(body)))
        self.look()

    def _gone(self, resource, body):
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        del self.objects[resource, body["metadata"].get("namespace", ""), body["metadata"]["name"]]
        self.log.append((resource, "DELETED", copy.deepcopy(body)))
        self.look()

    # --- `cdi.kube.client.Client`, for the controller ---------------------------------------------------------------

    async def get(self, resource, namespace, name):
        body = self.find(resource, namespace, name)
        if body is None:
            raise NotFound(f"{resource} {namespace}/{name} does not exist")
        return copy.deepcopy(body)

    async def list(self, resource):
        return Listing(items=copy.deepcopy(self.all(resource)), version=str(self.version))

    async def create(self, resource, body):
        body = json.loads(json.dumps(body))
        metadata = body["metadata"]
        if resource == EVENTS:
            self.told.append((body["involvedObject"]["kind"], body["type"], body["reason"]))
            return body
        if resource.kind in self.refuse:
            raise self.refuse[resource.kind]
        if resource.namespaced and self.find(NAMESPACES, "", metadata["namespace"]) is None:
            raise NotFound(f"namespaces {metadata['namespace']!r} not found")
        if self.find(resource, metadata.get("namespace"), metadata["name"]) is not None:
            raise AlreadyExists(f"{resource} {metadata['name']} already exists")
        made = self.add(resource, body)
        self._written("create", resource, metadata["name"])
        return copy.deepcopy(made)

    async def patch(self, resource, namespace, name, patch, *, subresource=""):
        before = await self.get(resource, namespace, name)
        said, known = patch.get("metadata", {}), before["metadata"]
        if said.get("uid", known["uid"]) != known["uid"]:
            raise InvalidManifest("Precondition failed: UID", where="metadata.uid")
        if said.get("resourceVersion", known.get("resourceVersion")) != known.get("resourceVersion"):
            raise Conflict("the object has been modified")
        after = merged(before, json.loads(json.dumps(patch)))
        if resource.status_subresource:
            kept = "status" if not subresource else "spec"
            after[kept] = before[kept] if kept in before else {}
        new = set(after["metadata"].get("finalizers") or ()) - set(known.get("finalizers") or ())
        if new and "deletionTimestamp" in known:
            raise InvalidManifest("no new finalizers can be added if the object is being deleted", where="finalizers")
        if after != before:
            self._store(resource, after, "MODIFIED")
        self._written("patch", resource, name)
        return copy.deepcopy(after)

    async def delete(self, resource, namespace, name, *, uid="", propagation=""):
        assert propagation == "Background"
        body = await self.get(resource, namespace, name)
        if uid != body["metadata"]["uid"]:
            raise Conflict("Precondition failed: UID")
        left = self.remove(resource, namespace, name)
        self._written("delete", resource, name)
        return copy.deepcopy(left)

    def _written(self, verb, resource, name):
        self.written.append((verb, resource, name))
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.fuse = None
                raise Crash


def merged(before, patch):
    """Apply a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    after = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        else:
            after[name] = merged(after.get(name), value)
    return after
