"""Tests of polls against real servers; the fault server plays those that lie, break or say too little."""

import hashlib
import json
import shutil
import subprocess

import pytest

from cdi.api.job import (
    BlankSourceSpec,
    Credentials,
    GcsSourceSpec,
    HttpSourceSpec,
    Policy,
    RegistrySourceSpec,
    S3SourceSpec,
    Tls,
)
from cdi.api.poll import PollJob
from cdi.transfer.control import TransferControl
from cdi.transfer.poll import poll
from tests.faults.server import Fault
from tests.integration.fixtures_registry import PASSWORD, USER, OciLayout
from tests.integration.fixtures_s3 import ACCESS_KEY, SECRET_KEY

DISK = bytes(range(256)) * 2000
INDEX = "application/vnd.oci.image.index.v1+json"


def sha256(content):
    if isinstance(content, str):
        content = content.encode()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def found(source, *, timeout=20.0, retries=0, control=None, known=None, **policy):
    policy = Policy(retries=retries, stall_timeout=5, **policy)
    job = PollJob(id="uid", source=source, policy=policy, timeout=timeout, known=known)
    result = poll(job, control)
    assert result.id == "uid"
    assert len(result.to_json().encode()) <= 4096
    return result


def failed(source, **more):
    failure = found(source, **more).failure
    assert failure is not None
    assert ". Try: " in failure.message
    return failure


# --- registries ---------------------------------------------------------------------------------------------------


class TestRegistry:
    @pytest.fixture
    def layout(self, tmp_path):
        return OciLayout(tmp_path / "layout")

    def push(self, registries, layout, tag, content, name, *, architectures=("amd64", "arm64")):
        entries = [
            layout.image([layout.layer({"disk/": b"", f"disk/{one}.img": content})], architecture=one)
            for one in architectures
        ]
        layout.index(entries, tag=tag)
        return registries.push(layout, tag, name)

    def test_the_digest_is_that_of_the_index_whatever_the_architecture(self, registries, layout):
        digest = self.push(registries, layout, "one", b"1", "public/polled:index")
        url = registries.open.url("public/polled:index")
        result = found(RegistrySourceSpec(url=url, architecture="s390x"))
        assert (result.digest, result.identity, result.failure) == (digest, "manifest", None)
        assert result.architectures == ("amd64", "arm64")
        assert result.resolved == f"{url.removesuffix(':index')}@{digest}"

    def test_a_tag_that_moves_forth_and_back_is_a_new_digest_and_then_the_old_one(self, registries, layout):
        source = RegistrySourceSpec(url=registries.open.url("public/polled:flips"))
        one = self.push(registries, layout, "one", b"1", "public/polled:flips")
        assert [found(source).digest, found(source).digest] == [one, one]
        two = self.push(registries, layout, "two", b"2", "public/polled:flips")
        assert found(source).digest == two != one
        registries.push(layout, "one", "public/polled:flips")
        assert found(source).digest == one

    def test_a_digest_that_is_known_is_confirmed_or_replaced(self, registries, layout):
        source = RegistrySourceSpec(
            url=registries.token.url("public/polled:known"), tls=Tls(ca_dir=str(registries.token.ca_dir))
        )
        one = self.push(registries, layout, "one", b"1", "public/polled:known")
        result = found(source, known=one)
        assert (result.digest, result.identity, result.resolved) == (one, "manifest", None)
        two = self.push(registries, layout, "two", b"2", "public/polled:known")
        result = found(source, known=one)
        assert result.digest == two
        assert result.resolved.endswith(two)

    def test_a_change_of_another_architecture_is_a_new_version(self, registries, layout):
        source = RegistrySourceSpec(url=registries.open.url("public/polled:grows"), architecture="amd64")
        self.push(registries, layout, "one", b"1", "public/polled:grows", architectures=("amd64",))
        before = found(source)
        self.push(registries, layout, "two", b"1", "public/polled:grows")
        assert found(source).digest != before.digest

    def test_a_single_image_is_named_by_its_manifest(self, registries, layout):
        layout.image([layout.layer({"disk/": b"", "disk/x": b"1"})], tag="one")
        digest = registries.push(layout, "one", "public/polled:single")
        result = found(RegistrySourceSpec(url=registries.open.url("public/polled:single")))
        assert (result.digest, result.architectures) == (digest, ())

    def test_a_url_with_a_digest_keeps_it_and_must_exist(self, registries, layout):
        digest = self.push(registries, layout, "one", b"1", "public/polled:pinned")
        repository = registries.open.url("public/polled")
        result = found(RegistrySourceSpec(url=f"{repository}@{digest}"))
        assert (result.digest, result.resolved) == (digest, f"{repository}@{digest}")
        failure = failed(RegistrySourceSpec(url=f"{repository}@sha256:{'0' * 64}"))
        assert failure.code == "SourceNotFound"

    @pytest.mark.parametrize("secret", [False, True])
    def test_credentials_are_used_and_never_shown(self, registries, layout, tmp_path, secret):
        digest = self.push(registries, layout, "one", b"1", "private/polled:one")
        (tmp_path / "user").write_text(USER)
        (tmp_path / "password").write_text(PASSWORD if secret else "wr0ng-secret")
        result = found(
            RegistrySourceSpec(
                url=registries.basic.url("private/polled:one"),
                credentials=Credentials(
                    access_key_file=str(tmp_path / "user"), secret_key_file=str(tmp_path / "password")
                ),
                tls=Tls(ca_dir=str(registries.basic.ca_dir)),
            )
        )
        assert result.digest == (digest if secret else None)
        assert secret or result.failure.code == "SourceUnauthorized"
        assert "s3cret" not in result.to_json() and "wr0ng" not in result.to_json()

    def test_an_unknown_tag_is_a_failure_with_a_remedy(self, registries):
        failure = failed(RegistrySourceSpec(url=registries.open.url("public/polled:unknown")))
        assert (failure.code, failure.retry) == ("SourceNotFound", "on-change")

    def test_an_archive_is_polled_as_a_registry_is(self, layout, tmp_path):
        entry = layout.image([layout.layer({"disk/": b"", "disk/x": b"1"})], tag="one")
        result = found(RegistrySourceSpec(url=f"oci-archive:{layout.archive(tmp_path / 'x.tar')}"))
        assert (result.digest, result.resolved) == (entry["digest"], None)


