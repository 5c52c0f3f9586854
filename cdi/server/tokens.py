"""Tokens that permit uploads into one volume for five minutes.

The issuer has checked the user's permission with the cluster (`cdi.server.uploadtoken_api.routes`); a verifier needs
only the public key.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cdi.api.errors import TokenMisused
from cdi.kube.jwt import CLAIM, Operation, SigningKey, TokenClaims, VerifyingKey


def sign(key: SigningKey, namespace: str, claim: str, *, now: Callable[[], float] = time.time) -> str:
    """Return a token for uploads into a PersistentVolumeClaim."""
    return key.sign(TokenClaims(operation=Operation.UPLOAD, namespace=namespace, name=claim), now())


def verify(text: str, key: VerifyingKey, *, now: Callable[[], float] = time.time) -> TokenClaims:
    """Return a token's claims, which permit an upload into the PVC ``namespace``/``name`` and nothing else.

    Raises:
        TokenInvalid: It is no valid token of this installation (401).
        TokenMisused: It permits something other than an upload into a PVC (400).
    """
    claims = key.verify(text, Operation.UPLOAD, now())
    if claims.resource != CLAIM or not claims.namespace or not claims.name:
        raise TokenMisused("the token is not for a PersistentVolumeClaim")
    return claims
