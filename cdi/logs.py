"""Log of every process of this project, on standard error: one set-up, and two forms of a line.

Controller and servers write JSON, for ``jq`` and for log collectors:

    {"time":"2026-01-02T03:04:05.678Z","level":"info","logger":"cdi.controller","message":"phase changed",
     "key":"volume images/fedora","phase":"ImportInProgress","reason":"Pod is running",
     "because":"Pod images/importer-fedora changed"}

Workers and the supervisor of one machine write text, which people read with ``cdi logs``:

    2026-01-02T03:04:05Z transferring: 512 MiB of 1 GiB, 50 %
    2026-01-02T03:04:09Z error[SourceNotFound]: the server has no such file

Every module logs through the standard library's `logging`. Variable data goes into fields (`fields`), never into the
message, so that nothing has to be parsed out of text; what belongs to all records of a piece of work is bound once
(`bind`). Messages and fields are bounded, and credentials in them are removed, because objects, servers and images may
contain any text.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, assert_never

from cdi.api.errors import CdiError
from cdi.api.printable import escaped

VERBOSITY = "CDI_VERBOSITY"
"""Environment variable of a worker with CDIConfig's logVerbosity.

At 0 only start and end are logged, at 1 progress too, at 2 progress is logged more often, and from 3 on every
connection, request, retry and checkpoint as well.
"""
_DEBUG_VERBOSITY = 3
_FIELDS = "cdi"
_CODE = "code"
_MAX_TEXT = 4096
"""Maximum length of a message and of a value, in characters."""
_MAX_TRACEBACK = 1 << 16
_URL = re.compile(r"://[^\s\"'<>]+")
_TOKEN = re.compile(
    r"(?<![\w-])(?=[\w-]++\.[\w-]++\.[\w-])([\w-]*?)\beyJ[\w-]{5,}+\.[\w-]++\.[\w-]++"
    r"|\b(?:(?<=Bearer )|(?<=Basic ))[\w.~+/=-]{8,}"
)
"""A JSON Web Token, with what precedes it without a separator as group 1, and the credentials of an HTTP header.

Tokens are searched for only at the start of a part of a dotted text that has two more parts, and parts are not given
back: otherwise the time for a hostile text would grow with the square of its length.
"""

_bound: ContextVar[Mapping[str, object]] = ContextVar("fields", default={})  # noqa: B039  never modified


class LogFormat(enum.Enum):
    """Form of a line."""

    JSON = "json"
    TEXT = "text"


def configure(log_format: LogFormat, level: str = "info") -> None:
    """Send all records to standard error, those of this project from the given level on."""
    handler = _StandardErrorHandler()
    match log_format:
        case LogFormat.JSON:
            handler.setFormatter(JsonFormatter())
        case LogFormat.TEXT:
            handler.setFormatter(TextFormatter())
        case _:
            assert_never(log_format)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("cdi").setLevel(level.upper())
    # The access log has one line for each request, and scrapes and probes send several a minute.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def verbosity() -> int:
    """Return the verbosity that this worker was started with; 1 if it is missing or malformed."""
    text = os.environ.get(VERBOSITY, "")
    return int(text) if text.isdecimal() and len(text) < 10 else 1


def configure_worker() -> None:
    """Send the records of a worker to standard error, those of its verbosity."""
    configure(LogFormat.TEXT, "debug" if verbosity() >= _DEBUG_VERBOSITY else "info")


def fields(**values: object) -> Mapping[str, Any]:
    """Return the ``extra=`` argument with a log record's fields; empty values are left out."""
    return {_FIELDS: {name: value for name, value in values.items() if value not in ("", None)}}


@contextlib.contextmanager
def bind(**values: object) -> Iterator[None]:
    """Add fields to all records that this task logs within the context; fields of a record itself take precedence."""
    token = _bound.set({**_bound.get(), **fields(**values)[_FIELDS]})
    try:
        yield
    finally:
        _bound.reset(token)


def redact(text: str) -> str:
    """Return a text without the user, password and query of URLs, without tokens, and without those of HTTP headers."""
    if "://" in text:
        from cdi.api.rules.urls import without_secrets

        text = _URL.sub(lambda match: without_secrets(match[0]), text)
    return _TOKEN.sub(r"\1[redacted]", text)


class _StandardErrorHandler(logging.Handler):
    """Handler for what standard error is at the moment; a log that cannot be written is no reason to end the work."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except OSError:
            pass
        except Exception:  # noqa: BLE001  logging must not break what it reports about
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """Formatter that writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _text(record.getMessage()),
        }
        for name, value in _fields_of(record).items():
            line.setdefault(name, _plain(value))
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line.setdefault("error", _text(str(error)))
            if not isinstance(error, CdiError):
                line["traceback"] = redact(self.formatException(record.exc_info)[-_MAX_TRACEBACK:])
        return json.dumps(line, separators=(",", ":"), ensure_ascii=True)


class TextFormatter(logging.Formatter):
    """Formatter that writes a record as one line of text, and a defect's traceback on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        found = dict(_fields_of(record))
        code = found.pop(_CODE, "")
        prefix = "" if record.levelno == logging.INFO else record.levelname.lower()
        if prefix:
            prefix += f"[{code}]: " if code else ": "
        more = "".join(f", {name}: {_plain(value)}" for name, value in found.items())
        lines = [escaped(f"{prefix}{_text(record.getMessage())}{more}")]
        if record.exc_info and record.exc_info[1] is not None:
            if isinstance(record.exc_info[1], CdiError):
                lines[0] += escaped(f": {_text(str(record.exc_info[1]))}")
            else:
                trace = redact(self.formatException(record.exc_info)[-_MAX_TRACEBACK:])
                lines += [escaped(line) for line in trace.splitlines()]
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return "\n".join(f"{moment} {line}" for line in lines)


def is_debug(line: str) -> bool:
    """Return whether `line` of a worker's log is one that only a high verbosity adds."""
    return line.partition(" ")[2].startswith("debug: ")


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    return {**_bound.get(), **getattr(record, _FIELDS, {})}


def _text(text: str) -> str:
    return redact(text[: 4 * _MAX_TEXT])[:_MAX_TEXT]


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, CdiError):
        return _text(value.message)
    return _text(str(value))
