"""The right to upload into one volume for five minutes.

Whoever gives it out has asked the cluster whether the user may (`cdi.server.aggregated`); whoever is shown it needs the
public half of the key and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cdi.api.errors import TokenMisused
from cdi.kube.tokens import CLAIM, Claims, Operation, SigningKey, VerifyingKey


def sign(key: SigningKey, namespace: str, claim: str, *, now: Callable[[], float] = time.time) -> str:
    """A token for uploads into a PersistentVolumeClaim."""
    return key.sign(Claims(operation=Operation.UPLOAD, namespace=namespace, name=claim), now())


def verify(text: str, key: VerifyingKey, *, now: Callable[[], float] = time.time) -> Claims:
    """What it allows: an upload into the claim ``namespace``/``name``, and nothing else.

    Raises `TokenInvalid` (401) for whatever is no valid token of this installation, `TokenMisused` (400) for one that
    allows something else than an upload into a claim.
    """
    claims = key.verify(text, Operation.UPLOAD, now())
    if claims.resource != CLAIM or not claims.namespace or not claims.name:
        raise TokenMisused("the token is for no PersistentVolumeClaim")
    return claims
