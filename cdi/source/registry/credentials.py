"""Credentials for a registry, from a user and password or from a ``.dockerconfigjson``.

Follows Docker's config file format, and Kubernetes and containers/image in matching entries: the longest path wins,
``*`` matches one label of a host name, and Docker Hub has several names.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
from dataclasses import dataclass
from typing import Any

from cdi.api.errors import SourceCredentialsInvalid
from cdi.api.job import Credentials
from cdi.api.json_document import parse_json
from cdi.source.registry.reference import DOCKER_HUB, DOCKER_HUB_ALIASES, Reference

_LIMIT = 1 << 20
_TOKEN_USER = "<token>"  # noqa: S105 - Docker's marker for "the password is an identity token"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryCredentials:
    """A user with a password, an identity token to exchange, or a registry token to send unchanged."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"Identity({self.username!r}, …)"


def identity_for(credentials: Credentials, reference: Reference) -> RegistryCredentials | None:
    """Return the credentials for a registry; None for anonymous access.

    An explicit user and password take precedence over the config file. Raises `SourceCredentialsInvalid`.
    """
    if credentials.access_key_file is not None or credentials.secret_key_file is not None:
        if credentials.access_key_file is None or credentials.secret_key_file is None:
            raise SourceCredentialsInvalid("a registry requires both accessKeyId and secretKey", where=reference.name)
        username = _read(credentials.access_key_file).rstrip("\r\n")
        password = _read(credentials.secret_key_file).rstrip("\r\n")
        return _user(username, password, credentials.access_key_file)
    if credentials.docker_config_file is not None:
        path = credentials.docker_config_file
        return identity_from_config(_read(path), reference, where=path)
    return None


def identity_from_config(text: str, reference: Reference, *, where: str) -> RegistryCredentials | None:
    """Return a repository's entry of a ``.dockerconfigjson`` (or the older ``.dockercfg``); None if none matches."""
    try:
        document = parse_json(text)
    except ValueError as error:
        raise SourceCredentialsInvalid("the docker config is not JSON", where=where) from error
    auths = document.get("auths", document) if isinstance(document, dict) else None
    if not isinstance(auths, dict):
        raise SourceCredentialsInvalid("the docker config has no auths", where=where)
    best: tuple[int, str] | None = None
    for key, entry in auths.items():
        rank = _match_specificity(key, reference)
        if rank is not None and isinstance(entry, dict) and (best is None or rank > best[0]):
            best = (rank, key)
    return None if best is None else _entry(auths[best[1]], f"{where}, entry {best[1][:100]}")


def _match_specificity(key: str, reference: Reference) -> int | None:
    """Return how specifically an entry's key matches the repository; None if it does not match."""
    bare = key.strip().removeprefix("https://").removeprefix("http://").rstrip("/")
    host, _, path = bare.partition("/")
    host = host.lower()
    # In "https://index.docker.io/v1/" and similar keys, the path is an API version, not a repository.
    if path in ("v1", "v2") or path.startswith(("v1/", "v2/")):
        path = path[3:]
    if host in DOCKER_HUB_ALIASES:
        host = DOCKER_HUB
    exact = host == reference.host
    if not exact and not _glob(host, reference.host):
        return None
    if path and reference.path != path and not reference.path.startswith(path + "/"):
        return None
    # A longer path wins; for equal paths an exact host wins over a pattern.
    return 2 * len(path) + (1 if exact else 0)


def _glob(pattern: str, host: str) -> bool:
    if "*" not in pattern:
        return False
    wanted, given = pattern.split("."), host.split(".")
    return len(wanted) == len(given) and all(
        fnmatch.fnmatchcase(label, mask) for mask, label in zip(wanted, given, strict=True)
    )


def _entry(entry: dict[str, Any], where: str) -> RegistryCredentials:
    def text(key: str) -> str:
        value = entry.get(key)
        return value if isinstance(value, str) else ""

    if text("registrytoken"):
        return RegistryCredentials(registry_token=_printable(text("registrytoken"), where))
    username, password = text("username"), text("password")
    if text("auth"):
        try:
            decoded = base64.b64decode(text("auth"), validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise SourceCredentialsInvalid("auth is not base64 of user:password", where=where) from error
        username, colon, password = decoded.partition(":")
        if not colon:
            raise SourceCredentialsInvalid("auth is not base64 of user:password", where=where)
        password = password.rstrip("\0")
    token = text("identitytoken") or (password if username == _TOKEN_USER else "")
    if token:
        return RegistryCredentials(identity_token=_printable(token, where))
    if not username and not password:
        raise SourceCredentialsInvalid(
            "the entry contains no credentials",
            where=where,
            remedy="credential helpers are not supported; store auth, or username and password, in the secret",
        )
    return _user(username, password, where)


def _user(username: str, password: str, where: str) -> RegistryCredentials:
    if ":" in username:
        raise SourceCredentialsInvalid("the user name contains a colon", where=where)
    return RegistryCredentials(username=_printable(username, where), password=_printable(password, where))


def _printable(value: str, where: str) -> str:
    """Return `value`; raise `SourceCredentialsInvalid` for control characters, which could end a header line."""
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in value):
        raise SourceCredentialsInvalid("a user name, password or token contains control characters", where=where)
    return value


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(_LIMIT + 1)
    except OSError as error:
        raise SourceCredentialsInvalid(f"cannot read the secret: {error.strerror}", where=path) from error
    try:
        return content[:_LIMIT].decode()
    except ValueError as error:
        raise SourceCredentialsInvalid("the secret is not UTF-8 text", where=path) from error
