"""Certificate authorities and certificates in Secrets, with CA bundles in ConfigMaps, renewed before they expire.

    Secret ``…-signer``            the authority with its key; its predecessor as ``previous.crt`` and ``.key``
    ConfigMap ``…-signer-bundle``  every authority that is still valid: the trust anchors of clients
    Secret ``…-cert``              a certificate that the authority signed, with its key

Several replicas may do this concurrently (`cdi.kube.shared_objects`). An authority is added to the bundle before a
certificate that it signed is served, and stays there until it expires, so that a client can verify the server at every
moment. Pods that mount a bundle as a file see a change with a delay: until then the previous authority signs, new
certificates included.

A certificate that a user or another tool stored in the Secret is used for as long as it is valid. Editing or removing
the annotations of one that is managed here rotates it (`cdi.kube.certificate_annotations`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from cryptography import x509

from cdi.api.errors import AlreadyExists, UploadNotReady
from cdi.api.installation import CDI, CertConfig
from cdi.api.kinds import CONFIG_MAPS, SECRETS, Object
from cdi.api.rules.durations import parse_duration
from cdi.kube import pki, shared_objects
from cdi.kube.certificate_annotations import is_rotation_requested, validity_annotations
from cdi.kube.client import Client
from cdi.kube.pki import AUTHORITY_LIFETIME, CERTIFICATE_LIFETIME, Lifetime, Pair

BUNDLE_KEY = "ca-bundle.crt"
ENTRY_RETENTION = dt.timedelta(hours=1)
"""Grace period for the client that requested an entry to be listed among those that need one."""
PROPAGATED = dt.timedelta(minutes=10)
"""Time after which every pod that mounts a bundle as a file has read a new authority from it."""
SETTLED = dt.timedelta(minutes=1)
"""Time after which every client that trusts the bundle has read a new authority from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerConfig:
    """Location of an authority."""

    namespace: str
    secret: str
    bundle: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def named(cls, namespace: str, secret: str) -> SignerConfig:
        return cls(namespace=namespace, secret=secret, bundle=f"{secret}-bundle")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateConfig:
    """Location and subject of a certificate."""

    namespace: str
    secret: str
    name: str
    """Common name; for a client, the name under which servers know it."""
    hosts: tuple[str, ...] = ()
    """DNS names and addresses of a server."""
    usage: Literal["server", "client"] = "server"
    trusts: str = ""
    """PEM of the CAs that the holder trusts; stored with the certificate as ``ca.crt``."""
    owner: Mapping[str, Any] | None = None
    """Owner reference to the object with which the Secret is deleted."""
    key_prefix: str = ""
    """Name of the entry in a Secret with several: the files are ``<entry>.crt`` and ``<entry>.key``."""
    beside: tuple[str, ...] = ()
    """Other entries in use; adding an entry removes unlisted ones that are older than `ENTRY_RETENTION`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    exclusive: bool = False
    """Whether an unmanaged Secret of this name is a conflict (`AlreadyExists`) instead of a certificate to use."""
    is_propagated: dt.timedelta = SETTLED
    """Time after which every peer of the certificate trusts a new authority."""
    patience: dt.timedelta = dt.timedelta(0)
    """Delay before a certificate of an authority without predecessor is issued.

    It applies where the predecessor's key was lost, so that peers may not trust the new authority yet.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Authority that can sign."""

    pair: Pair
    certificate: x509.Certificate
    trusted: tuple[x509.Certificate, ...]
    """This authority and its predecessors that are still valid."""
    bundle: str
    """`trusted` as PEM."""
    lifetime: Lifetime
    previous: Pair | None = None
    """Its predecessor, if that can still sign."""

    def is_propagated(self, by: dt.timedelta, now: dt.datetime) -> bool:
        """Return whether every peer trusts this authority, `by` after it was issued at the latest.

        This is immediate if there is no other authority that they could trust instead. For short lifetimes the delay is
        at most the time its predecessor has left, and at most the time until its own successor is issued.
        """
        lifetime = self.lifetime
        longest = min(by, lifetime.renew_before / 2, lifetime.duration - lifetime.renew_before)
        return len(self.trusted) < 2 or now >= pki.issued_at(self.certificate) + longest

    def signer(self, by: dt.timedelta, now: dt.datetime) -> Pair | None:
        """Return the pair whose signature every peer trusts at `now`; None if no pair that can sign is."""
        return self.pair if self.is_propagated(by, now) else self.previous


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCertificate:
    """Certificate to serve."""

    pair: Pair
    expires: dt.datetime
    authorities: str = ""
    """PEM of the CAs that peers must trust as well, if the certificate is not managed here."""
    ours: bool = True
    """Whether our authority issued it; False for one that a user or another tool stored."""


def service_hosts(service: str, namespace: str) -> tuple[str, ...]:
    """Return the names under which a Service is reachable in the cluster."""
    return (f"{service}.{namespace}.svc", service, f"{service}.{namespace}", f"{service}.{namespace}.svc.cluster.local")


