"""Durations in Go's notation, such as ``48h0m0s``, ``1.5h`` and ``300ms``."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "μs": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
}
_PART = r"(?:([0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})(ns|us|µs|μs|ms|s|m|h))"
_WHOLE = re.compile(rf"{_PART}{{1,16}}")
_EACH = re.compile(_PART)
_MAX_SECONDS = Fraction((1 << 63) - 1, 10**9)


def parse_duration(text: str) -> Fraction | None:
    """Return the seconds of a positive duration or of ``0``.

    Returns None if the text is invalid or the duration exceeds Go's limit (292 years).
    """
    if text == "0":
        return Fraction(0)
    if len(text) > 128 or not _WHOLE.fullmatch(text):
        return None
    seconds = sum((Fraction(number.rstrip(".")) * _UNITS[unit] for number, unit in _EACH.findall(text)), Fraction(0))
    return seconds if seconds <= _MAX_SECONDS else None
