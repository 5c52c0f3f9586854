"""Validation of claims, Secrets and ConfigMaps for stores without an API server."""

from __future__ import annotations

import base64
import binascii
import re

from cdi.api.core import ConfigMap, PersistentVolumeClaim, Secret
from cdi.api.names import LABEL_APPLY_STORAGE_PROFILE, MAX_NAME
from cdi.api.policy import check_policy
from cdi.api.rules.claims import check_access_modes, check_size
from cdi.api.rules.problems import Cause, Problem, Problems, one_of, optional_name, truncate

MAX_CONTENT = 1 << 20
"""Maximum size of all values together in bytes."""
_KEY = re.compile(r"[-._a-zA-Z0-9]+")


def check_secret(secret: Secret) -> Problems:
    """Yield the problems of a Secret."""
    yield from _content("data", secret.data, encoded=True)
    yield from _content("stringData", secret.string_data, encoded=False)


def check_config_map(config_map: ConfigMap) -> Problems:
    """Yield the problems of a ConfigMap."""
    yield from _content("data", config_map.data, encoded=False)
    yield from _content("binaryData", config_map.binary_data, encoded=True)
    for key in (config_map.data or {}).keys() & (config_map.binary_data or {}).keys():
        yield Problem(field=f"binaryData[{truncate(key)}]", message="the key is also in data")


def check_pvc(claim: PersistentVolumeClaim) -> Problems:
    """Yield the problems of a PersistentVolumeClaim."""
    # A claim with annotations for an import is treated as a DataVolume.
    yield from check_policy(claim.metadata.annotations)
    # Missing fields of such a claim are filled in on creation.
    completed = (claim.metadata.labels or {}).get(LABEL_APPLY_STORAGE_PROFILE) == "true"
    yield from check_size(claim.spec, "spec", "PVC", optional=completed)
    if not claim.spec.access_modes and not completed:
        yield Problem(
            field="spec.accessModes", message="Required value: at least 1 access mode is required", cause=Cause.REQUIRED
        )
    yield from check_access_modes(claim.spec.access_modes or [], "spec.accessModes")
    yield from one_of(claim.spec.volume_mode, ("Block", "Filesystem", "FromStorageProfile"), "spec.volumeMode")
    yield from optional_name(claim.spec.storage_class_name, "spec.storageClassName", "StorageClass")


def _content(field: str, values: dict[str, str] | None, *, encoded: bool) -> Problems:
    # Values may be secret, so no message contains one.
    total = 0
    for key, value in (values or {}).items():
        # Keys become file names where the object is mounted.
        if not _KEY.fullmatch(key) or len(key) > MAX_NAME or key in (".", "..") or key.startswith(".."):
            yield Problem(
                field=field, message=f"{truncate(key)!r} is not a valid key: letters, digits, '-', '_' and '.'"
            )
        if not encoded:
            total += len(value.encode())
            continue
        try:
            total += len(base64.b64decode("".join(value.split()), validate=True))
        except (binascii.Error, ValueError):
            yield Problem(
                field=f"{field}[{truncate(key)}]", message="the value is not base64; stringData takes plain text"
            )
    if total > MAX_CONTENT:
        yield Problem(field=field, message=f"the values are {total} bytes together, at most {MAX_CONTENT} are allowed")
