"""A certificate of the worker's own, for as long as it lives.

Whoever asks a worker for its progress reaches it by its pod's address and has no reason to know its key beforehand: the
certificate keeps the conversation private, it proves nothing.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta

_EARLIER = timedelta(days=1)
"""The clocks of two nodes differ."""
_LATER = timedelta(days=365)


def server_context(name: str) -> ssl.SSLContext:
    """For a TLS server whose certificate, signed by nobody else, is for `name`."""
    # Loading the library costs more processor time than a small image: whoever asks for this has waited a while.
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
    # OpenSSL takes a key only from a file; this one is in memory and nowhere else.
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
