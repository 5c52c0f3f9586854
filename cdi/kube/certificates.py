"""Authorities and certificates that are kept in Secrets, with what trusts them in ConfigMaps, and are renewed in time.

    Secret ``…-signer``            the authority, with its key
    ConfigMap ``…-signer-bundle``  every authority that is still good: what clients trust
    Secret ``…-cert``              a certificate that the authority signed, with its key

Several replicas do this at once (`cdi.kube.kept`).  An authority is in the bundle before anything that it signed is
shown, and stays there until its end, so that a connection finds somebody it trusts at every moment.

A certificate that somebody else put into the Secret is used for as long as it is good.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cryptography import x509

from cdi.api.errors import AlreadyExists
from cdi.kube import kept, pki
from cdi.kube.client import Client
from cdi.kube.pki import Lifetime, Pair
from cdi.kube.resources import CONFIG_MAPS, SECRETS, Object

BUNDLE_KEY = "ca-bundle.crt"
SETTLED = dt.timedelta(minutes=1)
"""By then everybody who trusts the bundle has seen a new authority in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityPlace:
    """Where an authority is kept."""

    namespace: str
    secret: str
    bundle: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def named(cls, namespace: str, secret: str) -> AuthorityPlace:
        return cls(namespace=namespace, secret=secret, bundle=f"{secret}-bundle")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatePlace:
    """Where a certificate is kept, and whom it names."""

    namespace: str
    secret: str
    name: str
    """Whom it is for; of a client, the name that servers know it by."""
    hosts: tuple[str, ...] = ()
    """A server's DNS names and addresses."""
    usage: Literal["server", "client"] = "server"
    trusts: str = ""
    """PEM of whom its holder is to believe; kept beside it, as ``ca.crt``."""
    owner: Mapping[str, Any] | None = None
    """An owner reference to what the Secret goes with."""
    labels: Mapping[str, str] = field(default_factory=dict)
    exclusive: bool = False
    """A Secret of this name that somebody else made is in the way (`AlreadyExists`), and not a certificate to use."""
    settled: dt.timedelta = SETTLED
    """How long it takes until all who are shown the certificate have heard of a new authority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """An authority that can sign."""

    pair: Pair
    certificate: x509.Certificate
    trusted: tuple[x509.Certificate, ...]
    """It and those before it that are still good."""
    bundle: str
    """The same as PEM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A certificate to show."""

    pair: Pair
    expires: dt.datetime
    authorities: str = ""
    """PEM of whom else one has to trust to believe it, where somebody else made it."""
    ours: bool = True
    """The authority's own; False where somebody else made it."""


def service_hosts(service: str, namespace: str) -> tuple[str, ...]:
    """The names that a Service of the cluster is reached by."""
    return (f"{service}.{namespace}.svc", service, f"{service}.{namespace}", f"{service}.{namespace}.svc.cluster.local")


async def ensure_authority(client: Client, place: AuthorityPlace, lifetime: Lifetime, now: dt.datetime) -> Authority:
    """The authority, made or renewed where it is time, and in its bundle.

    Raises `Conflict` where others write all the time, and whatever the API server answers.
    """

    async def signer() -> tuple[Pair, x509.Certificate]:
        secret = await kept.look(client, SECRETS, place.namespace, place.secret)
        pair = _pair(secret)
        certificate = pki.signs(pair) if pair is not None else None
        fresh = certificate is not None and pki.good(certificate, now) and not pki.due(certificate, lifetime, now)
        if pair is not None and certificate is not None and fresh:
            return pair, certificate
        pair = pki.new_authority(place.secret, lifetime, now)
        await kept.put(client, SECRETS, secret, _secret(place, pair))
        certificate = pair.parsed()
        assert certificate is not None
        return pair, certificate

    pair, certificate = await kept.settled(signer)

    async def bundle() -> str:
        stored = await kept.look(client, CONFIG_MAPS, place.namespace, place.bundle)
        before = str(((stored or {}).get("data") or {}).get(BUNDLE_KEY) or "")
        text = pki.write_bundle([*pki.read_bundle(before), certificate], now)
        if text != before:
            body = kept.manifest("ConfigMap", place.namespace, place.bundle, labels=place.labels)
            body["data"] = {BUNDLE_KEY: text}
            await kept.put(client, CONFIG_MAPS, stored, body)
        return text

    text = await kept.settled(bundle)
    return Authority(pair=pair, certificate=certificate, trusted=tuple(pki.read_bundle(text)), bundle=text)


