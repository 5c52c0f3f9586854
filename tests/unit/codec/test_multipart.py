import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdi.api.errors import UploadMalformed
from cdi.codec.multipart import (
    MAX_PARTS_SIZE,
    MAX_PREAMBLE,
    MultipartFileParser,
    boundary_of,
    parameters,
)

BOUNDARY = b"b-1"
HEAD = b'--b-1\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
FILE = b'--b-1\r\nContent-Disposition: form-data; name="file"; filename="a\\"b"\r\nContent-MD5: x\r\n\r\n'


def parsed(body: bytes, cuts: list[int]) -> tuple[bytes, MultipartFileParser]:
    form, content, start = MultipartFileParser(BOUNDARY), b"", 0
    for stop in [*sorted(cut % (len(body) + 1) for cut in cuts), len(body)]:
        content += b"".join(bytes(view) for view in form.feed(memoryview(body)[start:stop]))
        start = stop
    form.end()
    return content, form


# Content made of fragments of delimiters is where a parser goes wrong.
contents = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"--", b"b-1", b"\r\n--", b"\r\n--b-", b"x", bytes(70)]), max_size=30
).map(b"".join)


@given(contents.filter(lambda data: b"\r\n--b-1" not in data), st.lists(st.integers(0, 5000)), st.booleans())
@example(b"", [], False)
@example(b"\r\n--b-", list(range(300)), True)
def test_any_pieces_give_the_file(data, cuts, around):
    body = (HEAD if around else b"") + FILE + data + b"\r\n--b-1"
    body += b'\r\nContent-Disposition: form-data; name="more"\r\n\r\nx\r\n--b-1--\r\nepilogue' if around else b"--\r\n"
    content, form = parsed(body, cuts)
    assert content == data
    assert form.headers["content-md5"] == "x"


@given(st.binary(max_size=400), st.lists(st.integers(0, 500)))
def test_anything_else_is_refused_alike(data, cuts):
    results = []
    for pieces in (cuts, []):
        try:
            results.append(parsed(data, pieces)[0])
        except UploadMalformed as error:
            results.append(error.what)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no field"),
        (b"no delimiter at all", "no field"),
        (b"--b-1--\r\n", "no field"),
        (HEAD + b"--b-1--\r\n", "no field"),
        (FILE + b"data", "ends within"),
        (FILE + b"data\r\n--b-2--", "ends within"),
        (b"--b-1\r\nno colon\r\n\r\n", "malformed header"),
        (b"--b-1\r\nX: " + b"y" * 9000, "too long"),
        (b"--b-1\r\n" + b"X: y\r\n" * 17 + b"\r\n", "too long"),
        (FILE[:-4] + b"\nX: y\r\n\r\ndata\r\n--b-1--", "malformed header"),
        (FILE + b"data\r\n--b-1xy", "invalid delimiter"),
        (b"preamble " + FILE + b"data\r\n--b-1--", "no field"),
        (b"x" * MAX_PREAMBLE + b"\r\n" + FILE + b"data\r\n--b-1--", "does not start with the boundary"),
        (HEAD * 101, "more than 100 parts"),
        (HEAD.replace(b"hello", b"\n" * MAX_PARTS_SIZE) + FILE, f"more than {MAX_PARTS_SIZE} bytes before"),
    ],
)
def test_forms_that_are_none(body, words):
    with pytest.raises(UploadMalformed, match=words):
        parsed(body, [])


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("where", ["\nX: y", "X: y\n", "X\n: y", "X: \ny", "X: y\nZ: y", "\n"])
def test_a_line_feed_alone_is_rejected_in_any_pieces(where, step):
    body = FILE[:-2] + where.encode() + b"\r\n\r\ndata\r\n--b-1--"
    with pytest.raises(UploadMalformed, match="malformed header"):
        parsed(body, list(range(0, len(body), step)))


def test_the_name_of_the_file_may_have_any_encoding():
    body = FILE.replace(b"filename=", b"filename=\xe4") + b"data\r\n--b-1--"
    assert parsed(body, [])[0] == b"data"


@pytest.mark.parametrize("cuts", [[], list(range(1, 60)), [11]])
@pytest.mark.parametrize("preamble", [b"\r\n", b"This is a message in MIME format.\r\n", b"a\r\n--b\r\n\r\n"])
def test_a_preamble_is_skipped(preamble, cuts):
    assert parsed(preamble + FILE + b"data\r\n--b-1--", cuts)[0] == b"data"


def test_parameters():
    assert parameters('Form-Data; Name="a;\\"b"; x=y ;Z="" ') == ("form-data", {"name": 'a;"b', "x": "y", "z": ""})
    assert parameters("") == ("", {})


@pytest.mark.parametrize("text", ["multipart/form-data", "multipart/form-data; boundary=", "text/plain; boundary=x",
                                  'multipart/form-data; boundary="a "', f"multipart/form-data; boundary={'x' * 71}"])  # fmt: skip
def test_boundaries_that_are_none(text):
    with pytest.raises(UploadMalformed):
        boundary_of(text)
