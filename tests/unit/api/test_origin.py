"""Tests of records of origin: their content, their bytes, their bounds."""

from __future__ import annotations

import base64
import json

import pytest

from cdi.api.dataimportcron import GoldenVersion, ProofStatus
from cdi.api.errors import InvalidManifest, SignatureInvalid
from cdi.api.origin import (
    MAX_RECORD,
    MAX_STATEMENT,
    Envelope,
    ImportFacts,
    Signature,
    build_statement,
    parse_record,
    parse_statement,
    pre_authentication_encoding,
    public_reference,
    subject_digests,
)

DIGEST = f"sha256:{'a1' * 32}"
CONTENT = f"sha256:{'b2' * 32}"
VERSION = GoldenVersion(
    name="fedora-a1a1a1a1a1a1",
    digest=DIGEST,
    state="Available",
    found="2026-01-02T03:04:05Z",
    imported="2026-01-02T03:14:05Z",
    source="docker://registry.example:5000/os/fedora:40",
    architecture="amd64",
    proof=ProofStatus(booted=True, message="login:", accelerator="kvm", finished="2026-01-02T03:15:05Z"),
)
ANNOTATIONS = {
    "cdi.kubevirt.io/image.digest": CONTENT,
    "cdi.kubevirt.io/image.format": "qcow2",
    "cdi.kubevirt.io/image.virtualSize": "1073741824",
    "cdi.kubevirt.io/image.verifiedBy": "registry digest, cosign",
}


def facts(**changes):
    annotations = ANNOTATIONS | changes
    return ImportFacts.of_annotations("images", "fedora", "uid-1", annotations, builder={"cdi": "1.2", "qemu": "9.0"})


def test_a_record_says_source_digest_checks_proof_versions_and_times():
    statement = json.loads(build_statement(VERSION, facts()))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [
        {"name": "fedora-a1a1a1a1a1a1", "digest": {"sha256": "a1" * 32}},
        {"name": "fedora-a1a1a1a1a1a1/image", "digest": {"sha256": "b2" * 32}},
    ]
    build, run = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert build["externalParameters"] == {
        "source": "docker://registry.example:5000/os/fedora:40",
        "architecture": "amd64",
        "dataImportCron": "images/fedora",
    }
    assert build["internalParameters"] == {"format": "qcow2", "virtualSize": "1073741824"}
    assert build["resolvedDependencies"] == [
        {"uri": "docker://registry.example:5000/os/fedora:40", "digest": {"sha256": "a1" * 32}}
    ]
    assert run["builder"]["version"] == {"cdi": "1.2", "qemu": "9.0"}
    assert run["metadata"] == {
        "invocationId": "uid-1",
        "startedOn": "2026-01-02T03:04:05Z",
        "finishedOn": "2026-01-02T03:14:05Z",
    }
    assert run["cdi_verifiedBy"] == ["registry digest", "cosign"]
    assert run["cdi_bootProof"] == {
        "booted": True,
        "message": "login:",
        "accelerator": "kvm",
        "finished": "2026-01-02T03:15:05Z",
    }


def test_the_same_version_gives_the_same_bytes():
    text = build_statement(VERSION, facts())
    assert text == build_statement(VERSION.model_copy(), facts())
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("https://user:secret@host/a.img?token=secret#x", "https://host/a.img"),
        ("s3://bucket/key?X-Amz-Signature=secret", "s3://bucket/key"),
        (f"docker://host:5000/repo@{DIGEST}", f"docker://host:5000/repo@{DIGEST}"),
        ("docker://user:secret@host/repo:tag", "docker://host/repo:tag"),
        ("oci-archive:/srv/a.tar:tag", "oci-archive:/srv/a.tar:tag"),
        ("http://[bad", ""),
    ],
)
def test_no_secret_of_a_reference_reaches_the_record(reference, shown):
    assert public_reference(reference) == shown
    assert b"secret" not in build_statement(VERSION.model_copy(update={"source": reference}), facts())


def test_a_record_without_recorded_facts_is_still_a_statement():
    version = GoldenVersion(name="v", digest=DIGEST, state="Available")
    statement = parse_statement(build_statement(version, ImportFacts(namespace="n", cron="c")))
    assert subject_digests(statement) == {DIGEST}


def test_texts_from_outside_are_bounded_and_the_envelope_fits_the_annotation():
    long = VERSION.model_copy(
        update={
            "source": "https://host/" + "a" * 9000,
            "proof": ProofStatus(booted=True, message="\U0001f40d" * 9000),
        }
    )
    few = facts(**{"cdi.kubevirt.io/image.verifiedBy": "check"})
    statement = build_statement(long, few)
    assert len(statement) <= MAX_STATEMENT
    signatures = (Signature(keyid="0" * 64, value=b"s" * 104),)
    assert (
        len(Envelope(payload=statement, payload_type="application/vnd.in-toto+json", signatures=signatures).to_json())
        <= MAX_RECORD
    )
    many = facts(**{"cdi.kubevirt.io/image.verifiedBy": ", ".join(["x" * 600] * 99)})
    with pytest.raises(InvalidManifest, match="the limit is"):
        build_statement(long, many)


def test_the_encoding_is_that_of_the_protocol():
    assert pre_authentication_encoding("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_an_envelope_survives_the_round_trip_and_url_safe_base64_is_read():
    envelope = Envelope(
        payload=build_statement(VERSION, facts()),
        payload_type="application/vnd.in-toto+json",
        signatures=(Signature(keyid="k", value=b"\xfb\xff\xfe"),),
    )
    assert parse_record(envelope.to_json()) == envelope
    document = json.loads(envelope.to_json())
    document["payload"] = base64.urlsafe_b64encode(envelope.payload).decode()
    document["signatures"][0]["sig"] = "-__-"
    assert parse_record(json.dumps(document)).signatures[0].value == b"\xfb\xff\xfe"


def test_a_plain_statement_is_a_record_without_signatures():
    text = build_statement(VERSION, facts())
    assert parse_record(text) == Envelope(payload=text, payload_type="application/vnd.in-toto+json", signatures=())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "{}",
        "[" * 5000,
        '{"payload":"!","payloadType":"application/vnd.in-toto+json","signatures":[]}',
        '{"payload":"","payloadType":"text/plain","signatures":[]}',
        '{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[{}]}',
        json.dumps({"payload": "", "payloadType": "application/vnd.in-toto+json", "signatures": [{"sig": ""}] * 99}),
        '{"payload":"","payload":"","payloadType":"application/vnd.in-toto+json","signatures":[]}',
        " " * (MAX_RECORD + 1),
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(SignatureInvalid):
        parse_record(text)


@pytest.mark.parametrize(
    "change", [{"_type": "x"}, {"predicateType": "x"}, {"subject": {}}, {"subject": [1]}, {"predicate": []}]
)
def test_a_statement_of_another_kind_is_refused(change):
    document = json.loads(build_statement(VERSION, facts())) | change
    with pytest.raises(SignatureInvalid):
        parse_statement(json.dumps(document).encode())