class TestRegistryFaults:
    BODY = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()

    @pytest.fixture
    def source(self, fault_server):
        fault_server.put("/v2/", b"{}")
        return RegistrySourceSpec(url=f"docker://{fault_server.origin.partition('://')[2]}/a/b:t")

    def put(self, fault_server, fault=None, body=BODY):
        headers = (("Content-Type", INDEX), *(fault.headers if fault else ()))
        fields = {"headers": headers}
        if fault is not None and fault.stall_after is not None:
            fields["stall_after"] = fault.stall_after
        fault_server.put("/v2/a/b/manifests/t", body, always=Fault(**fields))

    def test_a_registry_that_states_another_digest_than_it_serves_is_refused(self, fault_server, source):
        self.put(fault_server, Fault(headers=(("Docker-Content-Digest", sha256("other")),)))
        assert failed(source).code == "ChecksumMismatch"

    def test_a_manifest_that_is_known_is_not_read(self, fault_server, source):
        self.put(fault_server, Fault(headers=(("Docker-Content-Digest", sha256(self.BODY)),)))
        assert found(source, known=sha256(self.BODY)).digest == sha256(self.BODY)
        assert {request.method for request in fault_server.requests if "manifests" in request.path} == {"HEAD"}

    @pytest.mark.parametrize("fault", [Fault(), Fault(headers=(("Docker-Content-Digest", sha256("other")),))])
    def test_a_digest_that_is_not_confirmed_is_taken_from_the_manifest(self, fault_server, source, fault):
        self.put(fault_server, fault)
        result = found(source, known=sha256("before"))
        assert (result.digest == sha256(self.BODY)) == (not fault.headers)
        assert not fault.headers or result.failure.code == "ChecksumMismatch"

    def test_a_registry_without_head_is_polled_all_the_same(self, fault_server, source):
        fault_server.put(
            "/v2/a/b/manifests/t",
            self.BODY,
            faults=[Fault(status=405)],
            always=Fault(headers=(("Content-Type", INDEX),)),
        )
        assert found(source, known=sha256(self.BODY)).digest == sha256(self.BODY)

    def test_a_registry_that_states_no_digest_is_hashed(self, fault_server, source):
        self.put(fault_server)
        assert found(source).digest == sha256(self.BODY)

    def test_a_registry_that_names_content_by_sha512_gives_a_sha256(self, fault_server, source):
        stated = f"sha512:{hashlib.sha512(self.BODY).hexdigest()}"
        self.put(fault_server, Fault(headers=(("Docker-Content-Digest", stated),)))
        result = found(source)
        assert result.digest == sha256(self.BODY)
        assert result.resolved.endswith(f"/a/b@{stated}")

    def test_a_manifest_of_any_size_is_not_read(self, fault_server, source):
        self.put(fault_server, body=self.BODY + b" " * (5 << 20))
        assert failed(source).code == "SourceProtocolError"

    def test_a_web_page_is_not_a_manifest(self, fault_server, source):
        self.put(fault_server, body=b"<html>log in</html>")
        assert failed(source).code == "SourceNotAnImage"

    def test_a_limit_of_the_registry_is_a_transient_failure(self, fault_server, source):
        fault_server.put("/v2/a/b/manifests/t", b"", always=Fault(status=429, retry_after="1"))
        failure = failed(source)
        assert (failure.code, failure.retry) == ("SourceUnavailable", "backoff")

    def test_a_registry_that_stalls_ends_with_the_timeout(self, fault_server, source):
        self.put(fault_server, Fault(stall_after=10))
        failure = failed(source, timeout=0.5)
        assert failure.code == "SourceStalled"
        assert "0.5 s" in failure.message

    def test_hundreds_of_architectures_fit_the_message(self, fault_server, source):
        entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sha256("x"), "size": 1}
        manifests = [{**entry, "platform": {"architecture": f"a{n}" + "x" * 60, "os": "linux"}} for n in range(999)]
        self.put(
            fault_server, body=json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()
        )
        assert found(source).digest is not None


