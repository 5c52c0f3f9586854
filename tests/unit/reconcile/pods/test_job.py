from __future__ import annotations

import pytest

from cdi.api.job import (
    BlankSourceSpec,
    Credentials,
    DirectoryTargetSpec,
    FileTargetSpec,
    GcsSourceSpec,
    HttpSourceSpec,
    Job,
    Policy,
    Proxy,
    RegistrySourceSpec,
    S3SourceSpec,
    Tls,
)
from cdi.api.policy import PREFIX
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.settings import Platform, ResolvedConfig
from tests.unit.reconcile.simulation import HTTP, End, Simulation, data_volume, failing

KEYS = ("accessKeyId", "secretKey")


def started(sim):
    sim.run()
    assert sim.starts, sim.status
    return sim.starts[0]


def job(source, *, config=None, inputs=(), annotations=None, **spec):
    sim = Simulation(data_volume(source, annotations=annotations, **spec), config=config)
    for kind, name, *keys in inputs:
        sim.add_input(kind, name, *keys)
    action = started(sim)
    assert Job.from_json(action.work.to_json()) == action.work
    return action


def login(token=False):
    return Credentials(
        access_key_file="/w/inputs/secret/accessKeyId",
        secret_key_file="/w/inputs/secret/secretKey",
        session_token_file="/w/inputs/secret/sessionToken" if token else None,
    )


def test_every_field_of_an_http_source_crosses():
    source = {
        "http": {
            "url": "https://s/i.qcow2",
            "secretRef": "login",
            "certConfigMap": "ca",
            "extraHeaders": ["A: b"],
            "secretExtraHeaders": ["one", "two"],
            "checksum": "sha256:" + "a" * 64,
            "insecureSkipVerify": True,
        }
    }
    inputs = [
        ("Secret", "login", *KEYS),
        ("ConfigMap", "ca", "ca.pem"),
        ("Secret", "one", "z", "y"),
        ("Secret", "two", "x"),
    ]
    action = job(source, inputs=inputs, config=ResolvedConfig(proxy=Proxy(http="http://p:1", no_proxy="x")))
    assert action.work.source == HttpSourceSpec(
        url="https://s/i.qcow2",
        credentials=login(),
        tls=Tls(ca_dir="/w/inputs/certificates", insecure=True),
        proxy=Proxy(http="http://p:1", no_proxy="x"),
        headers=("A: b",),
        secret_header_files=("/w/inputs/headers-0/y", "/w/inputs/headers-0/z", "/w/inputs/headers-1/x"),
    )
    assert action.work.checksum == "sha256:" + "a" * 64
    assert action.work.size == 1 << 30
    assert action.work.target == FileTargetSpec(path="/v/disk.img")
    assert (action.work.journal, action.work.scratch) == ("/w/journal", "/w/scratch")
    assert action.work.id == "claim-uid"
    assert sorted((m.directory, tuple(r.name for r in m.inputs)) for m in action.mounts) == [
        ("/w/inputs/certificates", ("ca",)),
        ("/w/inputs/headers-0", ("one",)),
        ("/w/inputs/headers-1", ("two",)),
        ("/w/inputs/secret", ("login",)),
    ]


def test_an_s3_source_and_its_knobs():
    policy_annotations = {"region": "eu-1", "endpoint": "https://e", "addressing": "path", "anonymous": "true"}
    action = job(
        {"s3": {"url": "s3://b/k", "secretRef": "login"}},
        inputs=[("Secret", "login", *KEYS, "sessionToken")],
        annotations={f"{PREFIX}{name}": text for name, text in policy_annotations.items()},
    )
    assert action.work.source == S3SourceSpec(
        url="s3://b/k",
        credentials=login(token=True),
        region="eu-1",
        endpoint="https://e",
        addressing="path",
        anonymous=True,
    )


def test_a_gcs_source():
    action = job({"gcs": {"url": "gs://b/k", "secretRef": "sa"}}, inputs=[("Secret", "sa", "credentials.json")])
    expected = Credentials(service_account_file="/w/inputs/secret/credentials.json")
    assert action.work.source == GcsSourceSpec(url="gs://b/k", credentials=expected)


