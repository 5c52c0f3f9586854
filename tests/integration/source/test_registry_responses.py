"""Tests of a registry's responses, played by the fault server: unusual, broken or hostile."""

import base64
import hashlib
import json
import ssl
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustme

from cdi.api.errors import (
    CdiError,
    ChecksumMismatch,
    SourceForbidden,
    SourceNotAnImage,
    SourceNotFound,
    SourceProtocolError,
    SourceTooManyRedirects,
    SourceUnauthorized,
    SourceUnavailable,
    SourceUnreachable,
    SourceUrlInvalid,
)
from cdi.api.job import Credentials, FileTargetSpec, Job, Policy, Proxy, RegistrySourceSpec, Tls
from cdi.source.base import read_all
from cdi.source.registry.open import open_registry
from cdi.source.registry.reference import Reference
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.faults.proxy import ForwardProxy
from tests.faults.server import Fault, FaultServer
from tests.integration.fixtures_registry import tar_of

LAYER = tar_of({"disk/": b"", "disk/x": bytes(range(256)) * 100})
CONFIG = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
JSON = (("Content-Type", "application/vnd.oci.image.manifest.v1+json"),)


def descriptor(content, media_type):
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


LAYER_AT = descriptor(LAYER, "application/vnd.oci.image.layer.v1.tar")
CONFIG_AT = descriptor(CONFIG, "application/vnd.oci.image.config.v1+json")
MANIFEST = json.dumps({"schemaVersion": 2, "config": CONFIG_AT, "layers": [LAYER_AT]}).encode()


class Registry:
    """The paths of one image on a fault server."""

    def __init__(self, server, trust):
        self.trust = trust
        self.name = server.origin.partition("://")[2]
        self.manifest = "/v2/a/b/manifests/t"
        self.blob = f"/v2/a/b/blobs/{LAYER_AT['digest']}"
        server.put("/v2/", b"{}")
        server.put(self.manifest, MANIFEST)
        server.put(f"/v2/a/b/blobs/{CONFIG_AT['digest']}", CONFIG)
        server.put(self.blob, LAYER)

    def spec(self, **more):
        more.setdefault("tls", self.trust)
        return RegistrySourceSpec(url=f"docker://{self.name}/a/b:t", **more)

    def open(self, **more):
        return open_registry(self.spec(**more), 5)


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """Return a server's TLS settings, and the directory of the CA that it is trusted through."""
    directory = tmp_path_factory.mktemp("authority")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context, Tls(ca_dir=str(directory))


@pytest.fixture
def fault_server(authority):
    """Run the server over TLS, as registries do."""
    with FaultServer(authority[0]) as server:
        yield server


@pytest.fixture
def other(authority):
    with FaultServer(authority[0]) as server:
        yield server


@pytest.fixture
def registry(fault_server, authority):
    return Registry(fault_server, authority[1])


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "u").write_text("user")
    (tmp_path / "p").write_text("hidden")
    return Credentials(access_key_file=str(tmp_path / "u"), secret_key_file=str(tmp_path / "p"))


BASIC = "Basic " + base64.b64encode(b"user:hidden").decode()


def challenge(realm, **more):
    text = ",".join(f'{key}="{value}"' for key, value in {"realm": realm, **more}.items())
    return Fault(status=401, headers=(("WWW-Authenticate", f"Bearer {text}"),))


def test_it_plays_a_sound_one_as_well(registry):
    with registry.open() as image:
        assert read_all(image.layers[0].source, 1 << 20) == LAYER
        assert image.digest.hex == hashlib.sha256(MANIFEST).hexdigest()


class TestDigests:
    def test_a_stated_digest_must_be_the_manifests(self, registry, fault_server):
        fault_server.put(
            registry.manifest, MANIFEST, always=Fault(headers=(("Docker-Content-Digest", "sha256:" + "0" * 64),))
        )
        with pytest.raises(ChecksumMismatch):
            registry.open()

    def test_one_that_is_none_is_a_fault(self, registry, fault_server):
        fault_server.put(registry.manifest, MANIFEST, always=Fault(headers=(("Docker-Content-Digest", "x"),)))
        with pytest.raises(SourceProtocolError):
            registry.open()

    def test_a_pinned_manifest_must_be_it(self, registry, fault_server):
        digest = "sha256:" + "0" * 64
        fault_server.put(f"/v2/a/b/manifests/{digest}", MANIFEST)
        with pytest.raises(ChecksumMismatch):
            open_registry(RegistrySourceSpec(url=f"docker://{registry.name}/a/b@{digest}", tls=registry.trust), 5)

    @pytest.mark.parametrize("content", [b"x" * len(CONFIG), CONFIG + b" ", b""])
    def test_a_config_must_be_it(self, registry, fault_server, content):
        fault_server.put(f"/v2/a/b/blobs/{CONFIG_AT['digest']}", content)
        with pytest.raises(ChecksumMismatch):
            registry.open()

    def test_a_layer_must_have_its_length(self, registry, fault_server):
        fault_server.put(registry.blob, LAYER + b"x")
        with registry.open() as image, pytest.raises(ChecksumMismatch, match="size mismatch"):
            image.layers[0].source.probe()


