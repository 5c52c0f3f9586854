"""Rights for a few minutes, as JSON Web Tokens, signed with a key that all replicas share.

KubeVirt's CDI makes the same tokens: PS256 (RFC 7518, section 3.5), issuer ``cdi-apiserver``, five minutes; the key is
in a Secret, as ``id_rsa`` and ``id_rsa.pub``.  There is one algorithm and one key: what a token's header says of either
is compared and never followed, so that no token chooses how it is checked (RFC 8725).
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
from cdi.kube import kept
from cdi.kube.client import Client
from cdi.kube.resources import SECRETS

ISSUER = "cdi-apiserver"
LIFETIME = 300
"""Seconds."""
SIGNING_KEY = "cdi-api-signing-key"
"""The Secret that the key is in."""
PRIVATE, PUBLIC = "id_rsa", "id_rsa.pub"
_ALGORITHM = "PS256"
_BITS = 2048
_SKEW = 60
"""Seconds by which another replica's clock may be ahead.  A token's end is its end by every clock."""
_LONGEST = 8192
"""Characters of a token."""
_PADDING = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)


class Operation(enum.StrEnum):
    """What a token allows."""

    CLONE = "Clone"
    UPLOAD = "Upload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A resource of the API, as tokens name it."""

    group: str
    version: str
    resource: str


CLAIM = Subject(group="", version="v1", resource="persistentvolumeclaims")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says."""

    operation: Operation
    namespace: str
    name: str
    resource: Subject = CLAIM
    params: Mapping[str, str] = field(default_factory=dict)
    """Of a clone: ``targetNamespace`` and ``targetName``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Payload:
    """All of it, as it is signed."""

    operation: str
    name: str
    resource: Subject
    iss: str
    exp: float
    nbf: float = 0
    iat: float = 0
    namespace: str = ""
    params: dict[str, str] = field(default_factory=dict)


class VerifyingKey:
    """Who can tell a token that was signed here from all others."""

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        self._key = key

    @classmethod
    def read(cls, pem: bytes) -> Self:
        """Of ``id_rsa.pub``.  Raises `ClusterConfigInvalid`."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, TypeError) as error:
            raise ClusterConfigInvalid("the public key for tokens cannot be read", where=PUBLIC) from error
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < _BITS:
            raise ClusterConfigInvalid(f"the public key for tokens is no RSA key of {_BITS} bits", where=PUBLIC)
        return cls(key)

    def verify(self, text: str, operation: Operation, now: float) -> Claims:
        """What a token allows, if it is one of ours for this operation; `now` in seconds since the epoch.

        Raises `TokenInvalid` for one that is malformed, was signed by others, has expired or is not valid yet;
        `TokenMisused` for a good one that allows something else.
        """
        payload = self._payload(text)
        if payload.iss != ISSUER:
            raise TokenInvalid("the token was issued by somebody else")
        if not now < payload.exp:
            raise TokenInvalid("the token has expired")
        if max(payload.nbf, payload.iat) > now + _SKEW:
            raise TokenInvalid("the token is not valid yet")
        if payload.operation != operation:
            raise TokenMisused(f"the token does not allow this ({operation})")
        return Claims(
            operation=operation,
            namespace=payload.namespace,
            name=payload.name,
            resource=payload.resource,
            params=payload.params,
        )

    def _payload(self, text: str) -> _Payload:
        parts = text.split(".") if len(text) <= _LONGEST else []
        if len(parts) != 3:
            raise TokenInvalid("that is no token")
        try:
            header, body, signature = (_decoded(part) for part in parts)
            document: Any = json.loads(header)
        except (ValueError, RecursionError) as error:
            raise TokenInvalid("that is no token") from error
        # No extension is known here, so a token that insists on one is none of ours.
        if not isinstance(document, dict) or document.get("alg") != _ALGORITHM or "crit" in document:
            raise TokenInvalid(f"the token is not signed with {_ALGORITHM}")
        try:
            self._key.verify(signature, text.rpartition(".")[0].encode("ascii"), _PADDING, hashes.SHA256())
        except InvalidSignature as error:
            raise TokenInvalid("the token's signature is not this installation's") from error
        try:
            return decode(_Payload, body)
        except (DecodeError, RecursionError) as error:
            raise TokenInvalid(f"the token says something else than tokens do: {error}") from error


class SigningKey(VerifyingKey):
    """Who can give rights."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        super().__init__(key.public_key())
        self._private = key

    @classmethod
    def generate(cls) -> Self:
        """Another one; it takes a tenth of a second of processor time."""
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=_BITS))

    @classmethod
    def load(cls, pem: bytes) -> Self | None:
        """Of ``id_rsa``; None where it is none that can be used."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            return None
        return cls(key) if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _BITS else None

    @property
    def pems(self) -> dict[str, bytes]:
        """By their names in the Secret."""
        form = serialization.PrivateFormat.TraditionalOpenSSL
        return {
            PRIVATE: self._private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()),
            PUBLIC: self._private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
        }

    def sign(self, claims: Claims, now: float, lifetime: int = LIFETIME) -> str:
        """A token that is good for `lifetime` seconds from `now`, seconds since the epoch."""
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
    """The key that all replicas sign with, made where there is none.

    Raises `Conflict` where others write all the time, and whatever the API server answers.
    """

    async def step() -> SigningKey:
        stored = await kept.look(client, SECRETS, namespace, secret)
        key = SigningKey.load(kept.field(stored, PRIVATE))
        if key is not None:
            return key
        key = await asyncio.to_thread(SigningKey.generate)
        body = kept.manifest("Secret", namespace, secret) | {"type": "Opaque", "data": kept.encoded(key.pems)}
        await kept.put(client, SECRETS, stored, body)
        return key

    return await kept.settled(step)


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decoded(text: str) -> bytes:
    """Of base64url without padding, in its one form.  Raises `ValueError`."""
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if _encoded(data) != text:
        raise ValueError("another form of the same")
    return data
