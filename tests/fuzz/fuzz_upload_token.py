"""Fuzz target: any token request and any token is parsed or rejected as its interface specifies.

python tests/fuzz/fuzz_upload_token.py -max_total_time=60
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import atheris
import jwt

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.api", "cdi.kube.jwt", "cdi.server.uploadtoken_api.routes"]):
    from cdi.api.errors import InvalidManifest, TokenInvalid, TokenMisused
    from cdi.kube.jwt import CLAIM, Operation, SigningKey, TokenClaims
    from cdi.server.uploadtoken_api.authentication import FrontProxy
    from cdi.server.uploadtoken_api.routes import _as_wanted, _read, _Refusal

from tests.fuzz.documents import spoilt
from tests.fuzz.seeds import run

KEY = SigningKey.generate()
NOW = 1_700_000_000.0
GOOD = KEY.sign(TokenClaims(operation=Operation.UPLOAD, namespace="ns", name="vm", resource=CLAIM), NOW)
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")
REQUEST = {
    "apiVersion": "upload.cdi.kubevirt.io/v1beta1",
    "kind": "UploadTokenRequest",
    "metadata": {"name": "x", "namespace": "ns", "labels": {"a": "b"}, "annotations": {}},
    "spec": {"pvcName": "vm"},
    "status": {"token": ""},
}


def signed(payload: bytes) -> str:
    """Return a token with any payload and a valid signature, which a fuzzer cannot find."""
    return jwt.PyJWS().encode(payload, KEY._private, algorithm="PS256")


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def target(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    kind = provider.ConsumeIntInRange(0, 3)
    if kind < 2:
        request(json.dumps(spoilt(REQUEST, provider)).encode() if kind else provider.ConsumeBytes(4096))
        return
    raw = provider.ConsumeBytes(4096)
    for text in (
        raw.decode("latin-1"),
        f"{HEADER}.{segment(raw)}.{SIGNATURE}",
        f"{segment(raw)}.{PAYLOAD}.{SIGNATURE}",
    ):
        if text == GOOD:
            continue
        try:
            KEY.verify(text, Operation.UPLOAD, NOW)
        except TokenInvalid:
            continue
        raise AssertionError("it was believed")
    try:
        found = KEY.verify(signed(raw), Operation.UPLOAD, NOW)
    except (TokenInvalid, TokenMisused):
        return
    assert isinstance(found.namespace, str)
    assert isinstance(found.name, str)


def request(body: bytes) -> None:
    for strictness in ("Strict", "Warn"):
        try:
            made, warnings = _read(body, "ns", strictness)
        except _Refusal as refusal:
            json.dumps(refusal.body)
            assert 400 <= refusal.status < 500
        except InvalidManifest:
            pass
        else:
            assert made["metadata"]["namespace"] == "ns"
            assert isinstance(made["spec"]["pvcName"], str)
            assert "status" not in made
            assert not warnings or strictness == "Warn"
            made["metadata"]["creationTimestamp"] = "now"
            json.dumps(_as_wanted(made, "application/json;as=Table;g=meta.k8s.io;v=v1"))
    text = body.decode("utf-8", "replace")
    found = FrontProxy.read({"requestheader-allowed-names": text, "requestheader-username-headers": text})
    assert all(isinstance(name, str) for name in (*found.names, *found.user))


def seeds() -> list[bytes]:
    # The provider takes numbers from the end.
    said = base64.urlsafe_b64decode(PAYLOAD + "==")
    header = base64.urlsafe_b64decode(HEADER + "==")
    return [
        json.dumps(REQUEST).encode() + b"\0", *(bytes((number,)) * 40 + b"\1" for number in range(8)), said + b"\2",
        header + b"\2", GOOD.encode() + b"\3", b"[" * 3000 + b"\2", b'["a"]\0',
    ]  # fmt: skip


if __name__ == "__main__":
    run(target, seeds(), 4096, fixed=20_000)