class TestDocuments:
    def test_more_than_4_mib_are_not_read(self, registry, fault_server):
        fault_server.put(registry.manifest, b" " * (5 << 20))
        with pytest.raises(SourceProtocolError, match="exceeds 4194304 bytes"):
            registry.open()

    def test_neither_are_packed_ones(self, registry, fault_server):
        fault_server.put(registry.manifest, MANIFEST, always=Fault(headers=(("Content-Encoding", "gzip"),)))
        with pytest.raises(SourceProtocolError, match="compressed"):
            registry.open()

    def test_a_log_in_page_is_told_as_such(self, registry, fault_server):
        fault_server.put(
            registry.manifest, b"<!DOCTYPE html><html>", always=Fault(headers=(("Content-Type", "text/html"),))
        )
        with pytest.raises(SourceNotAnImage):
            registry.open()

    @pytest.mark.parametrize(
        "fault",
        [Fault(drop_after=20), Fault(reset_after=20), Fault(announce=len(MANIFEST) + 5, drop_after=len(MANIFEST))],
    )
    def test_a_lost_connection_passes(self, registry, fault_server, fault):
        fault_server.put(registry.manifest, MANIFEST, always=fault)
        with pytest.raises(SourceUnreachable):
            registry.open()

    def test_a_stalled_one_too(self, registry, fault_server):
        fault_server.put(registry.manifest, MANIFEST, always=Fault(stall_after=20))
        with pytest.raises(CdiError) as raised:
            open_registry(registry.spec(), 0.3)
        assert raised.value.code == "SourceStalled"


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "code", "error"),
        [
            (404, "MANIFEST_UNKNOWN", SourceNotFound),
            (404, "NAME_UNKNOWN", SourceNotFound),
            (401, "UNAUTHORIZED", SourceUnauthorized),
            (403, "DENIED", SourceForbidden),
            (429, "TOOMANYREQUESTS", SourceUnavailable),
            (404, None, SourceNotFound),
            (403, None, SourceForbidden),
            (503, None, SourceUnavailable),
        ],
    )
    def test_the_registrys_own_reason_is_given(self, registry, fault_server, status, code, error):
        body = json.dumps({"errors": [{"code": code, "message": "it is so"}]}).encode() if code else b""
        fault_server.put(registry.manifest, b"", always=Fault(status=status, body=body, headers=JSON))
        with pytest.raises(error) as raised:
            registry.open()
        assert code is None or (code in raised.value.what and "it is so" in raised.value.what)

    def test_a_limit_says_when_to_come_again(self, registry, fault_server):
        fault_server.put(registry.manifest, b"", always=Fault(status=429, retry_after="7"))
        with pytest.raises(SourceUnavailable) as raised:
            registry.open()
        assert raised.value.retry_after == 7

    def test_a_missing_layer_is_told_by_the_registry(self, registry, fault_server):
        body = b'{"errors": [{"code": "BLOB_UNKNOWN", "message": "gone"}]}'
        fault_server.put(registry.blob, b"", always=Fault(status=404, body=body))
        with registry.open() as image, pytest.raises(SourceNotFound, match="BLOB_UNKNOWN"):
            image.layers[0].source.probe()

    def test_an_answer_cannot_forge_lines(self, registry, fault_server):
        body = json.dumps({"errors": [{"code": "X\r\nY", "message": "a\x1b[31m\nb" * 1000}] * 1000}).encode()
        fault_server.put(registry.manifest, b"", always=Fault(status=418, body=body))
        with pytest.raises(CdiError) as raised:
            registry.open()
        assert raised.value.message.isprintable()
        assert len(raised.value.message) < 1000


