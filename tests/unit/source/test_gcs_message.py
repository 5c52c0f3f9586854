"""Tests of Google's error messages."""

import pytest

from cdi.source.gcs import _message


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"error": {"message": "No such object."}}', "No such object"),
        (b"No such object.", "No such object"),
        (b'{"error": {"message": 5}}', ""),
        (b'{"error": {"message": %b1%b}}' % (b"[" * 800, b"]" * 800), ""),
        (b"[" * 90_000, "[" * 300),
        (b"{" * 90_000, ""),
    ],
)
def test_of_an_error_only_a_text_is_shown(body, shown):
    assert _message(body) == shown
