"""Self-signed certificate of a worker, created at each start.

Clients that read a worker's progress reach it by its pod's IP address and have no way to know its key beforehand. So
the certificate only encrypts the connection and authenticates nothing.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta

_EARLIER = timedelta(days=1)
"""Tolerance for clock differences between nodes."""
_LATER = timedelta(days=365)


def server_context(name: str) -> ssl.SSLContext:
    """Return the context of a TLS server with a self-signed certificate for `name`."""
    # Importing the library costs more CPU time than a small image, so it is deferred until the server starts.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:64])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + _LATER)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # OpenSSL only loads a key from a file, so it is written to an anonymous one in memory.
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(
            file,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM),
        )
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context