async def ensure_authority(client: Client, place: SignerConfig, lifetime: Lifetime, now: dt.datetime) -> Authority:
    """Return the authority, created or renewed if needed, and add it to its bundle.

    Raises:
        Conflict: other writers win every attempt.
        CdiError: the API server returned an error.
    """

    async def signer() -> tuple[Pair, Pair | None]:
        secret = await shared_objects.get_or_none(client, SECRETS, place.namespace, place.secret)
        pair, previous = _signs(_pair(secret), now), _signs(_pair(secret, "previous"), now)
        certificate = pair.parsed() if pair is not None else None
        if pair is not None and certificate is not None:
            requested = shared_objects.is_managed(secret) and is_rotation_requested(secret, certificate, lifetime, now)
            if not requested and not pki.needs_renewal(certificate, lifetime, now):
                return pair, previous
            # The predecessor signs until peers trust the new authority, so it has to be one that they trust already.
            if previous is None or not requested or now - pki.issued_at(certificate) >= PROPAGATED:
                previous = pair
        made = pki.new_authority(place.secret, lifetime, now)
        await shared_objects.create_or_update(client, SECRETS, secret, _secret(place, made, previous=previous))
        return made, previous

    pair, previous = await shared_objects.retry_on_conflict(signer)
    alive = [one for each in (pair, previous) if each is not None and (one := each.parsed()) is not None]

    async def bundle() -> str:
        stored = await shared_objects.get_or_none(client, CONFIG_MAPS, place.namespace, place.bundle)
        before = str(((stored or {}).get("data") or {}).get(BUNDLE_KEY) or "")
        text = pki.write_bundle([*pki.read_bundle(before), *alive], now)
        if text != before:
            body = shared_objects.manifest("ConfigMap", place.namespace, place.bundle, labels=place.labels)
            body["data"] = {BUNDLE_KEY: text}
            await shared_objects.create_or_update(client, CONFIG_MAPS, stored, body)
        return text

    text = await shared_objects.retry_on_conflict(bundle)
    return Authority(
        pair=pair,
        certificate=alive[0],
        trusted=tuple(pki.read_bundle(text)),
        bundle=text,
        lifetime=lifetime,
        previous=previous,
    )


async def ensure_certificate(
    client: Client, place: CertificateConfig, authority: Authority, lifetime: Lifetime, now: dt.datetime
) -> ServingCertificate:
    """Return the certificate, created or renewed if needed.

    Raises:
        UploadNotReady: `CertificateConfig.patience` has not passed yet.
        AlreadyExists: an unmanaged Secret occupies the name of an exclusive certificate.
        CdiError: see `ensure_authority`.
    """

    async def held() -> ServingCertificate:
        secret = await shared_objects.get_or_none(client, SECRETS, place.namespace, place.secret)
        pair = _pair(secret, place.key_prefix or "tls")
        certificate = pair.parsed() if pair is not None else None
        ours = shared_objects.is_managed(secret)
        if secret is not None and place.exclusive and not ours:
            raise AlreadyExists(
                f"Secret {place.namespace}/{place.secret} exists and is not managed by CDI",
                remedy="delete or rename it",
            )
        keep = certificate is not None and _keep(certificate, secret, place, authority, lifetime, now)
        if pair is not None and certificate is not None and keep:
            beside = shared_objects.field(secret, "ca.crt").decode(errors="replace")
            if ours and (beside != place.trusts or not _goes_with(secret, place)):
                await shared_objects.create_or_update(
                    client, SECRETS, secret, _merge_entries(secret, place, _secret(place, pair), now)
                )
            expires = certificate.not_valid_after_utc
            return ServingCertificate(pair=pair, expires=expires, authorities="" if ours else beside, ours=ours)
        signer = authority.signer(place.is_propagated, now)
        if signer is None and not authority.is_propagated(place.patience, now):
            raise UploadNotReady(
                "the new certificate authority has not reached all clients yet",
                where=f"Secret {place.namespace}/{place.secret}",
                remedy="wait a minute and retry",
            )
        pair = pki.new_certificate(
            signer or authority.pair, place.name, hosts=place.hosts, usage=place.usage, lifetime=lifetime, now=now
        )
        await shared_objects.create_or_update(
            client, SECRETS, secret, _merge_entries(secret, place, _secret(place, pair), now)
        )
        certificate = pair.parsed()
        assert certificate is not None
        return ServingCertificate(pair=pair, expires=certificate.not_valid_after_utc)

    return await shared_objects.retry_on_conflict(held)


