"""The process of ``cdi uploadproxy``."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from cdi.api.errors import ClusterConfigInvalid
from cdi.http.server.certificates import ReloadingSSLContext
from cdi.http.server.listener import HttpListener
from cdi.http.server.plaintext import PlaintextContext
from cdi.http.server.request import ServerRequest
from cdi.http.server.turn import Turn, in_turns
from cdi.http.sockets import listen_as_asked
from cdi.kube.jwt import TokenClaims, VerifyingKey
from cdi.logs import fields
from cdi.server import tokens
from cdi.server.proxy.forward import WaitLimits
from cdi.server.proxy.metrics import Metrics
from cdi.server.proxy.service import Proxy
from cdi.server.proxy.volumes import Volumes
from cdi.server.tls import ServingTls, TlsPolicy

LOG = logging.getLogger(__name__)
MAX_UPLOADS = 200
"""Largest number of concurrent requests; each has a thread of its own."""
_MAX_UNVERIFIED = 50
"""Largest number of requests whose tokens only the API server can verify; the others are for verified tokens."""
_MAX_SCRAPES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the proxy; the files are read again when they change, as those of mounted Secrets do."""

    tls: str
    """The directory of the serving certificate, ``tls.crt`` and ``tls.key``."""
    client: str
    """The directory of the client certificate for upload servers, ``tls.crt`` and ``tls.key``."""
    authorities: str
    """The CA bundle that verifies the upload servers' certificates."""
    token_key: str
    """The file with the public key that verifies tokens, ``id_rsa.pub``."""
    port: int = 8443
    metrics_port: int | None = None
    """The port that serves metrics over plain HTTP; None serves none."""
    bind: str = ""
    drain: float = 3600.0
    """Seconds that running uploads may still take after the signal to terminate."""
    stall_timeout: float = 60.0
    """Seconds without a byte from a client until its request fails."""
    patience: WaitLimits = field(default_factory=WaitLimits)


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return the TLS context for clients; raise `OSError` or `ValueError` for unusable files."""
    return _serving(certificate, key).context


def _serving(certificate: str, key: str) -> ServingTls:
    tls = ServingTls()
    with open(certificate, "rb") as one, open(key, "rb") as other:
        tls.set_certificate(one.read(), other.read())
    # The framing shows whether a body was truncated; the connection has to stay usable for the response.
    tls.context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    return tls


class ServingContext:
    """TLS contexts for clients, with the current certificate files and the current TLS policy."""

    def __init__(self, directory: str, policy: Callable[[], TlsPolicy]) -> None:
        self._policy = policy
        self._tls = ServingTls()
        self._files = ReloadingSSLContext(
            [os.path.join(directory, name) for name in ("tls.crt", "tls.key")], self._load
        )

    def __call__(self) -> ssl.SSLContext:
        """Return the context for one thread; raise `InvalidManifest` if no usable certificate was ever read."""
        context = self._files()
        self._tls.apply_policy(self._policy())
        return context

    def _load(self, certificate: str, key: str) -> ssl.SSLContext:
        self._tls = _serving(certificate, key)
        return self._tls.context


def client_context(certificate: str, key: str, authorities: str) -> ssl.SSLContext:
    """Return the TLS context for upload servers; raise `OSError` or `ValueError` for unusable files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authorities)
    return context


class TokenKey:
    """Verifier of tokens with the public key in a file, which is read again when it changes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._key: VerifyingKey | None = None

    def __call__(self, text: str) -> TokenClaims:
        """Return the verified claims; raise `TokenInvalid`, or `ClusterConfigInvalid` if there is no key."""
        return tokens.verify(text, self._current())

    def _current(self) -> VerifyingKey:
        try:
            found = os.stat(self._path)
            seen = (found.st_mtime_ns, found.st_ino)
            if self._key is None or seen != self._seen:
                with open(self._path, "rb") as file:
                    self._key = VerifyingKey.read(file.read(1 << 16))
                self._seen = seen
        except OSError as error:
            if self._key is None:
                raise ClusterConfigInvalid(
                    f"cannot read the token verification key: {error.strerror}", where=self._path
                ) from error
        return self._key


def serve(
    options: Options,
    volumes: Volumes,
    *,
    pages: Callable[[ServerRequest], Turn | bool | None] = lambda _: None,
    policy: Callable[[], TlsPolicy] = TlsPolicy,
    stop: threading.Event | None = None,
    listening: Callable[[int], None] = lambda _: None,
    telling: Callable[[int], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until `stop` is set if it is given.

    Args:
        options: Ports, files and timeouts.
        volumes: The state of the volumes.
        pages: The handler of the web page's paths.
        policy: Returns the current TLS policy; called for every connection.
        stop: Ends serving; None installs signal handlers instead.
        listening: Called with the port.
        telling: Called with the port of the metrics.

    Raises:
        UsageError: A port is not available.
        InvalidManifest: The serving certificate is unusable.
    """
    if stop is None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    pair = [os.path.join(options.client, name) for name in ("tls.crt", "tls.key")]
    upload_servers = ReloadingSSLContext([*pair, options.authorities], client_context)
    clients = ServingContext(options.tls, policy)
    clients()
    metrics = Metrics()
    proxy = Proxy(
        volumes,
        TokenKey(options.token_key),
        upload_servers,
        pages=pages,
        patience=options.patience,
        metrics=metrics,
    )
    with contextlib.ExitStack() as stack:
        if options.metrics_port is not None:
            scrapes = HttpListener(
                listen_as_asked(options.metrics_port, options.bind, option="--metrics-port"),
                PlaintextContext,
                in_turns(metrics.serve),
                most=_MAX_SCRAPES,
                max_pending=_MAX_SCRAPES,
            )
            stack.callback(scrapes.close)
            telling(scrapes.port)
        reception = HttpListener(
            listen_as_asked(options.port, options.bind),
            clients,
            proxy.begin,
            most=MAX_UPLOADS,
            most_unverified=_MAX_UNVERIFIED,
            stall_timeout=options.stall_timeout,
            ended=metrics.ended,
        )
        listening(reception.port)
        LOG.info("serving", extra=fields(port=reception.port))
        stop.wait()
        LOG.info("ending", extra=fields(requests=reception.busy))
        reception.close(options.drain)
