"""Short-lived authorization tokens (JSON Web Tokens), signed with a key that all replicas share.

They are compatible with those of KubeVirt's CDI: PS256 (RFC 7518, section 3.5), issuer ``cdi-apiserver``, valid for
five minutes; the key is in a Secret, as ``id_rsa`` and ``id_rsa.pub``. There is one algorithm and one key: a token's
header is only compared with them and never selects either, so no token decides how it is verified (RFC 8725). PyJWT
signs and verifies; the validity is checked here, because PyJWT reads the system's clock and has one tolerance for both
ends of it.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Self

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cdi.api.decode import DecodeError, decode_parsed
from cdi.api.errors import ClusterConfigInvalid, TokenInvalid, TokenMisused
from cdi.api.kinds import SECRETS
from cdi.kube import shared_objects
from cdi.kube.client import Client

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
_MAX_HEADER = 160
"""Maximum length of a token's header, in characters, which bounds how deep it is nested.

It is parsed before the signature is verified, and Python's parser recurses for each level.
"""
_REQUIRED_CLAIMS = ["iss", "exp", "nbf", "iat", "operation", "namespace", "name", "resource"]
"""All but ``params``, which other programs leave out if there are none."""


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
    nbf: float
    iat: float
    namespace: str
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
        """Return the payload if this installation signed it, whether or not it is valid now."""
        # PyJWT encodes the text and accepts padding, which RFC 7515 forbids.
        if len(text) > _MAX_TOKEN or text.find(".") > _MAX_HEADER or not text.isascii() or "=" in text:
            raise TokenInvalid("malformed token")
        try:
            claims = jwt.decode(
                text,
                self._key,
                algorithms=[_ALGORITHM],
                issuer=ISSUER,
                options={"require": _REQUIRED_CLAIMS, "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
            return decode_parsed(_Payload, claims)
        except jwt.InvalidAlgorithmError as error:
            raise TokenInvalid(f"the token is not signed with {_ALGORITHM}") from error
        except jwt.InvalidSignatureError as error:
            raise TokenInvalid("the token was not signed by this installation") from error
        except jwt.InvalidIssuerError as error:
            raise TokenInvalid("the token has another issuer") from error
        except jwt.MissingRequiredClaimError as error:
            raise TokenInvalid(f"the token's payload is invalid: {error.claim}: is missing") from error
        except DecodeError as error:
            raise TokenInvalid(f"the token's payload is invalid: {error}") from error
        except jwt.InvalidTokenError as error:
            raise TokenInvalid("malformed token") from error


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
        return jwt.encode(payload, self._private, algorithm=_ALGORITHM)


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
