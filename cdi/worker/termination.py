"""Termination message of a worker pod, which the kubelet copies into the pod's status.

    {"message": "Import Complete", "preallocationApplied": false, "scratchSpaceRequired": false, "labels": {…},
     "outcome": {…}, "journal": "…"}

The first four fields are those of the upstream importer; `outcome` is a `cdi.api.job.Outcome`; `journal` is present if
the volume itself cannot store it and the next attempt can resume from it; `run` is present from the second run of the
container on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from cdi.api.importer_messages import termination_text
from cdi.api.job import Outcome

LIMIT = 4096
"""Maximum length in bytes: the kubelet truncates longer messages, which would then be invalid JSON."""
COMPLETE = "Import Complete"
_SHORT = 120
"""Maximum length in characters of a text that is shortened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminationMessage:
    """Content of a termination message."""

    outcome: Outcome
    message: str
    labels: dict[str, str]
    journal: str | None
    run: int = 1

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
        if self.run > 1:
            document["run"] = self.run
        return json.dumps(document, separators=(",", ":"))


def termination_message(
    outcome: Outcome, journal: str | None = None, limit: int = LIMIT, *, source: str = "", run: int = 1
) -> str:
    """Return valid JSON of at most `limit` bytes of ASCII.

    `source` is the kind of the job's source, empty for a clone; `run` is the number of this run of the container.

    If the content is too long, redundant text is shortened first, then the least important: warnings, labels, and at
    last the end of the failure's message. The journal is dropped only after that, as it saves more work than any text.
    """
    text = ""
    for words in _truncations(outcome, journal, source, run):
        text = words.to_json()
        if len(text) <= limit:
            return text
    return text[:limit]  # only for a limit below the shortest possible message


def _truncations(outcome: Outcome, journal: str | None, source: str, run: int) -> Iterator[TerminationMessage]:
    failure = outcome.failure
    message = COMPLETE if failure is None else termination_text(failure, source)
    words = TerminationMessage(outcome=outcome, message=message, labels=outcome.labels, journal=journal, run=run)
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
    # External text of any length.
    words = replace(words, outcome=replace(words.outcome, validator=None))
    yield words
    if failure is not None:
        length = len(failure.message)
        while length > 0:
            length = length * 3 // 4
            shortened = replace(failure, message=failure.message[:length])
            yield replace(words, message="", outcome=replace(words.outcome, failure=shortened))
        words = replace(
            words, message="", outcome=replace(words.outcome, failure=replace(failure, message="", upstream=""))
        )
    yield replace(words, journal=None)
    yield replace(words, journal=None, outcome=Outcome(id=outcome.id[:_SHORT], failure=words.outcome.failure))