# --- HTTP ---------------------------------------------------------------------------------------------------------


class TestHttp:
    def digest(self, location, value):
        return sha256(f"http\n{location}\n{value}")

    def test_a_strong_etag_identifies_the_content(self, nginx):
        nginx.put("polls/etag/disk.img", DISK)
        source = HttpSourceSpec(url=nginx.url("polls/etag/disk.img"))
        first = found(source)
        assert (first.identity, first.size, first.resolved) == ("etag", len(DISK), None)
        assert found(source).digest == first.digest
        nginx.put("polls/etag/disk.img", DISK + b"more")
        assert found(source).digest != first.digest

    def test_the_format_of_the_digest_is_documented(self, fault_server):
        fault_server.put("/disk.img", DISK, always=Fault(etag='"v1"'))
        assert found(HttpSourceSpec(url=fault_server.url("/disk.img"))).digest == self.digest(
            fault_server.url("/disk.img"), '"v1"'
        )

    def test_a_checksum_file_is_preferred(self, nginx):
        nginx.put("polls/sums/disk.img", DISK)
        sums = nginx.put("polls/sums/SHA256SUMS", f"{'0' * 64}  other.img\n{sha256(DISK)[7:]} *disk.img\n".encode())
        source = HttpSourceSpec(url=nginx.url("polls/sums/disk.img"))
        result = found(source)
        assert (result.digest, result.identity, result.checksum) == (sha256(DISK), "checksum file", sha256(DISK))
        # Without the file, another value identifies the content.
        sums.unlink()
        assert found(source).identity == "etag"

    def test_another_algorithm_than_sha256_gives_a_sha256_all_the_same(self, nginx):
        nginx.put("polls/sha512/disk.img", DISK)
        value = hashlib.sha512(DISK).hexdigest()
        nginx.put("polls/sha512/SHA512SUMS", f"{value}  disk.img\n".encode())
        url = nginx.url("polls/sha512/disk.img")
        result = found(HttpSourceSpec(url=url))
        assert result.digest == self.digest(url, f"sha512:{value}")
        assert result.checksum == f"sha512:{value}"

    def test_checksum_files_are_left_alone_where_the_policy_says_so(self, nginx):
        nginx.put("polls/ignored/disk.img", DISK)
        nginx.put("polls/ignored/SHA256SUMS", f"{sha256(DISK)[7:]}  disk.img\n".encode())
        result = found(HttpSourceSpec(url=nginx.url("polls/ignored/disk.img")), discover_checksum=False)
        assert result.identity == "etag"

    def test_a_required_checksum_file_is_required(self, nginx):
        nginx.put("polls/required/disk.img", DISK)
        failure = failed(HttpSourceSpec(url=nginx.url("polls/required/disk.img")), require_checksum=True)
        assert failure.code == "ChecksumMissing"

    def test_a_checksum_file_that_cannot_be_read_now_is_no_new_version(self, fault_server):
        fault_server.put("/disk.img", DISK)
        fault_server.put("/SHA256SUMS", f"{sha256(DISK)[7:]}  disk.img\n".encode(), faults=[Fault(status=503)])
        source = HttpSourceSpec(url=fault_server.url("/disk.img"))
        assert failed(source).code == "SourceUnavailable"
        assert found(source).digest == sha256(DISK)

    def test_a_checksum_file_of_any_size_is_not_read(self, fault_server):
        fault_server.put("/disk.img", DISK)
        fault_server.put("/SHA256SUMS", b"x" * (2 << 20))
        result = found(HttpSourceSpec(url=fault_server.url("/disk.img")))
        assert result.identity == "etag"

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(etag='W/"weak"'),
            Fault(without=("ETag",)),
            Fault(without=("ETag", "Last-Modified")),
        ],
    )
    def test_a_weak_etag_and_a_date_identify_nothing(self, fault_server, fault):
        fault_server.put("/disk.img", DISK, always=fault)
        failure = failed(HttpSourceSpec(url=fault_server.url("/disk.img")))
        assert (failure.code, failure.retry) == ("SourceVersionUnknown", "on-change")
        assert "SHA256SUMS" in failure.message

    def test_the_content_is_never_downloaded(self, fault_server):
        fault_server.put("/disk.img", bytes(64 << 20), always=Fault(etag='"v1"'))
        assert found(HttpSourceSpec(url=fault_server.url("/disk.img"))).failure is None
        assert [request.range for request in fault_server.requests if request.path == "/disk.img"] == [(0, 0)]

    def test_a_server_without_ranges_need_not_send_the_content(self, fault_server):
        fault = Fault(etag='"v1"', ignore_range=True, stall_after=100, without=("Accept-Ranges",))
        fault_server.put("/disk.img", DISK, always=fault)
        result = found(HttpSourceSpec(url=fault_server.url("/disk.img")))
        assert (result.identity, result.size) == ("etag", len(DISK))

    @pytest.mark.parametrize(
        ("name", "way", "code"), [("missing.img", "", "SourceNotFound"), ("disk.img", "private", "SourceUnauthorized")]
    )
    def test_refusals_are_failures_with_a_remedy(self, nginx, name, way, code):
        nginx.put("disk.img", DISK)
        assert failed(HttpSourceSpec(url=nginx.url(name, way))).code == code

    def test_secrets_are_in_no_result(self, fault_server):
        for path, fault in (("/ok.img", Fault(etag='"v1"')), ("/bad.img", Fault(status=403))):
            fault_server.put(path, DISK, always=fault)
            origin = fault_server.origin.replace("://", "://user:s3cret@")
            result = found(HttpSourceSpec(url=f"{origin}{path}?token=s3cret", headers=("X-Key: s3cret",)))
            assert "s3cret" not in result.to_json()
            assert (result.digest is None) == (path == "/bad.img")
        plain = found(HttpSourceSpec(url=fault_server.url("/ok.img")))
        assert plain.digest == self.digest(fault_server.url("/ok.img"), '"v1"')

    def test_a_poll_that_is_stopped_says_so(self, fault_server):
        fault_server.put("/disk.img", DISK)
        source = HttpSourceSpec(url=fault_server.url("/disk.img"))
        control = TransferControl(PollJob(id="uid", source=source))
        control.cancel()
        assert found(source, control=control).failure.code == "Interrupted"

    def test_a_checksum_file_that_stalls_ends_with_the_timeout(self, fault_server):
        fault_server.put("/disk.img", DISK)
        fault_server.put("/SHA256SUMS", b"x" * 1000, always=Fault(stall_after=10))
        assert failed(HttpSourceSpec(url=fault_server.url("/disk.img")), timeout=0.5).code == "SourceStalled"


