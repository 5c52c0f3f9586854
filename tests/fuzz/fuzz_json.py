"""Fuzz target: JSON that is nested too deeply never reaches the parser, and all other JSON is parsed unchanged.

python tests/fuzz/fuzz_json.py -max_total_time=60
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.api.json_document"]):
    from cdi.api.json_document import MAX_NESTING, NestingCheck, parse_json

from tests.fuzz.seeds import run

LEVELS = MAX_NESTING // 2


def depth(value: object) -> int:
    """Return the nesting depth, computed level by level, independently of the tested code."""
    found, level = 0, [value]
    while level := [each for each in level if isinstance(each, (dict, list))]:
        found += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return found


def refusal(check: NestingCheck, pieces: list[str]) -> str | None:
    try:
        for piece in pieces:
            check.feed(piece)
    except ValueError as error:
        return str(error)
    return None


def target(data: bytes) -> None:
    # A byte 0xff stands for more levels than a fuzzer would come to write.
    step, data = (
        1 + (data[0] if data else 0) % 13,
        data[1:].replace(b"\xff", b"[" * LEVELS).replace(b"\xfe", b"]" * LEVELS),
    )
    text = data.decode("utf-8", "replace")
    whole = refusal(NestingCheck(), [text])
    assert refusal(NestingCheck(), [text[at : at + step] for at in range(0, len(text), step)]) == whole
    try:
        value = parse_json(text)
    except ValueError:
        if whole is None:
            # What is not too deep for us is safe to try, and wrong for the parser as well.
            try:
                json.loads(text, parse_constant=_refuse)
            except ValueError:
                return
            raise AssertionError("sound JSON was refused") from None
        return
    assert whole is None
    assert depth(value) <= MAX_NESTING
    assert json.dumps(value) == json.dumps(json.loads(text))
    try:
        parse_json(text.encode("utf-16"), unique_fields=True)
    except ValueError as error:
        assert "duplicate field" in str(error)


def _refuse(text: str) -> None:
    raise ValueError(text)


def seeds() -> list[bytes]:
    texts = [
        '{"a": [1, 2.5, null, true], "b": "\\"[{\\\\"}',
        '[[["\\\\", "\\u005b["]]]',
        '{"a": 1, "a": 2}',
        "NaN",
        '"\\',
    ]
    return [b"\0" + text.encode() for text in texts] + [
        b"\1\xff\xff\xfe\xfe", b"\2\xff\xff[]\xfe\xfe", b'\3{"a":\xff"\xff"\xfe}', b"\4\xff\xff\xff",
    ]  # fmt: skip


if __name__ == "__main__":
    run(target, seeds(), 1024, fixed=35_000)
