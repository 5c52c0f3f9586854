"""A stand-in, of our own making, for the parts of Google Cloud Storage's JSON API that an import touches.

It is not Google's: objects' metadata, ``alt=media`` with Range and generation, decompressive transcoding, IAM as a set
of allowed accounts, and the OAuth token endpoint, which checks a service account's assertion as RFC 7523 wants it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import secrets
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only", "https://www.googleapis.com/auth/cloud-platform")
AUDIENCE = "https://oauth2.googleapis.com/token"
"""What Google's own library writes into an assertion, whatever the key's token_uri says."""


@dataclass
class StoredObject:
    content: bytes
    """As it is stored, so packed where `content_encoding` says so."""
    generation: int
    public: bool = True
    readers: frozenset[str] = frozenset()
    content_encoding: str | None = None
    content_type: str = "application/octet-stream"
    composed: bool = False
    """Composed objects have no MD5."""


@dataclass
class ServiceAccount:
    email: str
    key: rsa.RSAPrivateKey

    def info(self, token_uri: str) -> dict[str, str]:
        """The JSON key as Google's console gives it."""
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account",
            "project_id": "test",
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": self.email,
            "client_id": "1",
            "token_uri": token_uri,
        }


@dataclass
class GcsStandin:
    """A running stand-in; a context manager."""

    objects: dict[tuple[str, str], StoredObject] = field(default_factory=dict)
    accounts: dict[str, ServiceAccount] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """Access tokens that are valid now, and whose they are."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    token_life: int = 3600
    host: str = "127.0.0.1"

    def __enter__(self) -> Self:
        standin = self

        class Handler(_Handler):
            gcs = standin

        self._server = ThreadingHTTPServer((self.host, 0), Handler)
        self.origin = f"http://{self.host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def put(self, bucket: str, name: str, content: bytes, **more: Any) -> StoredObject:
        """Store an object; a new generation each time."""
        generation = (
            1_700_000_000_000_000 + len(self.requests) * 1000 + secrets.randbelow(1000) + time.monotonic_ns() % 997
        )
        old = self.objects.get((bucket, name))
        if old is not None:
            generation = old.generation + 1
        stored = StoredObject(content=content, generation=generation, **more)
        self.objects[bucket, name] = stored
        return stored

    def account(self, email: str = "importer@test.iam.gserviceaccount.com") -> ServiceAccount:
        made = ServiceAccount(email, rsa.generate_private_key(public_exponent=65537, key_size=2048))
        self.accounts[email] = made
        return made

    @property
    def token_uri(self) -> str:
        return f"{self.origin}/token"

    def grant(self, assertion: str) -> str | None:
        """An access token for a valid assertion."""
        try:
            head, claims_part, signature = assertion.split(".")
            claims = json.loads(_decoded(claims_part))
            account = self.accounts[claims["iss"]]
            account.key.public_key().verify(
                _decoded(signature), f"{head}.{claims_part}".encode(), padding.PKCS1v15(), hashes.SHA256()
            )
        except (ValueError, KeyError, InvalidSignature):
            return None
        now = time.time()
        good = (
            claims["aud"] in (self.token_uri, AUDIENCE)
            and claims["iat"] <= now + 10
            and now < claims["exp"] <= now + 3700
        )
        if not good or claims.get("scope") not in SCOPES:
            return None
        token = f"ya29.{secrets.token_hex(8)}"
        self.tokens[token] = account.email
        return token


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


class _Handler(BaseHTTPRequestHandler):
    gcs: GcsStandin
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        form = dict(urllib.parse.parse_qsl(body))
        self._remember(form)
        token = None
        if self.path == "/token" and form.get("grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer":
            token = self.gcs.grant(form.get("assertion", ""))
        if token is None:
            self._json(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
        else:
            self._json(200, {"access_token": token, "expires_in": self.gcs.token_life, "token_type": "Bearer"})

    def do_GET(self) -> None:
        self._remember({})
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        match = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)", parts.path)
        media = query.get("alt") == "media"
        if match is None and (match := re.fullmatch(r"/([a-z0-9._-]+)/(.+)", parts.path)) is not None:
            media = True  # the XML API
        if match is None:
            return self._refuse(404, "Not Found", media)
        bucket, name = (urllib.parse.unquote(part) for part in match.groups())
        stored = self.gcs.objects.get((bucket, name))
        authorization = self.headers.get("Authorization")
        who = None
        if authorization is not None:
            who = self.gcs.tokens.get(authorization.removeprefix("Bearer "))
            if who is None:
                return self._refuse(401, "Invalid Credentials", media)
        if stored is not None and not stored.public and who not in stored.readers:
            caller = who or "Anonymous caller"
            text = f"{caller} does not have storage.objects.get access to the Google Cloud Storage object."
            return self._refuse(401 if who is None else 403, text, media)
        if stored is None or query.get("generation", str(stored.generation)) != str(stored.generation):
            return self._refuse(404, f"No such object: {bucket}/{name}", media)
        if media:
            return self._media(stored)
        document: dict[str, Any] = {
            "size": str(len(stored.content)),
            "generation": str(stored.generation),
            "contentType": stored.content_type,
        }
        if not stored.composed:
            document["md5Hash"] = base64.b64encode(hashlib.md5(stored.content).digest()).decode()
        if stored.content_encoding:
            document["contentEncoding"] = stored.content_encoding
        return self._json(200, document)

    def _media(self, stored: StoredObject) -> None:
        tag = ("ETag", f'"{stored.generation:x}"')
        packed = stored.content_encoding == "gzip"
        if packed and "gzip" not in self.headers.get("Accept-Encoding", ""):
            # Unpacked on the fly: the whole, of unknown length, whatever range was asked for.
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header(*tag)
            self.end_headers()
            content = gzip.decompress(stored.content)
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content))
            return
        headers = [tag, ("Content-Type", stored.content_type), ("Accept-Ranges", "bytes")]
        if packed:
            headers.append(("Content-Encoding", "gzip"))
        size = len(stored.content)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self._send(200, stored.content, headers)
            return
        start = int(match[1])
        end = min(int(match[2] or size - 1), size - 1)
        if start >= size:
            self._send(416, b"", [*headers, ("Content-Range", f"bytes */{size}")])
            return
        self._send(206, stored.content[start : end + 1], [*headers, ("Content-Range", f"bytes {start}-{end}/{size}")])

    def _refuse(self, status: int, text: str, media: bool) -> None:
        if media:
            self._send(status, text.encode(), [("Content-Type", "text/html; charset=UTF-8")])
        else:
            self._json(status, {"error": {"code": status, "message": text, "errors": [{"reason": "x"}]}})

    def _json(self, status: int, document: dict[str, Any]) -> None:
        self._send(status, json.dumps(document).encode(), [("Content-Type", "application/json; charset=UTF-8")])

    def _send(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _remember(self, form: dict[str, str]) -> None:
        entry = {"method": self.command, "path": self.path, **{k.lower(): v for k, v in self.headers.items()}}
        self.gcs.requests.append({**entry, "form": form})

    def log_message(self, *args: object) -> None:
        pass