class TestSignatures:
    @pytest.fixture
    def signed(self, tmp_path_factory):
        if not (shutil.which("gpg") and shutil.which("gpgv")):
            pytest.skip("gpg and gpgv are not installed")
        home = tmp_path_factory.mktemp("gpg") / "home"
        home.mkdir(mode=0o700)

        def gpg(*arguments, given=b""):
            command = [
                "gpg",
                "--homedir",
                str(home),
                "--batch",
                "--yes",
                "--pinentry-mode",
                "loopback",
                "--passphrase",
                "",
            ]
            return subprocess.run([*command, *arguments], input=given, capture_output=True, check=True).stdout

        gpg("--quick-gen-key", "alice <alice@example.org>", "ed25519", "sign", "0")
        ring = home.parent / "ring"
        ring.write_bytes(gpg("--export", "alice@example.org"))
        yield str(ring), lambda content: gpg("--output", "-", "--detach-sign", "-", given=content)
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)

    def test_a_good_signature_is_reported_and_a_bad_or_missing_one_fails(self, nginx, signed):
        ring, sign = signed
        sums = f"{sha256(DISK)[7:]}  disk.img\n".encode()
        nginx.put("polls/signed/disk.img", DISK)
        nginx.put("polls/signed/SHA256SUMS", sums)
        source = HttpSourceSpec(url=nginx.url("polls/signed/disk.img"))
        assert failed(source, signature="require", keyring=ring).code == "SignatureMissing"
        nginx.put("polls/signed/SHA256SUMS.gpg", sign(sums))
        result = found(source, signature="require", keyring=ring)
        assert result.digest == sha256(DISK)
        assert result.verified_by[0].startswith("signature by ")
        nginx.put("polls/signed/SHA256SUMS.gpg", sign(b"other"))
        assert failed(source, signature="if-present", keyring=ring).code == "SignatureInvalid"


