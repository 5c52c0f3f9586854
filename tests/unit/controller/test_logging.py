"""Tests that each log record is one line, whatever it contains."""

from __future__ import annotations

import json
import logging
import sys

from cdi.api.errors import Conflict
from cdi.controller.logging import JsonFormatter, fields


def written(message: str, *arguments: object, error: BaseException | None = None, **about: object) -> dict[str, object]:
    record = logging.LogRecord("cdi.controller", logging.INFO, __file__, 1, message, arguments, None)
    if error is not None:
        try:
            raise error
        except BaseException:
            record.exc_info = sys.exc_info()
    record.__dict__.update(fields(**about))
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_what_a_record_is_about_is_in_fields() -> None:
    line = written("phase", key="volume a/b", phase="Succeeded", reason="", attempt=2)
    assert line["message"] == "phase"
    assert (line["key"], line["phase"], line["attempt"]) == ("volume a/b", "Succeeded", 2)
    assert "reason" not in line


def test_text_of_others_stays_on_its_line_and_is_bounded() -> None:
    line = written("odd", key="a\nb\x1b[31m", reason="x" * 100_000)
    assert line["key"] == "a\nb\x1b[31m"
    assert len(str(line["reason"])) == 4096


def test_a_field_cannot_pretend_to_be_another() -> None:
    assert written("told", level="debug", time="never")["level"] == "info"


def test_our_failures_are_a_sentence_and_defects_bring_their_traceback() -> None:
    ours = written("failed", error=Conflict("another client was faster"))
    assert "another client was faster" in str(ours["error"])
    assert "traceback" not in ours
    assert "ZeroDivisionError" in str(written("failed", error=ZeroDivisionError("x"))["traceback"])
