"""Tests of objects in S3: moto's server for correct responses, the fault server for others."""

import base64
import hashlib
import json
import ssl
import urllib.request

import pytest
import trustme

from cdi.api.digest import Digest
from cdi.api.errors import (
    SourceChanged,
    SourceCredentialsInvalid,
    SourceForbidden,
    SourceNotFound,
    SourceProtocolError,
    SourceRefused,
    SourceTlsUntrusted,
    SourceUnauthorized,
    SourceUnavailable,
    SourceUnreachable,
)
from cdi.api.job import Credentials, Proxy, S3SourceSpec, Tls
from cdi.source.base import read_all
from cdi.source.s3 import open_s3
from tests.faults.server import Fault, FaultServer

DISK = bytes(range(256)) * 2000


@pytest.fixture
def secret(tmp_path):
    def make(access="AKIA", key="secret", token=None):
        files = {"access": access, "secret": key, "token": token}
        for name, value in files.items():
            if value is not None:
                (tmp_path / name).write_text(value)
        return Credentials(
            access_key_file=str(tmp_path / "access"),
            secret_key_file=str(tmp_path / "secret"),
            session_token_file=None if token is None else str(tmp_path / "token"),
        )

    return make


def content(spec):
    with open_s3(spec, 10) as source:
        return read_all(source, 1 << 24)


class TestContent:
    def test_facts_come_first(self, s3, secret):
        etag = s3.put("dir/disk.img", DISK, ContentType="application/x-disk")["ETag"]
        with open_s3(S3SourceSpec(url=s3.url("dir/disk.img"), credentials=secret()), 10) as source:
            facts = source.probe()
        assert (facts.length, facts.ranges, facts.validator, facts.name) == (len(DISK), True, etag, "disk.img")
        assert facts.location == s3.url("dir/disk.img")
        assert facts.content_type == "application/x-disk"

    def test_ranges_and_the_whole(self, s3, secret):
        s3.put("k", DISK)
        spec = S3SourceSpec(url=s3.url("k"), credentials=secret())
        assert content(spec) == DISK
        with open_s3(spec, 10) as source:
            buffer = memoryview(bytearray(1000))
            reader = source.open(12_345, 1000)
            done = 0
            while count := reader.readinto(buffer[done:]):
                done += count
            reader.close()
            assert bytes(buffer[:done]) == DISK[12_345:13_345]

    @pytest.mark.parametrize(
        "key", ["a b/c+d.img", "ü/你.img", "50%.img", "a?b#c&d=e", "a//b", "~tilde-._", "q'(1)!*;:@$,"]
    )
    def test_keys_may_be_odd(self, s3, secret, key):
        s3.put(key, b"odd " + key.encode())
        url = f"s3://{s3.bucket}/" + key.replace("%", "%25")
        assert content(S3SourceSpec(url=url, endpoint=s3.endpoint, credentials=secret())) == b"odd " + key.encode()

    def test_a_version_is_read_though_there_is_a_newer(self, s3, secret):
        s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
        version = s3.put("k", b"old")["VersionId"]
        s3.put("k", b"newer")
        assert content(S3SourceSpec(url=f"{s3.url('k')}?versionId={version}", credentials=secret())) == b"old"
        assert content(S3SourceSpec(url=s3.url("k"), credentials=secret())) == b"newer"

    def test_a_replaced_object_is_noticed(self, s3, secret):
        s3.put("k", DISK)
        with open_s3(S3SourceSpec(url=s3.url("k"), credentials=secret()), 10) as source:
            source.probe()
            s3.put("k", DISK[::-1])
            with pytest.raises(SourceChanged):
                source.open(0, 10).readinto(memoryview(bytearray(10)))

    def test_an_empty_object_has_no_bytes(self, s3, secret):
        s3.put("k", b"")
        assert content(S3SourceSpec(url=s3.url("k"), credentials=secret())) == b""

    def test_siblings_share_the_prefix(self, s3, secret):
        s3.put("dir/k", DISK)
        s3.put("dir/SHA256SUMS", b"sums")
        with open_s3(S3SourceSpec(url=s3.url("dir/k"), credentials=secret()), 10) as source:
            with source.sibling("SHA256SUMS") as sums:
                assert read_all(sums, 100) == b"sums"


