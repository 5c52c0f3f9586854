"""Tests of objects in Google Cloud Storage, against a fake of its JSON API."""

import gzip
import hashlib
import json
import ssl

import pytest
import trustme

from cdi.api.digest import Digest
from cdi.api.errors import (
    SourceChanged,
    SourceCredentialsInvalid,
    SourceForbidden,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnreachable,
)
from cdi.api.job import Credentials, GcsSourceSpec, Proxy, Tls
from cdi.source.base import read_all
from cdi.source.gcs import open_gcs
from cdi.source.gcs_credentials import AccessTokenProvider
from tests.faults.proxy import ForwardProxy

DISK = bytes(range(256)) * 2000


@pytest.fixture
def spec(gcs_standin):
    def make(url="gs://images/dir/disk.img", **more):
        more.setdefault("endpoint", gcs_standin.origin)
        return GcsSourceSpec(url=url, **more)

    return make


@pytest.fixture
def secret(gcs_standin, tmp_path):
    """Write a service account's key into a file."""

    def make(account, **changes):
        file = tmp_path / "credentials.json"
        file.write_text(json.dumps({**account.info(gcs_standin.token_uri), **changes}))
        return Credentials(service_account_file=str(file))

    return make


def content(spec):
    with open_gcs(spec, 10) as source:
        return read_all(source, 1 << 24)


class TestPublic:
    def test_facts_come_first(self, gcs_standin, spec):
        stored = gcs_standin.put("images", "dir/disk.img", DISK)
        with open_gcs(spec(), 10) as source:
            facts = source.probe()
        assert (facts.length, facts.ranges, facts.name) == (len(DISK), True, "disk.img")
        assert facts.validator == str(stored.generation)
        assert facts.digests == (Digest("md5", hashlib.md5(DISK).hexdigest()),)
        assert facts.location == "gs://images/dir/disk.img"
        assert not any("authorization" in request for request in gcs_standin.requests)

    def test_ranges_and_the_whole(self, gcs_standin, spec):
        gcs_standin.put("images", "dir/disk.img", DISK)
        assert content(spec()) == DISK
        with open_gcs(spec(), 10) as source:
            buffer = memoryview(bytearray(1000))
            reader = source.open(12_345, 1000)
            done = 0
            while count := reader.readinto(buffer[done:]):
                done += count
            reader.close()
            assert bytes(buffer[:done]) == DISK[12_345:13_345]

    @pytest.mark.parametrize("name", ["a b/c+d.img", "ü/你.img", "50%.img", "a?b&c=d", "a#b", "~-._"])
    def test_names_may_be_odd(self, gcs_standin, spec, name):
        gcs_standin.put("images", name, b"odd")
        assert content(spec("gs://images/" + name.replace("%", "%25"))) == b"odd"

    def test_a_composed_object_promises_nothing(self, gcs_standin, spec):
        gcs_standin.put("images", "dir/disk.img", DISK, composed=True)
        with open_gcs(spec(), 10) as source:
            assert source.probe().digests == ()

    def test_a_packed_object_is_read_as_it_is_stored(self, gcs_standin, spec):
        packed = gzip.compress(DISK)
        gcs_standin.put("images", "dir/disk.img", packed, content_encoding="gzip")
        with open_gcs(spec(), 10) as source:
            facts = source.probe()
            assert (facts.length, facts.ranges) == (len(packed), True)
            assert facts.digests == (Digest("md5", hashlib.md5(packed).hexdigest()),)
            assert read_all(source, 1 << 24) == packed

    def test_an_empty_object_has_no_bytes(self, gcs_standin, spec):
        gcs_standin.put("images", "dir/disk.img", b"")
        assert content(spec()) == b""

    def test_siblings_share_the_prefix(self, gcs_standin, spec):
        gcs_standin.put("images", "dir/disk.img", DISK)
        gcs_standin.put("images", "dir/SHA256SUMS", b"sums")
        with open_gcs(spec(), 10) as source, source.sibling("SHA256SUMS") as sums:
            assert read_all(sums, 100) == b"sums"

    def test_an_emulator_is_found_through_the_environment(self, gcs_standin, monkeypatch):
        gcs_standin.put("images", "k", DISK)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_standin.origin.removeprefix("http://"))
        assert content(GcsSourceSpec(url="gs://images/k")) == DISK

    def test_another_service_may_stand_in_the_url(self, gcs_standin):
        gcs_standin.put("images", "k", DISK)
        assert content(GcsSourceSpec(url=f"{gcs_standin.origin}/storage/v1/b/images/o/k")) == DISK

    def test_a_host_in_the_url_is_asked_over_the_xml_api(self, nginx):
        nginx.put("images/dir/disk.img", DISK)
        nginx.put("images/dir/SHA256SUMS", b"sums")
        url = nginx.url("images/dir/disk.img")
        with open_gcs(GcsSourceSpec(url=url), 10) as source, source.sibling("SHA256SUMS") as sums:
            facts = source.probe()
            assert (facts.length, facts.ranges, facts.name, facts.location) == (len(DISK), True, "disk.img", url)
            assert read_all(source, 1 << 24) == DISK
            assert read_all(sums, 100) == b"sums"
        with pytest.raises(SourceNotFound, match="answered 404") as missing:
            content(GcsSourceSpec(url=nginx.url("images/none")))
        assert missing.value.upstream == "storage: object doesn't exist"

    def test_a_service_account_reads_over_the_xml_api(self, gcs_standin, secret):
        account = gcs_standin.account()
        gcs_standin.put("images", "k", DISK, public=False, readers=frozenset({account.email}))
        url = f"{gcs_standin.origin}/images/k"
        assert content(GcsSourceSpec(url=url, credentials=secret(account))) == DISK
        with pytest.raises(SourceUnauthorized, match="anonymous"):
            content(GcsSourceSpec(url=url))


