"""A container image as a source, whose layers are blobs that the engine reads like files."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from cdi.api.digest import Digest
from cdi.api.errors import CdiError, ChecksumMismatch, SourceUrlInvalid
from cdi.api.image_signature import SignatureVerifier
from cdi.api.job import RegistrySourceSpec
from cdi.http.http_object import HttpRequest
from cdi.http.transport import Transport
from cdi.source.base import Source, SourceFacts
from cdi.source.http import HttpSource
from cdi.source.registry.archive import Archive, split_archive
from cdi.source.registry.client import RegistryClient, RetryHook
from cdi.source.registry.errors import error_from_document
from cdi.source.registry.layout_directory import LayoutDirectory
from cdi.source.registry.manifest import Descriptor
from cdi.source.registry.reference import Reference
from cdi.source.registry.resolve import ResolvedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer; `source` states `digest`, which is verified when the layer is read to its end."""

    source: Source
    media_type: str
    digest: Digest
    size: int
    """The compressed size in bytes."""


class RegistryImage:
    """A resolved image, whose sources are usable until `close`."""

    def __init__(self, image: ResolvedImage, layers: tuple[Layer, ...], *, opened: RegistryClient | Archive) -> None:
        self.image = image
        self.layers = layers
        """The layers, top layer first: if several layers contain a file, the first of them counts."""
        self._opened = opened

    @property
    def digest(self) -> Digest:
        """The digest of the document that the tag names."""
        return self.image.digest

    @property
    def labels(self) -> dict[str, str]:
        return self.image.labels

    @property
    def location(self) -> str:
        return self.image.location

    def interrupt(self) -> None:
        """Interrupt a request for a token, which a reader of any layer may wait for in another thread."""
        if isinstance(self._opened, RegistryClient):
            self._opened.close()

    def close(self) -> None:
        for layer in self.layers:
            layer.source.close()
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_registry(
    spec: RegistrySourceSpec,
    stall_timeout: float,
    pause: RetryHook | None = None,
    verifier: SignatureVerifier | None = None,
) -> RegistryImage:
    """Resolve a ``docker://`` or ``oci-archive:`` URL to its layers; no layer is read yet.

    Raises what `RegistryClient.resolve` and `Archive` raise, and
    `SourceUrlInvalid` for other URLs.

    Args:
        spec: The source in the job.
        stall_timeout: Seconds.
        pause: A callback after each failed request that decides whether it is repeated; without it none is.
        verifier: Requires a signature of the image; the error of its rejection is raised.
    """
    scheme = spec.url.strip().partition(":")[0]
    if scheme == "docker":
        return _open_remote(spec, stall_timeout, pause, verifier)
    if scheme == "oci-archive":
        return _open_archive(spec, verifier)
    raise SourceUrlInvalid(
        f"images cannot be read from {scheme[:40]}: URLs",
        where=spec.url[:200],
        remedy="use docker://host/repository:tag, or write an archive with skopeo copy SOURCE oci-archive:PATH",
    )


def open_layout(path: str) -> Archive:
    """Open an OCI image layout, in a tar or in a directory; raise what `Archive` raises."""
    return LayoutDirectory(path) if os.path.isdir(path) else Archive(path)


def _open_archive(spec: RegistrySourceSpec, verifier: SignatureVerifier | None) -> RegistryImage:
    path, tag = split_archive(spec.url.strip())
    archive = open_layout(path)
    try:
        image = archive.resolve(tag, spec.architecture)
        if verifier is not None:
            archive.require_signature(image, verifier)
        layers = tuple(
            Layer(source=archive.layer(d), media_type=d.media_type, digest=d.digest, size=d.size)
            for d in reversed(image.layers)
        )
    except BaseException:
        archive.close()
        raise
    return RegistryImage(image, layers, opened=archive)


def _open_remote(
    spec: RegistrySourceSpec, stall_timeout: float, pause: RetryHook | None, verifier: SignatureVerifier | None
) -> RegistryImage:
    reference = Reference.parse(spec.url)
    client = RegistryClient(spec, stall_timeout, pause)
    try:
        image = client.resolve(reference, spec.architecture)
        if verifier is not None:
            client.require_signature(reference, image, verifier)
        gate = TokenCache(client, reference)
        layers = tuple(
            Layer(
                source=LayerSource(_BlobEndpoint(gate, d), d, transport=client.transport),
                media_type=d.media_type,
                digest=d.digest,
                size=d.size,
            )
            for d in reversed(image.layers)
        )
    except BaseException:
        client.close()
        raise
    return RegistryImage(image, layers, opened=client)


class TokenCache:
    """The authorization that all layers of an image share, renewed by the first thread that finds it expired."""

    def __init__(self, client: RegistryClient, reference: Reference) -> None:
        self.reference = reference
        self._client = client
        self._access = client.session_for(reference)
        self._lock = threading.Lock()

    @property
    def base(self) -> str:
        return self._access.base.text

    def value(self) -> str | None:
        """Return the value of the Authorization header; raise what `RegistryClient.refresh_token` raises."""
        with self._lock:
            authorization = self._access.authorization
            if authorization is not None and authorization.expired:
                self._client.refresh_token(self.reference, self._access)
                authorization = self._access.authorization
            return None if authorization is None else authorization.value

    def refresh(self, rejected: str | None) -> bool:
        """Renew the authorization unless another thread already has; return whether it differs from `rejected`."""
        with self._lock:
            authorization = self._access.authorization
            if authorization is None or authorization.value == rejected:
                self._client.refresh_token(self.reference, self._access)
                authorization = self._access.authorization
            return authorization is not None and authorization.value != rejected


class _BlobEndpoint:
    """One blob; the registry may redirect to its storage, to which the token is not sent."""

    def __init__(self, gate: TokenCache, descriptor: Descriptor) -> None:
        self._gate = gate
        self._last = threading.local()
        self._url = f"{gate.base}{gate.reference.path}/blobs/{descriptor.digest}"
        self.location = f"docker://{gate.reference.name}, {descriptor.digest}"
        self.name: str | None = None
        self.digests: tuple[Digest, ...] = (descriptor.digest,)

    def request(self) -> HttpRequest:
        value = self._gate.value()
        self._last.value = value
        return HttpRequest(url=self._url, sensitive_headers=() if value is None else (("Authorization", value),))

    def refresh_credentials(self, status: int) -> bool:
        # A 403 means that the identity lacks permission; only a 401 asks for new credentials.
        return status == 401 and self._gate.refresh(getattr(self._last, "value", None))

    def error_from_response(self, status: int, headers: Mapping[str, str], body: bytes) -> CdiError | None:
        return error_from_document(status, headers, body, self.location)

    def sibling(self, name: str) -> None:  # noqa: ARG002  # part of the protocol
        return None


class LayerSource(HttpSource):
    """An `HttpSource` whose length is known beforehand."""

    def __init__(self, endpoint: _BlobEndpoint, descriptor: Descriptor, *, transport: Transport) -> None:
        super().__init__(endpoint, transport=transport)
        self._size = descriptor.size
        self._digest = descriptor.digest

    def probe(self) -> SourceFacts:
        """Return the facts; raise `ChecksumMismatch` if the server's length differs from the manifest's."""
        facts = super().probe()
        if facts.length not in (None, self._size):
            raise ChecksumMismatch(
                f"size mismatch: the manifest lists {self._size} bytes, the registry has {facts.length}",
                where=facts.location,
                remedy="push the image again; the registry's content is damaged",
            )
        # The digest identifies the content better than an ETag of the registry's storage.
        return replace(facts, length=self._size, validator=str(self._digest))
