"""Errors for responses that require credentials: 401 and 407 (RFC 9110 section 11)."""

from __future__ import annotations

from http.client import HTTPMessage

from cdi.api.errors import SourceUnauthorized

_SHOWN = 6
"""The maximum number of schemes that a message names."""
_MAX_SCHEME = 20
_SPELLED = {"ntlm": "NTLM", "oauth": "OAuth", "hoba": "HOBA"}
_GIVE_BASIC = (
    "store accessKeyId and secretKey in a Secret and name it in secretRef; on the command line, use --username and "
    "--password-file"
)
_GIVE_BEARER = (
    "put a line 'Authorization: Bearer TOKEN' into a Secret and name it in secretExtraHeaders; on the command line, "
    "use --secret-header-file"
)
_GIVE_NEITHER = "allow Basic over TLS or Bearer tokens at the server, or use a URL that needs no log-in"


def unauthorized(headers: HTTPMessage, said: str, *, where: str, sent: str | None, dropped: bool) -> SourceUnauthorized:
    """Return the error for a 401.

    Args:
        headers: The header fields of the response.
        said: An excerpt of the body, to be appended to the message.
        where: The location for the message.
        sent: The value of the request's Authorization field.
        dropped: Whether credentials were left out because a redirect had led to another origin.
    """
    offered = _schemes(headers, "WWW-Authenticate")
    spoken = [scheme for scheme in offered if scheme in ("basic", "bearer")]
    only = f", and offers only {_names(offered)}" if offered and "basic" not in offered else ""
    if dropped:
        return SourceUnauthorized(
            f"the redirect target requires credentials (401){only}{said}",
            where=where,
            remedy="credentials are not forwarded to another host after a redirect; use the final URL",
        )
    scheme = None if sent is None else sent.partition(" ")[0].lower()
    if scheme is not None and (not offered or scheme in offered):
        return SourceUnauthorized(f"the server rejected the credentials (401){said}", where=where)
    what = "the server requires credentials (401)" if scheme is None else "the server requires other credentials (401)"
    if not offered or "basic" in offered:
        remedy = _GIVE_BASIC
    elif spoken:
        remedy = _GIVE_BEARER
    else:
        only += "; this importer sends Basic and Bearer"
        remedy = _GIVE_NEITHER
    return SourceUnauthorized(f"{what}{only}{said}", where=where, remedy=remedy)


def proxy_unauthorized(headers: HTTPMessage, proxy: str, *, where: str) -> SourceUnauthorized:
    """Return the error for a 407 of the proxy, which the message calls `proxy`."""
    offered = _schemes(headers, "Proxy-Authenticate")
    what = f"{proxy} requires credentials, or rejected them (407)"
    if offered and "basic" not in offered:
        return SourceUnauthorized(
            f"{what}, and offers only {_names(offered)}; this importer sends Basic",
            where=where,
            remedy="allow Basic at the proxy, or name another proxy (importProxy, or http_proxy and https_proxy)",
        )
    return SourceUnauthorized(what, where=where, remedy="set the user and password in the proxy's URL")


def _schemes(headers: HTTPMessage, name: str) -> tuple[str, ...]:
    # Imported here: few servers require credentials.
    from cdi.http.challenge import parse_challenges

    found = (challenge.scheme[:_MAX_SCHEME] for challenge in parse_challenges(headers.get_all(name) or ()))
    return tuple(dict.fromkeys(found))


def _names(schemes: tuple[str, ...]) -> str:
    return ", ".join(_SPELLED.get(scheme, scheme.capitalize()) for scheme in schemes[:_SHOWN])
