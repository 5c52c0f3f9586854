from __future__ import annotations

import base64
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from cdi.api.errors import UsageError
from cdi.api.job import (
    Credentials,
    FileSourceSpec,
    GcsSourceSpec,
    HttpSourceSpec,
    RegistrySourceSpec,
    S3SourceSpec,
    StreamSourceSpec,
    Tls,
)
from cdi.api.policy import PREFIX, parse_policy_annotations
from cdi.api.validation import parse_manifest
from cdi.client.locate import locate
from cdi.client.request import Access, Request, read_option_file, secret_values, source_spec
from cdi.client.request_to_manifests import build_manifests, owned

PLACES = {
    "http": "https://h/a.qcow2",
    "s3": "s3://b/a.qcow2",
    "gcs": "gs://b/a.qcow2",
    "registry": "docker://r/a:1",
    "file": "/a.qcow2",
    "stdin": "-",
}
GIVEN = {
    "username": ("u", {"http", "s3", "registry"}),
    "password": ("p", {"http", "s3", "registry"}),
    "secret": ("s", {"http", "s3", "gcs", "registry"}),
    "credentials": (b"{}", {"gcs", "registry"}),
    "authority": (b"pem", {"http", "s3", "registry"}),
    "insecure": (True, {"http", "s3", "registry"}),
    "headers": (("A: b",), {"http"}),
    "secret_headers": ((b"A: b\n",), {"http"}),
    "region": ("r", {"s3"}),
    "endpoint": ("http://e", {"s3", "gcs"}),
    "addressing": ("path", {"s3"}),
    "anonymous": (True, {"s3"}),
    "architecture": ("arm64", {"registry"}),
}


def request(kind, *, access=None, **more):
    return Request(place=locate(PLACES[kind]), access=Access(**(access or {})), **more)


def value_of(body, *path):
    for part in path:
        body = body[part]
    return body


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("option", GIVEN)
def test_an_option_has_an_effect_or_is_refused(kind, option, tmp_path):
    given, kinds = GIVEN[option]
    if kind not in kinds:
        with pytest.raises(UsageError, match="applies to"):
            request(kind, access={option: given})
        return
    plain, asked = request(kind), request(kind, access={option: given})
    one, other = (build_manifests(each, "ns", "n", 1 << 20) for each in (plain, asked))
    assert one != other
    if option != "secret":
        assert source_spec(plain, tmp_path) != source_spec(asked, tmp_path)


def test_every_manifest_is_valid():
    for kind in PLACES:
        access = {option: given for option, (given, kinds) in GIVEN.items() if kind in kinds}
        for left_out in ("secret", "username", "credentials"):
            chosen = dict(access)
            if left_out != "secret":
                chosen.pop("username", None), chosen.pop("password", None), chosen.pop("credentials", None)
            else:
                chosen.pop("secret", None), chosen.pop("credentials", None)
            chosen.pop("anonymous", None)
            made = build_manifests(
                request(
                    kind, access=chosen, checksum=f"sha256:{'a' * 64}", engine="qemu", bandwidth=5, keyring="/k",
                    require_checksum=True, discover_checksum=False, preallocation=True,
                    connections=0 if kind == "stdin" else 3,
                ),
                "ns", "n", 10 << 20,
            )  # fmt: skip
            for body in (made.datavolume, *made.inputs):
                parse_manifest(body)
            policy_annotations = parse_policy_annotations(made.datavolume["metadata"]["annotations"])
            assert (
                policy_annotations.engine,
                policy_annotations.bandwidth,
                policy_annotations.keyring,
                policy_annotations.signature,
            ) == ("qemu", 5, "/k", "if-present")
            assert (policy_annotations.require_checksum, policy_annotations.discover_checksum) == (True, False)
            assert made.datavolume["spec"]["storage"]["resources"]["requests"]["storage"] == "10Mi"
            assert made.datavolume["spec"]["preallocation"]


@pytest.mark.parametrize("local", [True, False])
def test_cosign_keys_are_stored_by_content(tmp_path, local):
    (tmp_path / "other").mkdir()
    for path, text in (("a key.pub", "one"), ("b.pub", "two"), ("other/b.pub", "three")):
        (tmp_path / path).write_text(text)
    keys = tuple(str(tmp_path / path) for path in ("a key.pub", "b.pub", "other/b.pub"))
    asked = Request(place=locate("docker://h/r"), cosign_keys=keys)
    assert asked.policy().cosign_keys == keys
    made = build_manifests(asked, "ns", "n", 1 << 20, local=local)
    (secret,) = made.inputs
    parse_manifest(secret)
    assert secret_values(secret) == {"a_key.pub": b"one", "b.pub": b"two", "3-b.pub": b"three"}
    found = parse_policy_annotations(made.datavolume["metadata"]["annotations"])
    assert found.cosign_keys == secret["metadata"]["name"]


def test_secrets_are_in_the_secret_alone():
    asked = Request(
        place=locate("https://uuu:ppp@h/a.img"),
        access=Access(headers=("X-Token: hhh",), secret_headers=(b"Y: iii\n",)),
    )
    made = build_manifests(asked, "ns", "a", 1 << 20)
    for word in ("uuu", "ppp", "hhh", "iii"):
        assert word not in json.dumps(made.datavolume)
        assert word not in repr(asked).replace("user='uuu'", "")
    login, headers = made.inputs
    assert secret_values(login) == {"accessKeyId": b"uuu", "secretKey": b"ppp"}
    assert sorted(secret_values(headers).values()) == [b"X-Token: hhh", b"Y: iii\n"]
    assert made.datavolume["spec"]["source"]["http"]["secretRef"] == login["metadata"]["name"]


