"""Tests of Signature Version 4, compared with botocore's."""

from datetime import UTC, datetime
from unittest import mock

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from cdi.source.s3_location import S3Location
from cdi.source.s3_sigv4 import AwsCredentials, sign

NOW = datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)
KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40).filter(
    lambda key: not key.endswith("/")
)


def botocores(url, keys, region, headers):
    request = AWSRequest(method="GET", url=url, headers=headers)
    request.context["payload_signing_enabled"] = True
    with mock.patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        credentials = Credentials(keys.access_key, keys.secret_key, keys.session_token)
        S3SigV4Auth(credentials, "s3", region).add_auth(request)
    return request.headers["Authorization"]


@given(KEYS, st.none() | st.text("abc/+=.-_", min_size=1, max_size=30), st.none() | st.just("token/+="))
def test_it_is_botocores(key, version, token):
    location = S3Location(bucket="bucket", key=key, version=version, endpoint="http://localhost:9000")
    url = location.url("eu-west-1", "path")
    keys = AwsCredentials(access_key="AKIA", secret_key="secret/+", session_token=token)
    ours = dict(sign(url, keys, region="eu-west-1", now=NOW, headers={"x-amz-checksum-mode": "ENABLED"}))
    assert ours["Authorization"] == botocores(url, keys, "eu-west-1", {"x-amz-checksum-mode": "ENABLED"})
    assert ours.get("x-amz-security-token") == token


@pytest.mark.parametrize(
    "url", ["https://b.s3.eu-west-1.amazonaws.com/key", "http://[::1]:9000/b/key", "https://h:443/b/k"]
)
def test_it_signs_the_host_that_is_sent(url):
    keys = AwsCredentials(access_key="AKIA", secret_key="secret")
    ours = dict(sign(url, keys, region="us-east-1", now=NOW))
    assert ours["Authorization"] == botocores(url, keys, "us-east-1", {})
    assert "host" not in ours


def test_keys_do_not_show():
    assert "hidden" not in repr(AwsCredentials(access_key="AKIA", secret_key="hidden", session_token="hidden"))
