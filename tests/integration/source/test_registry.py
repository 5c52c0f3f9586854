"""Tests of images in real registries, pushed with skopeo."""

import hashlib
import json
import platform as machine

import pytest

from cdi.api.errors import (
    PlatformNotFound,
    SourceCredentialsInvalid,
    SourceForbidden,
    SourceNotFound,
    SourceTlsUntrusted,
    SourceUnauthorized,
    SourceUnreachable,
)
from cdi.api.job import Credentials, RegistrySourceSpec, Tls
from cdi.source.registry.client import RegistryClient
from cdi.source.registry.open import open_registry
from cdi.source.registry.reference import Reference
from tests.integration.fixtures_registry import PASSWORD, USER, OciLayout, tar_of

DISK = bytes(range(256)) * 5000


def read_all(source, offset=0, length=None):
    reader = source.open(offset, length)
    parts = []
    buffer = memoryview(bytearray(100_000))
    while count := reader.readinto(buffer):
        parts.append(bytes(buffer[:count]))
    reader.close()
    return b"".join(parts)


@pytest.fixture
def secret(tmp_path):
    """Write credentials into files."""

    def make(user=USER, password=PASSWORD):
        (tmp_path / "user").write_text(user)
        (tmp_path / "password").write_text(password)
        return Credentials(access_key_file=str(tmp_path / "user"), secret_key_file=str(tmp_path / "password"))

    return make


@pytest.fixture(scope="session")
def pushed(registries, tmp_path_factory):
    """Push one image of two layers to private/disk and public/disk."""
    layout = OciLayout(tmp_path_factory.mktemp("pushed"))
    lower = layout.layer({"etc/": b"", "etc/hostname": b"x"})
    upper = layout.layer({"disk/": b"", "disk/disk.img": DISK}, "none")
    env = ["PATH=/bin", "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.small"]
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine.machine(), machine.machine())
    entry = layout.image([lower, upper], env=env, tag="one", architecture=architecture)
    registries.push(layout, "one", "private/disk:one")
    registries.push(layout, "one", "public/disk:one")
    return entry, upper


def spec(end, name, **more):
    tls = more.pop("tls", Tls(ca_dir=str(end.ca_dir)) if end.ca_dir else Tls(insecure=True))
    return RegistrySourceSpec(url=end.url(name), tls=tls, **more)


@pytest.fixture(scope="session")
def index(registries, tmp_path_factory):
    layout = OciLayout(tmp_path_factory.mktemp("index"))
    images = {}
    for name, variant in {"amd64": None, "arm64": "v8", "s390x": None}.items():
        layer = layout.layer({"disk/": b"", "disk/a.img": name.encode()}, "none")
        images[name] = layout.image([layer], architecture=name, variant=variant)
    entry = layout.index(list(images.values()), tag="t")
    assert registries.push(layout, "t", "public/index:t") == entry["digest"]
    return entry, images


class TestLayers:
    def test_come_top_first_with_their_digests(self, registries, pushed):
        entry, upper = pushed
        with open_registry(spec(registries.open, "public/disk:one"), 10) as image:
            assert str(image.digest) == entry["digest"]
            assert image.labels == {"instancetype.kubevirt.io/default-instancetype": "u1.small"}
            top, bottom = image.layers
            assert str(top.digest) == upper["digest"]
            facts = top.source.probe()
            assert (facts.length, facts.ranges, facts.digests) == (upper["size"], True, (top.digest,))
            assert read_all(top.source) == tar_of({"disk/": b"", "disk/disk.img": DISK})
            assert hashlib.sha256(read_all(bottom.source)).hexdigest() == bottom.digest.hex

    def test_are_read_by_range(self, registries, pushed):
        with open_registry(spec(registries.open, "public/disk:one"), 10) as image:
            whole = tar_of({"disk/": b"", "disk/disk.img": DISK})
            assert read_all(image.layers[0].source, 70_001, 5_000) == whole[70_001:75_001]

    @pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
    def test_of_every_compression_arrive_as_they_are(self, registries, oci_layout, compression):
        layer = oci_layout.layer({"disk/": b"", "disk/a.img": DISK}, compression)
        oci_layout.image([layer], tag="t")
        registries.push(oci_layout, "t", f"compression/{compression}:t")
        with open_registry(spec(registries.open, f"compression/{compression}:t", architecture="amd64"), 10) as image:
            assert image.layers[0].media_type == layer["mediaType"]
            content = read_all(image.layers[0].source)
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == layer["digest"]

    def test_of_dockers_own_manifests_too(self, registries, oci_layout):
        oci_layout.image([oci_layout.layer({"disk/": b"", "disk/a.img": DISK})], tag="t", env=["KUBEVIRT_IO_A=b"])
        registries.push(oci_layout, "t", "docker/schema2:t", docker=True)
        with open_registry(spec(registries.open, "docker/schema2:t", architecture="amd64"), 10) as image:
            assert image.layers[0].media_type.startswith("application/vnd.docker.image.rootfs.diff.tar")
            assert image.labels == {"kubevirt.io/a": "b"}
            read_all(image.layers[0].source)


