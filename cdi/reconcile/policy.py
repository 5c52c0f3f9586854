"""Import settings from a DataVolume's annotations ``cdi.kubevirt.io/policy.*``.

The API's fields stay those of KubeVirt's CDI; features beyond them are requested with these annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cdi.api.digest import Digest
from cdi.api.errors import ChecksumInvalid, InvalidManifest
from cdi.api.job import Policy
from cdi.api.names import GROUP
from cdi.api.quantity import Quantity

PREFIX = f"{GROUP}/policy."
BANDWIDTH = f"{PREFIX}bandwidth"
CONNECTIONS = f"{PREFIX}connections"
CHECKSUM = f"{PREFIX}checksum"
RECORD_DIGEST = f"{PREFIX}recordDigest"
INSECURE = f"{PREFIX}insecure"
_MOST_CONNECTIONS = 64
_LONGEST_STALL = 3600
_LONGEST_CLONE = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """The values of the annotations; None or a default if unset."""

    engine: Literal["auto", "qemu"] = "auto"
    connections: int = 0
    bandwidth: int = 0
    """Bytes per second."""
    discover_checksum: bool = True
    require_checksum: bool = False
    record_digest: bool = False
    checksum: str | None = None
    """``algorithm:hex`` for sources without a checksum field; for a registry image, the digest of its manifest."""
    signature: Literal["ignore", "if-present", "require"] = "ignore"
    keyring: str | None = None
    """An absolute path, or ``configmap`` or ``configmap/key``."""
    stall_timeout: int | None = None
    """Seconds."""
    clone_timeout: int | None = None
    """Seconds that the storage has for a clone before the volume is copied by pods instead."""
    endpoint: str | None = None
    """URL of another service with the S3 or GCS API."""
    region: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    anonymous: bool = False
    insecure: bool = False
    """Disable TLS verification, and allow a registry over plain HTTP; on a local machine only."""

    def policy(self, *, preallocation: bool, keyring: str | None) -> Policy:
        """Return the policy of a job; `keyring` is the path of the key ring file."""
        policy = Policy(
            engine=self.engine,
            connections=self.connections,
            bandwidth=self.bandwidth,
            discover_checksum=self.discover_checksum,
            require_checksum=self.require_checksum,
            record_digest=self.record_digest,
            signature=self.signature,
            keyring=keyring,
            preallocation=preallocation,
        )
        return policy if self.stall_timeout is None else replace(policy, stall_timeout=float(self.stall_timeout))


def read_knobs(annotations: Mapping[str, str] | None) -> Knobs:
    """Parse the annotations.

    Raises:
        InvalidManifest: The message names every invalid or unknown annotation.

    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, text in sorted((annotations or {}).items()):
        if not name.startswith(PREFIX):
            continue
        knob = _KNOBS.get(name.removeprefix(PREFIX))
        if knob is None:
            problems.append(f"{name} is not known (there are {', '.join(sorted(_KNOBS))})")
            continue
        field, parse = knob
        try:
            values[field] = parse(text.strip())
        except (ValueError, InvalidManifest, ChecksumInvalid) as error:
            problems.append(f"{name}: {error if isinstance(error, ValueError) else error.what}")
    if problems:
        raise InvalidManifest("; ".join(problems), where="metadata.annotations")
    knobs = Knobs(**values)
    if knobs.signature != "ignore" and knobs.keyring is None:
        raise InvalidManifest(
            "a signature cannot be checked without keys",
            where=f"{PREFIX}signature",
            remedy=f"set {PREFIX}keyring as well",
        )
    return knobs


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text[:40]!r} is none of {', '.join(words)}")
        return text

    return parse


def _boolean(text: str) -> bool:
    return _one_of("true", "false")(text) == "true"


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > len(str(highest)):
            raise ValueError(f"{text[:40]!r} is no whole number from {lowest} to {highest}")
        number = int(text)
        if not lowest <= number <= highest:
            raise ValueError(f"{number} is not from {lowest} to {highest}")
        return number

    return parse


def _bytes_per_second(text: str) -> int:
    rate = Quantity.parse(text).bytes
    if not 0 <= rate < 1 << 62:
        raise ValueError(f"{text[:40]!r} is no number of bytes per second")
    return rate


def _digest(text: str) -> str:
    return str(Digest.parse(text))


def _plain(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("is empty or holds control characters")
    return text


_KNOBS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "engine": ("engine", _one_of("auto", "qemu")),
    "connections": ("connections", _whole(0, _MOST_CONNECTIONS)),
    "bandwidth": ("bandwidth", _bytes_per_second),
    "discoverChecksum": ("discover_checksum", _boolean),
    "requireChecksum": ("require_checksum", _boolean),
    "recordDigest": ("record_digest", _boolean),
    "checksum": ("checksum", _digest),
    "signature": ("signature", _one_of("ignore", "if-present", "require")),
    "keyring": ("keyring", _plain),
    "stallTimeout": ("stall_timeout", _whole(1, _LONGEST_STALL)),
    "cloneTimeout": ("clone_timeout", _whole(1, _LONGEST_CLONE)),
    "endpoint": ("endpoint", _plain),
    "region": ("region", _plain),
    "addressing": ("addressing", _one_of("auto", "path", "virtual")),
    "anonymous": ("anonymous", _boolean),
    "insecure": ("insecure", _boolean),
}
