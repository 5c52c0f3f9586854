"""Authorities and certificates as values: issued, parsed and checked against a given time, without I/O."""

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
"""Tolerance for clock skew between nodes: a certificate is valid from slightly before it was issued."""
_MAX_AUTHORITIES = 10
_SIGNERS = (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """Lifetime of a certificate, and how long before its end it is renewed."""

    duration: dt.timedelta
    renew_before: dt.timedelta


AUTHORITY_LIFETIME = Lifetime(duration=dt.timedelta(hours=48), renew_before=dt.timedelta(hours=24))
CERTIFICATE_LIFETIME = Lifetime(duration=dt.timedelta(hours=24), renew_before=dt.timedelta(hours=12))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Certificate and private key, as PEM."""

    certificate: bytes
    """The certificate, followed by intermediate certificates if there are any."""
    key: bytes

    def parsed(self) -> x509.Certificate | None:
        """Return the certificate; None if it or the key is unreadable, or they do not match."""
        try:
            certificate = x509.load_pem_x509_certificates(self.certificate)[0]
            key = serialization.load_pem_private_key(self.key, password=None)
        except (ValueError, TypeError, IndexError):
            return None
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        same = key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)
        return certificate if same else None


def as_ca(pair: Pair) -> x509.Certificate | None:
    """Return the certificate of an authority; None if it is not one, or its key type is unsupported."""
    certificate = pair.parsed()
    if certificate is None:
        return None
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    key = serialization.load_pem_private_key(pair.key, password=None)
    return certificate if constraints.ca and isinstance(key, _SIGNERS) else None


def issued_at(certificate: x509.Certificate) -> dt.datetime:
    """Return when one of our certificates was issued."""
    return certificate.not_valid_before_utc + _SKEW


def is_valid(certificate: x509.Certificate, now: dt.datetime) -> bool:
    """Return whether the certificate is valid at `now`."""
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def needs_renewal(certificate: x509.Certificate, lifetime: Lifetime, now: dt.datetime) -> bool:
    """Return whether the certificate must be renewed, by its own end or by the lifetime that is configured now."""
    return is_renewal_due(certificate.not_valid_before_utc, certificate.not_valid_after_utc, lifetime, now)


def is_renewal_due(start: dt.datetime, end: dt.datetime, lifetime: Lifetime, now: dt.datetime) -> bool:
    """Return whether one of our certificates that is valid from `start` to `end` must be renewed."""
    # Subtracted from `now`, as a date that a user wrote may be too close to the limits of what can be represented.
    left = min(end - now, start - now + _SKEW + lifetime.duration)
    return left <= lifetime.renew_before


def new_authority(name: str, lifetime: Lifetime, now: dt.datetime) -> Pair:
    """Return a new authority that may sign server and client certificates, but no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Verifiers look an issuer up by its name, so the timestamp makes it unique.
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
    """Return a certificate for a server with these DNS names and addresses, or for a client called `name`.

    It expires no later than its authority.
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
    """Return whether the certificate covers all of these names and addresses."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return not list(hosts)
    return {_host(host) for host in hosts} <= set(found)


def issued_by(certificate: x509.Certificate, authorities: Iterable[x509.Certificate]) -> bool:
    """Return whether one of the authorities signed the certificate."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def read_bundle(text: str) -> list[x509.Certificate]:
    """Return the certificates in a PEM bundle; none if it is unreadable."""
    try:
        return x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        return []


def write_bundle(certificates: Iterable[x509.Certificate], now: dt.datetime) -> str:
    """Return a PEM bundle of the unexpired certificates, without duplicates, newest first and bounded in number."""
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
