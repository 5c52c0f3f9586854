"""Simulated time for an installation's certificates: each is reissued with earlier dates.

Keys, names and serial numbers stay the same, so holders and verifiers keep working, and the controller finds what it
would find after that time.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cdi.controller.certificates import CLIENT_SIGNER, SERVER_SIGNER
from cdi.controller.upload_certificates import CLIENT_CERTIFICATE, PROXY_CERTIFICATE, PROXY_SIGNER
from cdi.kube import pki
from cdi.kube.certificates import BUNDLE_KEY
from cdi.kube.pki import Pair
from tests.cluster.kubectl import Kubectl

AUTHORITIES = (SERVER_SIGNER, CLIENT_SIGNER, PROXY_SIGNER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A certificate authority and its key."""

    place: str
    """The Secret that contains it."""
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pair(self) -> Pair:
        """Return certificate and key in the form that issuing needs."""
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return Pair(certificate=self.certificate.public_bytes(pem[0]), key=self.key.private_bytes(*pem))


def secret(kubectl: Kubectl, name: str) -> dict[str, bytes]:
    return {key: base64.b64decode(text) for key, text in kubectl.get("secret", name)["data"].items()}


def bundle(kubectl: Kubectl, authority: str) -> list[x509.Certificate]:
    return pki.read_bundle(kubectl.get("configmap", f"{authority}-bundle")["data"][BUNDLE_KEY])


class Clock:
    """The clock of one installation, whose volumes are in `work`."""

    def __init__(self, system: Kubectl, work: Kubectl) -> None:
        self._system, self._work = system, work
        self.signers: list[Signer] = []
        """All authorities that have ever existed, as first seen."""
        self._made: dict[bytes, x509.Certificate] = {}
        self._ago = dt.timedelta()
        self.look()

    def look(self) -> None:
        """Record new authorities."""
        known = {one.certificate.subject for one in self.signers}
        self.signers += [one for one in _signers(self._system) if one.certificate.subject not in known]

    def pass_by(self, hours: float) -> None:
        """Move all certificates back by `hours`; the controller must not renew any meanwhile."""
        self.look()
        self._made, self._ago = {}, dt.timedelta(hours=hours)
        for name in (*AUTHORITIES, CLIENT_CERTIFICATE, PROXY_CERTIFICATE):
            self._earlier_secret(self._system, name)
        for name in servers(self._work):
            self._earlier_secret(self._work, name)
        for name in AUTHORITIES:
            text = self._earlier_pem(bundle(self._system, name)).decode()
            self._system.merge("configmap", f"{name}-bundle", {"data": {BUNDLE_KEY: text}})

    def _earlier_secret(self, kubectl: Kubectl, name: str) -> None:
        changed = {
            field: base64.b64encode(self._earlier_pem(x509.load_pem_x509_certificates(text))).decode()
            for field, text in secret(kubectl, name).items() if field.endswith(".crt") and text
        }  # fmt: skip
        kubectl.merge("secret", name, {"data": changed})

    def _earlier_pem(self, certificates: Iterable[x509.Certificate]) -> bytes:
        made = [self._earlier(one) for one in certificates]
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in made)

    def _earlier(self, certificate: x509.Certificate) -> x509.Certificate:
        # A certificate occurs in several places, and each signature would differ.
        key = certificate.fingerprint(hashes.SHA256())
        if key not in self._made:
            builder = (
                x509.CertificateBuilder()
                .subject_name(certificate.subject)
                .issuer_name(certificate.issuer)
                .public_key(certificate.public_key())  # type: ignore[arg-type]  # of a curve, as all of them
                .serial_number(certificate.serial_number)
                .not_valid_before(certificate.not_valid_before_utc - self._ago)
                .not_valid_after(certificate.not_valid_after_utc - self._ago)
            )
            for extension in certificate.extensions:
                builder = builder.add_extension(extension.value, critical=extension.critical)
            (signer,) = [one for one in self.signers if one.certificate.subject == certificate.issuer]
            self._made[key] = builder.sign(signer.key, hashes.SHA256())
        return self._made[key]


def servers(work: Kubectl) -> list[str]:
    """Return the Secrets of upload servers."""
    names = [one["metadata"]["name"] for one in work.get_all("secrets")]
    return [name for name in names if name.startswith("cdi-upload-")]


def _signers(kubectl: Kubectl) -> list[Signer]:
    found = []
    for name in AUTHORITIES:
        held = secret(kubectl, name)
        for pair in ("tls", "previous"):
            if held.get(f"{pair}.key"):
                key = serialization.load_pem_private_key(held[f"{pair}.key"], None)
                assert isinstance(key, ec.EllipticCurvePrivateKey)
                certificate = x509.load_pem_x509_certificate(held[f"{pair}.crt"])
                found.append(Signer(place=name, certificate=certificate, key=key))
    return found
