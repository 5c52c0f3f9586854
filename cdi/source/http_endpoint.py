"""A file at a plain URL, with basic authentication and user-defined headers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

from cdi.api.digest import Digest
from cdi.api.errors import CdiError, SourceCredentialsInvalid
from cdi.api.job import Credentials, HttpSourceSpec
from cdi.http import headers as fields
from cdi.http.http_object import Headers, HttpRequest
from cdi.http.url import Url


class HttpEndpoint:
    """An `HttpObject` for `HttpSourceSpec`.

    All configured values are treated as secrets: the Authorization made from credential files (or else from the user in
    the URL), the headers and the secret headers. They are sent to the URL's origin only.
    """

    def __init__(
        self,
        url: Url,
        *,
        credentials: Credentials,
        headers: Headers,
        secret_header_files: tuple[str, ...],
    ) -> None:
        """Read the secret files; raise `SourceCredentialsInvalid`."""
        self.location = url.redacted
        self.name = url.name
        self.digests: tuple[Digest, ...] = ()
        self._url = url
        self._credentials = credentials
        self._extra_headers = headers
        self._files = secret_header_files
        self._secret = self._read()

    @classmethod
    def from_spec(cls, spec: HttpSourceSpec) -> HttpEndpoint:
        """Create an endpoint; raise `SourceUrlInvalid`, `SourceCredentialsInvalid` or `InvalidManifest`."""
        return cls(
            Url.parse(spec.url),
            credentials=spec.credentials,
            headers=fields.from_manifest(spec.headers),
            secret_header_files=spec.secret_header_files,
        )

    def request(self) -> HttpRequest:
        return HttpRequest(url=self._url.text, sensitive_headers=self._secret)

    def refresh_credentials(self, status: int) -> bool:
        """Read the secrets again, since mounted Secrets are updated in place; return whether they changed."""
        if status not in {401, 403}:
            return False
        before, self._secret = self._secret, self._read()
        return before != self._secret

    def error_from_response(self, status: int, headers: Mapping[str, str], body: bytes) -> CdiError | None:
        del status, headers, body
        return None

    def sibling(self, name: str) -> HttpEndpoint | None:
        """Return the file beside this one; None if the URL is signed, because a signature covers one path only."""
        if self._url.is_presigned:
            return None
        return HttpEndpoint(
            self._url.with_name(name),
            credentials=self._credentials,
            headers=self._extra_headers,
            secret_header_files=self._files,
        )

    def _read(self) -> Headers:
        given = (*self._extra_headers, *fields.from_secret_files(self._files))
        if any(name.lower() == "authorization" for name, _ in given):
            return given
        authorization = self._basic()
        return given if authorization is None else (("Authorization", authorization), *given)

    def _basic(self) -> str | None:
        """Return the Authorization of RFC 7617, in UTF-8; None without credentials."""
        user, password = self._url.user, self._url.password
        if self._credentials.access_key_file is not None:
            user = fields.read_secret(self._credentials.access_key_file)
            password = None
        if self._credentials.secret_key_file is not None:
            password = fields.read_secret(self._credentials.secret_key_file)
        if user is None and password is None:
            return None
        user = user or ""
        if ":" in user:
            raise SourceCredentialsInvalid("the user name contains a colon", where=self.location)
        return f"Basic {b64encode(f'{user}:{password or str()}'.encode()).decode('ascii')}"
