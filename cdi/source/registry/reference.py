"""Names of images in registries, as ``docker://`` URLs and in Docker's short forms.

Follows the grammar of the distribution project's reference specification: ``[host[:port]/]path[:tag][@digest]``, where
the first component is a host only if it has a dot, a colon, or is ``localhost``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from cdi.api.digest import Digest
from cdi.api.errors import ChecksumInvalid, SourceUrlInvalid

DOCKER_HUB = "docker.io"
DOCKER_HUB_SERVER = "registry-1.docker.io"
DOCKER_HUB_ALIASES = frozenset({DOCKER_HUB, "index.docker.io", DOCKER_HUB_SERVER, "registry.hub.docker.com"})

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?P<name>{_LABEL}(?:[._]{_LABEL})*\.?|\[[0-9a-fA-F:.]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MAX_LENGTH = 1024
_DIGEST_ALGORITHMS = frozenset({"sha256", "sha512"})


def is_loopback(host: str) -> bool:
    """Return whether a host name or address (without brackets) is this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The name of an image in a registry."""

    host: str
    """The host as written, with port and the brackets of an IPv6 address; ``docker.io`` if none was given."""
    path: str
    """The repository, including Docker Hub's implied ``library/``."""
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a reference, with or without ``docker://``; raise `SourceUrlInvalid`.

        If both a tag and a digest are given, only the digest is used.
        """
        shown = text[:200]
        rest = re.sub(r"^docker:(//)?", "", text.strip())
        if not rest or len(rest) > _MAX_LENGTH:
            raise SourceUrlInvalid("the image name is empty or longer than 1024 characters", where=shown)
        if "://" in rest:
            raise SourceUrlInvalid("use the form docker://host/repository[:tag]", where=shown)
        rest, at, digest_text = rest.partition("@")
        # A user name before the host would appear in messages and lock files.
        if at and "/" in digest_text:
            raise SourceUrlInvalid(
                "the image name contains credentials",
                where=digest_text[:200],
                remedy="store accessKeyId and secretKey, or a .dockerconfigjson, in a Secret",
            )
        digest = cls._digest(digest_text, shown) if at else None
        host, slash, path = rest.partition("/")
        if not slash or not ("." in host or ":" in host or host == "localhost" or host != host.lower()):
            host, path = DOCKER_HUB, rest
        path, colon, tag = path.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise SourceUrlInvalid(f"{tag[:140]!r} is not a tag", where=shown)
        cls._check_host(host, shown)
        if host.lower() in DOCKER_HUB_ALIASES:
            host = DOCKER_HUB
            if "/" not in path:
                path = f"library/{path}"
        if not _PATH.fullmatch(path) or len(path) > 255:
            raise SourceUrlInvalid(
                f"{path[:140]!r} is not a repository name",
                where=shown,
                remedy="use lower-case letters, digits and . _ - / only",
            )
        return cls(host=host.lower(), path=path, tag=tag if colon else None, digest=digest)

    @staticmethod
    def _digest(text: str, shown: str) -> Digest:
        try:
            digest = Digest.parse(text)
        except ChecksumInvalid as error:
            raise SourceUrlInvalid(error.what, where=shown, remedy="write it as @sha256:<64 hex digits>") from error
        if digest.algorithm not in _DIGEST_ALGORITHMS:
            raise SourceUrlInvalid(f"registries do not support {digest.algorithm} digests", where=shown)
        return digest

    @staticmethod
    def _check_host(host: str, shown: str) -> None:
        match = _HOST.fullmatch(host)
        valid = match is not None and (match["port"] is None or 0 < int(match["port"]) < 1 << 16)
        if valid and host.startswith("["):
            try:
                ipaddress.IPv6Address(host[1 : host.index("]")])
            except ValueError:
                valid = False
        if not valid:
            raise SourceUrlInvalid(f"{host[:140]!r} is not a registry's host", where=shown)

    @property
    def server(self) -> str:
        """The host and port to connect to."""
        return DOCKER_HUB_SERVER if self.host == DOCKER_HUB else self.host

    @property
    def hostname(self) -> str:
        """The host without port and brackets."""
        name = self.server
        if name.startswith("["):
            return name[1 : name.index("]")]
        return name.partition(":")[0]

    @property
    def loopback(self) -> bool:
        """True if the registry is on this machine, so that unencrypted secrets do not leave it."""
        return is_loopback(self.hostname)

    @property
    def selector(self) -> str:
        """The part that selects the manifest: the digest, else the tag, else ``latest``."""
        return str(self.digest) if self.digest is not None else self.tag or "latest"

    @property
    def name(self) -> str:
        """The host and repository, without tag and digest."""
        return f"{self.host}/{self.path}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"docker://{self.name}{tag or ('' if digest else ':latest')}{digest}"
