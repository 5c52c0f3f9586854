"""Both ends show a certificate, and check the other's."""

from __future__ import annotations

import ssl

from cdi.api.copy import TlsFiles
from cdi.api.errors import PeerUntrusted


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For a target.  Raises `PeerUntrusted` where the files cannot be used."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For a source, which checks the target's name too.  Raises `PeerUntrusted` where the files cannot be used."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, files)


def common_name(tls: ssl.SSLSocket) -> str:
    """Of the certificate that the other end has shown."""
    certificate = tls.getpeercert() or {}
    subject = certificate.get("subject", ())
    for names in subject if isinstance(subject, tuple) else ():
        for name in names:
            if name[0] == "commonName":
                return str(name[1])
    return ""


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    # Both ends are this program's.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.ca)
    except OSError as error:
        # ssl.SSLError is one of them.
        text = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise PeerUntrusted(f"the own certificate cannot be used: {text}", where=files.certificate) from error
    return context
