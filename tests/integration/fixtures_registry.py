"""Real container registries (Debian's docker-registry) over one store, and OCI layouts to push into them.

`registries` starts three front-ends on loopback: `open` (plain HTTP, anonymous), `basic` (TLS, htpasswd) and `token`
(TLS, bearer tokens from `TokenService`). Images pushed through `open` are served by all three.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

USER, PASSWORD = "puller", "s3cret: with colon and ü"
SERVICE = "cdi test registry"


@dataclass
class OciLayout:
    """An OCI image layout in a directory, written by hand so that tests can also make it invalid."""

    path: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    """Digest of the uncompressed content of each layer, by the layer's digest."""

    def __post_init__(self) -> None:
        (self.path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._write_index()

    def _write_index(self) -> None:
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.entries}))

    def blob(self, content: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content), **more}

    def layer(self, files: dict[str, bytes] | bytes, compression: str = "gzip") -> dict[str, Any]:
        """Add a layer with these files, or of this content; compression is gzip, zstd or none."""
        content = files if isinstance(files, bytes) else tar_of(files)
        kind = "application/vnd.oci.image.layer.v1.tar"
        if compression == "gzip":
            made = self.blob(gzip.compress(content, mtime=0), f"{kind}+gzip")
        elif compression == "zstd":
            packed = subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout
            made = self.blob(packed, f"{kind}+zstd")
        else:
            made = self.blob(content, kind)
        self.contents[made["digest"]] = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return made

    def image(
        self,
        layers: list[dict[str, Any]],
        *,
        architecture: str = "amd64",
        variant: str | None = None,
        env: list[str] | None = None,
        tag: str | None = None,
        config: dict[str, Any] | None = None,
        platform: bool = True,
    ) -> dict[str, Any]:
        """Add a manifest with its config, and list it in the layout's index if a tag is given."""
        body = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": env or []},
            "rootfs": {
                "type": "layers",
                "diff_ids": [self.contents.get(each["digest"], each["digest"]) for each in layers],
            },
        }
        if config is None:
            config = self.blob(json.dumps(body).encode(), "application/vnd.oci.image.config.v1+json")
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        }
        where: dict[str, Any] = {"architecture": architecture, "os": "linux"}
        if variant:
            where["variant"] = variant
        more = {"platform": where} if platform else {}
        entry = self.blob(json.dumps(manifest).encode(), manifest["mediaType"], **more)
        if tag is not None:
            self.tag(entry, tag)
        return entry

    def index(self, entries: list[dict[str, Any]], *, tag: str | None = None) -> dict[str, Any]:
        kind = "application/vnd.oci.image.index.v1+json"
        body = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
        entry = self.blob(json.dumps(body).encode(), kind)
        if tag is not None:
            self.tag(entry, tag)
        return entry

    def tag(self, entry: dict[str, Any], tag: str) -> None:
        self.entries.append({**entry, "annotations": {"org.opencontainers.image.ref.name": tag}})
        self._write_index()

    def archive(self, path: Path) -> Path:
        """Write the layout as an oci-archive."""
        with tarfile.open(path, "w") as tar:
            for file in sorted(self.path.rglob("*")):
                tar.add(file, str(file.relative_to(self.path)), recursive=False)
        return path


