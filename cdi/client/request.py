"""A request for one image, as given on the command line, and the worker's source for it.

`cdi.client.request_to_manifests` turns it into a DataVolume.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, assert_never

from cdi.api.errors import UsageError
from cdi.api.job import (
    Credentials,
    FileSourceSpec,
    GcsSourceSpec,
    HttpSourceSpec,
    Policy,
    RegistrySourceSpec,
    S3SourceSpec,
    SourceSpec,
    StreamSourceSpec,
    Tls,
)
from cdi.client.locate import Place, PlaceKind
from cdi.reconcile.pods.inputs import ACCESS_KEY, DOCKER_CONFIG, SECRET_KEY, SERVICE_ACCOUNT, SESSION_TOKEN

_MAX_OPTION_FILE: Final = 1 << 20
"""Largest size in bytes of a file that is given as an option."""
MAX_KEYRING: Final = 16 << 20
_LOGIN: Final[frozenset[PlaceKind]] = frozenset({"http", "s3", "registry"})
_FETCHED: Final[frozenset[PlaceKind]] = frozenset({"http", "s3", "gcs", "registry"})
_SEEKABLE: Final[frozenset[PlaceKind]] = frozenset({"http", "s3", "gcs", "registry", "file"})
_HTTP: Final[frozenset[PlaceKind]] = frozenset({"http"})
_S3: Final[frozenset[PlaceKind]] = frozenset({"s3"})
_KINDS: Final[dict[str, frozenset[PlaceKind]]] = {
    "username": _LOGIN,
    "password": _LOGIN,
    "secret": _FETCHED,
    "credentials": frozenset({"gcs", "registry"}),
    "authority": frozenset({"http", "s3", "registry"}),
    "insecure": frozenset({"http", "s3", "registry"}),
    "headers": _HTTP,
    "secret_headers": _HTTP,
    "region": _S3,
    "endpoint": frozenset({"s3", "gcs"}),
    "addressing": _S3,
    "anonymous": _S3,
    "architecture": frozenset({"registry"}),
}
"""The kinds of places that each option applies to; an option without effect is rejected, not ignored."""
_SPELLED: Final = {
    "password": "--password-file",
    "credentials": "--credentials-file",
    "authority": "--ca",
    "headers": "--header",
    "secret_headers": "--secret-header-file",
    "architecture": "--arch",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Options of access to the place.

    Files are given by content, not path, because stored objects must not refer to files that may change.
    """

    username: str | None = None
    """A user name or access key id."""
    password: str | None = field(default=None, repr=False)
    """A password or secret access key."""
    secret: str | None = None
    """The name of an existing Secret."""
    credentials: bytes | None = field(default=None, repr=False)
    """A service account's key (gcs) or a ``.dockerconfigjson`` (registry)."""
    authority: bytes | None = None
    """Additional trusted CA certificates, PEM."""
    insecure: bool = False
    headers: tuple[str, ...] = field(default=(), repr=False)
    secret_headers: tuple[bytes, ...] = field(default=(), repr=False)
    """The contents of files with header lines."""
    region: str | None = None
    endpoint: str | None = None
    addressing: Literal["auto", "path", "virtual"] | None = None
    anonymous: bool = False
    architecture: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An image and how to import it; sizes are bytes."""

    place: Place
    access: Access = Access()
    size: int | None = None
    checksum: str | None = None
    content_type: Literal["kubevirt", "archive"] = "kubevirt"
    engine: Literal["auto", "qemu"] = "auto"
    connections: int = 0
    bandwidth: int = 0
    require_checksum: bool = False
    discover_checksum: bool = True
    signature: Literal["ignore", "if-present", "require"] | None = None
    keyring: str | None = None
    cosign_keys: tuple[str, ...] = ()
    """Absolute paths of PEM files with public keys."""
    preallocation: bool = False
    disk: str | None = None
    """Name of the file in a tar archive or OVA that is the disk."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for options that do not apply to the place."""
        kind, access = self.place.kind, self.access
        for name, kinds in _KINDS.items():
            if getattr(access, name) and kind not in kinds:
                option = _SPELLED.get(name, f"--{name}")
                raise UsageError(
                    f"{option} applies to {_words(kinds)}, but this is {_NAMES[kind]}", where=self.place.location
                )
        if self.connections and kind not in _SEEKABLE:
            raise UsageError("--connections has no effect on standard input", remedy="leave it out")
        if access.secret and (access.username or access.password or access.credentials or self.place.user):
            raise UsageError("--secret and credentials exclude each other", remedy="give one of them")
        if access.credentials and (access.username or access.password):
            raise UsageError("--credentials-file and --username exclude each other", remedy="give one of them")
        if access.anonymous and (self.login is not None or access.secret):
            raise UsageError("--anonymous and credentials exclude each other", remedy="give one of them")
        if self.disk is not None and kind == "registry":
            raise UsageError(
                f"--disk applies to archives, but this is {_NAMES[kind]}",
                where=self.place.location,
                remedy="leave it out",
            )
        if self.cosign_keys and kind != "registry":
            raise UsageError(
                f"--cosign-key applies to docker://, but this is {_NAMES[kind]}",
                where=self.place.location,
                remedy="for signed checksum files give --keyring FILE",
            )
        if self.signature in ("if-present", "require") and self.keyring is None:
            raise UsageError("a signature cannot be verified without keys", remedy="give --keyring FILE as well")

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password; options take precedence over the URL."""
        access, place = self.access, self.place
        user = access.username if access.username is not None else place.user
        if user is None and access.password is None:
            return None
        own = place.password if access.username is None else None
        return user or "", access.password if access.password is not None else own or ""

    @property
    def checking(self) -> Literal["ignore", "if-present", "require"]:
        """The mode of signature checks; with only a key ring given, signatures are checked if present."""
        return self.signature or ("ignore" if self.keyring is None else "if-present")

    def policy(self) -> Policy:
        """Return the policy for a job."""
        return Policy(
            engine=self.engine,
            connections=self.connections,
            bandwidth=self.bandwidth,
            discover_checksum=self.discover_checksum,
            require_checksum=self.require_checksum,
            signature=self.checking,
            keyring=self.keyring,
            cosign_keys=self.cosign_keys,
            preallocation=self.preallocation,
            disk=self.disk,
        )


_NAMES: Final[dict[PlaceKind, str]] = {
    "http": "an http URL",
    "s3": "an S3 object",
    "gcs": "a GCS object",
    "registry": "a container image",
    "file": "a local file",
    "stdin": "standard input",
}


def _words(kinds: frozenset[PlaceKind]) -> str:
    words = {"http": "http(s)://", "s3": "s3://", "gcs": "gs://", "registry": "docker://"}
    return " and ".join(text for kind, text in words.items() if kind in kinds)


def read_option_file(path: str | Path, most: int = _MAX_OPTION_FILE) -> bytes:
    """Return the content of a file given as an option, at most `most` bytes; raise `UsageError`."""
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UsageError(
            f"the file cannot be read: {error.strerror}", where=str(path), remedy="check the path"
        ) from error
    if len(content) > most:
        raise UsageError(
            f"the file is larger than {most} bytes", where=str(path), remedy="check that it is the right file"
        )
    return content


def secret_values(body: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the values of a stored Secret; raise `UsageError` if one is not base64."""
    try:
        return {key: base64.b64decode(value) for key, value in (body.get("data") or {}).items()}
    except (binascii.Error, ValueError) as error:
        raise UsageError(
            "a value of the secret is not base64", where=str(body["metadata"]["name"]), remedy="apply it again"
        ) from error


