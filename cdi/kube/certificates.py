"""Authorities and certificates that are kept in Secrets, with what trusts them in ConfigMaps, and are renewed in time.

    Secret ``…-signer``            the authority, with its key; and the one before it, as ``previous.crt`` and ``.key``
    ConfigMap ``…-signer-bundle``  every authority that is still good: what clients trust
    Secret ``…-cert``              a certificate that the authority signed, with its key

Several replicas do this at once (`cdi.kube.kept`).  An authority is in the bundle before anything that it signed is
shown, and stays there until its end, so that a connection finds somebody it trusts at every moment.  A bundle takes its
time to those who read it as a file of their pod: until then the authority before it signs, new certificates too.

A certificate that somebody else put into the Secret is used for as long as it is good.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cryptography import x509

from cdi.api.errors import AlreadyExists, UploadNotReady
from cdi.kube import kept, pki
from cdi.kube.client import Client
from cdi.kube.pki import Lifetime, Pair
from cdi.kube.resources import CONFIG_MAPS, SECRETS, Object

BUNDLE_KEY = "ca-bundle.crt"
ENTRY_KEPT = dt.timedelta(hours=1)
"""Who asked for a certificate is named among those who need one by then."""
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
    entry: str = ""
    """Of a Secret that holds several: the files are ``<entry>.crt`` and ``<entry>.key``."""
    beside: tuple[str, ...] = ()
    """Entries that are needed; what is older than `ENTRY_KEPT` and not among them goes when another one comes."""
    labels: Mapping[str, str] = field(default_factory=dict)
    exclusive: bool = False
    """A Secret of this name that somebody else made is in the way (`AlreadyExists`), and not a certificate to use."""
    settled: dt.timedelta = SETTLED
    """How long it takes until all who are shown the certificate have heard of a new authority."""
    patience: dt.timedelta = dt.timedelta(0)
    """How long there is rather no certificate than one of an authority that came out of nothing: its predecessor's key
    was lost, and those who are shown the certificate have not heard of it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """An authority that can sign."""

    pair: Pair
    certificate: x509.Certificate
    trusted: tuple[x509.Certificate, ...]
    """It and those before it that are still good."""
    bundle: str
    """The same as PEM."""
    lifetime: Lifetime
    previous: Pair | None = None
    """The one before it, where that can still sign."""

    def settled(self, by: dt.timedelta, now: dt.datetime) -> bool:
        """Whether everybody has heard of it: at once where there is no other one that they could know instead.

        Of a short life it is not given more than its predecessor has left, nor more than it takes to its own successor.
        """
        lifetime = self.lifetime
        longest = min(by, lifetime.renew_before / 2, lifetime.duration - lifetime.renew_before)
        return len(self.trusted) < 2 or now >= pki.made(self.certificate) + longest

    def signer(self, by: dt.timedelta, now: dt.datetime) -> Pair | None:
        """Whose signature is believed everywhere at this time; None where nobody's is who can sign."""
        return self.pair if self.settled(by, now) else self.previous


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

    async def signer() -> tuple[Pair, Pair | None]:
        secret = await kept.look(client, SECRETS, place.namespace, place.secret)
        pair, previous = _signs(_pair(secret), now), _signs(_pair(secret, "previous"), now)
        certificate = pair.parsed() if pair is not None else None
        if pair is not None and certificate is not None and not pki.due(certificate, lifetime, now):
            return pair, previous
        made, previous = pki.new_authority(place.secret, lifetime, now), pair or previous
        await kept.put(client, SECRETS, secret, _secret(place, made, previous=previous))
        return made, previous

    pair, previous = await kept.settled(signer)
    alive = [one for each in (pair, previous) if each is not None and (one := each.parsed()) is not None]

    async def bundle() -> str:
        stored = await kept.look(client, CONFIG_MAPS, place.namespace, place.bundle)
        before = str(((stored or {}).get("data") or {}).get(BUNDLE_KEY) or "")
        text = pki.write_bundle([*pki.read_bundle(before), *alive], now)
        if text != before:
            body = kept.manifest("ConfigMap", place.namespace, place.bundle, labels=place.labels)
            body["data"] = {BUNDLE_KEY: text}
            await kept.put(client, CONFIG_MAPS, stored, body)
        return text

    text = await kept.settled(bundle)
    return Authority(
        pair=pair,
        certificate=alive[0],
        trusted=tuple(pki.read_bundle(text)),
        bundle=text,
        lifetime=lifetime,
        previous=previous,
    )