@pytest.mark.parametrize(
    ("keys", "credentials"),
    [(KEYS, login()), ((".dockerconfigjson",), Credentials(docker_config_file="/w/inputs/secret/.dockerconfigjson"))],
)
@pytest.mark.parametrize(("listed", "insecure"), [("r:5000", True), ("R:5000", False), ("r", False)])
def test_a_registry_source(keys, credentials, listed, insecure):
    source = {
        "registry": {"url": "docker://r:5000/os/fedora:41", "secretRef": "s", "platform": {"architecture": "arm64"}}
    }
    action = job(
        source, inputs=[("Secret", "s", *keys)], config=ResolvedConfig(insecure_registries=frozenset([listed]))
    )
    assert action.work.source == RegistrySourceSpec(
        url="docker://r:5000/os/fedora:41", credentials=credentials, tls=Tls(insecure=insecure), architecture="arm64"
    )


def test_the_proxys_own_certificates_join_the_sources():
    trusted = ObjectRef(kind="ConfigMap", namespace="default", name="proxy-ca")
    config = ResolvedConfig(trusted_ca=trusted)
    source = {"http": {"url": "https://s/i", "certConfigMap": "ca"}}
    action = job(source, config=config, inputs=[("ConfigMap", "ca", "a"), ("ConfigMap", "proxy-ca", "b")])
    assert [tuple(r.name for r in m.inputs) for m in action.mounts] == [("ca", "proxy-ca")]
    sim = Simulation(config=config).run()
    assert "ConfigMap default/proxy-ca does not exist" in sim.detail["message"]


def test_blank_and_archive():
    assert job({"blank": {}}).work.source == BlankSourceSpec()
    archive = job(HTTP, contentType="archive").work
    assert (archive.target, archive.content_type) == (DirectoryTargetSpec(path="/v"), "archive")


@pytest.mark.parametrize(
    ("asked", "default", "given"), [(None, False, False), (None, True, True), (False, True, False), (True, False, True)]
)
def test_preallocation_of_the_volume_goes_before_that_of_the_machine(asked, default, given):
    spec = {} if asked is None else {"preallocation": asked}
    assert job(HTTP, config=ResolvedConfig(preallocation=default), **spec).work.policy.preallocation is given


@pytest.mark.parametrize(
    ("size", "bytes_"), [("1Gi", 1 << 30), ("1G", 10**9), ("1500001", 1500160), (2097152, 2097152)]
)
def test_a_disk_is_a_whole_number_of_sectors(size, bytes_):
    assert job(HTTP, size=size).work.size == bytes_


def test_all_knobs_reach_the_policy():
    policy_annotations = {
        "engine": "qemu",
        "connections": "7",
        "bandwidth": "10M",
        "discoverChecksum": "false",
        "requireChecksum": "true",
        "recordDigest": "true",
        "signature": "require",
        "keyring": "/etc/keys.gpg",
        "stallTimeout": "9",
        "disk": "disk-1.vmdk",
    }
    assert job(
        HTTP, annotations={f"{PREFIX}{name}": text for name, text in policy_annotations.items()}
    ).work.policy == Policy(
        engine="qemu",
        connections=7,
        bandwidth=10_000_000,
        discover_checksum=False,
        require_checksum=True,
        record_digest=True,
        signature="require",
        keyring="/etc/keys.gpg",
        stall_timeout=9.0,
        disk="disk-1.vmdk",
    )
    assert job(HTTP).work.policy == Policy()


def test_a_checksum_for_sources_without_a_field_for_it():
    one, two = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
    for source in (HTTP, {"s3": {"url": "s3://bucket/disk"}}, {"registry": {"url": "docker://host/disk"}}):
        assert job(source, annotations={f"{PREFIX}checksum": one.upper().replace("SHA", "sha")}).work.checksum == one
    given = {"http": {**HTTP["http"], "checksum": one}}
    assert job(given, annotations={f"{PREFIX}checksum": one}).work.checksum == one
    sim = Simulation(data_volume(given, annotations={f"{PREFIX}checksum": two})).run()
    assert sim.detail["reason"] == "InvalidManifest"
    assert two in sim.detail["message"]


@pytest.mark.parametrize(
    ("value", "keys", "file"),
    [("keys", ("only.asc",), "only.asc"), ("keys/b", ("a", "b"), "b"), ("keys", ("keyring", "b"), "keyring")],
)
def test_a_key_ring_in_a_config_map(value, keys, file):
    action = job(HTTP, inputs=[("ConfigMap", "keys", *keys)], annotations={f"{PREFIX}keyring": value})
    assert action.work.policy.keyring == f"/w/inputs/keyring/{file}"


REGISTRY = {"registry": {"url": "docker://host/disk"}}


