"""Regular expressions of users, which must not take exponential time to match."""

from __future__ import annotations

import re
import warnings

from cdi.api.rules.problems import truncate

_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{[0-9]*,?[0-9]*\}|.", re.DOTALL)
_QUANTIFIER = re.compile(r"[*+?]|\{(?=[0-9,]*[0-9])[0-9]*,?[0-9]*\}")
_AT_MOST_ONCE = ("?", "{1}", "{0,1}", "{,1}")
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")


def check_expression(text: str, limit: int) -> None:
    """Raise `ValueError` unless a text is a regular expression (of `re`) of at most `limit` characters.

    Python's matcher backtracks: ``(a+)+b`` takes exponential time for a line without a match, and cannot be interrupted
    by another thread. So an expression may not repeat a group that contains a quantifier or an alternative.
    """
    if not text or len(text) > limit:
        raise ValueError(f"a regular expression has 1 to {limit} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of syntax that a later Python may introduce
            re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{truncate(text, 40)!r} is not a regular expression: {error}") from None
    # Spaces and comments of verbose syntax could separate a group from its quantifier.
    if _VERBOSE.search(text) or _repeats_choice(text):
        raise ValueError(
            f"{truncate(text, 40)!r} may take exponential time; do not repeat a group that contains a quantifier or an "
            "alternative, or use the flag x"
        )


def _repeats_choice(expression: str) -> bool:
    """Return whether a valid expression repeats a group that can match the same text in several ways."""
    groups = [False]  # for each open group, whether it contains a quantifier or an alternative
    closed = False  # the value of the group that ends at the previous item
    previous = ""
    for item in _TOKEN.findall(expression):
        quantifier = _QUANTIFIER.fullmatch(item) is not None
        # After "(", "?" begins an extension; after a quantifier, "?" makes that lazy and "+" possessive.
        extension = previous == "("
        modifier = item in ("?", "+") and _QUANTIFIER.fullmatch(previous) is not None
        if quantifier and not extension and not modifier:
            if closed and item not in _AT_MOST_ONCE:
                return True
            groups[-1] = True
        elif item == "|":
            groups[-1] = True
        closed = False
        if item == "(":
            groups.append(False)
        elif item == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1] |= closed
        previous = item
    return False
