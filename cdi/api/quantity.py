"""Kubernetes quantities such as ``10Gi``, ``1500m`` and ``2e3``.

Grammar, rounding and canonical form follow ``k8s.io/apimachinery/pkg/api/resource``:

    quantity  = [sign] number [suffix]
    number    = digits | digits "." | digits "." digits | "." digits
    suffix    = "Ki".."Ei" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | ("e" | "E") [sign] digits

Values are exact fractions, so sizes never suffer from the rounding of floats. Values finer than 10^-9 are rounded away
from zero, as in Kubernetes.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import total_ordering
from typing import Self

from cdi.api.errors import InvalidManifest
from cdi.api.json_document import json_type

MAX_TEXT = 128
"""Maximum length in characters; valid input is shorter, and parsing an unbounded number takes quadratic time."""
MAX_EXPONENT = 64
MAX_BYTES = (1 << 63) - 1
"""Largest size in bytes that Kubernetes and the kernel's offsets can represent."""

KIB = 1 << 10
MIB = 1 << 20

PATTERN = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
"""Regular expression for JSON schemas."""
_GRAMMAR = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?"
    r"(?:(?P<binary>[KMGTPE])i|(?P<decimal>[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]+))?"
)
_BINARY = {"K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY_SUFFIX = {power: f"{letter}i" for letter, power in _BINARY.items()} | {0: ""}
_DECIMAL_SUFFIX = {power: letter for letter, power in _DECIMAL.items()} | {0: ""}
_NANO = 10**9


class Notation(enum.StrEnum):
    """Notation of a quantity, which determines its canonical form."""

    NUMBER = "number"
    """A plain number instead of text; it is also serialized as a number."""
    DECIMAL = "decimal"
    BINARY = "binary"
    EXPONENT = "exponent"


@total_ordering
@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """Exact amount; equality and order are those of the value: ``1Gi == 1024Mi``."""

    text: str
    """Original text."""
    value: Fraction
    notation: Notation

    @classmethod
    def parse(cls, text: object) -> Self:
        """Parse a quantity from a string, or a plain number from an integer.

        Raises:
            InvalidManifest: `text` is not a quantity.
        """
        if isinstance(text, bool) or not isinstance(text, str | int):
            raise InvalidManifest(f"a quantity must be of type string or integer, not {json_type(text)}")
        if isinstance(text, int):
            if abs(text) > 10**MAX_EXPONENT:
                raise InvalidManifest("the quantity is out of range")
            return cls(str(text), Fraction(text), Notation.NUMBER)
        if len(text) > MAX_TEXT:
            raise InvalidManifest(f"a quantity of {len(text)} characters is too long")
        match = _GRAMMAR.fullmatch(text)
        # [0-9] excludes other Unicode digits, which int() would accept.
        if match is None or not (match["whole"] or match["part"]):
            raise InvalidManifest(f"{text!r} is not a quantity such as 10Gi, 500M or 1.5Ti")
        part = match["part"] or ""
        value = Fraction(int((match["whole"] or "0") + part), 10 ** len(part))
        notation = Notation.DECIMAL
        if match["binary"]:
            notation = Notation.BINARY
            value *= 1 << (10 * _BINARY[match["binary"]])
        elif match["decimal"]:
            value *= Fraction(10) ** _DECIMAL[match["decimal"]]
        elif match["exponent"]:
            notation = Notation.EXPONENT
            exponent = int(match["exponent"])
            if abs(exponent) > MAX_EXPONENT:
                raise InvalidManifest(f"the exponent of {text!r} is out of range")
            value *= Fraction(10) ** exponent
        value = Fraction(-(-value.numerator * _NANO // value.denominator), _NANO)
        return cls(text, -value if match["sign"] == "-" else value, notation)

    @classmethod
    def of_bytes(cls, size: int) -> Self:
        """Return the quantity of `size` bytes in canonical form with binary units."""
        plain = cls(str(size), Fraction(size), Notation.BINARY)
        return cls(plain.canonical(), plain.value, Notation.BINARY)

    @property
    def bytes(self) -> int:
        """Value as an integer, rounded away from zero."""
        magnitude = abs(self.value)
        whole = -(-magnitude.numerator // magnitude.denominator)
        return whole if self.value >= 0 else -whole

    def canonical(self) -> str:
        """Return the form with the largest suffix and an integer: ``1Gi`` for ``1024Mi``, ``1500m`` for ``1.5``.

        As in Kubernetes, small or fractional binary amounts are written in decimal notation.
        """
        if not self.value:
            return "0"
        if self.notation is Notation.BINARY and abs(self.value) >= KIB and self.value.denominator == 1:
            number, power = self.value.numerator, 0
            while power < 6 and number % 1024 == 0:
                number, power = number // 1024, power + 1
            return f"{number}{_BINARY_SUFFIX[power]}"
        scaled = self.value * _NANO
        number, power = scaled.numerator, -9
        highest = MAX_EXPONENT * 2 if self.notation is Notation.EXPONENT else 18
        while power < highest and number % 1000 == 0:
            number, power = number // 1000, power + 3
        if self.notation is Notation.EXPONENT and power:
            return f"{number}e{power}"
        return f"{number}{_DECIMAL_SUFFIX[power]}"

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return self.value == other.value if isinstance(other, Quantity) else NotImplemented

    def __lt__(self, other: Quantity) -> bool:
        return self.value < other.value

    def __hash__(self) -> int:
        return hash(self.value)


def human(size: int) -> str:
    """Return a readable size: exact if that is short (``20Gi``), otherwise with one decimal (``1.5Gi``)."""
    if size < KIB:
        return f"{size} bytes"
    exact = Quantity.of_bytes(size).text
    if exact.endswith("i") and len(exact) <= 6:
        return exact
    power = min(6, (size.bit_length() - 1) // 10)
    return f"{size / (1 << (10 * power)):.1f}{_BINARY_SUFFIX[power]}"