def test_cosign_keys_in_a_secret_are_mounted():
    annotations = {f"{PREFIX}cosignKeys": "signers"}
    action = job(REGISTRY, inputs=[("Secret", "signers", "a.pub", "b.pub")], annotations=annotations)
    assert action.work.policy.cosign_keys == ("/w/inputs/cosign-keys",)
    (mount,) = action.mounts
    assert (mount.directory, mount.inputs) == (
        "/w/inputs/cosign-keys",
        (ObjectRef(kind="Secret", namespace="default", name="signers"),),
    )


def test_cosign_keys_may_be_files_on_one_machine_only(monkeypatch):
    annotations = {f"{PREFIX}cosignKeys": "/etc/keys"}
    assert job(REGISTRY, annotations=annotations).work.policy.cosign_keys == ("/etc/keys",)
    monkeypatch.setattr("tests.unit.reconcile.simulation.Platform", lambda **_: Platform())
    sim = Simulation(data_volume(REGISTRY, annotations=annotations)).run()
    assert "put the public keys into a Secret" in sim.detail["message"]


def test_an_import_waits_for_the_secret_with_cosign_keys():
    sim = Simulation(data_volume(REGISTRY, annotations={f"{PREFIX}cosignKeys": "signers"})).run()
    assert not sim.starts
    assert "signers does not exist" in sim.detail["message"]


def test_cosign_keys_for_another_source_are_refused():
    sim = Simulation(data_volume(HTTP, annotations={f"{PREFIX}cosignKeys": "signers"})).run()
    assert not sim.starts
    assert sim.detail["reason"] == "InvalidManifest"
    assert "cosign signs container images, but the source is http" in sim.detail["message"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine", "Qemu"),
        ("connections", "65"),
        ("connections", "-1"),
        ("connections", "٣"),
        ("connections", "9" * 5000),
        ("bandwidth", "-1"),
        ("bandwidth", "fast"),
        ("bandwidth", "1e60"),
        ("discoverChecksum", "yes"),
        ("recordDigest", "1"),
        ("checksum", "sha256:12"),
        ("signature", "maybe"),
        ("signature", "require"),
        ("keyring", ""),
        ("keyring", "a\nb"),
        ("stallTimeout", "0"),
        ("unknown", "1"),
    ],
)
def test_a_knob_that_cannot_be_followed_is_named(name, text):
    sim = Simulation(data_volume(HTTP, annotations={f"{PREFIX}{name}": text})).run()
    assert sim.detail["reason"] == "InvalidManifest"
    assert f"policy.{name}" in sim.detail["message"]
    assert not sim.starts


def test_the_fingerprint_changes_with_everything_that_the_work_depends_on():
    source = {"http": {"url": "http://s/i", "secretRef": "login"}}

    def fingerprint(version="1", **kw):
        sim = Simulation(data_volume(source, **kw))
        sim.add_input("Secret", "login", *KEYS, version=version)
        return started(sim).fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint("2"), fingerprint(annotations={f"{PREFIX}connections": "1"})}) == 3


def test_a_second_attempt_may_find_what_the_first_wrote_and_is_the_same_work():
    sim = Simulation(data_volume(HTTP), script=[failing(), End()]).run()
    first, second = sim.starts
    assert (first.work.continued, second.work.continued) == (False, True)
    assert first.fingerprint == second.fingerprint != ""


def test_secrets_are_never_in_a_job():
    action = job({"http": {"url": "http://s/i", "secretRef": "login"}}, inputs=[("Secret", "login", *KEYS)])
    assert "/w/inputs/secret/secretKey" in action.work.to_json()


@pytest.mark.parametrize(
    "source",
    [
        {"http": {"url": "https://s/i"}},
        {"s3": {"url": "s3://b/k"}},
        {"gcs": {"url": "gs://b/k"}},
        {"registry": {"url": "docker://r/i"}},
    ],
    ids=lambda source: next(iter(source)),
)
def test_insecure_is_for_ones_own_machine(source, monkeypatch):
    annotations = {f"{PREFIX}insecure": "true"}
    assert job(source, annotations=annotations).work.source.tls == Tls(insecure=True)
    sim = Simulation(data_volume(source, annotations=annotations))
    monkeypatch.setattr("tests.unit.reconcile.simulation.Platform", lambda **_: Platform(local_files=False))
    sim.run()
    assert not sim.starts
    assert sim.status["phase"] == "Failed"
