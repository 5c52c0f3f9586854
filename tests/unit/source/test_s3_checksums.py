"""Tests of which of S3's checksums cover the whole object."""

import base64
import hashlib

import pytest

from cdi.api.digest import Digest
from cdi.source.s3 import checksum_from_headers

SHA256 = base64.b64encode(hashlib.sha256(b"x").digest()).decode()
SHA1 = base64.b64encode(hashlib.sha1(b"x").digest()).decode()


@pytest.mark.parametrize(
    ("headers", "digests"),
    [
        ({"x-amz-checksum-sha256": SHA256}, (Digest("sha256", hashlib.sha256(b"x").hexdigest()),)),
        ({"x-amz-checksum-sha256": SHA256, "x-amz-checksum-type": "FULL_OBJECT"}, (Digest("sha256", hashlib.sha256(b"x").hexdigest()),)),
        ({"x-amz-checksum-sha1": SHA1}, (Digest("sha1", hashlib.sha1(b"x").hexdigest()),)),
        ({"x-amz-checksum-sha256": SHA256, "x-amz-checksum-type": "COMPOSITE"}, ()),
        ({"x-amz-checksum-sha256": f"{SHA256}-3"}, ()),
        ({"x-amz-checksum-sha256": SHA1}, ()),
        ({"x-amz-checksum-sha256": "not base64!"}, ()),
        ({"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}, ()),
        ({"etag": '"9dd4e461268c8034f5c8564e155c67a6"'}, ()),
        ({}, ()),
    ],
)  # fmt: skip
def test_only_a_digest_of_the_whole_is_promised(headers, digests):
    assert checksum_from_headers(headers) == digests
