"""Which TLS versions and ciphers the servers offer: CDIConfig's ``tlsSecurityProfile``.

The profiles are OpenShift's, after Mozilla's recommendations.  Versions before 1.2 are not offered whatever a profile
says (RFC 8996): ``Old`` differs from ``Intermediate`` in its ciphers only.  The ciphers of TLS 1.3 are not a choice.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from cdi.api.configuration import TlsSecurityProfile

_INTERMEDIATE = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "DHE-RSA-AES128-GCM-SHA256",
    "DHE-RSA-AES256-GCM-SHA384",
)
_OLD = (
    *_INTERMEDIATE,
    "DHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA384",
    "ECDHE-RSA-AES256-SHA384",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "DHE-RSA-AES128-SHA256",
    "DHE-RSA-AES256-SHA256",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA256",
    "AES256-SHA256",
    "AES128-SHA",
    "AES256-SHA",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPolicy:
    """What is offered."""

    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    ciphers: tuple[str, ...] = _INTERMEDIATE
    """Of TLS 1.2, by OpenSSL's names."""

    @classmethod
    def of(cls, profile: TlsSecurityProfile | None) -> TlsPolicy:
        """What a profile asks for; Intermediate where it asks for nothing that is known."""
        match profile.type if profile is not None else None:
            case "Old":
                return cls(ciphers=_OLD)
            case "Modern":
                return cls(minimum=ssl.TLSVersion.TLSv1_3)
            case "Custom" if profile is not None and profile.custom is not None:
                newest = profile.custom.min_tls_version == "VersionTLS13"
                asked = tuple(name for name in profile.custom.ciphers or () if not name.startswith("TLS_"))
                return cls(
                    minimum=ssl.TLSVersion.TLSv1_3 if newest else ssl.TLSVersion.TLSv1_2,
                    ciphers=asked or _INTERMEDIATE,
                )
            case _:
                return cls()


class ServingTls:
    """The TLS side of a server, whose certificate and policy can be replaced while it serves.

    A connection keeps what it began with; the next one gets what is new.
    """

    def __init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.set_alpn_protocols(["http/1.1"])
        self._policy: TlsPolicy | None = None
        self._pair: tuple[bytes, bytes] | None = None
        self._authorities = ""
        self.follow(TlsPolicy())

    @property
    def has_certificate(self) -> bool:
        return self._pair is not None

    def follow(self, policy: TlsPolicy) -> None:
        """Offer this from now on; ciphers that OpenSSL does not know are left out."""
        if policy == self._policy:
            return
        self.context.minimum_version = policy.minimum
        try:
            self.context.set_ciphers(":".join(policy.ciphers))
        except ssl.SSLError:  # it knows none of them
            self.context.set_ciphers(":".join(_INTERMEDIATE))
        self._policy = policy

    def ask(self, authorities: str) -> None:
        """Ask clients for a certificate that one of these (PEM) signed; who has none is served all the same.

        A context learns and does not forget: whether one of them is still believed is for whoever looks at the
        certificate.  Raises `ssl.SSLError` for what cannot be read.
        """
        if authorities and authorities != self._authorities:
            self.context.load_verify_locations(cadata=authorities)
            self.context.verify_mode = ssl.CERT_OPTIONAL
            self._authorities = authorities

    def present(self, certificate: bytes, key: bytes) -> bool:
        """Show this certificate (PEM, with its chain) from now on; whether it is another than before.

        Raises `ssl.SSLError` where they do not belong together.
        """
        if (certificate, key) == self._pair:
            return False
        # OpenSSL's interface to Python reads files only; this one has no name and is gone with its descriptor.
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(certificate.rstrip() + b"\n" + key)
            self.context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        self._pair = (certificate, key)
        return True