# --- conversion to a source spec ----------------------------------------------------------------------------------


def source_spec(request: Request, directory: Path, secret: Mapping[str, bytes] | None = None) -> SourceSpec:
    """Return the source for a job; secrets are written into `directory`, which must be private and outlive the job.

    `secret` has the values of the Secret that ``access.secret`` names. Raises `UsageError` if keys are missing.
    """
    place, access = request.place, request.access
    match place.kind:
        case "file":
            return FileSourceSpec(path=place.text)
        case "stdin":
            return StreamSourceSpec(descriptor=0)
        case "http":
            return HttpSourceSpec(
                url=place.text,
                credentials=_credentials(request, directory, secret),
                tls=_tls(access, directory),
                headers=access.headers,
                secret_header_files=tuple(
                    _write(directory, f"headers-{number}", text) for number, text in enumerate(access.secret_headers)
                ),
            )
        case "s3":
            return S3SourceSpec(
                url=place.text,
                credentials=_credentials(request, directory, secret),
                tls=_tls(access, directory),
                region=access.region,
                endpoint=access.endpoint,
                addressing=access.addressing or "auto",
                anonymous=access.anonymous,
            )
        case "gcs":
            return GcsSourceSpec(
                url=place.text, credentials=_credentials(request, directory, secret), endpoint=access.endpoint
            )
        case "registry":
            return RegistrySourceSpec(
                url=place.text,
                credentials=_credentials(request, directory, secret),
                tls=_tls(access, directory),
                architecture=access.architecture,
            )
        case _:
            assert_never(place.kind)


def _credentials(request: Request, directory: Path, secret: Mapping[str, bytes] | None) -> Credentials:
    values = dict(secret or {})
    if request.access.secret is None:
        values = dict(given_secret(request))
        if not values:
            return Credentials()
    if request.place.kind == "gcs":
        needed: tuple[str, ...] = (SERVICE_ACCOUNT,)
    elif request.place.kind == "registry" and DOCKER_CONFIG in values:
        needed = (DOCKER_CONFIG,)
    else:
        needed = (ACCESS_KEY, SECRET_KEY)
    missing = [key for key in needed if key not in values]
    if missing:
        raise UsageError(f"the secret has no key {', '.join(missing)}", where=request.access.secret, remedy="add it")
    kept = {key: _write(directory, key, values[key]) for key in (*needed, SESSION_TOKEN) if key in values}
    if needed == (SERVICE_ACCOUNT,):
        return Credentials(service_account_file=kept[SERVICE_ACCOUNT])
    if needed == (DOCKER_CONFIG,):
        return Credentials(docker_config_file=kept[DOCKER_CONFIG])
    return Credentials(
        access_key_file=kept[ACCESS_KEY],
        secret_key_file=kept[SECRET_KEY],
        session_token_file=kept.get(SESSION_TOKEN),
    )


def given_secret(request: Request) -> Iterator[tuple[str, bytes]]:
    """Yield the keys and values of a Secret with the given credentials; nothing if there are none."""
    access, login = request.access, request.login
    if access.credentials is not None:
        yield (SERVICE_ACCOUNT if request.place.kind == "gcs" else DOCKER_CONFIG), access.credentials
    elif login is not None:
        yield ACCESS_KEY, login[0].encode()
        yield SECRET_KEY, login[1].encode()


def _tls(access: Access, directory: Path) -> Tls:
    if access.authority is None:
        return Tls(insecure=access.insecure)
    place = directory / "certificates"
    place.mkdir(mode=0o700, exist_ok=True)
    _write(place, "ca.pem", access.authority)
    return Tls(ca_dir=str(place), insecure=access.insecure)


def _write(directory: Path, name: str, content: bytes) -> str:
    path = directory / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
    return str(path)
