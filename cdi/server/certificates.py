"""Authorities and certificates that are kept in Secrets, with what trusts them in ConfigMaps, and are renewed in time.

    Secret ``…-signer``            the authority, with its key
    ConfigMap ``…-signer-bundle``  every authority that is still good: what clients trust
    Secret ``…-cert``              a certificate that the authority signed, with its key

Several replicas do this at once.  Each looks at what there is, and writes with the version that it has looked at;
whoever comes second looks again and finds it done.  An authority is in the bundle before anything that it signed is
shown, and stays there until its end, so that a connection finds somebody it trusts at every moment.

A certificate that somebody else put into the Secret is used for as long as it is good.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from cryptography import x509

from cdi.api.errors import AlreadyExists, Conflict, NotFound
from cdi.api.names import COMMON_LABELS, GROUP
from cdi.kube.client import Client
from cdi.kube.resources import CONFIG_MAPS, SECRETS, Object, Resource
from cdi.server import pki
from cdi.server.pki import Lifetime, Pair

ANN_MANAGED = f"{GROUP}/managedCertificate"
"""On Secrets that are written here; what lacks it is somebody else's."""
BUNDLE_KEY = "ca-bundle.crt"
SETTLED = dt.timedelta(minutes=1)
"""By then everybody who trusts the bundle has seen a new authority in it."""
_TRIES = 6
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityPlace:
    """Where an authority is kept."""

    namespace: str
    secret: str
    bundle: str

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


def service_hosts(service: str, namespace: str) -> tuple[str, ...]:
    """The names that a Service of the cluster is reached by."""
    return (f"{service}.{namespace}.svc", service, f"{service}.{namespace}", f"{service}.{namespace}.svc.cluster.local")


async def ensure_authority(client: Client, place: AuthorityPlace, lifetime: Lifetime, now: dt.datetime) -> Authority:
    """The authority, made or renewed where it is time, and in its bundle.

    Raises `Conflict` where others write all the time, and whatever the API server answers.
    """

    async def signer() -> tuple[Pair, x509.Certificate]:
        secret = await _get(client, SECRETS, place.namespace, place.secret)
        pair = _pair(secret)
        certificate = pki.signs(pair) if pair is not None else None
        fresh = certificate is not None and pki.good(certificate, now) and not pki.due(certificate, lifetime, now)
        if pair is not None and certificate is not None and fresh:
            return pair, certificate
        pair = pki.new_authority(place.secret, lifetime, now)
        await _put(client, SECRETS, secret, _secret(place.namespace, place.secret, pair))
        certificate = pair.parsed()
        assert certificate is not None
        return pair, certificate

    pair, certificate = await _settled(signer)

    async def bundle() -> str:
        stored = await _get(client, CONFIG_MAPS, place.namespace, place.bundle)
        before = str(((stored or {}).get("data") or {}).get(BUNDLE_KEY) or "")
        text = pki.write_bundle([*pki.read_bundle(before), certificate], now)
        if text != before:
            body = _object("v1", "ConfigMap", place.namespace, place.bundle) | {"data": {BUNDLE_KEY: text}}
            await _put(client, CONFIG_MAPS, stored, body)
        return text

    text = await _settled(bundle)
    return Authority(pair=pair, certificate=certificate, trusted=tuple(pki.read_bundle(text)), bundle=text)


async def ensure_certificate(
    client: Client, place: CertificatePlace, authority: Authority, lifetime: Lifetime, now: dt.datetime
) -> Held:
    """The certificate, made or renewed where it is time.  Raises as `ensure_authority` does."""

    async def held() -> Held:
        secret = await _get(client, SECRETS, place.namespace, place.secret)
        pair = _pair(secret)
        certificate = pair.parsed() if pair is not None else None
        if pair is not None and certificate is not None and _keep(certificate, secret, place, authority, lifetime, now):
            return Held(
                pair=pair, expires=certificate.not_valid_after_utc, authorities=_field(secret, "ca.crt").decode()
            )
        pair = pki.new_certificate(
            authority.pair, place.name, hosts=place.hosts, usage=place.usage, lifetime=lifetime, now=now
        )
        await _put(client, SECRETS, secret, _secret(place.namespace, place.secret, pair))
        certificate = pair.parsed()
        assert certificate is not None
        return Held(pair=pair, expires=certificate.not_valid_after_utc)

    return await _settled(held)


def _keep(
    certificate: x509.Certificate,
    secret: Object | None,
    place: CertificatePlace,
    authority: Authority,
    lifetime: Lifetime,
    now: dt.datetime,
) -> bool:
    """Whether a certificate can be shown for longer."""
    if not pki.good(certificate, now):
        return False
    if not _ours(secret):
        return True
    if not pki.issued_by(certificate, authority.trusted) or not pki.names_all(certificate, place.hosts):
        return False
    if not pki.due(certificate, lifetime, now):
        return True
    fresh = now < pki.made(authority.certificate) + SETTLED
    return fresh or authority.certificate.not_valid_after_utc <= certificate.not_valid_after_utc


# --- Secrets and ConfigMaps -------------------------------------------------------------------------------------


async def _settled(step: Callable[[], Awaitable[T]]) -> T:
    """Repeat a step for which somebody else was quicker."""
    for _ in range(_TRIES - 1):
        try:
            return await step()
        except (Conflict, AlreadyExists, NotFound):
            continue
    return await step()


async def _get(client: Client, resource: Resource, namespace: str, name: str) -> Object | None:
    try:
        return await client.get(resource, namespace, name)
    except NotFound:
        return None


async def _put(client: Client, resource: Resource, before: Object | None, body: Object) -> None:
    """Create it, or replace exactly what was read."""
    if before is None:
        await client.create(resource, body)
        return
    metadata = before["metadata"]
    merged = {
        **{key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")},
        "labels": {**(metadata.get("labels") or {}), **body["metadata"]["labels"]},
        "annotations": {**(metadata.get("annotations") or {}), **body["metadata"]["annotations"]},
        **({"ownerReferences": metadata["ownerReferences"]} if metadata.get("ownerReferences") else {}),
    }
    # The type of a Secret cannot be changed.
    kind = {"type": before["type"]} if before.get("type") else {}
    await client.update(resource, body | {"metadata": merged} | kind)


def _object(version: str, kind: str, namespace: str, name: str) -> Object:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": dict(COMMON_LABELS),
            "annotations": {ANN_MANAGED: "true"},
        },
    }


def _secret(namespace: str, name: str, pair: Pair) -> Object:
    return _object("v1", "Secret", namespace, name) | {
        "type": "kubernetes.io/tls",
        "data": {
            "tls.crt": base64.b64encode(pair.certificate).decode(),
            "tls.key": base64.b64encode(pair.key).decode(),
        },
    }


def _pair(secret: Object | None) -> Pair | None:
    certificate, key = _field(secret, "tls.crt"), _field(secret, "tls.key")
    return Pair(certificate=certificate, key=key) if certificate and key else None


def _field(secret: Object | None, name: str) -> bytes:
    data: dict[str, Any] = (secret or {}).get("data") or {}
    try:
        return base64.b64decode(data.get(name) or "", validate=True)
    except (binascii.Error, ValueError):
        return b""


def _ours(secret: Object | None) -> bool:
    annotations = ((secret or {}).get("metadata") or {}).get("annotations") or {}
    return annotations.get(ANN_MANAGED) == "true"
