"""Contract between controller and proof worker: one `ProofJob` in, one `ProofResult` out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self

from cdi.api.decode import DecodeError, Range, decode
from cdi.api.errors import InvalidManifest
from cdi.api.job import Failure

MAX_RESULT = 4096
"""Maximum length in bytes of a result: the kubelet truncates longer termination messages, which are then invalid."""
MAX_EXPECT = 1024
"""Maximum length in characters of `ProofJob.expect`."""
_MAX_ID = 64
_MAX_TEXT = 500
"""Characters of a message that are kept as long as there is console output to shorten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofJob:
    """A disk from which a virtual machine is to be booted, without writing to it."""

    id: str
    """UID of the PVC."""
    disk: str
    """Path of a disk image or block device."""
    memory: Annotated[int, Range(at_least=1 << 26)] = 1 << 30
    """Memory of the virtual machine in bytes."""
    timeout: Annotated[float, Range(above=0, at_most=86_400)] | None = None
    """Seconds; None for the default of the accelerator."""
    firmware: Literal["auto", "bios", "uefi"] = "auto"
    expect: str | None = None
    """Regular expression; only a matching console line proves the boot."""
    architecture: str | None = None
    """OCI architecture of the virtual machine; None for that of the machine that runs the proof."""
    overlay: Annotated[int, Range(at_least=1 << 20)] = 16 << 30
    """Largest number of bytes that the virtual machine may write."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON; raise `InvalidManifest` that names every invalid field."""
        try:
            return decode(cls, text)
        except DecodeError as error:
            raise InvalidManifest(f"not a proof job: {error}") from error

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofResult:
    """Result of a boot proof; `failure` is set if the proof could not be made at all."""

    id: str
    booted: bool = False
    message: str = ""
    """Evidence of the boot, or why it failed."""
    accelerator: str = ""
    seconds: float = 0.0
    console: str = ""
    """End of the console output."""
    failure: Failure | None = None

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON; raise `ValueError` if it is invalid."""
        return decode(cls, text)

    def to_json(self, limit: int = MAX_RESULT) -> str:
        """Return ASCII JSON of at most `limit` bytes, at least 1024: a termination message.

        If it is too long, the beginning of the console output is dropped first, then the end of the messages.
        """
        body = asdict(self)
        body["id"] = self.id[:_MAX_ID]
        body["accelerator"] = self.accelerator[:_MAX_ID]
        if self.failure is not None:
            body["failure"]["upstream"] = ""
        texts = [(body, "console", 0), (body, "message", _MAX_TEXT), (body, "message", 0)]
        if self.failure is not None:
            texts.append((body["failure"], "message", 0))
        for holder, name, least in texts:
            while (over := len(_dump(body)) - limit) > 0 and len(text := holder[name]) > least:
                # A character takes up to 12 bytes.
                left = max(least, len(text) - max(1, over // 12))
                holder[name] = text[len(text) - left :] if name == "console" else text[:left]
        return _dump(body)


def _dump(body: dict[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"))