class TestDigests:
    def test_a_checksum_of_the_whole_object_is_promised(self, s3, secret):
        s3.put("k", DISK, ChecksumAlgorithm="SHA256")
        with open_s3(S3SourceSpec(url=s3.url("k"), credentials=secret()), 10) as source:
            assert source.probe().digests == (Digest("sha256", hashlib.sha256(DISK).hexdigest()),)

    def test_an_etag_is_not_taken_for_one(self, s3, secret):
        s3.put("k", DISK)
        with open_s3(S3SourceSpec(url=s3.url("k"), credentials=secret()), 10) as source:
            assert source.probe().digests == ()

    def test_neither_is_a_checksum_of_checksums(self, s3, secret):
        part = b"x" * (5 << 20)
        upload = s3.client.create_multipart_upload(Bucket=s3.bucket, Key="k", ChecksumAlgorithm="SHA256")["UploadId"]
        parts = []
        for number, body in ((1, part), (2, b"rest")):
            made = s3.client.upload_part(
                Bucket=s3.bucket, Key="k", UploadId=upload, PartNumber=number, Body=body, ChecksumAlgorithm="SHA256"
            )
            parts.append({"PartNumber": number, "ETag": made["ETag"], "ChecksumSHA256": made["ChecksumSHA256"]})
        s3.client.complete_multipart_upload(
            Bucket=s3.bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts}
        )
        with open_s3(S3SourceSpec(url=s3.url("k"), credentials=secret()), 10) as source:
            facts = source.probe()
        assert (facts.length, facts.digests) == ((5 << 20) + 4, ())


class TestCredentials:
    @pytest.fixture
    def signed_only(self, s3):
        """Make the server check signatures, session tokens and policies."""
        import boto3

        s3.put("k", DISK)
        iam = boto3.client(
            "iam", endpoint_url=s3.endpoint, region_name="us-east-1",
            aws_access_key_id="AKIA", aws_secret_access_key="secret",
        )  # fmt: skip
        name = f"reader-{s3.bucket}"
        iam.create_user(UserName=name)
        policy = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}],
        }
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        made = iam.create_access_key(UserName=name)["AccessKey"]
        iam.close()

        def count(value):
            request = urllib.request.Request(f"{s3.endpoint}/moto-api/reset-auth", data=value, method="POST")
            request.add_header("Content-Type", "application/octet-stream")
            urllib.request.urlopen(request).close()

        count(b"0")
        yield made["AccessKeyId"], made["SecretAccessKey"]
        count(b"inf")

    def test_the_signature_is_accepted_and_only_getobject_is_needed(self, s3, signed_only, secret):
        access, key = signed_only
        assert content(S3SourceSpec(url=s3.url("k"), credentials=secret(access, key))) == DISK

    def test_a_wrong_secret_key_is_told(self, s3, signed_only, secret):
        with pytest.raises(SourceUnauthorized, match="SignatureDoesNotMatch") as raised:
            content(S3SourceSpec(url=s3.url("k"), credentials=secret(signed_only[0], "wrong-one")))
        assert "wrong-one" not in str(raised.value)

    def test_an_unknown_access_key_is_told(self, s3, signed_only, secret):
        with pytest.raises(SourceUnauthorized, match="InvalidAccessKeyId"):
            content(S3SourceSpec(url=s3.url("k"), credentials=secret("AKIANOBODY", "x")))

    def test_the_environment_is_part_of_the_chain(self, s3, signed_only, no_aws):
        no_aws.setenv("AWS_ACCESS_KEY_ID", signed_only[0])
        no_aws.setenv("AWS_SECRET_ACCESS_KEY", signed_only[1])
        assert content(S3SourceSpec(url=s3.url("k"))) == DISK

    def test_so_are_profiles(self, s3, signed_only, no_aws, tmp_path):
        file = tmp_path / "credentials"
        file.write_text(f"[images]\naws_access_key_id={signed_only[0]}\naws_secret_access_key={signed_only[1]}\n")
        no_aws.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
        no_aws.setenv("AWS_PROFILE", "images")
        assert content(S3SourceSpec(url=s3.url("k"))) == DISK

    def test_a_profile_that_does_not_exist_is_told(self, s3, no_aws):
        no_aws.setenv("AWS_PROFILE", "missing")
        with pytest.raises(SourceCredentialsInvalid, match="missing"):
            content(S3SourceSpec(url=s3.url("k")))

    def test_nobody_is_anonymous(self, s3):
        s3.put("k", DISK, ACL="public-read")
        assert content(S3SourceSpec(url=s3.url("k"))) == DISK
        assert content(S3SourceSpec(url=s3.url("k"), anonymous=True)) == DISK

    def test_half_a_secret_is_named(self, s3, tmp_path):
        (tmp_path / "a").write_text("AKIA")
        with pytest.raises(SourceCredentialsInvalid, match="both"):
            open_s3(S3SourceSpec(url=s3.url("k"), credentials=Credentials(access_key_file=str(tmp_path / "a"))), 10)


