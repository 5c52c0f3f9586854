"""The trusted CA certificates, and the errors for certificates that are not trusted.

One bundle serves every source: the system's CA certificates and the PEM (or single DER) certificates in all files of a
directory, whatever their names, because the keys of a ConfigMap are arbitrary.
"""

from __future__ import annotations

import os
import ssl
import stat

from cdi.api.errors import SourceTlsUntrusted
from cdi.api.importer_messages import EXPIRED, UNKNOWN_AUTHORITY
from cdi.api.job import Tls
from cdi.api.printable import printable

MAX_CA_FILE = 4 << 20
MAX_CA_FILES = 1000
_PEM = b"-----BEGIN CERTIFICATE-----"
# X509_V_ERR_* in openssl/x509_vfy.h, which `SSLCertVerificationError.verify_code` contains.
_EXPIRED = frozenset({9, 10})
_WRONG_NAME = frozenset({62, 64})
_REASONS = {
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed and not trusted",
    19: "is issued by a private authority that is not trusted",
    20: "is issued by an unknown authority",
    21: "is issued by an unknown authority, or the server does not send its intermediate certificates",
    23: "was revoked",
    26: "is not valid for servers",
    62: "is issued for another host",
    64: "is issued for another address",
    66: "has a key that is too weak",
    67: "has an authority whose key is too weak",
    68: "is signed with a digest that is too weak",
}


def make_context(tls: Tls) -> ssl.SSLContext:
    """Return a client context; raise `SourceTlsUntrusted` with the file that cannot be used."""
    context = ssl.create_default_context()
    # As in Go, a pinned intermediate or the server's own certificate counts as a trust anchor. Strict mode (the default
    # of later Python versions) is off because old private CAs lack the extensions it requires.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca_dir is not None:
        _load_directory(context, tls.ca_dir)
    return context


def _load_directory(context: ssl.SSLContext, directory: str) -> None:
    try:
        # Kubernetes updates a ConfigMap atomically with "..data" and "..2024_…"; the keys are symbolic links into them.
        names = sorted(name for name in os.listdir(directory) if not name.startswith(".."))
    except OSError as error:
        raise SourceTlsUntrusted(f"cannot read the CA directory: {error.strerror}", where=directory) from error
    if len(names) > MAX_CA_FILES:
        raise SourceTlsUntrusted(f"the CA directory has more than {MAX_CA_FILES} files", where=directory)
    loaded = 0
    for name in names:
        path = os.path.join(directory, name)
        data = _read(path)
        if data is None:
            continue
        is_pem = _PEM in data
        try:
            context.load_verify_locations(cadata=data.decode("latin-1") if is_pem else data)
            loaded += 1
        except (ssl.SSLError, ValueError) as error:
            # Other files, such as a README, are ignored; a damaged certificate would cause a later error without its
            # file name.
            if is_pem:
                raise SourceTlsUntrusted(
                    "the file contains an invalid certificate",
                    where=path,
                    remedy="store complete PEM blocks in the ConfigMap named by certConfigMap",
                ) from error
    if not loaded:
        listing = ", ".join(names[:10]) or "no file"
        raise SourceTlsUntrusted(f"no certificate found among {listing}", where=directory)


def _read(path: str) -> bytes | None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            data = file.read(MAX_CA_FILE + 1)
    except OSError as error:
        raise SourceTlsUntrusted(f"cannot read the CA file: {error.strerror}", where=path) from error
    if len(data) > MAX_CA_FILE:
        raise SourceTlsUntrusted(f"the CA file is larger than {MAX_CA_FILE} bytes", where=path)
    return data


def certificate_error(
    error: ssl.SSLCertVerificationError, *, host: str, certificate: bytes | None, where: str
) -> SourceTlsUntrusted:
    """Return the error for an untrusted server certificate; `certificate` is its DER encoding, if available."""
    code = error.verify_code
    reason = _REASONS.get(code, f"is not trusted: {error.verify_message}")
    summary = "" if certificate is None else _summary(certificate)
    what = f"the certificate of {host} {reason}"
    remedy = None
    if code in _WRONG_NAME:
        remedy = "use a host name in the certificate, or issue a certificate for this one"
    elif code in _EXPIRED:
        remedy = "renew the server's certificate, and check this machine's clock"
    elif code == 23:
        remedy = "replace the server's certificate"
    untrusted = SourceTlsUntrusted(f"{what}; {summary}" if summary else what, where=where, remedy=remedy)
    return untrusted.with_upstream(EXPIRED if code in _EXPIRED else "" if code in _WRONG_NAME else UNKNOWN_AUTHORITY)


def _summary(der: bytes) -> str:
    """Return the subject, issuer, names and validity of a certificate, for messages."""
    from cryptography import x509  # takes 50 ms to import, needed only for an error

    try:
        cert = x509.load_der_x509_certificate(der)
        try:
            san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = [*san.get_values_for_type(x509.DNSName), *map(str, san.get_values_for_type(x509.IPAddress))]
        except x509.ExtensionNotFound:
            names = []
        parts = [
            f"subject {cert.subject.rfc4514_string() or 'empty'}",
            f"issuer {cert.issuer.rfc4514_string() or 'empty'}",
            f"names {', '.join(names[:8]) or 'none'}",
            f"valid {cert.not_valid_before_utc:%Y-%m-%d} to {cert.not_valid_after_utc:%Y-%m-%d}",
        ]
    except Exception:  # noqa: BLE001  # a malformed certificate must not hide the original error
        return ""
    return "; ".join(printable(part, 300, substitute="?") for part in parts)
