from hypothesis import given
from hypothesis import strategies as st

from cdi.api.printable import one_line, printable


def test_what_cannot_be_printed_is_replaced_within_the_limit():
    assert printable("a\x1b[31mb\n\u202ec", 9) == "a [31mb  "
    assert printable("a\0b", 3, substitute="?") == "a?b"


def test_words_are_put_on_one_line():
    assert one_line(" a\r\n\tb  c ", 4) == "a b "
    assert one_line(None, 4) == ""


@given(st.text(), st.integers(0, 20))
def test_any_text_becomes_a_short_line(text, limit):
    for shown in (printable(text, limit), one_line(text, limit)):
        assert shown.isprintable()
        assert len(shown) <= limit
