"""Authentication at registries: from a challenge to a token and an Authorization header.

Follows the distribution project's token authentication specification and its OAuth2 variant for identity tokens.

Docker Hub's token service is on another host, so the realm that a registry names has to be trusted, but only with https
or where plain HTTP is allowed anyway (an insecure registry, or both on this machine). A user and password are sent
unencrypted to the registry itself only under the same condition. Tokens are sent to the registry's own origin only, not
to redirect targets.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from cdi.api.errors import CdiError, SourceProtocolError, SourceUnauthorized, SourceUrlInvalid
from cdi.api.json_document import parse_json
from cdi.http.challenge import Challenge
from cdi.http.document import DocumentClient
from cdi.http.http_object import Headers, HttpRequest
from cdi.http.url import Url
from cdi.source.registry.credentials import RegistryCredentials
from cdi.source.registry.errors import error_for_response
from cdi.source.registry.reference import Reference, is_loopback

_LIMIT = 256 << 10
_DEFAULT_LIFETIME = 60
_MAX_LIFETIME = 24 * 3600
_MARGIN = 10
_JSON = ("Accept", "application/json")
_FORM = ("Content-Type", "application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """The value of an Authorization header, which is never shown in messages."""

    value: str
    until: float | None = None
    """The expiry on the monotonic clock; None if it does not expire."""

    @property
    def expired(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until

    def __repr__(self) -> str:
        return "Authorization(…)"


def authorize(
    documents: DocumentClient,
    reference: Reference,
    identity: RegistryCredentials | None,
    challenges: Sequence[Challenge],
    *,
    plain: bool,
) -> Authorization | None:
    """Return the authorization for a registry's challenges; None if no challenge can be answered.

    `plain` allows secrets to be sent unencrypted to any host (an insecure registry). Raises `SourceUnauthorized` if the
    token service rejects the credentials, and `SourceProtocolError` for a realm that must not be trusted.
    """
    if identity is not None and identity.registry_token:
        return Authorization(value=f"Bearer {identity.registry_token}")
    for challenge in challenges:
        if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
            return _token(documents, reference, identity, challenge, plain=plain)
    if identity is None or not (identity.username or identity.password):
        return None
    if not challenges or any(challenge.scheme == "basic" for challenge in challenges):
        return Authorization(value=_basic(identity))
    return None


def _basic(identity: RegistryCredentials) -> str:
    return "Basic " + b64encode(f"{identity.username}:{identity.password}".encode()).decode("ascii")


def _token(
    documents: DocumentClient,
    reference: Reference,
    identity: RegistryCredentials | None,
    challenge: Challenge,
    *,
    plain: bool,
) -> Authorization:
    realm = _realm(challenge.parameters["realm"], reference, plain=plain)
    service = challenge.parameters.get("service", "")
    scope = challenge.parameters.get("scope") or f"repository:{reference.path}:pull"
    if identity is not None and identity.identity_token:
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": "cdi",
            "scope": scope,
            "refresh_token": identity.identity_token,
        }
        answer = documents.fetch(
            HttpRequest(url=realm.text, headers=(_JSON, _FORM)),
            limit=_LIMIT,
            method="POST",
            body=urlencode(form).encode(),
        )
    else:
        query = {"service": service, "scope": scope}
        if not service:
            del query["service"]
        basic: Headers = ()
        if identity is not None:
            query["account"] = identity.username
            basic = (("Authorization", _basic(identity)),)
        joint = "&" if realm.query else "?"
        url = f"{realm.text}{joint}{urlencode(query)}"
        answer = documents.fetch(HttpRequest(url=url, headers=(_JSON,), sensitive_headers=basic), limit=_LIMIT)
    if answer.status in (400, 401, 403):
        who = "rejected the credentials" if identity is not None else "requires credentials"
        raise SourceUnauthorized(f"the registry's token service {who}", where=f"{reference.name}, {realm.redacted}")
    if answer.status != 200:
        raise error_for_response(answer.status, answer.headers, answer.body, realm.redacted)
    return _parse_token_response(answer.body, realm.redacted)


def _realm(text: str, reference: Reference, *, plain: bool) -> Url:
    try:
        realm = Url.parse(text)
    except SourceUrlInvalid as error:
        raise SourceProtocolError(f"the registry's token service: {error.what}", where=reference.name) from error
    if realm.scheme != "https" and not plain and not (reference.loopback and is_loopback(realm.host)):
        raise SourceProtocolError(
            "the registry requires the credentials unencrypted",
            where=f"{reference.name}, {realm.redacted}",
            remedy="have the registry's token service use https, or mark the registry as insecure",
        )
    return realm


def _parse_token_response(body: bytes, where: str) -> Authorization:
    def unreadable() -> CdiError:
        return SourceProtocolError("the registry's token service returned no valid token", where=where)

    try:
        document = parse_json(body)
    except ValueError as error:
        raise unreadable() from error
    if not isinstance(document, dict):
        raise unreadable()
    token = document.get("token") or document.get("access_token")
    if not isinstance(token, str) or not token or any(not 0x20 < ord(c) < 0x7F for c in token):
        raise unreadable()
    life = document.get("expires_in")
    seconds = life if isinstance(life, int) and not isinstance(life, bool) and life > 0 else _DEFAULT_LIFETIME
    # Renew a little before the expiry, but not so early that a short-lived token is never used.
    life_used = min(max(seconds, 1), _MAX_LIFETIME)
    margin = min(_MARGIN, life_used / 2)
    return Authorization(value=f"Bearer {token}", until=time.monotonic() + life_used - margin)
