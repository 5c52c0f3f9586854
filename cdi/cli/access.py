"""Options that tell how a source is got at; the same for inspect, explain and import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cdi.api.errors import UsageError
from cdi.cli.session import Session
from cdi.runtime.locate import locate
from cdi.runtime.request import Access, Request, read_option_file, secret_values

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)

_OPTIONS = (
    click.option("--secret", metavar="NAME", help="A Secret of this CDI_HOME with the credentials."),
    click.option("--username", metavar="USER", help="User name, or S3 access key id."),
    click.option("--password-file", type=_FILE, metavar="FILE", help="Password, or S3 secret access key."),
    click.option(
        "--credentials-file",
        type=_FILE,
        metavar="FILE",
        help="Service account key (gs://) or docker config (docker://).",
    ),
    click.option("--ca", type=_FILE, metavar="FILE", help="Certificates (PEM) that are trusted as well."),
    click.option("--insecure", is_flag=True, help="Do not check certificates; registries may speak plain HTTP."),
    click.option("--header", multiple=True, metavar="'NAME: VALUE'", help="Sent with every request; may be repeated."),
    click.option(
        "--secret-header-file", type=_FILE, multiple=True, metavar="FILE", help="Lines of headers; may be repeated."
    ),
    click.option("--region", metavar="REGION", help="Of the S3 bucket."),
    click.option("--endpoint", metavar="URL", help="Another service that speaks S3 or the GCS JSON API."),
    click.option("--addressing", type=click.Choice(["auto", "path", "virtual"]), help="How S3 buckets are named."),
    click.option("--anonymous", is_flag=True, help="Read the S3 bucket without credentials."),
    click.option("--arch", metavar="ARCH", help="Which image of a multi-platform index, e.g. arm64."),
)


def access_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def read_access(options: dict[str, Any]) -> Access:
    """Takes the options above out of `options`.  Raises `UsageError` for files that cannot be read."""
    password = options.pop("password_file")
    credentials = options.pop("credentials_file")
    authority = options.pop("ca")
    return Access(
        secret=options.pop("secret"),
        username=options.pop("username"),
        password=None if password is None else _line(password),
        credentials=None if credentials is None else read_option_file(credentials),
        authority=None if authority is None else read_option_file(authority),
        insecure=options.pop("insecure"),
        headers=tuple(_header(line) for line in options.pop("header")),
        secret_headers=tuple(read_option_file(path) for path in options.pop("secret_header_file")),
        region=options.pop("region"),
        endpoint=options.pop("endpoint"),
        addressing=options.pop("addressing"),
        anonymous=options.pop("anonymous"),
        architecture=options.pop("arch"),
    )


def stored_secret(session: Session, request: Request) -> dict[str, bytes] | None:
    """The values of the Secret that `request` names; raises `NotFound`."""
    if request.access.secret is None:
        return None
    return secret_values(session.embedded.get("secret", session.namespace, request.access.secret))


def request_of(place: str, options: dict[str, Any], **more: Any) -> Request:
    """Of the options that were not taken out yet; raises `UsageError`, `SourceUrlInvalid`."""
    return Request(place=locate(place), access=read_access(options), **more)


def _line(path: Path) -> str:
    """Without the newline that editors put at the end."""
    try:
        return read_option_file(path).decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError("the file is no text", where=str(path), remedy="is it the right file?") from error


def _header(line: str) -> str:
    name, colon, _ = line.partition(":")
    if not colon or not name.strip() or not line.isprintable():
        # The line may hold a token, so it is not repeated.
        raise UsageError("--header is no whole header line", remedy="write --header 'Name: value'")
    return line
