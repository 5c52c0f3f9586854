"""Upload proxy and web page on one machine (``cdi serve``), based on the embedded backend."""

from __future__ import annotations

import contextlib
import hmac
import logging
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cdi.api.errors import AlreadyUploaded, TokenInvalid, TokenMisused
from cdi.http.server.certificates import ReloadingSSLContext
from cdi.http.server.listener import HttpListener
from cdi.http.server.plaintext import PlaintextContext
from cdi.http.sockets import listen_as_asked
from cdi.local.backend import LocalBackend
from cdi.local.upload_sockets import UploadSockets
from cdi.server.page.machine import LocalBackendProvider
from cdi.server.page.service import Page
from cdi.server.proxy.run import server_context
from cdi.server.proxy.service import Proxy, UploadClaim
from cdi.server.proxy.volumes import Destination, Filled, Pending, VolumeState
from cdi.store.base import Key

LOG = logging.getLogger(__name__)
_MAX_REQUESTS = 64
_DRAIN = 5.0
_STALL = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the server."""

    token: str
    bind: str = "127.0.0.1"
    port: int = 8080
    certificate: str | None = None
    """The file with the certificate, and `key` with its private key; None serves plain HTTP."""
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    namespace: str
    name: str


class _Rights:
    """Verifier of the single token, which is sent with the volume that is meant: ``TOKEN~NAMESPACE~NAME``."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def __call__(self, text: str) -> UploadClaim:
        token, _, rest = text.partition("~")
        if not hmac.compare_digest(token.encode(), self._token):
            raise TokenInvalid("this is not the token that cdi serve printed", remedy="copy it again")
        namespace, _, name = rest.partition("~")
        if not name:
            raise TokenMisused("the token names no volume", remedy="send Bearer TOKEN~NAMESPACE~NAME")
        key = Key.of("dv", namespace, name)
        return _Claim(namespace=key.namespace, name=key.name)


class _MachineVolumes:
    """Upload states of local volumes; each volume's own worker receives its upload."""

    def __init__(self, doors: UploadSockets) -> None:
        self._doors = doors

    def look(self, namespace: str, name: str) -> VolumeState:
        try:
            address = self._doors.open(namespace, name)
        except AlreadyUploaded:
            return Filled(upload=self._doors.filled_by(namespace, name))
        if address is None:
            return Pending(why="the volume does not exist yet")
        return Destination(host="localhost", local=address)


class Server:
    """A server that accepts connections from its construction until `close`."""

    def __init__(self, embedded: LocalBackend, options: Options) -> None:
        """Start serving; raise `UsageError` if the port is taken, `InvalidManifest` for an unusable certificate."""
        page = Page(LocalBackendProvider(embedded, options.token))
        proxy = Proxy(
            _MachineVolumes(UploadSockets(embedded)),
            _Rights(options.token),
            _no_context,
            pages=page.begin,
            max_waiting=_MAX_REQUESTS // 2,
        )

        context: Callable[[], ssl.SSLContext | PlaintextContext] = PlaintextContext
        if options.certificate is not None and options.key is not None:
            context = ReloadingSSLContext([options.certificate, options.key], server_context)
            context()
        self._reception = HttpListener(
            listen_as_asked(options.port, options.bind), context, proxy.begin, most=_MAX_REQUESTS, stall_timeout=_STALL
        )
        scheme = "http" if context is PlaintextContext else "https"
        host = f"[{options.bind}]" if ":" in options.bind else options.bind
        self.url = f"{scheme}://{host}:{self._reception.port}/"

    def close(self) -> None:
        """Stop serving; running uploads can be resumed with the next server."""
        self._reception.close(_DRAIN)


@contextlib.contextmanager
def served(embedded: LocalBackend, options: Options) -> Iterator[Server]:
    """Serve for as long as the context lasts; raise the errors of `Server`."""
    server = Server(embedded, options)
    try:
        yield server
    finally:
        server.close()


def _no_context() -> ssl.SSLContext:
    """Return a context that trusts no certificate; local workers are reached without TLS, so it is never used."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
