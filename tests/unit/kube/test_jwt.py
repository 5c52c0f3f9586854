"""Signed tokens: only those of this installation, for this operation, within their five minutes, are accepted."""

import asyncio
import base64
import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import ClusterConfigInvalid, TokenInvalid, TokenMisused
from cdi.kube.jwt import (
    ISSUER,
    LIFETIME,
    SIGNING_KEY,
    Operation,
    ResourceKind,
    SigningKey,
    TokenClaims,
    VerifyingKey,
    ensure_signing_key,
)
from tests.unit.kube.test_certificates import Api

KEY = SigningKey.generate()
OTHER = SigningKey.generate()
PUBLIC = VerifyingKey.read(KEY.pems["id_rsa.pub"])
NOW = 1_767_225_600.0
UPLOAD = TokenClaims(operation=Operation.UPLOAD, namespace="ns", name="disk")
CLONE = TokenClaims(
    operation=Operation.CLONE, namespace="ns", name="disk",
    resource=ResourceKind(group="snapshot.storage.k8s.io", version="v1", resource="volumesnapshots"),
    params={"targetNamespace": "other", "targetName": "copy"},
)  # fmt: skip


def segment(data):
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def read(part):
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def pss(signed, key=KEY, digest=None):
    scheme = padding.PSS(padding.MGF1(digest or hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    return key._private.sign(signed.encode(), scheme, digest or hashes.SHA256())


def forged(header=None, sign=pss, **changes):
    """Return a token that is valid except for the given claims; None omits a claim."""
    payload = {
        "operation": "Upload", "name": "disk", "namespace": "ns", "iss": ISSUER,
        "resource": {"group": "", "version": "v1", "resource": "persistentvolumeclaims"},
        "exp": int(NOW) + LIFETIME, "nbf": int(NOW), "iat": int(NOW), **changes,
    }  # fmt: skip
    payload = {name: value for name, value in payload.items() if value is not None}
    signed = f"{segment({'alg': 'PS256'} if header is None else header)}.{segment(payload)}"
    return f"{signed}.{segment(sign(signed))}"


@pytest.mark.parametrize("claims", [UPLOAD, CLONE])
def test_what_was_signed_is_what_is_read(claims):
    assert PUBLIC.verify(KEY.sign(claims, NOW), claims.operation, NOW) == claims


def test_a_token_has_the_fields_that_other_programs_make():
    header, payload, _ = KEY.sign(CLONE, NOW).split(".")
    assert read(header)["alg"] == "PS256"
    assert read(payload) == {
        "operation": "Clone", "namespace": "ns", "name": "disk",
        "resource": {"group": "snapshot.storage.k8s.io", "version": "v1", "resource": "volumesnapshots"},
        "params": {"targetNamespace": "other", "targetName": "copy"},
        "iss": "cdi-apiserver", "iat": int(NOW), "nbf": int(NOW), "exp": int(NOW) + 300,
    }  # fmt: skip


def test_a_token_that_was_made_elsewhere_with_the_same_key_is_read():
    assert PUBLIC.verify(forged(), Operation.UPLOAD, NOW) == UPLOAD


@pytest.mark.parametrize("after", [0, 1, LIFETIME - 0.001])
def test_it_is_good_for_five_minutes(after):
    assert PUBLIC.verify(KEY.sign(UPLOAD, NOW), Operation.UPLOAD, NOW + after)


@pytest.mark.parametrize(("after", "word"), [(LIFETIME, "expired"), (10**6, "expired"), (-61, "not valid yet")])
def test_before_and_after_it_is_not(after, word):
    with pytest.raises(TokenInvalid, match=word):
        PUBLIC.verify(KEY.sign(UPLOAD, NOW), Operation.UPLOAD, NOW + after)


@pytest.mark.parametrize(("claims", "asked"), [(UPLOAD, Operation.CLONE), (CLONE, Operation.UPLOAD)])
def test_one_operation_s_token_is_no_other_s(claims, asked):
    with pytest.raises(TokenMisused):
        PUBLIC.verify(KEY.sign(claims, NOW), asked, NOW)


def _hmac(signed):
    """Sign with the public key as an HMAC secret, which a verifier that follows ``alg`` would accept."""
    return hmac.new(KEY.pems["id_rsa.pub"], signed.encode(), hashlib.sha256).digest()


def _pkcs1(signed):
    return KEY._private.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())


def _elliptic(signed):
    return ec.generate_private_key(ec.SECP256R1()).sign(signed.encode(), ec.ECDSA(hashes.SHA256()))


WRONG = {
    "no algorithm": forged({"alg": "none"}, lambda _: b""),
    "no algorithm, and a signature": forged({"alg": "none"}),
    "in capitals": forged({"alg": "ps256"}),
    "none in odd letters": forged({"alg": "nOnE"}, lambda _: b""),
    "hmac with the public key": forged({"alg": "HS256"}, _hmac),
    "hmac that calls itself PS256": forged({"alg": "PS256"}, _hmac),
    "another padding": forged({"alg": "RS256"}, _pkcs1),
    "another padding that calls itself PS256": forged({"alg": "PS256"}, _pkcs1),
    "another digest": forged({"alg": "PS512"}, lambda signed: pss(signed, digest=hashes.SHA512())),
    "another digest that calls itself PS256": forged(sign=lambda signed: pss(signed, digest=hashes.SHA512())),
    "elliptic": forged({"alg": "ES256"}, _elliptic),
    "another key": forged(sign=lambda signed: pss(signed, OTHER)),
    "another key, brought along": forged(
        {"alg": "PS256", "jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}}, lambda signed: pss(signed, OTHER)
    ),
    "an extension that must be understood": forged({"alg": "PS256", "crit": ["exp"], "exp": 1}),
    "a list of algorithms": forged({"alg": ["PS256"]}),
    "no header": forged([]),
    "no issuer": forged(iss=None),
    "another issuer": forged(iss="kubernetes/serviceaccount"),
    "no end": forged(exp=None),
    "no beginning": forged(nbf=None),
    "no time of issue": forged(iat=None),
    "no namespace": forged(namespace=None),
    "an audience": forged(aud="elsewhere"),
    "an end that is a text": forged(exp="9999999999"),
    "an end that never comes": forged(exp=float("inf")),
    "an end that is no number": forged(exp=float("nan")),
    "true as its end": forged(exp=True),
    "no operation": forged(operation=None),
    "several operations": forged(operation=["Upload", "Clone"]),
    "no name": forged(name=None),
    "a resource that is a text": forged(resource="persistentvolumeclaims"),
    "more than tokens say": forged(admin=True),
    "empty": "",
    "dots": "..",
    "two parts": "a.b",
    "four parts": forged() + ".AAAA",
    "no base64": "~.~.~",
    "padded": forged() + "=",
    "padded to whole groups": forged() + "==",
    "a lone surrogate": forged() + "\udc80",
    "a header nested below the limit of the parser": f"{segment(b'[' * 150)}.{segment({})}.AAAA",
    "a line break": forged() + "\n",
    "a blank before": " " + forged(),
    "letters beyond ASCII": forged().replace(".", "。"),
    "long": "A" * 9000,
    "deep": f"{segment(b'[' * 3000)}.{segment({})}.AAAA",
}


@pytest.mark.parametrize("name", WRONG)
def test_whatever_else_looks_like_a_token_is_none(name):
    with pytest.raises(TokenInvalid) as caught:
        PUBLIC.verify(WRONG[name], Operation.UPLOAD, NOW)
    assert not isinstance(caught.value, TokenMisused)


@given(st.data())
def test_a_token_with_any_character_changed_is_none(data):
    text = KEY.sign(UPLOAD, NOW)
    place = data.draw(st.integers(0, len(text) - 1))
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    changed = data.draw(st.sampled_from([letter for letter in letters if letter != text[place]]))
    with pytest.raises(TokenInvalid):
        PUBLIC.verify(f"{text[:place]}{changed}{text[place + 1 :]}", Operation.UPLOAD, NOW)


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*", fullmatch=True))
def test_any_text_is_refused_and_breaks_nothing(text):
    with pytest.raises(TokenInvalid):
        PUBLIC.verify(text, Operation.UPLOAD, NOW)


@pytest.mark.parametrize("pem", [b"", b"x", KEY.pems["id_rsa"]])
def test_a_public_key_that_cannot_be_read_is_named(pem):
    with pytest.raises(ClusterConfigInvalid, match="id_rsa.pub"):
        VerifyingKey.read(pem)


def test_a_weak_key_signs_nothing():
    from cryptography.hazmat.primitives import serialization

    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    pem = weak.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert SigningKey.load(pem) is None


# --- the key in its Secret ----------------------------------------------------------------------------------------


async def test_replicas_that_start_at_once_share_one_key():
    api = Api()
    keys = await asyncio.gather(*(ensure_signing_key(api, "cdi") for _ in range(4)))
    assert len({key.pems["id_rsa"] for key in keys}) == 1
    assert len(api.writes) == 1
    assert keys[0].verify(keys[3].sign(UPLOAD, NOW), Operation.UPLOAD, NOW) == UPLOAD


@pytest.mark.parametrize("data", [None, {}, {"id_rsa": "~"}, {"id_rsa": base64.b64encode(b"x").decode()}])
async def test_an_empty_secret_is_filled(data):
    api = Api()
    await api.create(
        type("R", (), {"plural": "secrets"}), {"metadata": {"name": SIGNING_KEY, "namespace": "cdi"}, "data": data}
    )
    key = await ensure_signing_key(api, "cdi")
    stored = api.objects["secrets", SIGNING_KEY]["data"]
    assert base64.b64decode(stored["id_rsa"]) == key.pems["id_rsa"]
    assert VerifyingKey.read(base64.b64decode(stored["id_rsa.pub"])).verify(
        key.sign(UPLOAD, NOW), Operation.UPLOAD, NOW
    )


async def test_a_key_that_is_there_is_kept():
    api = Api()
    first = await ensure_signing_key(api, "cdi")
    idempotent = await ensure_signing_key(api, "cdi")
    assert idempotent.pems == first.pems
    assert len(api.writes) == 1
