"""Address and credentials of the API server, from a kubeconfig or the pod's service account.

`kubernetes.aio.config` reads the files. It is imported on first use because that takes a third of a second and 30 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from cdi.api.errors import ClusterConfigInvalid, ClusterTlsUntrusted
from cdi.http.proxy import is_loopback, matches_no_proxy

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_EXPIRY_MARGIN = 60.0
"""Seconds before its expiry at which a plug-in's token is replaced."""
_REFRESH_INTERVAL = 5.0
"""Minimum seconds between two refreshes.

Without it, a server that rejects every token, or a short-lived token, would start a plug-in for each request.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Endpoint and credentials that a connection needs."""

    server: str
    """URL without a trailing slash."""
    context: ssl.SSLContext | None = None
    """TLS context; None for plain HTTP."""
    authorization: str | None = None
    """Value of the Authorization header."""
    proxy: str | None = None
    server_name: str | None = None
    """Expected name in the server's certificate, if it is not the URL's host."""


class Credentials(Protocol):
    """Provider of a currently valid `Endpoint`."""

    @property
    def namespace(self) -> str:
        """Namespace of the context or of the pod."""
        ...

    async def access(self) -> Endpoint:
        """Return the current access; may raise `ClusterConfigInvalid` or `ClusterTlsUntrusted`."""
        ...

    async def invalidate(self) -> bool:
        """Renew credentials that the server rejected (401), if possible; return whether that was tried."""
        ...


def find(kubeconfig: str | Path | None, context: str | None) -> Credentials:
    """Return credentials from the named file, else KUBECONFIG or ~/.kube/config, else the pod's service account.

    Raises:
        ClusterConfigInvalid: none of them exists.
    """
    if kubeconfig is not None:
        if not Path(kubeconfig).expanduser().is_file():
            raise ClusterConfigInvalid("kubeconfig not found", where=str(kubeconfig))
        return KubeconfigCredentials(str(kubeconfig), context)
    named = os.environ.get("KUBECONFIG", "")
    candidates = named.split(os.pathsep) if named else [str(Path.home() / ".kube" / "config")]
    found = [path for path in candidates if path and Path(path).expanduser().is_file()]
    if found:
        return KubeconfigCredentials(os.pathsep.join(found), context)
    if os.environ.get("KUBERNETES_SERVICE_HOST") and context is None:
        return ServiceAccountCredentials()
    raise ClusterConfigInvalid(
        "no kubeconfig found, and this process does not run in a pod", where=os.pathsep.join(candidates)
    )


class FixedCredentials:
    """Constant `Endpoint`."""

    def __init__(self, access: Endpoint, namespace: str = "default") -> None:
        self._access = access
        self.namespace = namespace

    async def access(self) -> Endpoint:
        return self._access

    async def invalidate(self) -> bool:
        return False


class ServiceAccountCredentials:
    """Service account of the pod; the kubelet rotates its token about hourly, and it is reread every minute."""

    def __init__(self, directory: Path = SERVICE_ACCOUNT) -> None:
        self._directory = directory
        self._configuration: Any = None
        self._context: ssl.SSLContext | None = None
        self._authority = b""
        self.namespace = "default"
        with contextlib.suppress(OSError):
            self.namespace = (directory / "namespace").read_text().strip() or "default"

    async def access(self) -> Endpoint:
        try:
            if self._configuration is None:
                self._load()
            else:
                self._configuration.refresh_api_key_hook(self._configuration)
        except Exception as error:
            raise _unusable(error, str(self._directory)) from error
        return Endpoint(
            server=self._configuration.host,
            context=self._context,
            authorization=_bearer(self._configuration.api_key.get("BearerToken")),
        )

    async def invalidate(self) -> bool:
        self._configuration = None  # the token, and the CA with it, may have been rotated since the last read
        return True

    def _load(self) -> None:
        from kubernetes.aio.client import Configuration
        from kubernetes.aio.config.incluster_config import InClusterConfigLoader

        configuration = Configuration()
        InClusterConfigLoader(
            token_filename=str(self._directory / "token"), cert_filename=str(self._directory / "ca.crt")
        ).load_and_set(configuration)  # type: ignore[no-untyped-call]  # the package annotates some functions only
        authority = (self._directory / "ca.crt").read_bytes()
        if self._context is None or authority != self._authority:
            self._context, self._authority = tls(cafile=configuration.ssl_ca_cert), authority
        self._configuration = configuration


