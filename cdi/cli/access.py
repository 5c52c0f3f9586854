"""Options for access to a source and for the import itself, shared by inspect, explain and import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cdi.api.digest import Digest
from cdi.api.errors import UsageError
from cdi.api.quantity import Quantity
from cdi.cli.options import quantity
from cdi.cli.session import Session
from cdi.cli.streams import require_input
from cdi.client.locate import absolute, locate
from cdi.client.request import MAX_KEYRING, Access, Request, read_option_file, secret_values

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)

_OPTIONS = (
    click.option("--secret", metavar="NAME", help="Read the credentials from this Secret."),
    click.option("--username", metavar="USER", help="Authenticate with this user name, or S3 access key ID."),
    click.option(
        "--password-file", type=_FILE, metavar="FILE", help="Read the password, or S3 secret access key, from FILE."
    ),
    click.option(
        "--credentials-file",
        type=_FILE,
        metavar="FILE",
        help="Read the service account key (gs://) or docker config (docker://) from FILE.",
    ),
    click.option(
        "--ca", type=_FILE, metavar="FILE", help="Trust the certificates (PEM) in FILE in addition to the system's."
    ),
    click.option("--insecure", is_flag=True, help="Skip certificate verification; allow registries to use plain HTTP."),
    click.option(
        "--header", multiple=True, metavar="'NAME: VALUE'", help="Send this header with every request; may be repeated."
    ),
    click.option(
        "--secret-header-file",
        type=_FILE,
        multiple=True,
        metavar="FILE",
        help="Send the headers in FILE, one a line; may be repeated.",
    ),
    click.option("--region", metavar="REGION", help="Set the region of the S3 bucket."),
    click.option("--endpoint", metavar="URL", help="Use this service, which implements the S3 or GCS JSON API."),
    click.option(
        "--addressing",
        type=click.Choice(["auto", "path", "virtual"]),
        help="Select how requests address the S3 bucket.",
    ),
    click.option("--anonymous", is_flag=True, help="Read the S3 bucket without credentials."),
    click.option("--arch", metavar="ARCH", help="Select the image of a multi-platform index, e.g. arm64."),
)

_WISHES = (
    click.option(
        "--size",
        type=quantity,
        metavar="SIZE",
        help="Set the size of the disk, e.g. 20Gi; default: the image's virtual size.",
    ),
    click.option("--checksum", metavar="ALGORITHM:HEX", help="Require this digest of the source's bytes."),
    click.option(
        "--content-type",
        type=click.Choice(["kubevirt", "archive"]),
        default="kubevirt",
        help="Select the content: a disk, or a tar archive.",
    ),
    click.option("--disk", metavar="NAME", help="Select the file NAME of a tar archive or OVA as the disk."),
    click.option(
        "--engine",
        type=click.Choice(["auto", "qemu"]),
        default="auto",
        help="Select the engine; qemu converts every image with QEMU.",
    ),
    click.option(
        "--connections",
        type=click.IntRange(0, 64),
        default=0,
        metavar="N",
        help="Fetch at most N ranges concurrently; 0: automatic.",
    ),
    click.option("--bandwidth", type=quantity, metavar="RATE", help="Limit the bytes per second, e.g. 50M."),
    click.option("--preallocate", is_flag=True, help="Allocate every block of the disk in advance."),
    click.option(
        "--keyring", type=_FILE, metavar="FILE", help="Trust the OpenPGP keys in FILE for the signature of SHA256SUMS."
    ),
    click.option(
        "--signature",
        type=click.Choice(["ignore", "if-present", "require"]),
        help="Select whether signatures are verified; with --keyring: if-present.",
    ),
    click.option(
        "--cosign-key",
        type=_FILE,
        multiple=True,
        metavar="FILE",
        help="Require a cosign signature of the container image by the public key (PEM) in FILE; "
        "of several keys, one suffices.",
    ),
    click.option("--require-checksum", is_flag=True, help="Reject an image whose digest is not known."),
)


def access_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def wish_options(function: F) -> F:
    for option in reversed(_WISHES):
        function = option(function)
    return function


def read_wishes(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of `wish_options` from `options` and return them as fields of a `Request`.

    Raises:
        UsageError: a value or the keyring file is invalid.
        VerificationKeyInvalid: a file of `--cosign-key` contains no usable public key.
    """
    size, bandwidth, keyring = options.pop("size"), options.pop("bandwidth"), options.pop("keyring")
    checksum = options.pop("checksum")
    if keyring is not None:
        read_option_file(keyring, MAX_KEYRING)
    cosign_keys = tuple(str(absolute(path)) for path in options.pop("cosign_key"))
    if cosign_keys:
        from cdi.verify.public_keys import read_keys

        read_keys(cosign_keys)
    return {
        "size": None if size is None else Quantity.parse(size).bytes,
        "checksum": None if checksum is None else str(Digest.parse(checksum)),
        "content_type": options.pop("content_type"),
        "engine": options.pop("engine"),
        "disk": options.pop("disk"),
        "connections": options.pop("connections"),
        "bandwidth": 0 if bandwidth is None else Quantity.parse(bandwidth).bytes,
        "preallocation": options.pop("preallocate"),
        "keyring": None if keyring is None else str(absolute(keyring)),
        "cosign_keys": cosign_keys,
        "signature": options.pop("signature"),
        "require_checksum": options.pop("require_checksum"),
    }


def read_access(options: dict[str, Any]) -> Access:
    """Remove the options of `access_options` from `options`.

    Raises:
        UsageError: a file cannot be read, or a header is malformed.
    """
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
    """Return the values of the Secret that `request` names, None if it names none.

    Raises:
        NotFound: the Secret does not exist.
    """
    if request.access.secret is None:
        return None
    return secret_values(session.backend.get("secret", session.namespace, request.access.secret))


def request_of(place: str, options: dict[str, Any], **more: Any) -> Request:
    """Build a request from `place` and the options that are left in `options`.

    Raises:
        UsageError: an option is invalid, or standard input is closed.
        SourceUrlInvalid: `place` is not a valid URL.
    """
    located = locate(place)
    if located.kind == "stdin":
        require_input()
    return Request(place=located, access=read_access(options), **more)


def _line(path: Path) -> str:
    """Read a file without the newline that editors append."""
    try:
        return read_option_file(path).decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            "the file is not UTF-8 text", where=str(path), remedy="check that it is the right file"
        ) from error


def _header(line: str) -> str:
    name, colon, _ = line.partition(":")
    if not colon or not name.strip() or not line.isprintable():
        # Do not repeat the line: it may hold a token.
        raise UsageError("the value of --header is not a header line", remedy="write --header 'Name: value'")
    return line