class TestChange:
    def test_a_replaced_object_is_noticed(self, gcs_standin, spec):
        gcs_standin.put("images", "dir/disk.img", DISK)
        with open_gcs(spec(), 10) as source:
            source.probe()
            gcs_standin.put("images", "dir/disk.img", DISK[::-1])
            with pytest.raises(SourceChanged):
                source.open(0, 10).readinto(memoryview(bytearray(10)))

    def test_a_generation_that_is_gone_is_not_found(self, gcs_standin, spec):
        stored = gcs_standin.put("images", "dir/disk.img", DISK)
        assert content(spec(f"gs://images/dir/disk.img#{stored.generation}")) == DISK
        with pytest.raises(SourceNotFound, match="No such object"):
            content(spec("gs://images/dir/disk.img#12"))


class TestAccounts:
    def test_a_service_account_reads_what_it_may(self, gcs_standin, spec, secret):
        account = gcs_standin.account()
        gcs_standin.put("images", "dir/disk.img", DISK, public=False, readers=frozenset({account.email}))
        assert content(spec(credentials=secret(account))) == DISK
        assert [request["path"] for request in gcs_standin.requests].count("/token") == 1

    def test_tokens_are_fetched_through_a_proxy_that_is_reached_over_tls(self, gcs_standin, secret, tmp_path):
        authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        (tmp_path / "trusted").mkdir()
        authority.cert_pem.write_to_path(str(tmp_path / "trusted" / "ca.pem"))
        with ForwardProxy(tls=context) as proxy:
            tokens = AccessTokenProvider.from_file(
                secret(gcs_standin.account()).service_account_file,
                tls=Tls(ca_dir=str(tmp_path / "trusted")),
                proxy=Proxy(http=proxy.url),
            )
            assert tokens.get().startswith("Bearer ")
            assert proxy.requests == [f"POST {gcs_standin.token_uri} HTTP/1.1"]

    def test_one_without_the_role_is_forbidden(self, gcs_standin, spec, secret):
        gcs_standin.put("images", "dir/disk.img", DISK, public=False)
        with pytest.raises(SourceForbidden, match="objectViewer"):
            content(spec(credentials=secret(gcs_standin.account())))

    def test_anybody_is_told_that_they_are(self, gcs_standin, spec):
        gcs_standin.put("images", "dir/disk.img", DISK, public=False)
        with pytest.raises(SourceUnauthorized, match="anonymous"):
            content(spec())

    def test_a_key_of_another_account_gets_no_token(self, gcs_standin, spec, secret):
        real, forged = gcs_standin.account(), gcs_standin.account("other@test")
        credentials = secret(forged, client_email=real.email)
        with pytest.raises(SourceUnauthorized, match="no token"):
            content(spec(credentials=credentials))

    def test_a_token_that_ran_out_is_renewed(self, gcs_standin, spec, secret):
        account = gcs_standin.account()
        gcs_standin.put("images", "dir/disk.img", DISK, public=False, readers=frozenset({account.email}))
        with open_gcs(spec(credentials=secret(account)), 10) as source:
            source.probe()
            gcs_standin.tokens.clear()
            assert read_all(source, 1 << 24) == DISK
        assert [request["path"] for request in gcs_standin.requests].count("/token") == 2

    def test_the_environment_may_name_one(self, gcs_standin, spec, secret, monkeypatch):
        account = gcs_standin.account()
        gcs_standin.put("images", "dir/disk.img", DISK, public=False, readers=frozenset({account.email}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", secret(account).service_account_file)
        assert content(spec()) == DISK

    def test_the_environments_is_not_for_hosts_that_a_url_names(self, gcs_standin, secret, monkeypatch):
        gcs_standin.put("images", "k", DISK)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", secret(gcs_standin.account()).service_account_file)
        assert content(GcsSourceSpec(url=f"{gcs_standin.origin}/images/k")) == DISK
        assert not any("authorization" in request for request in gcs_standin.requests)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("{", "not JSON"),
            ("[]", "not service_account"),
            ('{"type": "external_account", "credential_source": {"file": "/etc/shadow"}}', "external_account"),
            ('{"type": "service_account"}', "lacks a field"),
        ],
    )
    def test_other_secrets_are_refused(self, spec, tmp_path, text, match):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(SourceCredentialsInvalid, match=match):
            open_gcs(spec(credentials=Credentials(service_account_file=str(tmp_path / "c.json"))), 10)

    def test_proof_of_identity_goes_over_https_only(self, gcs_standin, spec, secret):
        credentials = secret(gcs_standin.account(), token_uri="http://token.example/token")
        with pytest.raises(SourceCredentialsInvalid, match="https"):
            open_gcs(spec(credentials=credentials), 10)

    def test_a_token_service_that_is_away_is_unreachable(self, gcs_standin, spec, secret, unused_tcp_port):
        credentials = secret(gcs_standin.account(), token_uri=f"http://127.0.0.1:{unused_tcp_port}/token")
        with pytest.raises(SourceUnreachable):
            content(spec(credentials=credentials))
