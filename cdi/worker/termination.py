"""The last words of a worker pod, which the kubelet copies into the pod's status.

    {"message": "Import Complete", "preallocationApplied": false, "scratchSpaceRequired": false, "labels": {…},
     "outcome": {…}, "journal": "…"}

The first four are those that readers of the upstream importer know; `outcome` is `cdi.api.job.Outcome`; `journal` is
there where the volume itself cannot keep it and the next attempt can go on from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from cdi.api.job import Outcome

LIMIT = 4096
"""The kubelet cuts off what is longer, bytes; half a document tells nothing."""
COMPLETE = "Import Complete"
_SHORT = 120
"""Characters of a text that makes way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWords:
    """What is to be said."""

    outcome: Outcome
    message: str
    labels: dict[str, str]
    journal: str | None

    def to_json(self) -> str:
        failure = self.outcome.failure
        document: dict[str, object] = {
            "message": self.message,
            "preallocationApplied": self.outcome.preallocated,
            "scratchSpaceRequired": failure is not None and failure.code == "ScratchNeeded",
            "labels": self.labels,
            "outcome": asdict(self.outcome),
        }
        if self.journal is not None:
            document["journal"] = self.journal
        return json.dumps(document, separators=(",", ":"))


def termination_message(outcome: Outcome, journal: str | None = None, limit: int = LIMIT) -> str:
    """At most `limit` bytes of ASCII, and valid JSON whatever is in it.

    What the document says twice gives way first, then what is least missed: warnings, labels, and at last the end of
    the failure's message.  The journal stays: what it saves is worth more than words.
    """
    text = ""
    for words in _shorter_and_shorter(outcome, journal):
        text = words.to_json()
        if len(text) <= limit:
            return text
    return text[:limit]  # a limit below anything that could be said


def _shorter_and_shorter(outcome: Outcome, journal: str | None) -> Iterator[LastWords]:
    failure = outcome.failure
    message = COMPLETE if failure is None else failure.message
    words = LastWords(outcome=outcome, message=message, labels=outcome.labels, journal=journal)
    yield words
    words = replace(words, message=message[:_SHORT])
    yield words
    for warnings in (tuple(each[:_SHORT] for each in outcome.warnings[:5]), outcome.warnings[:0]):
        words = replace(words, outcome=replace(words.outcome, warnings=warnings))
        yield words
    words = replace(words, labels={})
    yield words
    words = replace(words, outcome=replace(words.outcome, labels={}))
    yield words
    # Foreign texts of any length.
    words = replace(words, outcome=replace(words.outcome, validator=None))
    yield words
    if failure is not None:
        length = len(failure.message)
        while length > 0:
            length = length * 3 // 4
            shortened = replace(failure, message=failure.message[:length])
            yield replace(words, message="", outcome=replace(words.outcome, failure=shortened))
        words = replace(words, message="", outcome=replace(words.outcome, failure=replace(failure, message="")))
    yield replace(words, journal=None)
    yield replace(words, journal=None, outcome=Outcome(id=outcome.id[:_SHORT], failure=words.outcome.failure))
