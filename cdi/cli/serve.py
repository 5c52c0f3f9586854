"""The ``cdi serve`` command."""

from __future__ import annotations

import ipaddress
import secrets
import signal
import threading
from pathlib import Path

import click

from cdi.api.errors import UsageError
from cdi.cli.options import PORT
from cdi.cli.session import Session, subcommand

_TOKEN_BYTES = 24
_MIN_TOKEN_LENGTH = 16


@subcommand("serve")
@click.option("--bind", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Listen on this address.")
@click.option(
    "--port",
    type=PORT,
    default=8080,
    show_default=True,
    help="Listen on this port; 0: any free port.",
)
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Serve HTTPS with this certificate and its chain (PEM).",
)
@click.option(
    "--tls-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the certificate's private key (PEM) from FILE.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the token from FILE instead of generating one.",
)
@click.option("--plain-http", is_flag=True, help="Allow the token to be sent over the network unencrypted.")
def command(
    session: Session,
    *,
    bind: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    token_file: Path | None,
    plain_http: bool,
) -> None:
    """Serve a web page and the paths of a cluster's upload proxy for the volumes of this machine.

    Clients with the token, which is printed once, may create, fill, clone and delete volumes.  Ctrl-C stops the server;
    uploads in progress resume when it is started again with the same token.  Meanwhile the schedules of golden images
    are kept.
    """
    from cdi.local.golden_schedule import Keeper
    from cdi.logs import LogFormat, configure
    from cdi.server.local_server import Options, served

    embedded = session.here("cdi serve", "the upload proxy of the cluster serves the same page")
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key must be given together", remedy="give both")
    address = _address(bind)
    if not address.is_loopback and tls_cert is None and not plain_http:
        raise UsageError(
            f"--bind {bind} would send the token over the network unencrypted",
            remedy="give --tls-cert and --tls-key, or --plain-http if the network is trusted",
        )
    options = Options(
        token=secrets.token_urlsafe(_TOKEN_BYTES) if token_file is None else _read(token_file),
        bind=str(address),
        port=port,
        certificate=None if tls_cert is None else str(tls_cert),
        key=None if tls_key is None else str(tls_key),
    )
    configure(LogFormat.TEXT, "warning")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with served(embedded, options) as server:
        click.echo(f"serving at {server.url}")
        if token_file is None:
            click.echo(f"token      {options.token}")
            click.echo(f"sign in    {server.url}#token={options.token}")
        keeper = threading.Thread(target=Keeper(embedded).run, args=(stop,), name="golden images")
        keeper.start()
        stop.wait()
        keeper.join()


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address("127.0.0.1" if text == "localhost" else text.strip("[]"))
    except ValueError as error:
        raise UsageError(f"{text!r} is not an IP address", remedy="--bind 127.0.0.1") from error


def _read(file: Path) -> str:
    from cdi.client.request import read_option_file

    text = read_option_file(file).decode("ascii", "replace").strip()
    if len(text) < _MIN_TOKEN_LENGTH or not text.isascii() or not text.isprintable() or set(text) & set(" ~"):
        raise UsageError(
            f"the token must have at least {_MIN_TOKEN_LENGTH} characters, without blanks",
            where=str(file),
            remedy="generate one with openssl rand -hex 24",
        )
    return text