async def ensure_certificate(
    client: Client, place: CertificatePlace, authority: Authority, lifetime: Lifetime, now: dt.datetime
) -> Held:
    """The certificate, made or renewed where it is time.  Raises as `ensure_authority` does."""

    async def held() -> Held:
        secret = await kept.look(client, SECRETS, place.namespace, place.secret)
        pair = _pair(secret)
        certificate = pair.parsed() if pair is not None else None
        ours = kept.is_ours(secret)
        if secret is not None and place.exclusive and not ours:
            raise AlreadyExists(
                f"Secret {place.namespace}/{place.secret} is somebody else's",
                remedy="delete it, or give it another name",
            )
        keep = certificate is not None and _keep(certificate, place, authority, lifetime, now, ours=ours)
        if pair is not None and certificate is not None and keep:
            beside = kept.field(secret, "ca.crt").decode(errors="replace")
            if ours and (beside != place.trusts or not _goes_with(secret, place)):
                await kept.put(client, SECRETS, secret, _secret(place, pair))
            expires = certificate.not_valid_after_utc
            return Held(pair=pair, expires=expires, authorities="" if ours else beside, ours=ours)
        pair = pki.new_certificate(
            authority.pair, place.name, hosts=place.hosts, usage=place.usage, lifetime=lifetime, now=now
        )
        await kept.put(client, SECRETS, secret, _secret(place, pair))
        certificate = pair.parsed()
        assert certificate is not None
        return Held(pair=pair, expires=certificate.not_valid_after_utc)

    return await kept.settled(held)


def _keep(
    certificate: x509.Certificate,
    place: CertificatePlace,
    authority: Authority,
    lifetime: Lifetime,
    now: dt.datetime,
    *,
    ours: bool,
) -> bool:
    """Whether a certificate can be shown for longer."""
    if not pki.good(certificate, now):
        return False
    if not ours:
        return True
    if not pki.issued_by(certificate, authority.trusted) or not pki.names_all(certificate, place.hosts):
        return False
    if not pki.due(certificate, lifetime, now):
        return True
    fresh = now < pki.made(authority.certificate) + place.settled
    return fresh or authority.certificate.not_valid_after_utc <= certificate.not_valid_after_utc


# --- Secrets ----------------------------------------------------------------------------------------------------


def _secret(place: AuthorityPlace | CertificatePlace, pair: Pair) -> Object:
    fields = {"tls.crt": pair.certificate, "tls.key": pair.key}
    owner: Object | None = None
    if isinstance(place, CertificatePlace):
        owner = None if place.owner is None else dict(place.owner)
        if place.trusts:
            fields["ca.crt"] = place.trusts.encode()
    body = kept.manifest("Secret", place.namespace, place.secret, labels=place.labels, owner=owner)
    return body | {"type": "kubernetes.io/tls", "data": kept.encoded(fields)}


def _goes_with(secret: Object | None, place: CertificatePlace) -> bool:
    owners = ((secret or {}).get("metadata") or {}).get("ownerReferences") or []
    return place.owner is None or any(one.get("uid") == place.owner["uid"] for one in owners)


def _pair(secret: Object | None) -> Pair | None:
    certificate, key = kept.field(secret, "tls.crt"), kept.field(secret, "tls.key")
    return Pair(certificate=certificate, key=key) if certificate and key else None
