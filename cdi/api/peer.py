"""Source of a host-assisted clone's target: the worker that reads the source volume, which connects to the target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from cdi.api.decode import Range

PORT = 8444
"""Port on which a target listens for its source; `/progress` and `/metrics` use another port."""
CLIENT_NAME = "client.upload-server.cdi.kubevirt.io"
"""Common name in all client certificates for uploads and clones."""
EACH_TARGET = "{target}"
"""Placeholder for a target's id in the paths of a source's certificate files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Paths of PEM files for mutual TLS."""

    certificate: str = "/var/run/cdi/tls/tls.crt"
    key: str = "/var/run/cdi/tls/tls.key"
    ca: str = "/var/run/cdi/tls/ca.crt"
    """Authority that signed the peer's certificate."""

    def for_target(self, target: str) -> TlsFiles:
        """Return the paths with `EACH_TARGET` replaced by the target's id."""
        return replace(
            self,
            certificate=self.certificate.replace(EACH_TARGET, target),
            key=self.key.replace(EACH_TARGET, target),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSourceSpec:
    """Volume that another worker reads and serves over connections that it opens to this one."""

    kind: Literal["peer"] = "peer"
    port: Annotated[int, Range(at_least=0, at_most=65535)] = PORT
    """Port to listen on; 0 is any free one."""
    client_name: str = CLIENT_NAME
    """Common name required in the source's certificate; empty for any that the CA signed."""
    tls: TlsFiles = TlsFiles()
    patience: Annotated[float, Range(above=0, at_most=86_400)] = 600.0
    """Seconds without a connected source after which the job fails, initially and after each disconnect."""