class TestRedirects:
    def test_loops_end(self, registry, fault_server):
        fault_server.put(registry.manifest, b"", always=Fault(status=307, location=registry.manifest))
        with pytest.raises(SourceTooManyRedirects):
            registry.open()

    def test_credentials_stay_with_the_registry(self, registry, fault_server, other, secret):
        fault_server.put("/v2/", b"", always=Fault(status=401, headers=(("WWW-Authenticate", 'Basic realm="x"'),)))
        fault_server.put(registry.manifest, b"", always=Fault(status=307, location=other.put("/m", MANIFEST)))
        fault_server.put(registry.blob, b"", always=Fault(status=307, location=other.put("/l", LAYER)))
        with registry.open(credentials=secret) as image:
            assert read_all(image.layers[0].source, 1 << 20) == LAYER
        assert {request.header("authorization") for request in other.requests} == {None}
        for path in (registry.manifest, registry.blob):
            assert fault_server.asked(path)[0].header("authorization") == BASIC

    def test_a_challenge_of_somebody_else_is_not_answered(self, registry, fault_server, other, secret):
        wants = Fault(status=401, headers=(("WWW-Authenticate", 'Basic realm="x"'),))
        fault_server.put(registry.manifest, b"", always=Fault(status=307, location=other.put("/m", b"", always=wants)))
        with pytest.raises(SourceUnauthorized):
            registry.open(credentials=secret)
        assert {request.header("authorization") for request in other.requests} == {None}

    def test_nor_does_its_token_service_learn_anything(self, registry, fault_server, other, secret):
        wants = challenge(other.put("/token", b'{"token": "t"}'))
        fault_server.put(registry.manifest, b"", always=Fault(status=307, location=other.put("/m", b"", always=wants)))
        with pytest.raises(SourceUnauthorized):
            registry.open(credentials=secret)
        assert not other.asked("/token")

    def test_https_is_not_left_for_http(self, registry, fault_server):
        with FaultServer() as plain:
            fault_server.put(registry.manifest, b"", always=Fault(status=307, location=plain.put("/m", MANIFEST)))
            with pytest.raises(SourceProtocolError, match="https to plain http"):
                registry.open()
            registry.open(tls=Tls(insecure=True)).close()

    @pytest.mark.parametrize("location", ["ftp://x/", "http://[", "http://x:0/"])
    def test_places_that_are_none(self, registry, fault_server, location):
        fault_server.put(registry.manifest, b"", always=Fault(status=307, location=location))
        with pytest.raises((SourceUrlInvalid, SourceProtocolError)):
            registry.open()


