"""Conversion of a command-line request into a DataVolume with its inputs.

Credentials become a Secret, certificates a ConfigMap. Both are owned by the DataVolume, so that they are deleted with
it. Options without a field in the API become the annotations of `cdi.api.policy`.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cdi.api.errors import UsageError
from cdi.api.kinds import DATA_VOLUMES
from cdi.api.names import ANN_IMMEDIATE_BINDING
from cdi.api.policy import COSIGN_KEYS, PREFIX
from cdi.client.request import Request, given_secret, read_option_file
from cdi.image.sizes import kubernetes_quantity as quantity
from cdi.verify.public_keys import MAX_KEY_FILE

Objects = dict[str, Any]
_KEYRING = "keyring.gpg"
_MAX_KEYRING = 512 << 10
"""Bytes; a ConfigMap holds 1 MiB, and the content is encoded in base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """A DataVolume, and the objects it refers to; `inputs` get it as their owner once it has a uid."""

    datavolume: Objects
    inputs: tuple[Objects, ...] = ()


def build_manifests(request: Request, namespace: str, name: str, size: int | None, *, local: bool = True) -> Manifests:
    """Return the DataVolume `name` with a disk of `size` bytes, and its inputs, whose names start with `name`.

    Unless `local` is set, files that workers on this machine would read (a key ring) become inputs as well. Raises
    `UsageError` for options that only local workers support, and for a key ring that is too large for a ConfigMap.
    """
    inputs: list[Objects] = []
    if not local and request.access.insecure and request.place.kind != "http":
        raise UsageError(
            "--insecure is for http(s):// in a cluster",
            where=request.place.location,
            remedy="give --ca, or name the registry in CDIConfig's insecureRegistries",
        )
    spec: Objects = {
        "source": _source(request, namespace, name, inputs),
        "storage": {"resources": {"requests": {"storage": quantity(size)}}} if size is not None else {},
    }
    if request.content_type == "archive":
        spec["contentType"] = "archive"
    if request.preallocation:
        spec["preallocation"] = True
    metadata: Objects = {"name": name, "namespace": namespace}
    annotations = {f"{PREFIX}{knob}": text for knob, text in _knobs(request)}
    if not local:
        # The user asks for the image now; there is no consumer yet to wait for.
        annotations[ANN_IMMEDIATE_BINDING] = ""
    if not local and request.keyring is not None:
        keys = base64.b64encode(read_option_file(request.keyring, _MAX_KEYRING)).decode()
        inputs.append(_object("ConfigMap", namespace, f"{name}-keyring", {"binaryData": {_KEYRING: keys}}))
        annotations[f"{PREFIX}keyring"] = f"{name}-keyring/{_KEYRING}"
    if request.cosign_keys:
        annotations[COSIGN_KEYS] = f"{name}-cosign-keys"
        inputs.append(_secret(namespace, f"{name}-cosign-keys", _cosign_keys(request.cosign_keys)))
    if annotations:
        metadata["annotations"] = annotations
    datavolume = {"apiVersion": DATA_VOLUMES.api_version, "kind": "DataVolume", "metadata": metadata, "spec": spec}
    return Manifests(datavolume=datavolume, inputs=tuple(inputs))


def owned(body: Mapping[str, Any], owner: Mapping[str, Any]) -> Objects:
    """Return `body` with the stored object `owner` as its owner, so that it is deleted with it."""
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    return {**body, "metadata": {**body["metadata"], "ownerReferences": [reference]}}


def _source(request: Request, namespace: str, name: str, inputs: list[Objects]) -> Objects:
    place, access = request.place, request.access
    source = place.source
    member: Objects = source[place.member.value]
    values = dict(given_secret(request))
    if access.secret is not None:
        member["secretRef"] = access.secret
    elif values:
        member["secretRef"] = f"{name}-import"
        inputs.append(_secret(namespace, f"{name}-import", values))
    if access.authority is not None:
        member["certConfigMap"] = f"{name}-import"
        data = {"ca.pem": base64.b64encode(access.authority).decode()}
        inputs.append(_object("ConfigMap", namespace, f"{name}-import", {"binaryData": data}))
    if access.insecure and place.kind == "http":
        member["insecureSkipVerify"] = True
    if access.headers or access.secret_headers:
        # A header may be a token, so none is written where everybody can read it.
        lines = {f"header-{number}": line.encode() for number, line in enumerate(access.headers)}
        files = {f"file-{number}": text for number, text in enumerate(access.secret_headers)}
        member["secretExtraHeaders"] = [f"{name}-import-headers"]
        inputs.append(_secret(namespace, f"{name}-import-headers", lines | files))
    if place.kind == "http" and request.checksum is not None:
        member["checksum"] = request.checksum
    if access.architecture is not None:
        member["platform"] = {"architecture": access.architecture}
    return source


def _cosign_keys(paths: tuple[str, ...]) -> dict[str, bytes]:
    """Return the content of the files by names that are valid keys of a Secret and unique."""
    keys: dict[str, bytes] = {}
    for path in paths:
        name = re.sub(r"[^-._a-zA-Z0-9]", "_", os.path.basename(path)).lstrip(".")[:200] or "key"
        keys[f"{len(keys) + 1}-{name}" if name in keys else name] = read_option_file(path, MAX_KEY_FILE)
    return keys


def _secret(namespace: str, name: str, values: Mapping[str, bytes]) -> Objects:
    data = {key: base64.b64encode(value).decode() for key, value in values.items()}
    return _object("Secret", namespace, name, {"type": "Opaque", "data": data})


def _object(kind: str, namespace: str, name: str, rest: Objects) -> Objects:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, **rest}


def _knobs(request: Request) -> Iterator[tuple[str, str]]:
    access = request.access
    if request.engine != "auto":
        yield "engine", request.engine
    if request.connections:
        yield "connections", str(request.connections)
    if request.bandwidth:
        yield "bandwidth", str(request.bandwidth)
    if request.disk is not None:
        yield "disk", request.disk
    if request.require_checksum:
        yield "requireChecksum", "true"
    if not request.discover_checksum:
        yield "discoverChecksum", "false"
    if request.checking != "ignore":
        yield "signature", request.checking
    if request.keyring is not None:
        yield "keyring", request.keyring
    if request.checksum is not None and request.place.kind != "http":
        yield "checksum", request.checksum
    if access.insecure and request.place.kind != "http":
        yield "insecure", "true"
    if access.endpoint is not None:
        yield "endpoint", access.endpoint
    if access.region is not None:
        yield "region", access.region
    if access.addressing is not None:
        yield "addressing", access.addressing
    if access.anonymous:
        yield "anonymous", "true"
