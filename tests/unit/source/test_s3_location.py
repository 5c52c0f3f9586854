"""Tests of the forms of an S3 object's URL."""

import pytest

from cdi.api.errors import SourceUrlInvalid
from cdi.source.s3_location import S3Location


@pytest.mark.parametrize(
    ("url", "bucket", "key", "region", "sent"),
    [
        ("s3://images/a/b.qcow2", "images", "a/b.qcow2", None, "https://images.s3.us-east-1.amazonaws.com/a/b.qcow2"),
        ("s3://my.images/k", "my.images", "k", None, "https://s3.us-east-1.amazonaws.com/my.images/k"),
        ("https://images.s3.eu-central-1.amazonaws.com/a%20b", "images", "a b", "eu-central-1", "https://images.s3.eu-central-1.amazonaws.com/a%20b"),
        ("https://images.s3-eu-west-1.amazonaws.com/k", "images", "k", "eu-west-1", "https://images.s3.eu-west-1.amazonaws.com/k"),
        ("https://s3.eu-west-1.amazonaws.com/images/k", "images", "k", "eu-west-1", "https://images.s3.eu-west-1.amazonaws.com/k"),
        ("https://s3.amazonaws.com/images/k", "images", "k", None, "https://images.s3.us-east-1.amazonaws.com/k"),
        ("https://images.s3.amazonaws.com/k", "images", "k", None, "https://images.s3.us-east-1.amazonaws.com/k"),
        ("https://s3-external-1.amazonaws.com/images/k", "images", "k", None, "https://images.s3.us-east-1.amazonaws.com/k"),
        ("https://a.b.c.s3.eu-west-1.amazonaws.com/k", "a.b.c", "k", "eu-west-1", "https://s3.eu-west-1.amazonaws.com/a.b.c/k"),
        ("https://images.s3.dualstack.eu-west-1.amazonaws.com/k", "images", "k", "eu-west-1", "https://images.s3.dualstack.eu-west-1.amazonaws.com/k"),
        ("https://s3.dualstack.eu-west-1.amazonaws.com/images/k", "images", "k", "eu-west-1", "https://images.s3.dualstack.eu-west-1.amazonaws.com/k"),
        ("https://images.s3-fips.us-gov-west-1.amazonaws.com/k", "images", "k", "us-gov-west-1", "https://images.s3-fips.us-gov-west-1.amazonaws.com/k"),
        ("https://images.s3.cn-north-1.amazonaws.com.cn/k", "images", "k", "cn-north-1", "https://images.s3.cn-north-1.amazonaws.com.cn/k"),
        ("https://images.s3-accelerate.amazonaws.com/k", "images", "k", None, "https://images.s3-accelerate.amazonaws.com/k"),
        ("https://point-123.s3-accesspoint.eu-west-1.amazonaws.com/k", "point-123", "k", "eu-west-1", "https://point-123.s3-accesspoint.eu-west-1.amazonaws.com/k"),
        ("https://bucket.vpce-1a-2b.s3.us-east-2.vpce.amazonaws.com/images/k", "images", "k", "us-east-2", "https://bucket.vpce-1a-2b.s3.us-east-2.vpce.amazonaws.com/images/k"),
        ("http://minio:9000/images/dir/k", "images", "dir/k", None, "http://minio:9000/images/dir/k"),
        ("http://[::1]:9000/images/k", "images", "k", None, "http://[::1]:9000/images/k"),
        ("https://s3.fr-par.scw.cloud/images/k", "images", "k", "fr-par", "https://s3.fr-par.scw.cloud/images/k"),
        ("https://s3.us-west-004.backblazeb2.com/images/k", "images", "k", "us-west-004", "https://s3.us-west-004.backblazeb2.com/images/k"),
        ("https://host/images/a//b", "images", "a//b", None, "https://host/images/a//b"),
        ("https://host/images/%E4%BD%A0+%2B%25", "images", "你++%", None, "https://host/images/%E4%BD%A0%2B%2B%25"),
        ("s3://images/what?now#here", "images", "what?now#here", None, "https://images.s3.us-east-1.amazonaws.com/what%3Fnow%23here"),
        ("s3://images/k?versionId=a%2Fb", "images", "k", None, "https://images.s3.us-east-1.amazonaws.com/k?versionId=a%2Fb"),
        ("https://host/images/k?versionId=v1", "images", "k", None, "https://host/images/k?versionId=v1"),
    ],
)  # fmt: skip
def test_urls_are_understood(url, bucket, key, region, sent):
    found = S3Location.parse(url)
    assert (found.bucket, found.key, found.region) == (bucket, key, region)
    assert found.url(region or "us-east-1", "auto") == sent


@pytest.mark.parametrize(
    ("url", "endpoint", "addressing", "sent"),
    [
        ("s3://images/k", "http://minio:9000", "auto", "http://minio:9000/images/k"),
        ("s3://images/k", "https://minio.example", "virtual", "https://images.minio.example/k"),
        ("s3://images/k", None, "path", "https://s3.eu-west-1.amazonaws.com/images/k"),
        ("https://other/images/k", "http://minio:9000", "auto", "http://minio:9000/images/k"),
        ("https://images.minio.example/k", "https://minio.example", "auto", "https://minio.example/images/k"),
        ("s3://images/k", "https://s3.eu-west-1.amazonaws.com", "auto", "https://images.s3.eu-west-1.amazonaws.com/k"),
    ],
)
def test_an_endpoint_goes_before_the_urls_own(url, endpoint, addressing, sent):
    assert S3Location.parse(url, endpoint=endpoint).url("eu-west-1", addressing) == sent


@pytest.mark.parametrize(
    "url",
    [
        "s3://", "s3://images", "s3://images/", "s3://images/dir/", "https://host/", "https://host/images",
        "https://images.s3.eu-west-1.amazonaws.com/", "ftp://host/images/k", "s3:///k", "s3://-x/k",
        "s3://images/" + "k" * 1025, "https://images.s3-website-eu-west-1.amazonaws.com/k", "s3://images/%00",
        "https://host/images/k?X-Amz-Signature=abc&X-Amz-Credential=AKIA",
    ],
)  # fmt: skip
def test_what_names_no_object_is_refused(url):
    with pytest.raises(SourceUrlInvalid) as raised:
        S3Location.parse(url)
    assert "Signature=abc" not in str(raised.value)


@pytest.mark.parametrize("url", ["s3:///k", "s3://", "s3:////k", "S3:///k", "ftp://host/images/k"])
def test_what_is_refused_is_shown_as_it_was_written(url):
    with pytest.raises(SourceUrlInvalid) as raised:
        S3Location.parse(url + "?secret#more")
    assert raised.value.where == url


def test_a_sibling_has_the_same_prefix():
    beside = S3Location.parse("https://host/images/dir/disk.img?versionId=1").beside("SHA256SUMS")
    assert beside.url("r", "auto") == "https://host/images/dir/SHA256SUMS"