def tar_of(files: dict[str, bytes]) -> bytes:
    """Return a tar with these files, in order; a name that ends in a slash is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.size = len(content)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.mode = 0o755 if name.endswith("/") else 0o644
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class RegistryFrontEnd:
    """A running registry; `ca_dir` is set if it uses TLS."""

    address: str
    ca_dir: Path | None = None

    def url(self, name: str) -> str:
        return f"docker://{self.address}/{name}"


class TokenService:
    """The token server that the `token` registry trusts, which records its requests.

    It signs with RS256 and puts its certificate into the token's header, as Docker's own service does.
    """

    def __init__(self, directory: Path, tls: ssl.SSLContext | None) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.x509.oid import NameOID

        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._der = certificate.public_bytes(serialization.Encoding.DER)
        self.bundle = directory / "token.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.requests: list[dict[str, Any]] = []
        self.identity_tokens = {"identity-1"}
        self.life = 300
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
                authorization = self.headers.get("Authorization", "")
                service.requests.append({"method": "GET", "authorization": authorization, **query})
                if not authorization:
                    self.answer(service.token(query, anonymous=True))
                elif authorization == "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode():
                    self.answer(service.token(query))
                else:
                    self.answer(None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = dict(urllib.parse.parse_qsl(body))
                service.requests.append({"method": "POST", **form})
                valid = form.get("grant_type") == "refresh_token" and form["refresh_token"] in service.identity_tokens
                self.answer(service.token(form) if valid else None)

            def answer(self, token: str | None) -> None:
                body = json.dumps({"token": token, "access_token": token, "expires_in": service.life}).encode()
                self.send_response(401 if token is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body) if token else 0))
                self.end_headers()
                if token:
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.realm = f"{'http' if tls is None else 'https'}://localhost:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def token(self, query: dict[str, str], *, anonymous: bool = False) -> str:
        kind, _, rest = query.get("scope", "").partition(":")
        name, _, actions = rest.rpartition(":")
        # Images below public/ may be read anonymously, as on the large registries.
        allowed = kind == "repository" and "pull" in actions and (not anonymous or name.startswith("public/"))
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(self._der).decode()]}
        claims = {
            "iss": "tokens",
            "sub": "" if anonymous else USER,
            "aud": query.get("service", ""),
            "exp": now + self.life,
            "nbf": now - 5,
            "iat": now,
            "jti": os.urandom(8).hex(),
            "access": [{"type": kind, "name": name, "actions": ["pull"]}] if allowed else [],
        }
        return self._signed(header, claims)

    def _signed(self, header: dict[str, Any], claims: dict[str, Any]) -> str:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        def part(content: bytes) -> str:
            return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

        text = f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}"
        return f"{text}.{part(self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclass
class Registries:
    open: RegistryFrontEnd
    basic: RegistryFrontEnd
    token: RegistryFrontEnd
    tokens: TokenService
    directory: Path

    def push(self, layout: OciLayout, tag: str, name: str, *, docker: bool = False) -> str:
        """Copy a layout's image with all its platforms to ``name:tag`` of every front-end and return its digest."""
        digest_file = self.directory / "digest"
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false",
             *(["--format", "v2s2"] if docker else ["--preserve-digests"]), "--digestfile", str(digest_file),
             f"oci:{layout.path}:{tag}", f"docker://{self.open.address}/{name}"],
            check=True, timeout=60,
        )  # fmt: skip
        return digest_file.read_text().strip()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running_registry(directory: Path, name: str, port: int, config: dict[str, Any]) -> Iterator[None]:
    """Run Debian's docker-registry with the test's configuration."""
    host = config["http"]["addr"].rpartition(":")[0]
    file = directory / f"{name}.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    log = directory / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(file)], stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registries]:
    for program in ("docker-registry", "skopeo"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is not installed; scripts/setup installs it")
    directory = tmp_path_factory.mktemp("registries")
    ca = trustme.CA()
    server = ca.issue_cert("localhost", "127.0.0.1")
    (directory / "ca").mkdir()
    ca.cert_pem.write_to_path(str(directory / "ca/registry-ca.crt"))
    key, chain = directory / "key.pem", directory / "chain.pem"
    server.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(pem.bytes() for pem in server.cert_chain_pems))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    tokens = TokenService(directory, context)
    htpasswd = directory / "htpasswd"
    htpasswd.write_text(f"{USER}:{bcrypt(PASSWORD)}\n")

    def config(port: int, **more: Any) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": f"127.0.0.1:{port}", "secret": "x"}
        if more:
            http["tls"] = {"certificate": str(chain), "key": str(key)}
        storage = {"filesystem": {"rootdirectory": str(directory / "store")}, "delete": {"enabled": True}}
        return {"version": 0.1, "log": {"level": "warn"}, "storage": storage, "http": http, **more}

    try:
        with contextlib.ExitStack() as stack:
            ends = {}
            for name, auth in {
                "open": {},
                "basic": {"auth": {"htpasswd": {"realm": "test", "path": str(htpasswd)}}},
                "token": {
                    "auth": {
                        "token": {
                            "realm": tokens.realm,
                            "service": SERVICE,
                            "issuer": "tokens",
                            "rootcertbundle": str(tokens.bundle),
                        }
                    }
                },
            }.items():
                port = free_port()
                stack.enter_context(running_registry(directory, name, port, config(port, **auth)))
                ends[name] = RegistryFrontEnd(f"localhost:{port}", directory / "ca" if auth else None)
            yield Registries(**ends, tokens=tokens, directory=directory)
    finally:
        tokens.close()


def bcrypt(password: str) -> str:
    """Hash a password for htpasswd; the registry needs bcrypt, which libcrypt provides."""
    import ctypes
    import ctypes.util

    library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    salt = b"$2b$04$" + b"abcdefghijklmnopqrstuu"
    made: bytes | None = library.crypt(password.encode(), salt)
    assert made and made.startswith(b"$2"), "libcrypt knows bcrypt"
    return made.decode()


@pytest.fixture
def oci_layout(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "layout")