class KubeconfigCredentials:
    """Credentials of one kubeconfig context: certificates, tokens, basic authentication, plug-ins."""

    def __init__(self, paths: str, context: str | None, *, now: Callable[[], float] = time.time) -> None:
        self._paths = paths
        self._wanted = context
        self._now = now
        self._loader: Any = None
        self._access: Endpoint | None = None
        self._renewed = float("-inf")
        self._lock = asyncio.Lock()
        self.namespace = "default"

    async def access(self) -> Endpoint:
        async with self._lock:
            if self._access is None or self._expires_soon():
                self._access = await self._load()
            return self._access

    async def invalidate(self) -> bool:
        async with self._lock:
            if self._now() - self._renewed >= _REFRESH_INTERVAL:
                self._access = None
            return self._access is None

    def _expires_soon(self) -> bool:
        expiry = getattr(self._loader, "exec_plugin_expiry", None)
        if expiry is None or self._now() - self._renewed < _REFRESH_INTERVAL:
            return False
        return self._now() > float(expiry.timestamp()) - _EXPIRY_MARGIN

    async def _load(self) -> Endpoint:
        from kubernetes.aio.client import Configuration
        from kubernetes.aio.config.kube_config import KubeConfigLoader, KubeConfigMerger

        configuration = Configuration()
        try:
            merged = KubeConfigMerger(self._paths).config  # type: ignore[no-untyped-call]
            self._loader = KubeConfigLoader(  # type: ignore[no-untyped-call]
                config_dict=merged, active_context=self._wanted, config_base_path=None
            )
            await self._loader.load_and_set(configuration)
            chosen = self._loader.current_context["context"]
            user = _section(merged.value.get("users"), chosen.get("user"), "user")
            proxy = configuration.proxy or proxy_for(configuration.host)
        except Exception as error:  # a malformed file can raise anything
            raise _unusable(error, self._paths) from error
        self.namespace = chosen.get("namespace") or "default"
        self._renewed = self._now()
        authorization = configuration.api_key.get("BearerToken")
        if "exec" in user and not authorization and not configuration.cert_file:
            raise ClusterConfigInvalid(
                f"the credential plug-in {user['exec'].get('command')!r} returned no credentials",
                where=self._paths,
                remedy="run the plug-in manually and check its output",
            )
        return Endpoint(
            server=configuration.host,
            context=self._tls(configuration),
            authorization=authorization,
            proxy=proxy,
            server_name=configuration.tls_server_name or None,
        )

    def _tls(self, configuration: Any) -> ssl.SSLContext | None:
        if not configuration.host.startswith("https:"):
            return None
        try:
            return tls(
                cafile=configuration.ssl_ca_cert,
                certificate=configuration.cert_file,
                key=configuration.key_file,
                verify=configuration.verify_ssl,
            )
        except (OSError, ssl.SSLError) as error:
            raise ClusterTlsUntrusted(
                f"a certificate or key of the kubeconfig cannot be used: {error}", where=self._paths
            ) from error


def tls(
    *, cafile: str | None, certificate: str | None = None, key: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """Return a client context; raise OSError or ssl.SSLError if a file cannot be used."""
    context = ssl.create_default_context(cafile=cafile)
    # Cluster CAs often lack extensions that the strict mode of Python 3.13 requires.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if certificate:
        context.load_cert_chain(certificate, key)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def proxy_for(server: str) -> str | None:
    """Return the environment's proxy for a URL, as Go's clients choose it."""
    parts = urlsplit(server)
    host = parts.hostname or ""
    proxy = _environment(f"{parts.scheme}_proxy")
    if not proxy or is_loopback(host):
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return None if matches_no_proxy(_environment("no_proxy"), host, port) else proxy


def _environment(name: str) -> str:
    return os.environ.get(name) or os.environ.get(name.upper()) or ""


def _section(items: Any, name: Any, what: str) -> dict[str, Any]:
    for item in items or ():
        value = getattr(item, "value", item)
        if value.get("name") == name:
            return value.get(what) or {}
    return {}


def _bearer(text: str | None) -> str | None:
    """Return the header with the scheme capitalised and without trailing whitespace."""
    if text is None:
        return None
    return "Bearer " + text.partition(" ")[2].strip()


def _unusable(error: Exception, where: str) -> ClusterConfigInvalid:
    text = str(error).strip() or type(error).__name__
    return ClusterConfigInvalid(f"the credentials cannot be used: {text[:300]}", where=where)
