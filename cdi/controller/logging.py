"""JSON logging: one object per line on standard error, for ``jq`` and for log collectors.

    {"time":"2026-01-02T03:04:05.678Z","level":"info","logger":"cdi.controller","message":"phase",
     "key":"volume images/fedora","phase":"ImportInProgress","reason":"Pod is running"}

Variable data goes into fields (`fields`), never into the message, so that nothing has to be parsed out of text.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cdi.api.errors import CdiError

_FIELDS = "cdi"
_MAX_FIELD = 4096
"""Maximum length of a value in characters: objects of users may contain any text."""


def fields(**values: object) -> Mapping[str, Any]:
    """Return the ``extra=`` argument with a log record's fields; empty values are left out."""
    return {_FIELDS: {name: value for name, value in values.items() if value not in ("", None)}}


class JsonFormatter(logging.Formatter):
    """Formatter that writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_MAX_FIELD],
        }
        for name, value in getattr(record, _FIELDS, {}).items():
            line.setdefault(name, _plain(value))
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line.setdefault("error", str(error)[:_MAX_FIELD])
            if not isinstance(error, CdiError):
                line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, separators=(",", ":"), ensure_ascii=True)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, CdiError):
        return value.message[:_MAX_FIELD]
    return str(value)[:_MAX_FIELD]


def configure(verbosity: int) -> None:
    """Send all records to standard error; the package's debug records only if `verbosity` is 2 or more."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("cdi").setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)
    # The access log has one line for each request, and scrapes and probes send several a minute.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