class TestRequests:
    """Requests on the wire, and the interpretation of responses."""

    @pytest.fixture
    def ask(self, fault_server, no_aws, secret):
        def make(*faults, **more):
            fault_server.put("/bucket/dir/key", DISK, faults=list(faults))
            more.setdefault("credentials", secret())
            return open_s3(S3SourceSpec(url=fault_server.url("/bucket/dir/key"), **more), 10)

        return make

    def test_are_gets_alone_and_signed_each_by_itself(self, ask, fault_server):
        with ask() as source:
            source.probe()
            source.open(5, 10).readinto(memoryview(bytearray(10)))
        assert {request.method for request in fault_server.requests} == {"GET"}
        for request in fault_server.requests:
            assert request.header("authorization").startswith("AWS4-HMAC-SHA256 Credential=AKIA/")
            assert "us-east-1/s3/aws4_request" in request.header("authorization")
            assert "range" not in request.header("authorization").lower()

    def test_carry_the_session_token(self, ask, fault_server, secret):
        with ask(credentials=secret(token="session+token==")) as source:
            source.probe()
        assert fault_server.requests[0].header("x-amz-security-token") == "session+token=="

    def test_are_unsigned_for_anybody(self, ask, fault_server):
        with ask(credentials=Credentials(), anonymous=True) as source:
            source.probe()
        assert fault_server.requests[0].header("authorization") is None

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(status=301, headers=(("x-amz-bucket-region", "eu-central-1"),), body=b"<Error><Code>PermanentRedirect</Code></Error>"),
            Fault(status=400, body=b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'</Message><Region>eu-central-1</Region></Error>"),
            Fault(status=400, body=b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region is wrong; expecting 'eu-central-1'</Message></Error>"),
            Fault(status=403, headers=(("x-amz-bucket-region", "eu-central-1"),), body=b"<Error><Code>AccessDenied</Code></Error>"),
        ],
    )  # fmt: skip
    def test_are_signed_for_the_region_that_the_service_names(self, ask, fault_server, fault):
        with ask(fault) as source:
            assert source.probe().length == len(DISK)
        assert "/us-east-1/s3/" in fault_server.requests[0].header("authorization")
        assert "/eu-central-1/s3/" in fault_server.requests[1].header("authorization")

    def test_correct_the_region_only_once(self, ask, fault_server):
        def elsewhere(region):
            return Fault(status=301, headers=(("x-amz-bucket-region", region),), body=b"<Code>PermanentRedirect</Code>")

        with (
            pytest.raises(SourceRefused, match="PermanentRedirect"),
            ask(elsewhere("eu-west-1"), elsewhere("eu-west-2")) as source,
        ):
            source.probe()
        assert len(fault_server.requests) == 2
        assert source.endpoint._session.region == "eu-west-1"

    def test_follow_the_services_clock(self, ask, fault_server):
        body = b"<Error><Code>RequestTimeTooSkewed</Code><ServerTime>2031-01-02T03:04:05Z</ServerTime></Error>"
        with ask(Fault(status=403, body=body)) as source:
            source.probe()
        assert fault_server.requests[1].header("x-amz-date").startswith("20310102T0304")

    def test_take_up_a_rotated_secret(self, ask, fault_server, tmp_path):
        def rotate(request):
            (tmp_path / "access").write_text("ROTATED")
            old = "Credential=AKIA/" in request.header("authorization")
            return Fault(status=403, body=b"<Code>ExpiredToken</Code>") if old else None

        with ask() as source:
            fault_server.put("/bucket/dir/key", DISK, always=rotate)
            source.probe()
        assert "Credential=ROTATED/" in fault_server.requests[1].header("authorization")

    @pytest.mark.parametrize(
        ("status", "code", "error"),
        [
            (404, "NoSuchKey", SourceNotFound),
            (404, "NoSuchBucket", SourceNotFound),
            (403, "AccessDenied", SourceForbidden),
            (403, "SignatureDoesNotMatch", SourceUnauthorized),
            (400, "ExpiredToken", SourceUnauthorized),
            (403, "RequestTimeTooSkewed", SourceUnauthorized),
            (403, "InvalidObjectState", SourceForbidden),
            (503, "SlowDown", SourceUnavailable),
            (500, "InternalError", SourceUnavailable),
            (400, "RequestTimeout", SourceUnavailable),
            (418, "Whatever", SourceRefused),
        ],
    )
    def test_give_the_services_own_reason(self, ask, status, code, error):
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>It is so.</Message></Error>".encode()
        faults = [Fault(status=status, body=body, headers=(("Content-Type", "application/xml"),))] * 3
        with pytest.raises(error) as raised, ask(*faults) as source:
            source.probe()
        assert code in raised.value.what

    @pytest.mark.parametrize("body", [b"<Code>AccessDenied</Code>", b""])
    def test_say_that_they_were_anonymous(self, ask, body):
        with (
            pytest.raises(SourceForbidden, match="anonymous"),
            ask(Fault(status=403, body=body), credentials=Credentials()) as source,
        ):
            source.probe()

    @pytest.mark.parametrize("coding", ["aws-chunked", "aws-chunked,gzip", "gzip,aws-chunked", "aws-chunked,"])
    def test_give_what_an_sdk_uploaded_in_chunks(self, ask, coding):
        fault = Fault(headers=(("Content-Encoding", coding),))
        with ask(*[fault] * 20) as source:
            assert source.probe().ranges
            assert read_all(source, 1 << 20) == DISK

    def test_do_without_a_checksum_that_is_refused(self, ask):
        with ask(Fault(headers=()), Fault(status=403)) as source:
            assert source.probe().digests == ()

    def test_read_the_checksum_of_the_second(self, ask):
        value = base64.b64encode(hashlib.sha256(DISK).digest()).decode()
        with ask(Fault(), Fault(headers=(("x-amz-checksum-sha256", value),))) as source:
            assert source.probe().digests == (Digest("sha256", hashlib.sha256(DISK).hexdigest()),)


