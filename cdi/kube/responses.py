"""Map failures of the API server to errors of this project, and decode JSON that may be large.

The mapping follows the API conventions, section *Response Status Kind*: a ``Status`` describes the failure in its
fields, and its message is for people. Three cases are exceptions, because Kubernetes reports them in the message only:
quotas, webhooks and admission policies. Webhooks and policies respond with a code that their author chose, usually the
one of invalid objects.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Any

from cdi.api.errors import (
    AdmissionDenied,
    AlreadyExists,
    CdiError,
    ClusterForbidden,
    ClusterProtocolError,
    ClusterRefused,
    ClusterUnauthorized,
    ClusterUnavailable,
    Conflict,
    HistoryExpired,
    InvalidManifest,
    KindNotServed,
    NotFound,
    QuotaExceeded,
)
from cdi.api.json_document import NestingCheck, parse_json
from cdi.api.kinds import Object
from cdi.api.names import GROUP

MAX_MESSAGE = 2000
"""Maximum length of a server's message, in characters; the rest is cut."""
MAX_PAUSE = 120.0
"""Upper bound of an honoured Retry-After, in seconds."""
_SLICE = 1 << 18
"""Characters that are decoded before the event loop gets control: about a millisecond."""
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()  # noqa: TID251  after `NestingCheck`
_QUOTA = ("exceeded quota: ", "failed quota: ", "insufficient quota ")
_WEBHOOK = re.compile(r'admission webhook "([^"]*)" denied the request')
_POLICY = "ValidatingAdmissionPolicy '"


def error_from_status(status: int, body: Any, headers: Mapping[str, str], where: str) -> CdiError:
    """Return the error for a response with HTTP status `status` (300 or above); `where` names the request."""
    answer: dict[str, Any] = body if isinstance(body, dict) and body.get("kind") == "Status" else {}
    reason = str(answer.get("reason") or "")
    message = " ".join(str(answer.get("message") or f"HTTP status {status}").split())[:MAX_MESSAGE].rstrip(".")
    if 400 <= status < 500 and status not in (403, 429) and _denied(message):
        return AdmissionDenied(message, where=_fields(answer) or where)
    match status:
        case 401:
            return ClusterUnauthorized(f"the API server rejected the credentials: {message}", where=where)
        case 403:
            return _forbidden(answer, message, where)
        case 404 if not reason:
            # Paths that no API serves get plain text from the server's outermost handler.
            return KindNotServed("the API server does not serve this kind of object", where=where)
        case 404:
            return NotFound(message, where=where)
        case 409:
            return (AlreadyExists if reason == "AlreadyExists" else Conflict)(message, where=where)
        case 410:
            return HistoryExpired(message, where=where)
        case 400 | 413 | 422:
            return InvalidManifest(message, where=_fields(answer) or where)
        case 429:
            return ClusterUnavailable(message, where=where, retry_after=retry_after(answer, headers))
        case _ if status >= 500:
            return ClusterUnavailable(message, where=where, retry_after=retry_after(answer, headers))
        case _ if status >= 400:
            return ClusterRefused(message, where=where)
        case _:
            return ClusterProtocolError(f"unexpected HTTP status {status} from the API server", where=where)


def _forbidden(answer: Mapping[str, Any], message: str, where: str) -> CdiError:
    """Return the error of a 403; a quota's is recognised by the prefix that its admission plug-in writes."""
    _, found, why = message.partition(" is forbidden: ")
    if found and answer.get("reason") == "Forbidden" and why.startswith(_QUOTA):
        return QuotaExceeded(message, where=where)
    if any(cause.get("reason") == "NamespaceTerminating" for cause in _causes(answer)):
        return ClusterForbidden(message, where=where, remedy="the namespace is being deleted; use another")
    return ClusterForbidden(message, where=where)


def _denied(message: str) -> bool:
    """Return whether an admission plug-in denied the request, webhooks of our own group (invalid input) excepted."""
    webhook = _WEBHOOK.match(message)
    if webhook is not None:
        return not webhook[1].endswith(f".{GROUP}")
    return message.partition(" is forbidden: ")[2].startswith(_POLICY)