def _keep(
    certificate: x509.Certificate,
    secret: Object | None,
    place: CertificateConfig,
    authority: Authority,
    lifetime: Lifetime,
    now: dt.datetime,
) -> bool:
    """Return whether the certificate of a Secret can be served further."""
    if not pki.is_valid(certificate, now):
        return False
    if not shared_objects.is_managed(secret):
        return True
    if not pki.issued_by(certificate, authority.trusted) or not pki.names_all(certificate, place.hosts):
        return False
    signer = authority.signer(place.is_propagated, now)
    # The annotations belong to the Secret, so they cannot describe one of several certificates.
    if not place.key_prefix and is_rotation_requested(secret, certificate, lifetime, now):
        return signer is None
    if not pki.needs_renewal(certificate, lifetime, now):
        return True
    end = None if signer is None else x509.load_pem_x509_certificate(signer.certificate).not_valid_after_utc
    return end is None or end <= certificate.not_valid_after_utc


# --- Secrets ----------------------------------------------------------------------------------------------------


def _secret(place: SignerConfig | CertificateConfig, pair: Pair, *, previous: Pair | None = None) -> Object:
    fields = {"tls.crt": pair.certificate, "tls.key": pair.key}
    if previous is not None:
        fields |= {"previous.crt": previous.certificate, "previous.key": previous.key}
    owner: Object | None = None
    if isinstance(place, CertificateConfig):
        owner = None if place.owner is None else dict(place.owner)
        if place.trusts:
            fields["ca.crt"] = place.trusts.encode()
    body = shared_objects.manifest("Secret", place.namespace, place.secret, labels=place.labels, owner=owner)
    certificate = pair.parsed()
    if certificate is not None and not (isinstance(place, CertificateConfig) and place.key_prefix):
        body["metadata"]["annotations"] |= validity_annotations(certificate)
    return body | {"type": "kubernetes.io/tls", "data": shared_objects.encoded(fields)}


def _merge_entries(secret: Object | None, place: CertificateConfig, body: Object, now: dt.datetime) -> Object:
    """Return the Secret with the entry added, if it holds several."""
    if not place.key_prefix:
        return body
    own = body["data"]
    data = {f"{place.key_prefix}.crt": own["tls.crt"], f"{place.key_prefix}.key": own["tls.key"]}
    for name in (secret or {}).get("data") or {}:
        entry, _, kind = name.rpartition(".")
        pair = _pair(secret, entry) if kind == "crt" and entry != place.key_prefix else None
        certificate = pair.parsed() if pair is not None else None
        if pair is None or certificate is None:
            continue
        if entry in place.beside or now - pki.issued_at(certificate) < ENTRY_RETENTION:
            data |= shared_objects.encoded({f"{entry}.crt": pair.certificate, f"{entry}.key": pair.key})
    if "ca.crt" in own:
        data["ca.crt"] = own["ca.crt"]
    return body | {"type": "Opaque", "data": data}


def _goes_with(secret: Object | None, place: CertificateConfig) -> bool:
    owners = ((secret or {}).get("metadata") or {}).get("ownerReferences") or []
    return place.owner is None or any(one.get("uid") == place.owner["uid"] for one in owners)


def _pair(secret: Object | None, name: str = "tls") -> Pair | None:
    certificate, key = shared_objects.field(secret, f"{name}.crt"), shared_objects.field(secret, f"{name}.key")
    return Pair(certificate=certificate, key=key) if certificate and key else None


def _signs(pair: Pair | None, now: dt.datetime) -> Pair | None:
    """Return `pair` if it is a valid authority."""
    certificate = pki.as_ca(pair) if pair is not None else None
    return pair if certificate is not None and pki.is_valid(certificate, now) else None


_MIN_DURATION = dt.timedelta(minutes=10)
"""Minimum lifetime of a certificate: below it, clock skew and caches matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """Lifetime of each kind of certificate."""

    authority: Lifetime = AUTHORITY_LIFETIME
    server: Lifetime = CERTIFICATE_LIFETIME
    client: Lifetime = CERTIFICATE_LIFETIME

    @classmethod
    def of(cls, cdi: CDI | None) -> Self:
        """Return the lifetimes that ``spec.certConfig`` requests."""
        wanted = cdi.spec.cert_config if cdi is not None else None
        if wanted is None:
            return cls()
        return cls(
            authority=_lifetime(wanted.ca, AUTHORITY_LIFETIME),
            server=_lifetime(wanted.server, CERTIFICATE_LIFETIME),
            client=_lifetime(wanted.client, CERTIFICATE_LIFETIME),
        )


def _lifetime(wanted: CertConfig | None, usual: Lifetime) -> Lifetime:
    """Return the requested lifetime if it is usable, else `usual`; a missing renewal time is half the duration."""
    duration = parse_duration(wanted.duration) if wanted is not None and wanted.duration else None
    before = parse_duration(wanted.renew_before) if wanted is not None and wanted.renew_before else None
    length = dt.timedelta(seconds=float(duration)) if duration else usual.duration
    early = dt.timedelta(seconds=float(before)) if before is not None else length / 2
    if length < _MIN_DURATION or early >= length:
        return usual
    return Lifetime(duration=length, renew_before=early)
