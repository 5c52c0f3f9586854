"""A client for container registries: from an image's name to the digests of its layers.

Follows the OCI distribution specification 1.1 (pull). It is asynchronous: a worker runs it once, a controller keeps one
to poll digests. Every document is verified against the digest that named it. A document named by a tag is verified
against the digest that the registry states, if it states one.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from cdi.api.digest import Digest
from cdi.api.errors import (
    CdiError,
    ChecksumInvalid,
    SourceError,
    SourceForbidden,
    SourceNotFound,
    SourceProtocolError,
    SourceRefused,
    SourceStalled,
    SourceUnauthorized,
    SourceUnreachable,
    SourceUrlInvalid,
)
from cdi.api.image_signature import SignatureVerifier
from cdi.api.job import Credentials, Proxy, Tls
from cdi.http.challenge import Challenge, parse_challenges
from cdi.http.url import Url
from cdi.source.registry.auth import Authorization, authorize
from cdi.source.registry.credentials import identity_for
from cdi.source.registry.errors import error_for_response
from cdi.source.registry.http import DocumentClient, Response
from cdi.source.registry.manifest import ACCEPT, MANIFEST_LIMIT, OCI_INDEX
from cdi.source.registry.reference import Reference
from cdi.source.registry.resolve import Document, DocumentRequest, ResolvedImage, check_digest, check_document, resolve
from cdi.source.registry.signatures import (
    UNUSABLE,
    ContentRequest,
    ReferrersRequest,
    SignatureRequest,
    TagRequest,
    referrers_tag,
    require_signature,
)

_PING_LIMIT = 1 << 20
RetryHook = Callable[[CdiError], None]
"""A callback for a failure: it returns, possibly after a delay, to repeat the request, and raises to stop. It may
block, as it is called in a separate thread.
"""
_NO_REFERRERS = (SourceForbidden, SourceNotFound, SourceRefused, SourceUnauthorized)
"""Errors of registries that lack the referrers API."""
_REFERRERS_PAGES = 16
_NEXT = re.compile(r'<([^<>]{1,4000})>\s*;\s*rel="?next"?', re.IGNORECASE)
_STATED = frozenset({"sha256", "sha384", "sha512"})


@dataclass(slots=True)
class RepositorySession:
    """The state of the access to one repository."""

    base: Url
    """The base URL, which ends in ``/v2/``."""
    challenges: tuple[Challenge, ...] = ()
    authorization: Authorization | None = None


class RegistryClient:
    """An asynchronous context manager that reads manifests and configs.

    `stall_timeout` is in seconds. One client serves any number of references with the same credentials and TLS
    settings.
    """

    def __init__(
        self,
        *,
        credentials: Credentials = Credentials(),  # noqa: B008 - frozen
        tls: Tls = Tls(),  # noqa: B008 - frozen
        proxy: Proxy = Proxy(),  # noqa: B008 - frozen
        stall_timeout: float = 60.0,
        pause: RetryHook | None = None,
    ) -> None:
        """Set up the client; without `pause` every failure is raised at once."""
        self._pause = pause
        self._credentials = credentials
        self._insecure = tls.insecure
        self._documents = DocumentClient(tls=tls, proxy=proxy, stall_timeout=stall_timeout)
        self._known: dict[tuple[str, str], RepositorySession] = {}

    async def __aenter__(self) -> Self:
        await self._documents.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._documents.__aexit__(kind, error, trace)

    async def resolve(self, reference: Reference, architecture: str | None = None) -> ResolvedImage:
        """Find the image for an architecture (None: that of this machine) that a reference names.

        Raises a `SourceError` (`SourceNotFound`, `SourceUnauthorized`, `PlatformNotFound`, `SourceUnavailable` with
        `retry_after` …), `ChecksumMismatch`, or an `ImageError` if the image is rejected.
        """
        resolution = resolve(await self.document(reference), architecture=architecture, where=str(reference))
        try:
            wanted = next(resolution)
            while True:
                wanted = resolution.send(await self._document(reference, wanted))
        except StopIteration as stop:
            image: ResolvedImage = stop.value
            return image

    async def require_signature(self, reference: Reference, image: ResolvedImage, verifier: SignatureVerifier) -> None:
        """Read the signatures of a resolved image until the verifier accepts one.

        Raises `SignatureVerifier.rejection` if it accepts none, and what `resolve` raises.
        """
        search = require_signature(image, verifier)
        try:
            wanted = next(search)
            while True:
                try:
                    found = await self._signatures(reference, wanted)
                except UNUSABLE as error:
                    wanted = search.throw(error)
                else:
                    wanted = search.send(found)
        except StopIteration:
            return

    async def digest(self, reference: Reference) -> Digest:
        """Return the current digest of what the tag names, possibly an index, for polling.

        Raises what `resolve` raises.
        """
        return (await self.document(reference)).digest

    async def document(self, reference: Reference) -> Document:
        """Return what the tag names, a manifest or an index, for polling; raise what `resolve` raises."""
        answer = await self._get(reference, f"manifests/{reference.selector}", ACCEPT)
        digest = _verified(reference, answer, str(reference))
        return Document(body=answer.body, digest=digest, media_type=answer.headers.get("content-type"))

    async def states(self, reference: Reference, digest: Digest) -> bool:
        """Return whether the registry says that the tag still names `digest`, without reading the manifest.

        Docker Hub counts a manifest that is read as a pull, and limits the number of pulls. Any other answer is False:
        the manifest itself then shows the digest, or the error.
        """
        try:
            answer = await self._get_once(reference, f"manifests/{reference.selector}", ACCEPT, method="HEAD")
        except CdiError:
            return False
        return answer.headers.get("docker-content-digest") == str(digest)

    async def content(self, reference: Reference, wanted: DocumentRequest) -> bytes:
        """Return a manifest or a small blob of the repository, verified; raise what `resolve` raises."""
        body = await self._document(reference, wanted)
        check_document(wanted.descriptor, body, str(reference))
        return body

    async def referrers(self, reference: Reference, digest: Digest) -> tuple[bytes, ...]:
        """Return the pages of the list of manifests that refer to `digest`; raise what `resolve` raises."""
        return await self._referrers(reference, digest)

    async def session_for(self, reference: Reference) -> RepositorySession:
        """Return the access to the repository, which is determined once and cached."""
        known = self._known.get((reference.server, reference.path))
        return await self._ping(reference) if known is None else known

    async def refresh_token(self, reference: Reference, access: RepositorySession) -> bool:
        """Request a new authorization for the same challenges; return False if there is none.

        Raises what `resolve` raises.
        """
        identity = identity_for(self._credentials, reference)
        access.authorization = await authorize(
            self._documents, reference, identity, access.challenges, plain=self._insecure
        )
        return access.authorization is not None

    async def _document(self, reference: Reference, wanted: DocumentRequest) -> bytes:
        kind, accept = "blobs", "*/*"
        if wanted.manifest:
            kind, accept = "manifests", wanted.descriptor.media_type or ACCEPT
        return (await self._get(reference, f"{kind}/{wanted.descriptor.digest}", accept)).body

    async def _signatures(self, reference: Reference, wanted: SignatureRequest) -> tuple[bytes, ...]:
        match wanted:
            case TagRequest():
                return await self._tagged(reference, wanted.tag, ACCEPT)
            case ContentRequest():
                return (
                    await self._document(
                        reference, DocumentRequest(descriptor=wanted.descriptor, manifest=wanted.manifest)
                    ),
                )
            case ReferrersRequest():
                return await self._referrers(reference, wanted.digest)

    async def _tagged(self, reference: Reference, tag: str, accept: str) -> tuple[bytes, ...]:
        try:
            return ((await self._get(reference, f"manifests/{tag}", accept)).body,)
        except SourceNotFound:
            return ()

    async def _referrers(self, reference: Reference, digest: Digest) -> tuple[bytes, ...]:
        """Return the pages of the list of referrers, from the referrers API or its fallback tag."""
        pages: list[bytes] = []
        path: str | None = f"referrers/{digest}"
        while path is not None and len(pages) < _REFERRERS_PAGES:
            try:
                answer = await self._get(reference, path, OCI_INDEX)
            except _NO_REFERRERS:
                if pages:
                    break
                return await self._tagged(reference, referrers_tag(digest), OCI_INDEX)
            pages.append(answer.body)
            path = await self._next_page(reference, path, answer)
        return tuple(pages)

    async def _next_page(self, reference: Reference, path: str, answer: Response) -> str | None:
        """Return the path of the next page; None for one outside the repository, which needs other credentials."""
        link = _NEXT.search(answer.headers.get("link", ""))
        if link is None:
            return None
        repository = f"{(await self.session_for(reference)).base.text}{reference.path}/"
        try:
            target = Url.parse(f"{repository}{path}").join(link[1]).text
        except SourceUrlInvalid:
            return None
        return target.removeprefix(repository) if target.startswith(f"{repository}referrers/") else None

    async def _get(self, reference: Reference, path: str, accept: str) -> Response:
        while True:
            try:
                return await self._get_once(reference, path, accept)
            except CdiError as failure:
                if self._pause is None:
                    raise
                # The cached scheme and token are kept, so each attempt continues where the last one failed.
                await asyncio.to_thread(self._pause, failure)

    async def _get_once(
        self, reference: Reference, path: str, accept: str, method: Literal["GET", "HEAD"] = "GET"
    ) -> Response:
        access = await self.session_for(reference)
        if access.authorization is not None and access.authorization.expired:
            await self.refresh_token(reference, access)
        answer = await self._ask(reference, access, path, accept, method)
        # A 401 from a redirect target is not the registry's challenge, so send no credentials.
        if answer.status == 401 and not answer.cross_origin:
            access.challenges = parse_challenges(answer.challenges)
            if await self.refresh_token(reference, access):
                answer = await self._ask(reference, access, path, accept, method)
        if answer.status != 200:
            raise error_for_response(answer.status, answer.headers, answer.body, str(reference))
        return answer

    async def _ask(
        self, reference: Reference, access: RepositorySession, path: str, accept: str, method: Literal["GET", "HEAD"]
    ) -> Response:
        return await self._documents.fetch(
            Url.parse(f"{access.base.text}{reference.path}/{path}"),
            limit=MANIFEST_LIMIT,
            method=method,
            accept=accept,
            authorization=access.authorization.value if access.authorization else None,
        )

    async def _ping(self, reference: Reference) -> RepositorySession:
        """Find the scheme and the challenges with ``GET /v2/``, which every registry answers with 200 or 401.

        This is requested even without credentials: some registries respond 404 for private repositories until the
        client is logged in, and later requests then need no second attempt.
        """
        base = Url.parse(f"https://{reference.server}/v2/")
        try:
            answer = await self._documents.fetch(base, limit=_PING_LIMIT)
        except (SourceUnreachable, SourceStalled) as refused:
            # SourceStalled: a plain HTTP server that takes the TLS handshake for an incomplete request line.
            if not (self._insecure or reference.loopback):
                raise
            base = Url.parse(f"http://{reference.server}/v2/")
            try:
                answer = await self._documents.fetch(base, limit=_PING_LIMIT)
            except SourceError as error:
                raise error from refused
        access = RepositorySession(base=base)
        if answer.status == 401 and not answer.cross_origin:
            access.challenges = parse_challenges(answer.challenges)
            await self.refresh_token(reference, access)
        elif answer.status == 429 or answer.status >= 500:
            raise error_for_response(answer.status, answer.headers, answer.body, str(reference))
        # Any other status (404 from a registry behind a restrictive proxy) says nothing about the image itself.
        self._known[reference.server, reference.path] = access
        return access


def _verified(reference: Reference, answer: Response, where: str) -> Digest:
    """Return the digest of what a tag or digest names; raise `ChecksumMismatch`."""
    if reference.digest is not None:
        check_digest(reference.digest, answer.body, where)
        return reference.digest
    stated = answer.headers.get("docker-content-digest")
    if stated is not None:
        try:
            digest = Digest.parse(stated)
        except ChecksumInvalid as error:
            raise SourceProtocolError("the registry reports an invalid digest", where=where) from error
        if digest.algorithm in _STATED:
            check_digest(digest, answer.body, where)
            return digest
    return Digest("sha256", hashlib.sha256(answer.body).hexdigest())
