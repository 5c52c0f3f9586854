"""Validation of names, namespaces, labels and annotations as in Kubernetes, where no API server enforces the rules."""

from __future__ import annotations

import re

from cdi.api.kinds import Resource
from cdi.api.meta import ObjectMeta
from cdi.api.names import MAX_LABEL, MAX_NAME, is_dns_label, is_dns_subdomain
from cdi.api.rules.problems import Cause, Problem, Problems, object_name, truncate

MAX_ANNOTATIONS = 256 << 10
"""Maximum size of all annotations together in bytes."""
_QUALIFIED = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_WHAT = {"DataVolume": "data volume"}


def check_metadata(meta: ObjectMeta, kind: Resource) -> Problems:
    """Yield the problems in the metadata of an object to be stored."""
    what = _WHAT.get(kind.kind, kind.kind)
    if meta.name:
        yield from object_name(meta.name, "metadata.name", what)
    elif meta.generate_name:
        # The server appends five characters, so a prefix that ends with a hyphen or dot is valid.
        stem = meta.generate_name.rstrip("-.")
        if len(meta.generate_name) > MAX_NAME - 5 or not is_dns_subdomain(stem):
            yield Problem(
                field="metadata.generateName",
                message=f"{truncate(meta.generate_name)!r} cannot begin the name of {what}",
            )
    else:
        yield Problem(
            field="metadata.name", message="Required value: name or generateName is required", cause=Cause.REQUIRED
        )
    if meta.namespace:
        if not kind.namespaced:
            yield Problem(field="metadata.namespace", message=f"a {kind.kind} is cluster-scoped and has no namespace")
        elif not is_dns_label(meta.namespace):
            yield Problem(
                field="metadata.namespace",
                message=f"{truncate(meta.namespace)!r} is not a DNS label of 1 to 63 characters",
            )
    yield from check_labels(meta.labels, "metadata.labels")
    yield from _annotations(meta.annotations, "metadata.annotations")


def check_labels(labels: dict[str, str] | None, field: str) -> Problems:
    """Yield a problem for each key that is not a qualified name and each value that is not a valid label value."""
    for key, value in (labels or {}).items():
        yield from _key(key, field)
        if len(value) > MAX_LABEL or (value and not _QUALIFIED.fullmatch(value)):
            yield Problem(field=f"{field}[{truncate(key)}]", message=f"{truncate(value)!r} is not a valid label value")


def _annotations(annotations: dict[str, str] | None, field: str) -> Problems:
    for key in annotations or {}:
        yield from _key(key.lower(), field)
    total = sum(len(key.encode()) + len(value.encode()) for key, value in (annotations or {}).items())
    if total > MAX_ANNOTATIONS:
        yield Problem(
            field=field, message=f"annotations are {total} bytes together, at most {MAX_ANNOTATIONS} are allowed"
        )


def _key(key: str, field: str) -> Problems:
    prefix, slash, name = key.rpartition("/")
    if (slash and not is_dns_subdomain(prefix)) or len(name) > MAX_LABEL or not _QUALIFIED.fullmatch(name):
        yield Problem(field=field, message=f"{truncate(key)!r} is not a qualified name such as example.org/name")
