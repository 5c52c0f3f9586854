"""Tests that each log record is one line without credentials, whatever it contains."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from cdi.api.errors import Conflict
from cdi.logs import JsonFormatter, LogFormat, TextFormatter, bind, configure, fields, redact


def record_of(
    message: str,
    *arguments: object,
    error: BaseException | None = None,
    severity: int = logging.INFO,
    **about: object,
) -> logging.LogRecord:
    record = logging.LogRecord("cdi.controller", severity, __file__, 1, message, arguments, None)
    if error is not None:
        try:
            raise error
        except BaseException:
            record.exc_info = sys.exc_info()
    record.__dict__.update(fields(**about))
    return record


def written(message: str, *arguments: object, **about: object) -> dict[str, object]:
    line = JsonFormatter().format(record_of(message, *arguments, **about))  # type: ignore[arg-type]
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


def text_of(message: str, *arguments: object, **about: object) -> str:
    """Return a line of text without its time."""
    line = TextFormatter().format(record_of(message, *arguments, **about))  # type: ignore[arg-type]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line)
    return line[21:]


def test_a_line_of_json_has_the_time_in_milliseconds() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(written("x")["time"]))


def test_a_line_of_text_has_its_level_and_code_in_front_and_its_fields_behind() -> None:
    assert text_of("limits: %s", "none") == "limits: none"
    assert text_of("a page", severity=logging.WARNING) == "warning: a page"
    assert (
        text_of("no such file", severity=logging.ERROR, code="SourceNotFound") == "error[SourceNotFound]: no such file"
    )
    assert text_of("attempt started", key="volume a/b", attempt=2) == "attempt started, key: volume a/b, attempt: 2"


def test_a_line_of_text_cannot_be_broken_by_what_it_quotes() -> None:
    assert text_of("a\x1b[2Jb\nc", key="d\re") == "a\\x1b[2Jb\\x0ac, key: d\\x0de"


def test_text_has_the_traceback_of_defects_only() -> None:
    assert text_of("failed", error=Conflict("too slow")).startswith("failed: error[Conflict]: too slow. Try: ")
    lines = text_of("failed", error=ZeroDivisionError("x")).splitlines()
    assert lines[0] == "failed"
    assert all(re.match(r"\d{4}-", line) for line in lines[1:])
    assert lines[-1].endswith(" ZeroDivisionError: x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET https://me:secret@h:8443/x.qcow2?X-Amz-Signature=secret failed", "GET https://h:8443/x.qcow2 failed"),
        ('get "https://h/a?token=secret#secret".', 'get "https://h/a".'),
        ("https://a:secret@h/x and http://b:secret@i/y", "https://h/x and http://i/y"),
        ("token eyJhbGciOiJQUzI1NiJ9.eyJpc3MiOiJ4In0.c2VjcmV0 is expired", "token [redacted] is expired"),
        ("at pod-eyJhbGciOiJQUzI1NiJ9.eyJpc3MiOiJ4In0.c2VjcmV0", "at pod-[redacted]"),
        ("images.eyJhbGciOiJQUzI1NiJ9.eyJpc3MiOiJ4In0.c2VjcmV0", "images.[redacted]"),
        ("eyJhbGciOiJQUzI1NiJ9.eyJpc3MiOiJ4In0 and 1.24.3", "eyJhbGciOiJQUzI1NiJ9.eyJpc3MiOiJ4In0 and 1.24.3"),
        ("Authorization: Bearer secretsecret", "Authorization: Bearer [redacted]"),
        ("Authorization: Basic bWU6c2VjcmV0", "Authorization: Basic [redacted]"),
        ("GET /api/v1/pods?watch=1 in 3 s, a://", "GET /api/v1/pods?watch=1 in 3 s, a://"),
    ],
)
def test_credentials_are_removed_from_messages_and_fields(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert written("%s", text)["message"] == expected
    assert written("x", error=ValueError(text))["error"] == expected
    assert written("x", reason=text)["reason"] == expected
    assert text_of("x", reason=text) == f"x, reason: {expected}"
    assert "secret" not in str(written("x", error=ValueError(text)))


@pytest.mark.parametrize("text", ["eyJ-", "eyJaaaaa.", "eyJ-eyJaaaaa. "])
def test_the_time_to_redact_a_text_grows_with_its_length_only(text: str) -> None:
    # A search whose time grows with the square of the length would take hours.
    redact(text * (1 << 20))


@pytest.fixture
def loggers() -> Iterator[None]:
    """Restore the loggers that `configure` changes."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("cdi").setLevel(logging.NOTSET)


@pytest.mark.usefixtures("loggers")
def test_the_level_is_that_of_this_projects_records(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogFormat.JSON, "debug")
    logging.getLogger("cdi.kube").debug("ours")
    logging.getLogger("aiohttp").debug("another's")
    logging.getLogger("aiohttp").info("another's, and worth a line")
    configure(LogFormat.TEXT, "error")
    logging.getLogger("cdi.kube").warning("ours")
    said = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in said] == ["ours", "another's, and worth a line"]


@pytest.mark.usefixtures("loggers")
def test_a_log_that_cannot_be_written_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A full disk may still have unwritten bytes of the file when it is closed.
    with contextlib.suppress(OSError), open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", full)
        configure(LogFormat.TEXT)
        logging.getLogger("cdi").info("lost")
    logging.getLogger("cdi").info("written")
    assert [line[21:] for line in capsys.readouterr().err.splitlines()] == ["written"]


def test_bound_fields_are_in_each_record_and_those_of_the_record_win() -> None:
    with bind(key="volume a/b", because="Pod a/x changed"):
        line = written("phase changed", key="volume a/c")
    assert (line["key"], line["because"]) == ("volume a/c", "Pod a/x changed")
    assert "because" not in written("phase changed")
