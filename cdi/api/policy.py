"""Import settings in the annotations ``cdi.kubevirt.io/policy.*`` of a DataVolume.

The fields of the API are those of KubeVirt's CDI; additional features are configured by these annotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cdi.api.annotation_values import Parser, boolean, one_of, parse_annotations, printable, select, whole_number
from cdi.api.digest import Digest
from cdi.api.errors import InvalidManifest
from cdi.api.job import Limits, Policy
from cdi.api.names import GROUP
from cdi.api.quantity import Quantity
from cdi.api.rules.problems import Problem, truncate
from cdi.api.sources import ImportSource, SourceKind

PREFIX = f"{GROUP}/policy."
BANDWIDTH = f"{PREFIX}bandwidth"
CONNECTIONS = f"{PREFIX}connections"
CHECKSUM = f"{PREFIX}checksum"
RECORD_DIGEST = f"{PREFIX}recordDigest"
INSECURE = f"{PREFIX}insecure"
COSIGN_KEYS = f"{PREFIX}cosignKeys"
DISK = f"{PREFIX}disk"
_MAX_CONNECTIONS = 64
_MAX_STALL = 3600
_MAX_CLONE = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAnnotations:
    """Values of the annotations; None or a default if unset."""

    engine: Literal["auto", "qemu"] = "auto"
    connections: int = 0
    bandwidth: int = 0
    """Bytes per second; 0 is unlimited."""
    discover_checksum: bool = True
    require_checksum: bool = False
    record_digest: bool = False
    checksum: str | None = None
    """Digest ``algorithm:hex`` for sources without a checksum field; for a registry image, of its manifest."""
    signature: Literal["ignore", "if-present", "require"] = "ignore"
    keyring: str | None = None
    """An absolute path, ``configmap`` or ``configmap/key``."""
    cosign_keys: str | None = None
    """An absolute path, or the name of a Secret of which every value is a PEM file with public keys."""
    disk: str | None = None
    """Name of the file in a tar archive or OVA that is the disk."""
    stall_timeout: int | None = None
    """Stall timeout in seconds."""
    clone_timeout: int | None = None
    """Seconds until a clone by the storage is given up in favor of copying by pods."""
    endpoint: str | None = None
    """URL of another service with the S3 or GCS API."""
    region: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    anonymous: bool = False
    insecure: bool = False
    """Disable TLS verification and allow plain HTTP for registries; only on a local machine."""

    def policy(self, *, preallocation: bool, keyring: str | None, cosign_keys: tuple[str, ...] = ()) -> Policy:
        """Return the policy of a job; `keyring` and `cosign_keys` are paths of files and directories."""
        policy = Policy(
            engine=self.engine,
            connections=self.connections,
            bandwidth=self.bandwidth,
            discover_checksum=self.discover_checksum,
            require_checksum=self.require_checksum,
            record_digest=self.record_digest,
            signature=self.signature,
            keyring=keyring,
            cosign_keys=cosign_keys,
            preallocation=preallocation,
            disk=self.disk,
        )
        return policy if self.stall_timeout is None else replace(policy, stall_timeout=float(self.stall_timeout))


def limit_annotations(*, bandwidth: int | None, connections: int | None) -> dict[str, str]:
    """Return the annotations that set these limits, without those that are None; raise `InvalidManifest`."""
    given = {BANDWIDTH: bandwidth, CONNECTIONS: connections}
    annotations = {name: str(value) for name, value in given.items() if value is not None}
    parse_policy_annotations(annotations)
    return annotations


def limits_of(annotations: Mapping[str, str]) -> Limits:
    """Return the limits of a running worker; raise `InvalidManifest`."""
    found = parse_policy_annotations(
        {name: annotations[name] for name in (BANDWIDTH, CONNECTIONS) if name in annotations}
    )
    return Limits(bandwidth=found.bandwidth, connections=found.connections)


def parse_policy_annotations(annotations: Mapping[str, str] | None) -> PolicyAnnotations:
    """Parse the annotations; raise `InvalidManifest` with all problems that `check_policy` finds."""
    values, problems = _parse(annotations or {})
    if problems:
        text = "; ".join(f"{name}: {problem.message}" for name, problem in problems)
        raise InvalidManifest(text, where="metadata.annotations")
    return PolicyAnnotations(**values)


def check_policy(annotations: Mapping[str, str] | None, field: str = "metadata.annotations") -> Iterator[Problem]:
    """Yield a problem for each annotation that is invalid or has an unknown name."""
    for name, problem in _parse(annotations or {})[1]:
        yield replace(problem, field=f"{field}[{truncate(name, 200)}]")


def check_signed_source(annotations: Mapping[str, str] | None, source: ImportSource | None) -> Iterator[Problem]:
    """Yield a problem for each annotation that the kind of source has no use for.

    That is cosign's signature of something else than a container image, and the selection of a file in one. `source` is
    None for a clone through a DataSource.
    """
    given = annotations or {}
    kinds = {kind.value for kind, _ in source.given()} if source is not None else {"a DataSource"}
    if DISK in given and SourceKind.REGISTRY in kinds:
        yield Problem(
            field=f"metadata.annotations[{DISK}]",
            message="Invalid value: it selects a file of a tar archive or OVA, but the source is a container image",
        )
    if COSIGN_KEYS in given and kinds and SourceKind.REGISTRY not in kinds:
        yield Problem(
            field=f"metadata.annotations[{COSIGN_KEYS}]",
            message=f"Invalid value: cosign signs container images, but the source is {', '.join(sorted(kinds))}; "
            f"for signed checksum files set {PREFIX}signature and {PREFIX}keyring",
        )


def check_policy_change(before: Mapping[str, str] | None, after: Mapping[str, str] | None) -> Iterator[Problem]:
    """Yield the problems that `check_policy` finds, or none if the annotations are unchanged."""
    if select(before or {}, PREFIX) != select(after or {}, PREFIX):
        yield from check_policy(after)


def _parse(annotations: Mapping[str, str]) -> tuple[dict[str, Any], list[tuple[str, Problem]]]:
    """Return the values for `PolicyAnnotations`, and a problem for each invalid annotation, by its name."""
    parsers = {name: parse for name, (_, parse) in _PARSERS.items()}
    found, problems = parse_annotations(annotations, PREFIX, parsers)
    values = {_PARSERS[name][0]: value for name, value in found.items()}
    if not problems and values.get("signature", "ignore") != "ignore" and "keyring" not in values:
        message = f"Invalid value: a signature cannot be checked without keys; set {PREFIX}keyring as well"
        problems.append((f"{PREFIX}signature", Problem(field=f"{PREFIX}signature", message=message)))
    return values, problems


def _bytes_per_second(text: str) -> int:
    rate = Quantity.parse(text).bytes
    if not 0 <= rate < 1 << 62:
        raise ValueError(f"{text[:40]!r} is not a number of bytes per second")
    return rate


def _digest(text: str) -> str:
    return str(Digest.parse(text))


_PARSERS: dict[str, tuple[str, Parser]] = {
    "engine": ("engine", one_of("auto", "qemu")),
    "connections": ("connections", whole_number(0, _MAX_CONNECTIONS)),
    "bandwidth": ("bandwidth", _bytes_per_second),
    "discoverChecksum": ("discover_checksum", boolean),
    "requireChecksum": ("require_checksum", boolean),
    "recordDigest": ("record_digest", boolean),
    "checksum": ("checksum", _digest),
    "signature": ("signature", one_of("ignore", "if-present", "require")),
    "keyring": ("keyring", printable),
    "cosignKeys": ("cosign_keys", printable),
    "disk": ("disk", printable),
    "stallTimeout": ("stall_timeout", whole_number(1, _MAX_STALL)),
    "cloneTimeout": ("clone_timeout", whole_number(1, _MAX_CLONE)),
    "endpoint": ("endpoint", printable),
    "region": ("region", printable),
    "addressing": ("addressing", one_of("auto", "path", "virtual")),
    "anonymous": ("anonymous", boolean),
    "insecure": ("insecure", boolean),
}
