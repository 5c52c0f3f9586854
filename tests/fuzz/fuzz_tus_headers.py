"""Fuzz target: any text in upload header fields is parsed or rejected, and parsed values can be serialised again.

python tests/fuzz/fuzz_tus_headers.py -max_total_time=60
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.api.upload_protocol", "cdi.api.digest"]):
    from cdi.api.digest import HEX_LENGTH, Digest
    from cdi.api.errors import UploadMalformed, UploadUnknown
    from cdi.api.upload_protocol import (
        TusUpload,
        UploadId,
        content_digests,
        declared_digest,
        number,
        piece_checksum,
        route,
        tus_path,
        upload_metadata,
    )

from tests.fuzz.seeds import run

FIELDS = (
    "content-digest",
    "repr-digest",
    "digest",
    "content-md5",
    "upload-metadata",
    "upload-length",
    "upload-checksum",
)


def sound(digest: Digest | None) -> None:
    if digest is not None:
        assert len(digest.hex) == HEX_LENGTH[digest.algorithm]
        assert Digest.parse(str(digest)) == digest


def target(data: bytes) -> None:
    # As a request's head gives them: no line ends, and every byte a character.
    text = data.translate(None, b"\r\n\0").decode("latin-1").strip(" \t")
    headers = {name: text for name in FIELDS}
    for read in (
        lambda: upload_metadata(text), lambda: number(headers, "Upload-Length"), lambda: piece_checksum(text),
        lambda: content_digests(headers), lambda: declared_digest({"upload-metadata": text}), lambda: declared_digest({"digest": text}),
    ):  # fmt: skip
        try:
            found = read()
        except UploadMalformed as error:
            assert error.status == 400
            error.message.encode()
            continue
        for each in found if isinstance(found, tuple) else (found,):
            if isinstance(each, Digest):
                sound(each)
            elif isinstance(each, int):
                assert 0 <= each < 10**30
    try:
        upload = UploadId.parse(text)
    except UploadUnknown:
        pass
    else:
        assert UploadId.parse(str(upload)) == upload
        sound(upload.digest)
        found = route(tus_path("ns", "vm", str(upload)))
        assert found == TusUpload(namespace="ns", claim="vm", id=str(upload))


def seeds() -> list[bytes]:
    digest = "sha256=:" + "A" * 43 + "=:"
    texts = [
        "filename aW1hZ2U=,checksum c2hhMjU2OjA=", "a,b YQ==,c ,", "sha1 " + "A" * 27 + "=", "md5 AAAA", "12345", "9" * 19,
        f"sha-{digest}, md5=:AAAA:", f"SHA-{digest.replace(':', '')}", "unixsum=1", "0" * 32 + "-5", "0" * 32 + "-5-sha256-" + "a" * 64,
        "1B2M2Y8AsgTpgAmY7PhCfg==",
    ]  # fmt: skip
    return [text.encode() for text in texts]


if __name__ == "__main__":
    run(target, seeds(), 512, fixed=130_000)
