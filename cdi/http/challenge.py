"""Parsing of ``WWW-Authenticate``, in which a registry states the authentication it requires.

Follows RFC 9110 section 11.6.1 to the extent registries use it: any number of challenges, each a scheme with
parameters. The parser accepts common errors (a URL without quotation marks) and is bounded: it reads at most 8 KiB of a
value and 16 challenges, in one pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_WORD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_EQUALS = re.compile(r"[ \t]*=[ \t]*(?!=)")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BARE = re.compile(r'[^\s,"]*')
_SKIP = re.compile(r"[^,]*")
_GAP = re.compile(r"[\s,]*")
_MAX_LENGTH = 8192
_MAX_CHALLENGES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One authentication method; `scheme` and the parameters' names are in lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(values: Iterable[str]) -> tuple[Challenge, ...]:
    """Parse the header's values in the server's order; of repeated parameters the first counts."""
    found: list[Challenge] = []
    for value in values:
        text = value[:_MAX_LENGTH]
        first = len(found)
        position = 0
        while (position := _end(_GAP, text, position)) < len(text):
            word = _WORD.match(text, position)
            if word is None:
                position = max(_end(_SKIP, text, position), position + 1)
                continue
            position = word.end()
            equals = _EQUALS.match(text, position)
            if equals is None:
                if text.startswith("=", position):  # the padding of a token68, as in Negotiate
                    position = _end(_SKIP, text, position)
                elif len(found) == _MAX_CHALLENGES:
                    break
                else:
                    found.append(Challenge(scheme=word[0].lower()))
                continue
            quoted = _QUOTED.match(text, equals.end())
            bare = quoted or _BARE.match(text, equals.end())
            assert bare is not None, "an empty value matches too"
            position = bare.end()
            if len(found) > first:
                content = bare[0] if quoted is None else re.sub(r"\\(.)", r"\1", quoted[1])
                found[-1].parameters.setdefault(word[0].lower(), content)
    return tuple(found)


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return position if match is None else match.end()
