"""Fuzz target: a form in any pieces gives the same file or rejection, and the buffer between them stays small.

python tests/fuzz/fuzz_multipart.py -max_total_time=60
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["multipart", "cdi.codec.multipart", "cdi.api.upload_protocol"]):
    from cdi.api.errors import UploadMalformed
    from cdi.api.upload_protocol import content_digests
    from cdi.codec.multipart import MAX_HEADER, MultipartFileParser, boundary_of, parameters

from tests.fuzz.seeds import run

BOUNDARIES = (b"b", b"-", b"--", b"------------------------d74496d66958873e")


def parsed(body: bytes, boundary: bytes, step: int) -> tuple[str, bytes, dict[str, str]]:
    """Return how it ended, the file so far, and the fields of its part."""
    form, content = MultipartFileParser(boundary), bytearray()
    try:
        for at in range(0, len(body), step):
            for view in form.feed(memoryview(body)[at : at + step]):
                assert len(view)
                assert form.found
                content += view
            assert len(form._parser._buffer) <= MAX_HEADER + len(boundary) + 4  # noqa: SLF001
        form.end()
    except UploadMalformed as error:
        assert error.status in (400, 431)
        assert error.what.isprintable()
        return error.what, bytes(content), dict(form.headers)
    assert form.ended
    return "", bytes(content), dict(form.headers)


def target(data: bytes) -> None:
    if len(data) < 3:
        return
    boundary, step, body = BOUNDARIES[data[0] & 3], 1 + data[1] % 97, data[2:]
    one, pieces = parsed(body, boundary, len(body)), parsed(body, boundary, step)
    # What was given before a refusal depends on the pieces, and so may its reason; a file that ended does not.
    assert bool(one[0]) == bool(pieces[0]), (one, pieces)
    if not one[0]:
        assert one == pieces
        # Independent check: the file is the bytes between its part's fields and the next delimiter.
        delimiter = b"\r\n--" + boundary
        assert delimiter not in one[1]
        assert one[1] + delimiter in b"\r\n" + body
        assert "content-disposition" in one[2]
    try:
        content_digests(one[2])
    except UploadMalformed:
        pass
    text = body.decode("latin-1")
    try:
        found = boundary_of(text)
        assert 0 < len(found) <= 70
        assert found in body.replace(b"\\", b"")
    except UploadMalformed:
        pass
    kind, given = parameters(text)
    assert kind == kind.strip().lower()
    assert all(name == name.lower() for name in given)


def seeds() -> list[bytes]:
    found = []
    for number, boundary in enumerate(BOUNDARIES):
        start = b"--" + boundary + b"\r\nContent-Disposition: form-data; name="
        note = start + b'"note"\r\n\r\nhello\r\n'
        file = start + b'"file"; filename="a\\"b"\r\nContent-MD5: AAAA\r\n\r\n'
        end = b"\r\n--" + boundary + b"--\r\n"
        for body in (
            file + b"content" + end,
            b"preamble\r\n" + note + file + b"\r\n\r\n--\r" + end + b"epilogue",
            file + b"cut off",
            note + end,
            note * 101 + file + end,
            b"--" + boundary + b"\r\nX: " + b"y" * MAX_HEADER,
            file + boundary * 5 + end,
        ):
            found += [bytes((number, step)) + body for step in (0, 7)]
    found.append(b'\0\0multipart/form-data; boundary=b; x="a\\"b"')
    return found


if __name__ == "__main__":
    run(target, seeds(), 12 << 10, fixed=2_500)