class TestNames:
    def test_a_digest_pins_the_image(self, registries, pushed):
        entry, _ = pushed
        with open_registry(spec(registries.open, f"public/disk@{entry['digest']}"), 10) as image:
            assert str(image.digest) == entry["digest"]

    @pytest.mark.parametrize("name", ["public/disk:two", "public/nothing:one", "public/disk@sha256:" + "0" * 64])
    def test_what_is_not_there_is_not_found(self, registries, pushed, name):
        with pytest.raises(SourceNotFound, match="UNKNOWN"):
            open_registry(spec(registries.open, name), 10)

    def test_a_poller_learns_the_digest_alone(self, registries, pushed):
        with RegistryClient(spec(registries.open, "public/disk:one"), 10) as client:
            document = client.document(Reference.parse(registries.open.url("public/disk:one")))
        assert str(document.digest) == pushed[0]["digest"]


class TestPlatforms:
    @pytest.mark.parametrize("wanted", ["amd64", "arm64", "s390x", "arm64/v8", "linux/amd64", "x86_64", "aarch64"])
    def test_the_wanted_one_is_chosen(self, registries, index, wanted):
        entry, images = index
        name = {"arm64/v8": "arm64", "linux/amd64": "amd64", "x86_64": "amd64", "aarch64": "arm64"}.get(wanted, wanted)
        with open_registry(spec(registries.open, "public/index:t", architecture=wanted), 10) as image:
            assert str(image.digest) == entry["digest"]
            assert str(image.image.manifest_digest) == images[name]["digest"]
            assert name.encode() in read_all(image.layers[0].source)

    def test_a_missing_one_is_named_with_those_that_exist(self, registries, index):
        with pytest.raises(PlatformNotFound) as raised:
            open_registry(spec(registries.open, "public/index:t", architecture="riscv64"), 10)
        assert "linux/riscv64; it has linux/amd64, linux/arm64/v8, linux/s390x" in raised.value.what

    def test_a_single_image_for_another_machine_is_refused_if_one_was_asked_for(self, registries, pushed):
        with pytest.raises(PlatformNotFound):
            open_registry(spec(registries.open, "public/disk:one", architecture="s390x"), 10)

    def test_a_single_image_for_another_machine_is_taken_if_none_was(self, registries, oci_layout):
        oci_layout.image([oci_layout.layer({"disk/": b"", "disk/a": b"x"})], architecture="riscv64", tag="t")
        registries.push(oci_layout, "t", "public/riscv:t")
        open_registry(spec(registries.open, "public/riscv:t"), 10).close()


class TestTrust:
    def test_an_unknown_authority_is_not_trusted(self, registries, secret):
        with pytest.raises(SourceTlsUntrusted):
            open_registry(spec(registries.basic, "private/disk:one", tls=Tls(), credentials=secret()), 10)

    def test_insecure_takes_any_certificate(self, registries, pushed, secret):
        open_registry(
            spec(registries.basic, "private/disk:one", tls=Tls(insecure=True), credentials=secret()), 10
        ).close()

    def test_plain_http_elsewhere_needs_insecure(self, registries, pushed, monkeypatch):
        monkeypatch.setattr(Reference, "loopback", property(lambda self: False))
        with pytest.raises(SourceUnreachable, match="TLS"):
            open_registry(spec(registries.open, "public/disk:one", tls=Tls()), 10)
        open_registry(spec(registries.open, "public/disk:one"), 10).close()

    def test_plain_http_on_this_machine_does_not(self, registries, pushed):
        open_registry(spec(registries.open, "public/disk:one", tls=Tls()), 10).close()