class TestRealms:
    """The destinations that receive user and password."""

    @pytest.fixture
    def elsewhere(self, other):
        other.put("/token", b'{"token": "t", "expires_in": 100}')
        return other

    def test_the_token_is_asked_for_with_them_and_sent_without(self, registry, fault_server, elsewhere, secret):
        fault_server.put("/v2/", b"", always=challenge(elsewhere.url("/token"), service="s"))
        registry.open(credentials=secret).close()
        asked = elsewhere.requests[0]
        assert asked.header("authorization") == BASIC
        assert asked.target == "/token?service=s&scope=repository%3Aa%2Fb%3Apull&account=user"
        assert fault_server.asked(registry.manifest)[0].header("authorization") == "Bearer t"

    def test_a_realm_keeps_its_own_query(self, registry, fault_server, elsewhere):
        fault_server.put("/v2/", b"", always=challenge(elsewhere.url("/token?x=y"), scope="aws"))
        registry.open().close()
        assert elsewhere.requests[0].target == "/token?x=y&scope=aws"

    def test_plain_http_elsewhere_gets_nothing(self, registry, fault_server, secret):
        fault_server.put("/v2/", b"", always=challenge("http://token.example/token"))
        with pytest.raises(SourceProtocolError, match="unencrypted"):
            registry.open(credentials=secret)

    def test_plain_http_here_gets_nothing_from_a_registry_that_is_not(
        self, registry, fault_server, secret, monkeypatch
    ):
        monkeypatch.setattr(Reference, "loopback", property(lambda self: False))
        with FaultServer() as plain:
            plain.put("/token", b'{"token": "t"}')
            fault_server.put("/v2/", b"", always=challenge(plain.url("/token")))
            with pytest.raises(SourceProtocolError, match="unencrypted"):
                registry.open(credentials=secret)
            assert not plain.requests
            registry.open(credentials=secret, tls=Tls(insecure=True)).close()
            assert plain.requests[0].header("authorization") == BASIC

    @pytest.mark.parametrize("realm", ["", "x", "file:///etc/passwd", "https://", "http://a b/", "http://[::1"])
    def test_realms_that_are_none(self, registry, fault_server, secret, realm):
        fault_server.put("/v2/", b"", always=challenge(realm))
        fault_server.put(registry.manifest, b"", always=challenge(realm))
        with pytest.raises((SourceProtocolError, SourceUnauthorized)):
            registry.open(credentials=secret)

    def test_a_redirecting_realm_loses_them(self, registry, fault_server, elsewhere, secret, authority):
        with FaultServer(authority[0]) as third:
            third.put("/token", b'{"token": "t"}')
            elsewhere.put("/token", b"", always=Fault(status=302, location=third.url("/token")))
            fault_server.put("/v2/", b"", always=challenge(elsewhere.url("/token")))
            registry.open(credentials=secret).close()
            assert third.requests[0].header("authorization") is None

    @pytest.mark.parametrize(
        "answer",
        [b"", b"[]", b"{}", b"\xff", b'{"token": 5}', b'{"token": ""}', b'{"token": "a\\r\\nX: y"}', b'{"token": "a b"}', b"[" * 100_000, b" " * (1 << 20)],
    )  # fmt: skip
    def test_tokens_that_are_none(self, registry, fault_server, elsewhere, answer):
        elsewhere.put("/token", answer)
        fault_server.put("/v2/", b"", always=challenge(elsewhere.url("/token")))
        with pytest.raises(SourceProtocolError):
            registry.open()

    @pytest.mark.parametrize("life", ["0", "-5", '"x"', "1e99", "99999999999999999999", "null", "true"])
    def test_lives_that_are_odd(self, registry, fault_server, elsewhere, life):
        elsewhere.put("/token", b'{"access_token": "t", "expires_in": %s}' % life.encode())
        fault_server.put("/v2/", b"", always=challenge(elsewhere.url("/token")))
        registry.open().close()

    @pytest.mark.parametrize(
        ("status", "error"), [(401, SourceUnauthorized), (403, SourceUnauthorized), (503, SourceUnavailable)]
    )
    def test_refusals_of_the_token_service(self, registry, fault_server, elsewhere, status, error):
        elsewhere.put("/token", b"", always=Fault(status=status))
        fault_server.put("/v2/", b"", always=challenge(elsewhere.url("/token")))
        with pytest.raises(error):
            registry.open()

    def test_a_token_that_never_helps_is_asked_for_twice_at_most(self, registry, fault_server, elsewhere, secret):
        fault_server.put("/v2/", b"", always=challenge(elsewhere.url("/token")))
        fault_server.put(registry.manifest, b"", always=challenge(elsewhere.url("/token")))
        with pytest.raises(SourceUnauthorized):
            registry.open(credentials=secret)
        assert len(elsewhere.requests) == 2

    def test_cancelling_an_import_does_not_wait_for_a_token(self, registry, fault_server, elsewhere, secret, tmp_path):
        asked = challenge(elsewhere.url("/token"))
        fault_server.put("/v2/", b"", always=asked)
        fault_server.put(registry.blob, LAYER, faults=[Fault(drop_after=5000)], always=asked)
        elsewhere.put("/token", b'{"token": "t"}', faults=[Fault()], always=Fault(stall_after=0))
        job = Job(
            id="x",
            source=registry.spec(credentials=secret),
            target=FileTargetSpec(path=str(tmp_path / "disk.img")),
            policy=Policy(stall_timeout=3600, connections=1),
        )
        control = TransferControl(job)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(transfer, job, control)
            while len(elsewhere.requests) < 2:
                assert not running.done(), running.result()
                time.sleep(0.01)
            control.cancel()
            assert running.result(timeout=60).failure.code == "Interrupted"


class TestRanges:
    def test_a_registry_without_them_is_read_in_one_go(self, registry, fault_server):
        fault_server.put(registry.blob, LAYER, always=lambda request: Fault(ignore_range=True))
        with registry.open() as image:
            facts = image.layers[0].source.probe()
            assert (facts.ranges, facts.length) == (False, len(LAYER))
            assert read_all(image.layers[0].source, 1 << 20) == LAYER


class TestPlain:
    def test_a_server_that_is_silent_to_tls_is_asked_in_the_clear(self, authority):
        with FaultServer() as server:
            registry = Registry(server, authority[1])
            open_registry(registry.spec(), 0.5).close()

    def test_a_proxy_is_used_for_everything(self, authority):
        with FaultServer() as server:
            registry = Registry(server, authority[1])
            with open_registry(registry.spec(proxy=Proxy(http=server.origin)), 0.5) as image:
                assert read_all(image.layers[0].source, 1 << 20) == LAYER
            assert {request.target.partition(":")[0] for request in server.requests} == {"http"}

    def test_a_proxy_that_is_reached_over_tls_is_used_for_everything(self, authority, fault_server):
        with ForwardProxy(tls=authority[0]) as proxy:
            registry = Registry(fault_server, authority[1])
            with open_registry(registry.spec(proxy=Proxy(https=proxy.url)), 5) as image:
                assert read_all(image.layers[0].source, 1 << 20) == LAYER
            # Manifests and layers are read over one connection.
            assert proxy.requests == [f"CONNECT {registry.name} HTTP/1.1"]
