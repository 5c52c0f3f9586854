"""Signatures of container images, as registries store them, and the interface of what verifies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cdi.api.digest import Digest
from cdi.api.errors import CdiError

MAX_SIGNATURES = 64
"""Maximum number of signatures of one image that are read."""
MAX_SIGNATURE_DOCUMENT = 64 << 10
"""Maximum size in bytes of a signed payload or a bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureDocument:
    """A stored signature that is not verified yet; anybody with access to the registry may have written it."""

    kind: Literal["simple-signing", "bundle"]
    """``simple-signing``: `body` is the signed payload. ``bundle``: a Sigstore bundle, which includes its signature."""
    body: bytes
    signature: str = ""
    """Base64 signature of a ``simple-signing`` payload."""
    has_certificate: bool = False
    """Whether a certificate is stored with it, as with keyless signatures."""


class SignatureVerifier(Protocol):
    """Decision whether an image is signed, taken while its signatures are read one by one."""

    def accept(self, document: SignatureDocument, digests: Sequence[Digest]) -> bool:
        """Return whether this is a trusted signature of one of the `digests`; if so, no other one is read."""
        ...

    def rejection(self, where: str, unread: Sequence[str]) -> CdiError:
        """Return the error for an image without a trusted signature.

        `unread` are the reasons for which documents that may contain signatures were not used.
        """
        ...