class TestBasic:
    def test_user_and_password_open_it(self, registries, pushed, secret):
        with open_registry(spec(registries.basic, "private/disk:one", credentials=secret()), 10) as image:
            assert len(read_all(image.layers[0].source)) == image.layers[0].size

    def test_nobody_is_unauthorised(self, registries, pushed):
        with pytest.raises(SourceUnauthorized):
            open_registry(spec(registries.basic, "private/disk:one"), 10)

    def test_a_wrong_password_is_unauthorised(self, registries, pushed, secret):
        with pytest.raises(SourceUnauthorized) as raised:
            open_registry(spec(registries.basic, "private/disk:one", credentials=secret(password="wrong-one")), 10)
        assert "wrong-one" not in str(raised.value)

    def test_a_dockerconfigjson_opens_it(self, registries, pushed, tmp_path):
        import base64

        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        file = tmp_path / ".dockerconfigjson"
        file.write_text(json.dumps({"auths": {f"https://{registries.basic.address}/v2/": {"auth": auth}}}))
        credentials = Credentials(docker_config_file=str(file))
        open_registry(spec(registries.basic, "private/disk:one", credentials=credentials), 10).close()

    def test_a_secret_with_half_of_what_it_needs_is_named(self, registries, pushed, tmp_path):
        (tmp_path / "user").write_text("x")
        credentials = Credentials(access_key_file=str(tmp_path / "user"))
        with pytest.raises(SourceCredentialsInvalid, match="both"):
            open_registry(spec(registries.basic, "private/disk:one", credentials=credentials), 10)


class TestTokens:
    @pytest.fixture(autouse=True)
    def service(self, registries):
        registries.tokens.requests.clear()
        registries.tokens.life = 300
        return registries.tokens

    def test_anybody_gets_one_for_public_images(self, registries, pushed, service):
        with open_registry(spec(registries.token, "public/disk:one"), 10) as image:
            assert len(read_all(image.layers[0].source)) == image.layers[0].size
        assert [request["authorization"] for request in service.requests] == [""]
        assert service.requests[0]["scope"] == "repository:public/disk:pull"
        assert service.requests[0]["service"] == "cdi test registry"

    def test_nobody_gets_none_for_private_ones(self, registries, pushed):
        with pytest.raises((SourceUnauthorized, SourceForbidden)):
            open_registry(spec(registries.token, "private/disk:one"), 10)

    def test_user_and_password_get_one(self, registries, pushed, secret):
        with open_registry(spec(registries.token, "private/disk:one", credentials=secret()), 10) as image:
            assert len(read_all(image.layers[0].source)) == image.layers[0].size

    def test_a_wrong_password_is_told_as_such(self, registries, pushed, secret):
        with pytest.raises(SourceUnauthorized, match="rejected the credentials"):
            open_registry(spec(registries.token, "private/disk:one", credentials=secret(password="x")), 10)

    def test_an_identity_token_gets_one(self, registries, pushed, service, tmp_path):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"auths": {registries.token.address: {"identitytoken": "identity-1"}}}))
        credentials = Credentials(docker_config_file=str(file))
        open_registry(spec(registries.token, "private/disk:one", credentials=credentials), 10).close()
        assert {request["method"] for request in service.requests} == {"POST"}

    def test_a_token_that_ran_out_is_renewed_for_a_layer(self, registries, pushed, service, secret):
        with open_registry(spec(registries.token, "private/disk:one", credentials=secret()), 10) as image:
            source = image.layers[0].source
            source.probe()
            gate = source.endpoint._gate
            gate._access.authorization = type(gate._access.authorization)(value="Bearer forged")
            asked = len(service.requests)
            assert len(read_all(source)) == image.layers[0].size
            assert len(service.requests) == asked + 1

    def test_a_stale_token_is_renewed_before_it_is_sent(self, registries, pushed, service, secret):
        service.life = 1
        with open_registry(spec(registries.token, "private/disk:one", credentials=secret()), 10) as image:
            gate = image.layers[0].source.endpoint._gate
            gate._access.authorization = type(gate._access.authorization)(value="Bearer x", until=0.0)
            assert gate.value() != "Bearer x"

    def test_one_client_serves_many_requests_with_one_token(self, registries, pushed, service, secret):
        with RegistryClient(spec(registries.token, "private/disk:one", credentials=secret()), 10) as client:
            reference = Reference.parse(registries.token.url("private/disk:one"))
            digests = {client.document(reference).digest for _ in range(3)}
        assert len(digests) == 1
        assert len(service.requests) == 1
