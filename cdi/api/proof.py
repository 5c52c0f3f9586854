"""Contract between controller and proof worker: one `ProofJob` in, one `ProofResult` out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

from cdi.api.decode import JsonJob, JsonRecord, Range, compact_json
from cdi.api.job import Failure

MAX_RESULT = 4096
"""Maximum length in bytes of a result: the kubelet truncates longer termination messages, which are then invalid."""
MAX_EXPECT = 1024
"""Maximum length in characters of `ProofJob.expect`."""
_MAX_ID = 64
_MAX_TEXT = 500
"""Characters of a message that are kept as long as there is console output to shorten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofJob(JsonJob):
    """A disk from which a virtual machine is to be booted, without writing to it."""

    title: ClassVar = "proof job"

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofResult(JsonRecord):
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
            while (over := len(compact_json(body)) - limit) > 0 and len(text := holder[name]) > least:
                # A character takes up to 12 bytes.
                left = max(least, len(text) - max(1, over // 12))
                holder[name] = text[len(text) - left :] if name == "console" else text[:left]
        return compact_json(body)