def _causes(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    details = answer.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    return [cause for cause in causes if isinstance(cause, dict)] if isinstance(causes, list) else []


def _fields(answer: Mapping[str, Any]) -> str:
    fields = dict.fromkeys(str(cause["field"]) for cause in _causes(answer) if cause.get("field"))
    return ", ".join(fields)[:MAX_MESSAGE]


def retry_after(answer: Mapping[str, Any], headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the header or the Status asks to wait; dates, which no API server sends, are ignored."""
    details = answer.get("details")
    stated = details.get("retryAfterSeconds") if isinstance(details, dict) else None
    for text in (headers.get("Retry-After"), stated):
        try:
            seconds = float(text)  # type: ignore[arg-type]  # None is a TypeError
        except (TypeError, ValueError):
            continue
        if 0 < seconds < float("inf"):
            return min(seconds, MAX_PAUSE)
    return None


def decode(data: bytes, where: str) -> Any:
    """Decode JSON, or raise `ClusterProtocolError`."""
    try:
        return parse_json(data)
    except ValueError as error:
        raise ClusterProtocolError(f"the response is not valid JSON: {error}", where=where) from error


async def decode_list(data: bytes, where: str, each: Callable[[Object], Object]) -> tuple[list[Object], Object]:
    """Return the items of a list, each passed through `each` as soon as it is decoded, and the list's metadata.

    The C decoder holds the interpreter lock, so a thread would not help: items are decoded one at a time, and the event
    loop gets control in between.

    Raises:
        ClusterProtocolError: the response is not a list in JSON.
    """
    items: list[Object] = []
    metadata: Object = {}
    try:
        text = data.decode()
        await _check_nesting(text)
        if text.startswith("{"):
            async for name, value in _members(text):
                if name == "items" and isinstance(value, dict):
                    items.append(each(value))
                elif name == "metadata" and isinstance(value, dict):
                    metadata = value
            return items, metadata
    except (IndexError, StopIteration) as error:
        raise ClusterProtocolError("the response is not valid JSON: it ends early", where=where) from error
    except ValueError as error:
        raise ClusterProtocolError(f"the response is not valid JSON: {error}", where=where) from error
    raise ClusterProtocolError("the response is not a list", where=where)


async def _check_nesting(text: str) -> None:
    """Raise `ValueError` for what is nested too deep to be parsed, with turns for others in between."""
    check = NestingCheck()
    for at in range(0, len(text), _SLICE):
        check.feed(text[at : at + _SLICE])
        await asyncio.sleep(0)


async def _members(text: str) -> AsyncIterator[tuple[str, Any]]:
    """Yield the members of the outermost object, and each element of ``items`` separately."""
    at, turn = _after_space(text, 1), 0
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at) if text[at] == '"' else _malformed()
        at = _after_space(text, _past(text, at, ":"))
        if name == "items" and text[at] == "[":
            at = _after_space(text, at + 1)
            while text[at] != "]":
                value, at = _DECODER.raw_decode(text, at)
                yield name, value
                at = _next(text, at, "]")
                if at - turn > _SLICE:
                    turn = at
                    await asyncio.sleep(0)
            at += 1
        else:
            value, at = _DECODER.raw_decode(text, at)
            yield name, value
        at = _next(text, at, "}")


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _past(text: str, at: int, mark: str) -> int:
    at = _after_space(text, at)
    return at + 1 if text[at] == mark else _malformed()


def _next(text: str, at: int, end: str) -> int:
    """Return the offset of the next element, or of `end`."""
    at = _after_space(text, at)
    return at if text[at] == end else _after_space(text, _past(text, at, ","))


def _malformed() -> Any:
    raise ValueError("a member cannot be read")


async def lines(pieces: AsyncIterable[bytes], limit: int, where: str) -> AsyncIterator[bytes]:
    """Yield each line without its end; skip empty lines and an incomplete last line.

    Raises:
        ClusterProtocolError: a line has more than `limit` bytes.
    """
    pending: list[bytes] = []  # joined once: concatenation would copy a long line per chunk
    size = 0
    async for piece in pieces:
        parts = piece.split(b"\n")
        for number, part in enumerate(parts, 1):
            pending.append(part)
            size += len(part)
            if size > limit:
                raise ClusterProtocolError(f"a line exceeds {limit} bytes", where=where)
            if number < len(parts):
                line = b"".join(pending)
                pending, size = [], 0
                if line.strip():
                    yield line
