import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import Retry
from cdi.api.job import Failure, Outcome
from cdi.worker.termination import LIMIT, termination_message

text = st.text(max_size=3000)
failures = st.none() | st.builds(
    Failure,
    code=st.sampled_from(["ScratchNeeded", "SourceNotFound", "Interrupted"]),
    message=text,
    retry=st.sampled_from(Retry),
    exit_status=st.integers(1, 255),
    upstream=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=300),
)
outcomes = st.builds(
    Outcome,
    id=st.uuids().map(str),
    failure=failures,
    validator=st.none() | text,
    labels=st.dictionaries(st.text(max_size=80), st.text(max_size=300), max_size=20),
    warnings=st.lists(text, max_size=20).map(tuple),
    preallocated=st.booleans(),
)


def said(outcome, journal=None, **options):
    message = termination_message(outcome, journal, **options)
    assert len(message.encode()) <= options.get("limit", LIMIT)
    return json.loads(message)


@given(outcomes, st.none() | st.text(alphabet='abc{}":,', max_size=1000))
def test_whatever_there_is_to_say_fits(outcome, journal):
    words = said(outcome, journal)
    heard = Outcome.from_json(json.dumps(words["outcome"]))
    assert heard.id == outcome.id
    assert words["preallocationApplied"] is outcome.preallocated
    assert words.get("journal") == journal
    if outcome.failure is None:
        assert heard.failure is None
        assert words["message"] == "Import Complete"
    else:
        assert (heard.failure.code, heard.failure.retry) == (outcome.failure.code, outcome.failure.retry)
        assert outcome.failure.message.startswith(heard.failure.message)
        assert words["scratchSpaceRequired"] is (outcome.failure.code == "ScratchNeeded")


def test_a_small_outcome_is_said_whole():
    outcome = Outcome(id="x", labels={"a": "b"}, warnings=("w" * 300,), validator='"etag"')
    words = said(outcome)
    assert Outcome.from_json(json.dumps(words["outcome"])) == outcome
    assert words == {
        "message": "Import Complete",
        "preallocationApplied": False,
        "scratchSpaceRequired": False,
        "labels": {"a": "b"},
        "outcome": words["outcome"],
    }


def test_a_failure_begins_with_the_words_of_upstream():
    failure = Failure(
        code="PlatformNotFound", message="the image has no linux/absent", retry=Retry.NEVER, upstream="no image found"
    )
    words = said(Outcome(id="x", failure=failure), source="registry")
    assert words["message"] == "Unable to process data: no image found: the image has no linux/absent"
    assert words["outcome"]["failure"]["message"] == "the image has no linux/absent"


def test_labels_stay_longer_than_warnings_and_what_is_said_twice_goes_first():
    labels = {f"label{number}": "x" * 100 for number in range(10)}
    words = said(Outcome(id="x", labels=labels, warnings=("w" * 3000,)))
    assert words["outcome"]["labels"] == labels
    assert words["labels"] == labels
    assert words["outcome"]["warnings"] == ["w" * 120]
    failure = Failure(code="SourceNotFound", message="m" * 2000, retry=Retry.NEVER)
    words = said(Outcome(id="x", failure=failure, warnings=("w",)))
    assert words["outcome"]["failure"]["message"] == failure.message
    assert words["outcome"]["warnings"] == ["w"]
    assert words["message"] == "m" * 120


@pytest.mark.parametrize("letter", ["m", "\0", "\U0001f4a9"])
def test_a_message_of_any_letters_loses_its_end(letter):
    failure = Failure(code="SourceNotFound", message=letter * 5000, retry=Retry.NEVER)
    kept = said(Outcome(id="x", failure=failure))["outcome"]["failure"]["message"]
    assert len(json.dumps(kept)) > LIMIT // 2


def test_a_journal_that_does_not_fit_is_left_out():
    words = said(Outcome(id="x", failure=Failure(code="Interrupted", message="m", retry=Retry.BACKOFF)), "j" * 5000)
    assert "journal" not in words
    assert words["outcome"]["failure"]["code"] == "Interrupted"


def test_a_validator_is_whole_or_not_there():
    words = said(Outcome(id="x", validator="v" * 5000, digest="sha256:00"))
    assert words["outcome"]["validator"] is None
    assert words["outcome"]["digest"] == "sha256:00"
