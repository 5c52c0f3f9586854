"""Mutual TLS between the ends of a clone."""

from __future__ import annotations

import ssl

from cdi.api.errors import PeerUntrusted
from cdi.api.peer import TlsFiles


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of a target; raise `PeerUntrusted` if the files cannot be used."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of a source, which also verifies the target's name; may raise `PeerUntrusted`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, files)


def common_name(tls: ssl.SSLSocket) -> str:
    """Return the common name in the peer's certificate."""
    certificate = tls.getpeercert() or {}
    subject = certificate.get("subject", ())
    for names in subject if isinstance(subject, tuple) else ():
        for name in names:
            if name[0] == "commonName":
                return str(name[1])
    return ""


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    # Both ends are implemented here.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.ca)
    except OSError as error:
        # This includes ssl.SSLError.
        text = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise PeerUntrusted(f"cannot load this worker's certificate: {text}", where=files.certificate) from error
    return context