async def ensure_certificate(
    client: Client, place: CertificatePlace, authority: Authority, lifetime: Lifetime, now: dt.datetime
) -> Held:
    """The certificate, made or renewed where it is time.

    Raises as `ensure_authority` does, and `UploadNotReady` for the time of `CertificatePlace.patience`.
    """

    async def held() -> Held:
        secret = await kept.look(client, SECRETS, place.namespace, place.secret)
        pair = _pair(secret, place.entry or "tls")
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
                await kept.put(client, SECRETS, secret, _beside(secret, place, _secret(place, pair), now))
            expires = certificate.not_valid_after_utc
            return Held(pair=pair, expires=expires, authorities="" if ours else beside, ours=ours)
        signer = authority.signer(place.settled, now)
        if signer is None and not authority.settled(place.patience, now):
            raise UploadNotReady(
                "a new authority is not known everywhere yet",
                where=f"Secret {place.namespace}/{place.secret}",
                remedy="wait a moment",
            )
        pair = pki.new_certificate(
            signer or authority.pair, place.name, hosts=place.hosts, usage=place.usage, lifetime=lifetime, now=now
        )
        await kept.put(client, SECRETS, secret, _beside(secret, place, _secret(place, pair), now))
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
    signer = authority.signer(place.settled, now)
    end = None if signer is None else x509.load_pem_x509_certificate(signer.certificate).not_valid_after_utc
    return end is None or end <= certificate.not_valid_after_utc


# --- Secrets ----------------------------------------------------------------------------------------------------


def _secret(place: AuthorityPlace | CertificatePlace, pair: Pair, *, previous: Pair | None = None) -> Object:
    fields = {"tls.crt": pair.certificate, "tls.key": pair.key}
    if previous is not None:
        fields |= {"previous.crt": previous.certificate, "previous.key": previous.key}
    owner: Object | None = None
    if isinstance(place, CertificatePlace):
        owner = None if place.owner is None else dict(place.owner)
        if place.trusts:
            fields["ca.crt"] = place.trusts.encode()
    body = kept.manifest("Secret", place.namespace, place.secret, labels=place.labels, owner=owner)
    return body | {"type": "kubernetes.io/tls", "data": kept.encoded(fields)}


def _beside(secret: Object | None, place: CertificatePlace, body: Object, now: dt.datetime) -> Object:
    """The Secret with one entry more, where it holds several."""
    if not place.entry:
        return body
    own = body["data"]
    data = {f"{place.entry}.crt": own["tls.crt"], f"{place.entry}.key": own["tls.key"]}
    for name in (secret or {}).get("data") or {}:
        entry, _, kind = name.rpartition(".")
        pair = _pair(secret, entry) if kind == "crt" and entry != place.entry else None
        certificate = pair.parsed() if pair is not None else None
        if pair is None or certificate is None:
            continue
        if entry in place.beside or now - pki.made(certificate) < ENTRY_KEPT:
            data |= kept.encoded({f"{entry}.crt": pair.certificate, f"{entry}.key": pair.key})
    if "ca.crt" in own:
        data["ca.crt"] = own["ca.crt"]
    return body | {"type": "Opaque", "data": data}


def _goes_with(secret: Object | None, place: CertificatePlace) -> bool:
    owners = ((secret or {}).get("metadata") or {}).get("ownerReferences") or []
    return place.owner is None or any(one.get("uid") == place.owner["uid"] for one in owners)


def _pair(secret: Object | None, name: str = "tls") -> Pair | None:
    certificate, key = kept.field(secret, f"{name}.crt"), kept.field(secret, f"{name}.key")
    return Pair(certificate=certificate, key=key) if certificate and key else None


def _signs(pair: Pair | None, now: dt.datetime) -> Pair | None:
    """It, where it is an authority that is good."""
    certificate = pki.signs(pair) if pair is not None else None
    return pair if certificate is not None and pki.good(certificate, now) else None
