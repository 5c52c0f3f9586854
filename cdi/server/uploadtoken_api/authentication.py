"""Authentication and authorization of requests to the aggregated API; both are delegated to the API server.

The API server forwards users' requests with its own client certificate and their names in headers. Such headers are
ignored on requests from other clients; a bearer token is verified by the API server (TokenReview).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self
from urllib.parse import unquote

from cryptography import x509
from cryptography.x509.oid import NameOID

from cdi.api.errors import CdiError, ClusterProtocolError, Retry
from cdi.api.json_document import parse_json
from cdi.api.kinds import CONFIG_MAPS, SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS, Object
from cdi.kube import pki
from cdi.kube.client import Client
from cdi.logs import fields

LOG = logging.getLogger(__name__)
_NAMESPACE, _NAME = "kube-system", "extension-apiserver-authentication"
_MAX_GROUPS = 1000


class Headers(Protocol):
    """The headers of a request: names are case-insensitive and may be repeated."""

    def get(self, name: str, default: str, /) -> str: ...

    def getall(self, name: str, default: list[str], /) -> list[str]: ...

    def __iter__(self) -> Iterator[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """The authenticated user of a request."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontProxy:
    """Identification of the API server and its users in forwarded requests."""

    authorities: str = ""
    """PEM bundle of the authorities that sign its client certificate; empty if no certificate is trusted."""
    names: tuple[str, ...] = ()
    """Accepted common names of its certificate; empty accepts any."""
    user: tuple[str, ...] = ("X-Remote-User",)
    uid: tuple[str, ...] = ("X-Remote-Uid",)
    group: tuple[str, ...] = ("X-Remote-Group",)
    extra: tuple[str, ...] = ("X-Remote-Extra-",)
    """Prefixes of header names."""

    @classmethod
    def read(cls, data: Mapping[str, str]) -> Self:
        """Parse the data of the API server's ConfigMap; return one that trusts no certificate if malformed."""
        try:
            return cls(
                authorities=data.get("requestheader-client-ca-file", ""),
                names=_texts(data.get("requestheader-allowed-names", "[]")),
                user=_texts(data.get("requestheader-username-headers", "[]")) or cls().user,
                uid=_texts(data.get("requestheader-uid-headers", "[]")) or cls().uid,
                group=_texts(data.get("requestheader-group-headers", "[]")) or cls().group,
                extra=_texts(data.get("requestheader-extra-headers-prefix", "[]")) or cls().extra,
            )
        except ValueError:
            LOG.warning("a ConfigMap cannot be read", extra=fields(key=f"{_NAMESPACE}/{_NAME}"))
            return cls()

    def user_of(self, certificate: bytes | None, headers: Headers) -> User | None:
        """Return the user named in a request's headers, or None if the API server did not send the request.

        `certificate` (DER) is the client's certificate; the TLS handshake has proven that the client holds its key.
        """
        name = _first(headers, self.user)
        if not certificate or not name or not self._knows(certificate):
            return None
        extra: dict[str, tuple[str, ...]] = {}
        for header in headers:
            prefix = next((one for one in self.extra if header.lower().startswith(one.lower())), None)
            if prefix is not None:
                extra[unquote(header[len(prefix) :].lower())] = tuple(headers.getall(header, []))
        groups = [value for header in self.group for value in headers.getall(header, [])]
        return User(name=name, uid=_first(headers, self.uid), groups=tuple(groups[:_MAX_GROUPS]), extra=extra)

    def _knows(self, der: bytes) -> bool:
        try:
            certificate = x509.load_der_x509_certificate(der)
            names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        except ValueError:
            return False
        # The TLS context may still trust an authority that was replaced after this process started.
        if not pki.issued_by(certificate, pki.read_bundle(self.authorities)):
            return False
        return not self.names or any(name in self.names for name in names)


async def front_proxy(client: Client) -> FrontProxy:
    """Return the API server's current configuration.

    Returns one that trusts no certificate if the ConfigMap cannot be read; raises retryable errors.
    """
    try:
        found = await client.get(CONFIG_MAPS, _NAMESPACE, _NAME)
    except CdiError as error:
        if error.retry is Retry.BACKOFF:
            raise
        LOG.warning("the client CA of the API server's front proxy is not available", exc_info=error)
        return FrontProxy()
    return FrontProxy.read(found.get("data") or {})


async def user_of_token(client: Client, token: str) -> User | None:
    """Return the user that a bearer token belongs to, or None if it is invalid; raise the API server's errors."""
    spec = {"token": token}
    answer = await _review(client, TOKEN_REVIEWS.path(None), TOKEN_REVIEWS.api_version, TOKEN_REVIEWS.kind, spec)
    user = answer.get("user") or {}
    if answer.get("authenticated") is not True or not user.get("username"):
        return None
    return User(
        name=user["username"],
        uid=user.get("uid") or "",
        groups=tuple(user.get("groups") or ()),
        extra={name: tuple(values) for name, values in (user.get("extra") or {}).items()},
    )


async def may(client: Client, user: User, attributes: Mapping[str, str]) -> tuple[bool, str]:
    """Return whether a user may access a resource, and the reason given; raise the API server's errors."""
    return await _authorize(client, user, {"resourceAttributes": dict(attributes)})


async def may_get_path(client: Client, user: User, path: str) -> bool:
    """Return whether a user may ``get`` a path that is not one of a resource; raise the API server's errors."""
    allowed, _ = await _authorize(client, user, {"nonResourceAttributes": {"path": path, "verb": "get"}})
    return allowed


async def _authorize(client: Client, user: User, attributes: Object) -> tuple[bool, str]:
    spec = {
        "user": user.name,
        "uid": user.uid,
        "groups": list(user.groups),
        "extra": {name: list(values) for name, values in user.extra.items()},
        **attributes,
    }
    resource = SUBJECT_ACCESS_REVIEWS
    answer = await _review(client, resource.path(None), resource.api_version, resource.kind, spec)
    return answer.get("allowed") is True, str(answer.get("reason") or "")


async def _review(client: Client, path: str, version: str, kind: str, spec: Object) -> Object:
    answer = await client.request(
        "POST", path, body={"apiVersion": version, "kind": kind, "spec": spec}, idempotent=True
    )
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, dict):
        raise ClusterProtocolError(f"the API server returned a {kind} without a status", where=f"POST {path}")
    return status


def _first(headers: Headers, names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := headers.get(name, ""))), "")


def _texts(text: str) -> tuple[str, ...]:
    """Return the strings of a JSON list; raise `ValueError` if `text` is anything else."""
    found: Any = parse_json(text)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError("not a list of strings")
    return tuple(found)