class TestTokenServices:
    """Requests of the credential chain itself."""

    @pytest.fixture
    def web_identity(self, no_aws, tmp_path, s3):
        (tmp_path / "jwt").write_text("x.y.z")
        no_aws.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
        no_aws.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "jwt"))
        no_aws.setenv("AWS_REGION", "us-east-1")
        return no_aws

    def test_a_web_identity_becomes_temporary_keys(self, s3, web_identity):
        web_identity.setenv("AWS_ENDPOINT_URL_STS", s3.endpoint)
        with open_s3(S3SourceSpec(url=s3.url("k")), 10) as source:
            keys = source.endpoint._session.identity.keys()
        assert keys.access_key.startswith("ASIA")
        assert keys.session_token

    def test_one_that_cannot_be_reached_is_told(self, s3, web_identity, unused_tcp_port):
        web_identity.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{unused_tcp_port}")
        web_identity.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(SourceUnreachable):
            content(S3SourceSpec(url=s3.url("k")))

    def test_they_go_through_the_jobs_proxy(self, s3, web_identity, fault_server):
        web_identity.setenv("AWS_ENDPOINT_URL_STS", "http://sts.example")
        web_identity.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(SourceProtocolError):
            content(S3SourceSpec(url=s3.url("k"), proxy=Proxy(http=fault_server.origin)))
        assert fault_server.requests[0].target.startswith("http://sts.example/")

    def test_they_trust_the_jobs_authorities(self, s3, web_identity, tmp_path):
        ca = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(context)
        trust = tmp_path / "ca"
        trust.mkdir()
        ca.cert_pem.write_to_path(str(trust / "any-name.crt"))
        web_identity.setenv("AWS_MAX_ATTEMPTS", "1")
        with FaultServer(context) as server:
            web_identity.setenv("AWS_ENDPOINT_URL_STS", server.origin.replace("127.0.0.1", "localhost"))
            with pytest.raises(SourceTlsUntrusted):
                content(S3SourceSpec(url=s3.url("k")))
            assert not server.requests
            with pytest.raises(SourceProtocolError):  # it answers, but not as a token service does
                content(S3SourceSpec(url=s3.url("k"), tls=Tls(ca_dir=str(trust))))
            assert server.requests
