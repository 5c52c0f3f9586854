from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import CdiError, SourceUrlInvalid
from cdi.api.names import is_dns_label
from cdi.client.locate import label, locate

BASE = Path("/images")


@pytest.mark.parametrize(
    ("text", "kind", "source", "name"),
    [
        ("http://h/a/Disk_1.qcow2", "http", {"http": {"url": "http://h/a/Disk_1.qcow2"}}, "disk-1"),
        ("HTTPS://h/a.raw.xz?sig=x", "http", {"http": {"url": "https://h/a.raw.xz?sig=x"}}, "a"),
        ("https://h/debian-12.5.img", "http", {"http": {"url": "https://h/debian-12.5.img"}}, "debian-12-5"),
        ("https://h/a%20b.iso", "http", {"http": {"url": "https://h/a%20b.iso"}}, "a-b"),
        ("https://h", "http", {"http": {"url": "https://h"}}, None),
        ("s3://bucket/dir/x.img", "s3", {"s3": {"url": "s3://bucket/dir/x.img"}}, "x"),
        ("gs://bucket/x.vmdk", "gcs", {"gcs": {"url": "gs://bucket/x.vmdk"}}, "x"),
        ("docker://r:5000/d/fedora:40", "registry", {"registry": {"url": "docker://r:5000/d/fedora:40"}}, "fedora-40"),
        ("docker:r:5000/fedora", "registry", {"registry": {"url": "docker://r:5000/fedora"}}, "fedora"),
        ("docker://r/f:latest", "registry", {"registry": {"url": "docker://r/f:latest"}}, "f"),
        (f"docker://r/f@sha256:{'0' * 64}", "registry", {"registry": {"url": f"docker://r/f@sha256:{'0' * 64}"}}, "f"),
        ("oci-archive:x.tar:v1", "registry", {"registry": {"url": "oci-archive:/images/x.tar:v1"}}, "x-v1"),
        ("oci-archive:x.tar", "registry", {"registry": {"url": "oci-archive:/images/x.tar"}}, "x"),
        ("oci-archive:///a/x.tar", "registry", {"registry": {"url": "oci-archive:/a/x.tar"}}, "x"),
        ("disk.qcow2", "file", {"upload": {}}, "disk"),
        ("../other/disk.qcow2", "file", {"upload": {}}, "disk"),
        ("a:b.img", "file", {"upload": {}}, "a-b"),
        ("file:///a/b%20c.img", "file", {"upload": {}}, "b-c"),
        ("-", "stdin", {"upload": {}}, None),
    ],
)
def test_a_place_becomes_a_source(text, kind, source, name):
    place = locate(text, BASE)
    assert (place.kind, place.source, place.name) == (kind, source, name)
    assert place.fetched == ("upload" not in source)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("x.img", "/images/x.img"),
        ("../x.img", "/x.img"),
        ("/a/./b.img", "/a/b.img"),
        ("file:///a%2Db", "/a-b"),
        ("file://localhost/a", "/a"),
        ("./-", "/images/-"),
    ],
)
def test_paths_are_absolute(text, path):
    assert locate(text, BASE).text == path


def test_a_user_in_the_url_does_not_reach_the_manifest_or_a_message():
    place = locate("https://us%40er:p%3Aass@h:8443/x.img")
    assert (place.user, place.password) == ("us@er", "p:ass")
    assert place.text == "https://h:8443/x.img"
    assert "p:ass" not in repr(place)
    assert "ass" not in place.location


def test_a_query_is_kept_and_not_shown():
    place = locate("https://h/x.img?X-Amz-Signature=abc")
    assert place.source["http"]["url"].endswith("=abc")
    assert place.location == "https://h/x.img"


@pytest.mark.parametrize(
    "text",
    ["", "  ", "ftp://h/x", "nbd://u:secret@h/x", "file://elsewhere/x", "file:///", "oci-archive:", "a\0b", "x" * 9000],
)
def test_what_is_no_place_is_refused(text):
    with pytest.raises(SourceUrlInvalid) as refused:
        locate(text, BASE)
    assert "secret" not in str(refused.value)


@given(st.text(max_size=200))
def test_every_text_is_a_place_or_refused(text):
    try:
        place = locate(text, BASE)
    except CdiError:
        return
    assert place.name is None or is_dns_label(place.name)


@given(st.text(max_size=300))
def test_labels_are_dns_labels(text):
    name = label(text)
    assert name is None or is_dns_label(name)
