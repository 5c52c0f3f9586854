"""Tests of the forms of a GCS object's URL."""

import pytest

from cdi.api.errors import SourceUrlInvalid
from cdi.source.gcs_location import GOOGLE, GcsLocation


@pytest.mark.parametrize(
    ("url", "bucket", "name", "generation", "endpoint"),
    [
        ("gs://images/a/b.img", "images", "a/b.img", None, GOOGLE),
        ("gs://images/a b?c", "images", "a b?c", None, GOOGLE),
        ("gs://images/a#12345", "images", "a", "12345", GOOGLE),
        ("gs://images/a#b", "images", "a#b", None, GOOGLE),
        ("https://storage.googleapis.com/images/a%20b", "images", "a b", None, GOOGLE),
        ("https://storage.googleapis.com/images/a?generation=7", "images", "a", "7", GOOGLE),
        ("https://storage.cloud.google.com/images/a", "images", "a", None, GOOGLE),
        ("https://my.images.storage.googleapis.com/a/b", "my.images", "a/b", None, GOOGLE),
        ("https://storage.googleapis.com/storage/v1/b/images/o/a%2Fb?alt=media", "images", "a/b", None, GOOGLE),
        ("https://storage.googleapis.com/download/storage/v1/b/images/o/a", "images", "a", None, GOOGLE),
        ("http://localhost:4443/images/a", "images", "a", None, "http://localhost:4443"),
    ],
)
def test_urls_are_understood(url, bucket, name, generation, endpoint):
    found = GcsLocation.parse(url)
    assert (found.bucket, found.object, found.generation, found.endpoint) == (bucket, name, generation, endpoint)


def test_the_api_is_asked_with_every_slash_encoded():
    found = GcsLocation.parse("gs://images/a/b c")
    assert found.media_url("5") == f"{GOOGLE}/storage/v1/b/images/o/a%2Fb%20c?alt=media&generation=5"


def test_a_host_in_the_url_is_asked_over_the_xml_api():
    found = GcsLocation.parse("http://10.0.0.1:8080/images/dir/a b.img?generation=7")
    assert found.xml
    assert found.object_url() == "http://10.0.0.1:8080/images/dir/a%20b.img?generation=7"
    assert found.location == "http://10.0.0.1:8080/images/dir/a b.img"
    assert found.beside("SHA256SUMS").object_url() == "http://10.0.0.1:8080/images/dir/SHA256SUMS"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("gs://images/a", None),
        ("https://storage.googleapis.com/images/a", None),
        ("http://localhost:1/storage/v1/b/images/o/a", None),
        ("http://localhost:1/images/a", "http://localhost:2"),
    ],
)
def test_everything_else_is_asked_over_the_json_api(url, endpoint):
    assert not GcsLocation.parse(url, endpoint=endpoint).xml


def test_an_endpoint_goes_before_the_urls_own():
    url = "https://storage.googleapis.com/images/a"
    assert GcsLocation.parse(url, endpoint="http://localhost:4443/").endpoint == "http://localhost:4443"


@pytest.mark.parametrize(
    "url",
    [
        "gs://", "gs://images", "gs://images/", "gs://images/dir/", "gs://A/x", "s3://images/a", "images/a",
        "https://storage.googleapis.com/images", "gs://images/" + "a" * 1025, "gs://images/a%0Ab",
        "https://storage.googleapis.com/images/a?X-Goog-Signature=secret", "gs://../o", "gs://a b/c",
        "https://storage.googleapis.com/images/a?generation=x",
    ],
)  # fmt: skip
def test_what_names_no_object_is_refused(url):
    with pytest.raises(SourceUrlInvalid) as raised:
        GcsLocation.parse(url)
    assert "Signature=secret" not in str(raised.value)
