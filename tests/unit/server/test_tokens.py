"""Tests that an upload token is valid for one claim and for uploads only."""

import pytest

from cdi.api.errors import TokenInvalid, TokenMisused
from cdi.kube.jwt import Operation, ResourceKind, SigningKey, TokenClaims
from cdi.server import tokens

KEY = SigningKey.generate()
NOW = 1_767_225_600.0


def now():
    return NOW


def test_it_names_the_claim():
    claims = tokens.verify(tokens.sign(KEY, "ns", "disk", now=now), KEY, now=now)
    assert (claims.namespace, claims.name) == ("ns", "disk")


@pytest.mark.parametrize(
    "claims",
    [
        TokenClaims(operation=Operation.CLONE, namespace="ns", name="disk"),
        TokenClaims(
            operation=Operation.UPLOAD, namespace="ns", name="disk",
            resource=ResourceKind(group="", version="v1", resource="secrets"),
        ),
        TokenClaims(operation=Operation.UPLOAD, namespace="", name="disk"),
        TokenClaims(operation=Operation.UPLOAD, namespace="ns", name=""),
    ],
)  # fmt: skip
def test_a_token_for_something_else_is_told_apart(claims):
    with pytest.raises(TokenMisused):
        tokens.verify(KEY.sign(claims, NOW), KEY, now=now)


def test_a_token_of_another_installation_is_invalid():
    with pytest.raises(TokenInvalid):
        tokens.verify(tokens.sign(SigningKey.generate(), "ns", "disk", now=now), KEY, now=now)
