"""Authorities and certificates as values: made, read, and judged by a clock that is given.  No I/O."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_SKEW = dt.timedelta(minutes=5)
"""Clocks of nodes differ: a certificate is good from a little before it was made."""
_MAX_AUTHORITIES = 10
_SIGNERS = (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """How long a certificate lives and how long before its end it is replaced."""

    duration: dt.timedelta
    renew_before: dt.timedelta


AUTHORITY_LIFETIME = Lifetime(duration=dt.timedelta(hours=48), renew_before=dt.timedelta(hours=24))
CERTIFICATE_LIFETIME = Lifetime(duration=dt.timedelta(hours=24), renew_before=dt.timedelta(hours=12))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: bytes
    """With what leads to its authority after it, where that is needed."""
    key: bytes

    def parsed(self) -> x509.Certificate | None:
        """The certificate; None where it or the key cannot be read, or they do not belong together."""
        try:
            certificate = x509.load_pem_x509_certificates(self.certificate)[0]
            key = serialization.load_pem_private_key(self.key, password=None)
        except (ValueError, TypeError, IndexError):
            return None
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        same = key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)
        return certificate if same else None


def signs(pair: Pair) -> x509.Certificate | None:
    """The certificate of an authority; None where it is none, or its key is of a kind that is not used here."""
    certificate = pair.parsed()
    if certificate is None:
        return None
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    key = serialization.load_pem_private_key(pair.key, password=None)
    return certificate if constraints.ca and isinstance(key, _SIGNERS) else None


def made(certificate: x509.Certificate) -> dt.datetime:
    """When one of our certificates was made."""
    return certificate.not_valid_before_utc + _SKEW


def good(certificate: x509.Certificate, now: dt.datetime) -> bool:
    """It is valid at this time."""
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def due(certificate: x509.Certificate, lifetime: Lifetime, now: dt.datetime) -> bool:
    """It is time for a new one: by its own end, or by the lifetime that is now wanted."""
    end = min(certificate.not_valid_after_utc, made(certificate) + lifetime.duration)
    return now >= end - lifetime.renew_before


def new_authority(name: str, lifetime: Lifetime, now: dt.datetime) -> Pair:
    """A certificate authority that signs servers' and clients' certificates, and no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    # The time makes the name unique: verifiers find an issuer by it.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name}@{int(now.timestamp())}")])
    certificate = (
        _builder(subject, subject, key.public_key(), now, now + lifetime.duration)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def new_certificate(
    authority: Pair,
    name: str,
    *,
    hosts: Sequence[str] = (),
    usage: Literal["server", "client"] = "server",
    lifetime: Lifetime,
    now: dt.datetime,
) -> Pair:
    """A certificate for a server with these DNS names and addresses, or for a client called `name`.

    It does not outlive its authority.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, _SIGNERS)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    end = min(now + lifetime.duration, issuer.not_valid_after_utc)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if usage == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(subject, issuer.subject, key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return _pair(builder.sign(signer, hashes.SHA256()), key)


def names_all(certificate: x509.Certificate, hosts: Iterable[str]) -> bool:
    """It is a certificate for every one of these names and addresses."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return not list(hosts)
    return {_host(host) for host in hosts} <= set(found)


def issued_by(certificate: x509.Certificate, authorities: Iterable[x509.Certificate]) -> bool:
    """One of these has signed it."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def read_bundle(text: str) -> list[x509.Certificate]:
    """The certificates in it; none where it cannot be read."""
    try:
        return x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        return []


def write_bundle(certificates: Iterable[x509.Certificate], now: dt.datetime) -> str:
    """Those that are not over, each once, the newest first, as PEM: whoever trusts it trusts old and new ones."""
    alive = {one.fingerprint(hashes.SHA256()): one for one in certificates if one.not_valid_after_utc > now}
    newest = sorted(alive.values(), key=lambda one: (one.not_valid_after_utc, one.serial_number), reverse=True)
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in newest[:_MAX_AUTHORITIES])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, end: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(end)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
