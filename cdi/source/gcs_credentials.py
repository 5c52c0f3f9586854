"""Access tokens for Google: from a service account or from the environment.

A secret may contain only a service account's key. Other kinds of Google credentials name files to read, programs to run
and hosts to send the result to, which the author of a DataVolume must not choose. The operator may use all of them with
GOOGLE_APPLICATION_CREDENTIALS.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Literal

import google.auth
from google.auth import exceptions, transport
from google.oauth2 import service_account

from cdi.api.errors import (
    SourceCredentialsInvalid,
    SourceError,
    SourceProtocolError,
    SourceUnauthorized,
    SourceUnreachable,
)
from cdi.api.job import Proxy, Tls
from cdi.api.json_document import check_nesting, parse_json
from cdi.api.printable import printable
from cdi.http.document import DocumentClient
from cdi.http.headers import read_secret
from cdi.http.http_object import HttpRequest
from cdi.http.transport import Transport
from cdi.http.url import Url

_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_LIMIT = 1 << 20
_TIMEOUT = 60.0
# google-auth claims to have type annotations but lacks them.
_from_info: Any = service_account.Credentials.from_service_account_info
_default: Any = google.auth.default
_TransportError: Any = exceptions.TransportError
ENVIRONMENT = "GOOGLE_APPLICATION_CREDENTIALS"


class AccessTokenProvider:
    """An access token that is renewed when it expires; thread-safe."""

    def __init__(self, credentials: Any, request: transport.Request, where: str) -> None:
        self._credentials = credentials
        self._request = request
        self._where = where
        self._lock = threading.Lock()

    @classmethod
    def from_file(cls, path: str, *, tls: Tls, proxy: Proxy) -> AccessTokenProvider:
        """Create the tokens from a service account's JSON key; raise `SourceCredentialsInvalid`."""
        try:
            info = parse_json(read_secret(path))
        except ValueError as error:
            raise SourceCredentialsInvalid("the secret's credentials.json is not JSON", where=path) from error
        kind = info.get("type") if isinstance(info, dict) else None
        if kind != "service_account":
            raise SourceCredentialsInvalid(
                f"credentials.json has the type {str(kind)[:40]!r}, not service_account",
                where=path,
                remedy="store a service account's JSON key in the secret",
            )
        try:
            credentials = _from_info(info, scopes=[_SCOPE])
        except (ValueError, exceptions.GoogleAuthError) as error:
            raise SourceCredentialsInvalid(
                "credentials.json lacks a field, or its private key cannot be read", where=path
            ) from error
        _check_token_uri(info.get("token_uri"), path)
        return cls(credentials, _Request(tls, proxy), path)

    @classmethod
    def from_environment(cls, *, tls: Tls, proxy: Proxy) -> AccessTokenProvider | None:
        """Create the tokens from credentials of any kind that GOOGLE_APPLICATION_CREDENTIALS names; None if not set."""
        path = os.environ.get(ENVIRONMENT)
        if not path:
            return None
        request = _Request(tls, proxy)
        try:
            # If the variable is set, google-auth consults no other place.
            credentials, _ = _default(scopes=[_SCOPE], request=request)
        except (exceptions.GoogleAuthError, OSError, ValueError, RecursionError) as error:
            raise SourceCredentialsInvalid(
                f"cannot use the file named by {ENVIRONMENT} ({type(error).__name__})",
                where=path,
                remedy="correct the file, or give a secret with credentials.json",
            ) from error
        return cls(credentials, request, path)

    def get(self, *, instead_of: str | None = None) -> str:
        """Return the value of the Authorization header; if it equals `instead_of`, the token is renewed first.

        Raises `SourceUnauthorized` or `SourceUnreachable`.
        """
        with self._lock:
            if not self._credentials.valid or f"Bearer {self._credentials.token}" == instead_of:
                self._refresh()
            return f"Bearer {self._credentials.token}"

    def _refresh(self) -> None:
        try:
            self._credentials.refresh(self._request)
        except exceptions.TransportError as error:
            cause = error.__cause__
            if isinstance(cause, SourceError):
                raise cause from error
            raise SourceUnreachable("cannot reach Google's token service", where=self._where) from error
        except (exceptions.GoogleAuthError, ValueError) as error:
            said = printable(str(error.args[0] if error.args else ""), 200)
            raise SourceUnauthorized(
                f"Google issued no token for these credentials: {said}",
                where=self._where,
                remedy="check that the service account exists, that its key is not revoked, and this machine's clock",
            ) from error


def _check_token_uri(value: object, where: str) -> None:
    uri = Url.parse(value) if isinstance(value, str) else None
    if uri is None or (uri.scheme != "https" and uri.host not in ("localhost", "127.0.0.1", "::1")):
        raise SourceCredentialsInvalid("credentials.json's token_uri is not an https URL", where=where)


class _Response(transport.Response):
    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self._status, self._headers, self._data = status, headers, data

    @property
    def status(self) -> int:
        return self._status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers

    @property
    def data(self) -> bytes:
        return self._data


def _bounded(data: bytes) -> bytes:
    """Return `data`, which google-auth parses as JSON; raise `SourceProtocolError` if it is nested too deeply."""
    try:
        check_nesting(data.decode("utf-8", "replace"))
    except ValueError as error:
        raise SourceProtocolError(f"cannot parse the response of the token service: {error}") from error
    return data


class _Request(transport.Request):
    """The HTTP client that google-auth uses, with the job's CA certificates and proxy."""

    def __init__(self, tls: Tls, proxy: Proxy) -> None:
        # Certificates are always verified here, because these requests carry credentials.
        self._tls = Tls(ca_dir=tls.ca_dir)
        self._proxy = proxy

    def __call__(
        self,
        url: str,
        method: Literal["GET", "POST"] = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> _Response:
        del timeout, kwargs
        request = HttpRequest(url=url, headers=tuple((headers or {}).items()))
        content = body.encode() if isinstance(body, str) else body
        try:
            # Tokens are renewed once an hour, so no connection is kept.
            connections = Transport(tls=self._tls, proxy=self._proxy, stall_timeout=_TIMEOUT)
            # A token service has no reason to redirect.
            with closing(DocumentClient(connections, follow_redirects=False)) as client:
                answer = client.fetch(request, limit=_LIMIT, method=method, body=content)
            return _Response(answer.status, answer.headers, _bounded(answer.body))
        except SourceError as error:
            raise _TransportError(error.what) from error