# --- object stores ------------------------------------------------------------------------------------------------


class TestS3:
    @pytest.fixture
    def credentials(self, tmp_path):
        (tmp_path / "access").write_text(ACCESS_KEY)
        (tmp_path / "secret").write_text(SECRET_KEY)
        return Credentials(access_key_file=str(tmp_path / "access"), secret_key_file=str(tmp_path / "secret"))

    def test_the_etag_identifies_the_content(self, s3, credentials):
        tag = s3.put("dir/disk.img", DISK)["ETag"]
        source = S3SourceSpec(url=s3.url("dir/disk.img"), credentials=credentials)
        first = found(source)
        assert (first.identity, first.resolved, first.size) == ("etag", None, len(DISK))
        assert first.digest == sha256(f"s3\n{s3.url('dir/disk.img')}\n{tag}")
        s3.put("dir/disk.img", DISK + b"x")
        assert found(source).digest != first.digest

    def test_a_version_of_a_versioned_bucket_is_part_of_it(self, s3, credentials):
        s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
        version = s3.put("dir/disk one.img", DISK)["VersionId"]
        source = S3SourceSpec(url=s3.url("dir/disk%20one.img"), credentials=credentials)
        first = found(source)
        assert first.resolved == f"{s3.url('dir/disk%20one.img')}?versionId={version}"
        s3.put("dir/disk one.img", DISK)
        assert found(source).digest != first.digest
        # The URL that was found names the first version for ever.
        assert found(S3SourceSpec(url=first.resolved, credentials=credentials)).digest == first.digest

    def test_a_checksum_file_in_the_bucket_is_preferred(self, s3, credentials):
        s3.put("sums/disk.img", DISK)
        s3.put("sums/SHA256SUMS", f"{sha256(DISK)[7:]}  disk.img\n".encode())
        result = found(S3SourceSpec(url=s3.url("sums/disk.img"), credentials=credentials))
        assert (result.digest, result.identity) == (sha256(DISK), "checksum file")

    def test_a_missing_key_is_a_failure_with_a_remedy(self, s3, credentials):
        assert failed(S3SourceSpec(url=s3.url("none"), credentials=credentials)).code == "SourceNotFound"


class TestGcs:
    def test_the_generation_identifies_the_content(self, gcs_standin):
        stored = gcs_standin.put("images", "dir/disk.img", DISK)
        source = GcsSourceSpec(url="gs://images/dir/disk.img", endpoint=gcs_standin.origin)
        first = found(source)
        assert first.identity == "generation"
        assert first.resolved == f"gs://images/dir/disk.img#{stored.generation}"
        assert first.digest == sha256(f"gcs\ngs://images/dir/disk.img\n{stored.generation}")
        gcs_standin.put("images", "dir/disk.img", DISK)
        assert found(source).digest != first.digest

    def test_a_missing_object_is_a_failure_with_a_remedy(self, gcs_standin):
        failure = failed(GcsSourceSpec(url="gs://images/none", endpoint=gcs_standin.origin))
        assert failure.code == "SourceNotFound"


def test_a_source_without_versions_is_not_supported():
    assert failed(BlankSourceSpec()).code == "SourceNotSupported"


def test_an_unreachable_server_is_a_transient_failure():
    failure = failed(HttpSourceSpec(url="http://127.0.0.1:1/disk.img"))
    assert (failure.code, failure.retry) == ("SourceUnreachable", "backoff")


def test_a_worker_retries_within_a_poll_three_times_at_most(fault_server):
    url = fault_server.put("/away", b"", always=Fault(status=503, retry_after="0"))
    job = PollJob(id="x", source=HttpSourceSpec(url=url), policy=Policy(retries=9), timeout=60.0)
    result = poll(job, TransferControl(job))
    assert result.failure is not None and result.failure.code == "SourceUnavailable"
    assert len(fault_server.asked("/away")) == 4
