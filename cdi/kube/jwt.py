"""Short-lived authorization tokens (JSON Web Tokens), signed with a key that all replicas share.

They are compatible with those of KubeVirt's CDI: PS256 (RFC 7518, section 3.5), issuer ``cdi-apiserver``, valid for
five minutes; the key is in a Secret, as ``id_rsa`` and ``id_rsa.pub``. There is one algorithm and one key: a token's
header is only compared with them and never selects either, so no token decides how it is verified (RFC 8725).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cdi.api.decode import DecodeError, decode
from cdi.api.errors import ClusterConfigInvalid, TokenInvalid, TokenMisused
from cdi.api.json_document import parse_json
from cdi.kube import shared_objects
from cdi.kube.client import Client
from cdi.kube.resources import SECRETS

ISSUER = "cdi-apiserver"
LIFETIME = 300
"""Default validity in seconds."""
SIGNING_KEY = "cdi-api-signing-key"
"""Name of the Secret with the key."""
PRIVATE, PUBLIC = "id_rsa", "id_rsa.pub"
_ALGORITHM = "PS256"
_BITS = 2048
_SKEW = 60
"""Seconds that another replica's clock may be ahead; expiry has no such tolerance."""
_MAX_TOKEN = 8192
"""Maximum length of a token, in characters."""
_PADDING = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)


class Operation(enum.StrEnum):
    """Operation that a token authorizes."""

    CLONE = "Clone"
    UPLOAD = "Upload"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceKind:
    """API resource, as tokens name it."""

    group: str
    version: str
    resource: str


CLAIM = ResourceKind(group="", version="v1", resource="persistentvolumeclaims")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaims:
    """Claims of a token."""

    operation: Operation
    namespace: str
    name: str
    resource: ResourceKind = CLAIM
    params: Mapping[str, str] = field(default_factory=dict)
    """For a clone, ``targetNamespace`` and ``targetName``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Payload:
    """Complete payload, as it is signed."""

    operation: str
    name: str
    resource: ResourceKind
    iss: str
    exp: float
    nbf: float = 0
    iat: float = 0
    namespace: str = ""
    params: dict[str, str] = field(default_factory=dict)


class VerifyingKey:
    """Public key that verifies tokens of this installation."""

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        self._key = key

    @classmethod
    def read(cls, pem: bytes) -> Self:
        """Parse ``id_rsa.pub``, or raise `ClusterConfigInvalid`."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, TypeError) as error:
            raise ClusterConfigInvalid("the token verification key cannot be parsed", where=PUBLIC) from error
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < _BITS:
            raise ClusterConfigInvalid(
                f"the token verification key is not an RSA key of at least {_BITS} bits", where=PUBLIC
            )
        return cls(key)

    def verify(self, text: str, operation: Operation, now: float) -> TokenClaims:
        """Return the claims of a token that is valid for `operation` at `now` (seconds since the epoch).

        Raises:
            TokenInvalid: the token is malformed, has another issuer or signature, has expired or is not valid yet.
            TokenMisused: the token is valid and authorizes another operation.
        """
        payload = self._payload(text)
        if payload.iss != ISSUER:
            raise TokenInvalid("the token has another issuer")
        if not now < payload.exp:
            raise TokenInvalid("the token has expired")
        if max(payload.nbf, payload.iat) > now + _SKEW:
            raise TokenInvalid("the token is not valid yet")
        if payload.operation != operation:
            raise TokenMisused(f"the token does not authorize {operation}")
        return TokenClaims(
            operation=operation,
            namespace=payload.namespace,
            name=payload.name,
            resource=payload.resource,
            params=payload.params,
        )

    def _payload(self, text: str) -> _Payload:
        parts = text.split(".") if len(text) <= _MAX_TOKEN else []
        if len(parts) != 3:
            raise TokenInvalid("malformed token")
        try:
            header, body, signature = (_decoded(part) for part in parts)
            document: Any = parse_json(header)
        except ValueError as error:
            raise TokenInvalid("malformed token") from error
        # No extension is supported, so a token with a critical one is not ours.
        if not isinstance(document, dict) or document.get("alg") != _ALGORITHM or "crit" in document:
            raise TokenInvalid(f"the token is not signed with {_ALGORITHM}")
        try:
            self._key.verify(signature, text.rpartition(".")[0].encode("ascii"), _PADDING, hashes.SHA256())
        except InvalidSignature as error:
            raise TokenInvalid("the token was not signed by this installation") from error
        try:
            return decode(_Payload, body)
        except DecodeError as error:
            raise TokenInvalid(f"the token's payload is invalid: {error}") from error


class SigningKey(VerifyingKey):
    """Private key that signs tokens."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        super().__init__(key.public_key())
        self._private = key

    @classmethod
    def generate(cls) -> Self:
        """Generate a new key; takes a tenth of a second of CPU time."""
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=_BITS))

    @classmethod
    def load(cls, pem: bytes) -> Self | None:
        """Parse ``id_rsa``; return None if it is not a usable key."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            return None
        return cls(key) if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _BITS else None

    @property
    def pems(self) -> dict[str, bytes]:
        """Both keys as PEM, by their names in the Secret."""
        form = serialization.PrivateFormat.TraditionalOpenSSL
        return {
            PRIVATE: self._private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()),
            PUBLIC: self._private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
        }

    def sign(self, claims: TokenClaims, now: float, lifetime: int = LIFETIME) -> str:
        """Return a token that is valid for `lifetime` seconds from `now` (seconds since the epoch)."""
        moment = int(now)
        payload = {
            **asdict(claims),
            "params": dict(claims.params),
            "iss": ISSUER,
            "iat": moment,
            "nbf": moment,
            "exp": moment + lifetime,
        }
        signed = f"{_encoded(_json({'alg': _ALGORITHM, 'typ': 'JWT'}))}.{_encoded(_json(payload))}"
        signature = self._private.sign(signed.encode("ascii"), _PADDING, hashes.SHA256())
        return f"{signed}.{_encoded(signature)}"


async def ensure_signing_key(client: Client, namespace: str, secret: str = SIGNING_KEY) -> SigningKey:
    """Return the signing key that all replicas share, generated if it does not exist.

    Raises:
        Conflict: other writers win every attempt.
        CdiError: the API server returned an error.
    """

    async def step() -> SigningKey:
        stored = await shared_objects.get_or_none(client, SECRETS, namespace, secret)
        key = SigningKey.load(shared_objects.field(stored, PRIVATE))
        if key is not None:
            return key
        key = await asyncio.to_thread(SigningKey.generate)
        body = shared_objects.manifest("Secret", namespace, secret) | {
            "type": "Opaque",
            "data": shared_objects.encoded(key.pems),
        }
        await shared_objects.create_or_update(client, SECRETS, stored, body)
        return key

    return await shared_objects.retry_on_conflict(step)


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decoded(text: str) -> bytes:
    """Decode canonical base64url without padding, or raise `ValueError`."""
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if _encoded(data) != text:
        raise ValueError("not canonical base64url")
    return data
