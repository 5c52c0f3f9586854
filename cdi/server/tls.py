"""TLS versions and ciphers of the servers, from CDIConfig's ``tlsSecurityProfile``.

The profiles are OpenShift's, based on Mozilla's recommendations. Versions before 1.2 are never offered, whatever the
profile (RFC 8996): ``Old`` differs from ``Intermediate`` only in its ciphers. TLS 1.3 ciphers are not configurable.
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
    """The TLS versions and ciphers to offer."""

    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    ciphers: tuple[str, ...] = _INTERMEDIATE
    """Ciphers of TLS 1.2, by OpenSSL's names."""

    @classmethod
    def of(cls, profile: TlsSecurityProfile | None) -> TlsPolicy:
        """Return the policy of a profile; Intermediate if the profile is missing or unknown."""
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


class _AlertingObject(ssl.SSLObject):
    """TLS state of a connection that sends its alert before its handshake fails."""

    outgoing: ssl.MemoryBIO | None = None
    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Perform the handshake; while an alert is still to be sent, ask for more input instead of failing."""
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if self.outgoing is None or not self.outgoing.pending:
                raise
            self._failure = error
            raise ssl.SSLWantReadError from error


class _AlertingContext(ssl.SSLContext):
    """A context whose connections tell a client why its handshake failed, such as an unsupported TLS version.

    asyncio closes a connection as soon as its handshake fails, and drops the alert that OpenSSL has written. It sends
    what is written when the handshake needs more input. The failure is raised again when the client has read the alert
    and closes the connection, or when asyncio's timeout for handshakes ends.
    """

    sslobject_class = _AlertingObject

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Return the TLS state of a connection, which knows where its alerts are written."""
        made = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        if isinstance(made, _AlertingObject):
            made.outgoing = outgoing
        return made


class ServingTls:
    """A server's TLS context, whose certificate and policy can be replaced while it serves.

    Existing connections keep the settings that they started with.
    """

    def __init__(self) -> None:
        self.context: ssl.SSLContext = _AlertingContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.set_alpn_protocols(["http/1.1"])
        self._policy: TlsPolicy | None = None
        self._pair: tuple[bytes, bytes] | None = None
        self._authorities = ""
        self.apply_policy(TlsPolicy())

    @property
    def has_certificate(self) -> bool:
        return self._pair is not None

    def apply_policy(self, policy: TlsPolicy) -> None:
        """Apply a policy to new connections; ciphers that OpenSSL does not know are ignored."""
        if policy == self._policy:
            return
        self.context.minimum_version = policy.minimum
        try:
            self.context.set_ciphers(":".join(policy.ciphers))
        except ssl.SSLError:  # OpenSSL knows none of them
            self.context.set_ciphers(":".join(_INTERMEDIATE))
        self._policy = policy

    def request_client_certificates(self, authorities: str) -> None:
        """Request client certificates signed by one of `authorities` (PEM); clients without one are served as well.

        A context never drops authorities: callers have to check whether a certificate's authority is still trusted.

        Raises:
            ssl.SSLError: `authorities` cannot be parsed.
        """
        if authorities and authorities != self._authorities:
            self.context.load_verify_locations(cadata=authorities)
            self.context.verify_mode = ssl.CERT_OPTIONAL
            self._authorities = authorities

    def set_certificate(self, certificate: bytes, key: bytes) -> bool:
        """Present this certificate (PEM, with its chain) to new connections; return whether it is a new one.

        Raises:
            ssl.SSLError: Certificate and key do not match.
        """
        if (certificate, key) == self._pair:
            return False
        # Python's ssl module reads certificates only from files; a memfd is anonymous and freed with its descriptor.
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(certificate.rstrip() + b"\n" + key)
            self.context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        self._pair = (certificate, key)
        return True
