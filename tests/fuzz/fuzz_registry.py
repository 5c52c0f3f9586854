"""Fuzz target: documents, error documents, challenges and tokens of a registry give a value or an error with one line.

python tests/fuzz/fuzz_registry.py -max_total_time=60
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.source.registry", "cdi.http.challenge"]):
    from cdi.api.errors import CdiError
    from cdi.http.challenge import parse_challenges
    from cdi.source.registry.auth import _parse_token_response, _realm
    from cdi.source.registry.errors import error_for_response
    from cdi.source.registry.manifest import Index, parse_config, parse_manifest
    from cdi.source.registry.reference import Reference
    from cdi.source.registry.signatures import is_signature, may_be_signature

from tests.fuzz.seeds import run

REFERENCE = Reference.parse("docker://registry.example/a/b:t")
DIGEST = "sha256:" + "0" * 64
STATUSES = (400, 401, 403, 404, 418, 429, 503)


def check_manifest(body: bytes) -> None:
    parsed = parse_manifest(body, None, "x")
    for entry in parsed.entries if isinstance(parsed, Index) else (parsed.config, *parsed.layers):
        assert entry.size >= 0
        assert len(entry.media_type) <= 255
        is_signature(entry)
        may_be_signature(entry)


def check_token(body: bytes) -> None:
    value = _parse_token_response(body, "x").value
    assert value.isascii()
    assert value.removeprefix("Bearer ").isprintable()
    assert " " not in value.removeprefix("Bearer ")


def check_challenges(body: bytes) -> None:
    found = parse_challenges(body.decode("latin-1").split("\n"))
    assert len(found) <= 16
    for challenge in found:
        assert challenge.scheme == challenge.scheme.lower()
        if "realm" in challenge.parameters:
            realm = _realm(challenge.parameters["realm"], REFERENCE, plain=False)
            assert realm.scheme == "https"


def check_error(body: bytes) -> None:
    for status in STATUSES:
        error = error_for_response(status, {"retry-after": body[:20].decode("latin-1")}, body, "x")
        assert error.message.isprintable()
        assert len(error.message) < 1000


CHECKS = (check_manifest, lambda body: parse_config(body, "x"), check_token, check_challenges, check_error)


def target(data: bytes) -> None:
    if not data:
        return
    try:
        CHECKS[data[0] % len(CHECKS)](data[1:])
    except CdiError as error:
        assert error.message.isprintable()
        assert len(error.message) < 1000


def seeds() -> list[bytes]:
    entry = f'{{"mediaType": "x", "digest": "{DIGEST}", "size": 5}}'
    image = f'{{"schemaVersion": 2, "config": {entry}, "layers": [{entry}], "artifactType": "a", "subject": {entry}}}'
    platform = '"platform": {"architecture": "arm64", "os": "linux", "variant": "v8"}, "annotations": {"a": "b"}'
    index = f'{{"schemaVersion": 2, "manifests": [{entry[:-1]}, {platform}}}]}}'
    config = '{"architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"], "Labels": {"ostree.bootable": "1"}}}'
    token = '{"token": "t", "access_token": "u", "expires_in": 60}'
    challenge = 'Bearer realm="https://t.example/token",service="s",scope="a",\nBasic realm=x, Negotiate YWJj=='
    error = '{"errors": [{"code": "TOOMANYREQUESTS", "message": "later"}, {"code": "DENIED"}]}'
    documents = ((0, image), (0, index), (1, config), (2, token), (3, challenge), (4, error))
    return [bytes((number,)) + text.encode() for number, text in documents]


if __name__ == "__main__":
    run(target, seeds(), 4096, fixed=100_000)