def test_inputs_are_owned_by_the_datavolume():
    owner = {"apiVersion": "x/v1", "kind": "DataVolume", "metadata": {"name": "n", "uid": "1"}}
    (reference,) = owned({"metadata": {"name": "s"}}, owner)["metadata"]["ownerReferences"]
    assert reference == {"apiVersion": "x/v1", "kind": "DataVolume", "name": "n", "uid": "1"}


def test_a_users_own_words_go_before_the_urls():
    asked = Request(place=locate("https://u:p@h/a"), access=Access(username="me", password="mine"))
    assert asked.login == ("me", "mine")
    assert replace(asked, access=Access(username="me")).login == ("me", "")
    assert replace(asked, access=Access(password="mine")).login == ("u", "mine")
    assert replace(asked, access=Access()).login == ("u", "p")


@pytest.mark.parametrize(
    ("kind", "access", "more"),
    [
        ("http", {"secret": "s", "username": "u"}, {}),
        ("registry", {"credentials": b"{}", "username": "u"}, {}),
        ("s3", {"anonymous": True, "username": "u"}, {}),
        ("s3", {"anonymous": True, "secret": "s"}, {}),
        ("http", {}, {"signature": "require"}),
        ("http", {}, {"cosign_keys": ("/k",)}),
        ("registry", {}, {"disk": "disk-1.vmdk"}),
        ("stdin", {}, {"connections": 2}),
    ],
)
def test_what_contradicts_itself_is_refused(kind, access, more):
    with pytest.raises(UsageError):
        request(kind, access=access, **more)


class TestSourceSpec:
    def test_local_ones(self, tmp_path):
        assert source_spec(request("file"), tmp_path) == FileSourceSpec(path="/a.qcow2")
        assert source_spec(request("stdin"), tmp_path) == StreamSourceSpec(descriptor=0)
        assert list(tmp_path.iterdir()) == []

    def test_http(self, tmp_path):
        access = {
            "username": "u",
            "password": "p",
            "authority": b"pem",
            "headers": ("A: b",),
            "secret_headers": (b"C: d",),
        }
        spec = source_spec(request("http", access=access), tmp_path)
        assert spec == HttpSourceSpec(
            url="https://h/a.qcow2",
            credentials=Credentials(
                access_key_file=str(tmp_path / "accessKeyId"), secret_key_file=str(tmp_path / "secretKey")
            ),
            tls=Tls(ca_dir=str(tmp_path / "certificates")),
            headers=("A: b",),
            secret_header_files=(str(tmp_path / "headers-0"),),
        )
        assert (tmp_path / "secretKey").read_text() == "p"
        assert (tmp_path / "certificates/ca.pem").read_bytes() == b"pem"
        assert stat.S_IMODE((tmp_path / "secretKey").stat().st_mode) == 0o600

    def test_s3(self, tmp_path):
        access = {"region": "r", "endpoint": "http://e", "addressing": "path", "anonymous": True, "insecure": True}
        assert source_spec(request("s3", access=access), tmp_path) == S3SourceSpec(
            url="s3://b/a.qcow2",
            tls=Tls(insecure=True),
            region="r",
            endpoint="http://e",
            addressing="path",
            anonymous=True,
        )
        stored = {"accessKeyId": b"a", "secretKey": b"b", "sessionToken": b"c", "more": b"d"}
        spec = source_spec(request("s3", access={"secret": "s"}), tmp_path, stored)
        assert Path(spec.credentials.session_token_file).read_bytes() == b"c"
        assert not (tmp_path / "more").exists()

    def test_gcs_and_registries(self, tmp_path):
        spec = source_spec(request("gcs", access={"credentials": b"{}"}), tmp_path)
        assert spec == GcsSourceSpec(
            url="gs://b/a.qcow2", credentials=Credentials(service_account_file=str(tmp_path / "credentials.json"))
        )
        spec = source_spec(request("registry", access={"credentials": b"{}", "architecture": "arm64"}), tmp_path)
        assert spec == RegistrySourceSpec(
            url="docker://r/a:1",
            credentials=Credentials(docker_config_file=str(tmp_path / ".dockerconfigjson")),
            architecture="arm64",
        )

    def test_a_secret_that_lacks_keys(self, tmp_path):
        with pytest.raises(UsageError, match="secretKey"):
            source_spec(request("http", access={"secret": "s"}), tmp_path, {"accessKeyId": b"a"})
        with pytest.raises(UsageError, match=r"credentials\.json"):
            source_spec(request("gcs", access={"secret": "s"}), tmp_path, {})


def test_values_of_a_stored_secret():
    body = {"metadata": {"name": "s"}, "data": {"a": base64.b64encode(b"\xff").decode()}}
    assert secret_values(body) == {"a": b"\xff"}
    assert secret_values({"metadata": {"name": "s"}}) == {}
    with pytest.raises(UsageError):
        secret_values({"metadata": {"name": "s"}, "data": {"a": "é"}})


def test_files_given_as_options_are_bounded(tmp_path):
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    for path in (tmp_path / "large", tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError):
            read_option_file(path)


def test_checksums_of_other_sources_are_an_annotation():
    digest = f"sha256:{'a' * 64}"
    for kind in PLACES:
        body = build_manifests(request(kind, checksum=digest), "ns", "n", 1 << 20).datavolume
        if kind == "http":
            assert body["spec"]["source"]["http"]["checksum"] == digest
        else:
            assert body["metadata"]["annotations"][f"{PREFIX}checksum"] == digest
