"""A client for container registries: from an image's name to the digests of its layers.

Follows the OCI distribution specification 1.1 (pull). Every document is verified against the digest that named it. A
document named by a tag is verified against the digest that the registry states, if it states one.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
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
    SourceUnavailable,
    SourceUnreachable,
    SourceUrlInvalid,
)
from cdi.api.image_signature import SignatureVerifier
from cdi.api.job import RegistrySourceSpec
from cdi.http.challenge import Challenge, parse_challenges
from cdi.http.document import DocumentClient, DocumentResponse
from cdi.http.http_object import HttpRequest
from cdi.http.transport import Transport
from cdi.http.url import Url
from cdi.source.registry.auth import Authorization, authorize
from cdi.source.registry.credentials import identity_for
from cdi.source.registry.errors import error_for_response
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
"""A callback for a failure: it returns, possibly after a delay, to repeat the request, and raises to stop."""
_NO_REFERRERS = (SourceForbidden, SourceNotFound, SourceRefused, SourceUnauthorized)
"""Errors of registries that lack the referrers API."""
_NO_TLS = (SourceForbidden, SourceRefused, SourceStalled, SourceUnavailable, SourceUnreachable)
"""Errors of the transport for a server that only supports plain HTTP.

Some wait for the rest of what they take for a request (`SourceStalled`), and some proxies open tunnels to port 443 only
(`SourceForbidden`, `SourceRefused`, `SourceUnavailable`).
"""
_TLS_REMEDY = "check host and port; mark a registry without TLS as insecure"
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
    """A client that reads manifests and configs, for one thread at a time; any thread may `close` it.

    One client serves any number of references with the same credentials and TLS settings.
    """

    def __init__(self, spec: RegistrySourceSpec, stall_timeout: float, pause: RetryHook | None = None) -> None:
        """Set up the client; raise `SourceUrlInvalid` for an unusable proxy URL.

        Args:
            spec: The credentials, TLS settings and proxy.
            stall_timeout: Seconds.
            pause: A callback for failed requests; without it every failure is raised at once.
        """
        self.transport = Transport(tls=spec.tls, proxy=spec.proxy, stall_timeout=stall_timeout)
        """The connections, which sources of layers share."""
        self._pause = pause
        self._credentials = spec.credentials
        self._insecure = spec.tls.insecure
        self._documents = DocumentClient(self.transport, allow_downgrade=self._insecure)
        self._known: dict[tuple[str, str], RepositorySession] = {}

    def close(self) -> None:
        """Interrupt a request that another thread is waiting for, and release the transport."""
        self._documents.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def resolve(self, reference: Reference, architecture: str | None = None) -> ResolvedImage:
        """Find the image for an architecture (None: that of this machine) that a reference names.

        Raises a `SourceError` (`SourceNotFound`, `SourceUnauthorized`, `PlatformNotFound`, `SourceUnavailable` with
        `retry_after` …), `ChecksumMismatch`, or an `ImageError` if the image is rejected.
        """
        resolution = resolve(self.document(reference), architecture=architecture, where=str(reference))
        try:
            wanted = next(resolution)
            while True:
                wanted = resolution.send(self._document(reference, wanted))
        except StopIteration as stop:
            image: ResolvedImage = stop.value
            return image

    def require_signature(self, reference: Reference, image: ResolvedImage, verifier: SignatureVerifier) -> None:
        """Read the signatures of a resolved image until the verifier accepts one.

        Raises `SignatureVerifier.rejection` if it accepts none, and what `resolve` raises.
        """
        search = require_signature(image, verifier)
        try:
            wanted = next(search)
            while True:
                try:
                    found = self._signatures(reference, wanted)
                except UNUSABLE as error:
                    wanted = search.throw(error)
                else:
                    wanted = search.send(found)
        except StopIteration:
            return

    def document(self, reference: Reference) -> Document:
        """Return what the tag names, a manifest or an index, for polling; raise what `resolve` raises."""
        answer = self._get(reference, f"manifests/{reference.selector}", ACCEPT)
        digest = _verified(reference, answer, str(reference))
        return Document(body=answer.body, digest=digest, media_type=answer.headers.get("content-type"))

    def states(self, reference: Reference, digest: Digest) -> bool:
        """Return whether the registry says that the tag still names `digest`, without reading the manifest.

        Docker Hub counts a manifest that is read as a pull, and limits the number of pulls. Any other answer is False:
        the manifest itself then shows the digest, or the error.
        """
        try:
            answer = self._get_once(reference, f"manifests/{reference.selector}", ACCEPT, method="HEAD")
        except CdiError:
            return False
        return answer.headers.get("docker-content-digest") == str(digest)

    def content(self, reference: Reference, wanted: DocumentRequest) -> bytes:
        """Return a manifest or a small blob of the repository, verified; raise what `resolve` raises."""
        body = self._document(reference, wanted)
        check_document(wanted.descriptor, body, str(reference))
        return body

    def referrers(self, reference: Reference, digest: Digest) -> tuple[bytes, ...]:
        """Return the pages of the list of manifests that refer to `digest`; raise what `resolve` raises."""
        return self._referrers(reference, digest)

    def session_for(self, reference: Reference) -> RepositorySession:
        """Return the access to the repository, which is determined once and cached."""
        known = self._known.get((reference.server, reference.path))
        return self._ping(reference) if known is None else known

    def refresh_token(self, reference: Reference, access: RepositorySession) -> bool:
        """Request a new authorization for the same challenges; return False if there is none.

        Raises what `resolve` raises.
        """
        identity = identity_for(self._credentials, reference)
        access.authorization = authorize(self._documents, reference, identity, access.challenges, plain=self._insecure)
        return access.authorization is not None

    def _document(self, reference: Reference, wanted: DocumentRequest) -> bytes:
        kind, accept = "blobs", "*/*"
        if wanted.manifest:
            kind, accept = "manifests", wanted.descriptor.media_type or ACCEPT
        return self._get(reference, f"{kind}/{wanted.descriptor.digest}", accept).body

    def _signatures(self, reference: Reference, wanted: SignatureRequest) -> tuple[bytes, ...]:
        match wanted:
            case TagRequest():
                return self._tagged(reference, wanted.tag, ACCEPT)
            case ContentRequest():
                document = DocumentRequest(descriptor=wanted.descriptor, manifest=wanted.manifest)
                return (self._document(reference, document),)
            case ReferrersRequest():
                return self._referrers(reference, wanted.digest)

    def _tagged(self, reference: Reference, tag: str, accept: str) -> tuple[bytes, ...]:
        try:
            return (self._get(reference, f"manifests/{tag}", accept).body,)
        except SourceNotFound:
            return ()

    def _referrers(self, reference: Reference, digest: Digest) -> tuple[bytes, ...]:
        """Return the pages of the list of referrers, from the referrers API or its fallback tag."""
        pages: list[bytes] = []
        path: str | None = f"referrers/{digest}"
        while path is not None and len(pages) < _REFERRERS_PAGES:
            try:
                answer = self._get(reference, path, OCI_INDEX)
            except _NO_REFERRERS:
                if pages:
                    break
                return self._tagged(reference, referrers_tag(digest), OCI_INDEX)
            pages.append(answer.body)
            path = self._next_page(reference, path, answer)
        return tuple(pages)

    def _next_page(self, reference: Reference, path: str, answer: DocumentResponse) -> str | None:
        """Return the path of the next page; None for one outside the repository, which needs other credentials."""
        link = _NEXT.search(answer.headers.get("link", ""))
        if link is None:
            return None
        repository = f"{self.session_for(reference).base.text}{reference.path}/"
        try:
            target = Url.parse(f"{repository}{path}").join(link[1]).text
        except SourceUrlInvalid:
            return None
        return target.removeprefix(repository) if target.startswith(f"{repository}referrers/") else None

    def _get(self, reference: Reference, path: str, accept: str) -> DocumentResponse:
        while True:
            try:
                return self._get_once(reference, path, accept)
            except CdiError as failure:
                if self._pause is None:
                    raise
                # The cached scheme and token are kept, so each attempt continues where the last one failed.
                self._pause(failure)

    def _get_once(
        self, reference: Reference, path: str, accept: str, method: Literal["GET", "HEAD"] = "GET"
    ) -> DocumentResponse:
        access = self.session_for(reference)
        if access.authorization is not None and access.authorization.expired:
            self.refresh_token(reference, access)
        answer = self._ask(reference, access, path, accept, method)
        # A 401 from a redirect target is not the registry's challenge, so send no credentials.
        if answer.status == 401 and not answer.cross_origin:
            access.challenges = parse_challenges(answer.challenges)
            if self.refresh_token(reference, access):
                answer = self._ask(reference, access, path, accept, method)
        if answer.status != 200:
            raise error_for_response(answer.status, answer.headers, answer.body, str(reference))
        return answer

    def _ask(
        self, reference: Reference, access: RepositorySession, path: str, accept: str, method: Literal["GET", "HEAD"]
    ) -> DocumentResponse:
        secret = access.authorization
        request = HttpRequest(
            url=f"{access.base.text}{reference.path}/{path}",
            headers=(("Accept", accept),),
            sensitive_headers=() if secret is None else (("Authorization", secret.value),),
        )
        return self._documents.fetch(request, limit=MANIFEST_LIMIT, method=method)

    def _ping(self, reference: Reference) -> RepositorySession:
        """Find the scheme and the challenges with ``GET /v2/``, which every registry answers with 200 or 401.

        This is requested even without credentials: some registries respond 404 for private repositories until the
        client is logged in, and later requests then need no second attempt.
        """
        base = f"https://{reference.server}/v2/"
        try:
            answer = self._documents.fetch(HttpRequest(url=base), limit=_PING_LIMIT)
        except _NO_TLS as refused:
            if not (self._insecure or reference.loopback):
                if isinstance(refused.__cause__, ssl.SSLError):
                    raise SourceUnreachable(refused.what, where=refused.where, remedy=_TLS_REMEDY) from refused
                raise
            base = f"http://{reference.server}/v2/"
            try:
                answer = self._documents.fetch(HttpRequest(url=base), limit=_PING_LIMIT)
            except SourceError as error:
                raise error from refused
        access = RepositorySession(base=Url.parse(base))
        if answer.status == 401 and not answer.cross_origin:
            access.challenges = parse_challenges(answer.challenges)
            self.refresh_token(reference, access)
        elif answer.status == 429 or answer.status >= 500:
            raise error_for_response(answer.status, answer.headers, answer.body, str(reference))
        # Any other status (404 from a registry behind a restrictive proxy) says nothing about the image itself.
        self._known[reference.server, reference.path] = access
        return access


def _verified(reference: Reference, answer: DocumentResponse, where: str) -> Digest:
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
